//! The actors of one node.

mod drain;

use std::{
    any::{Any, TypeId},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use foldhash::fast::RandomState;

use crate::{
    ActorRef, Message, Result,
    actor::Actor,
    cell::{BEGAN_ANEW, Birth, Cell, Guardian, start_error},
    claim::Claim,
    codec::Opaque,
    ends::Ends,
    entry::Entry,
    env::Env,
    error::{Cause, Error, Failure},
    fence,
    id::{ActorAddr, ActorId, Incarnation, NodeId},
    mailbox::{Life, Mailbox},
    message::{Fingerprint, fingerprint_of_message, name_hash},
    registry::{Catalog, Handlers, Types},
    remote::{Batch, End, Remote},
    telemetry::Telemetry,
    tensor::BufferPool,
    watch::{Down, Watch},
    work::Work,
};

/// Numbers below this one are for a node's own actors, whose number other nodes know beforehand.
const FIRST_FREE_ACTOR: u64 = 16;

/// The actors of one node: spawns them, finds them, learns their end. Cheap to clone.
///
/// Nothing here is process-wide: a test runs several systems in one process.
#[derive(Clone)]
pub struct System(Arc<Inner>);

struct Inner {
    node: NodeId,
    incarnation: AtomicU64,
    env: Env,
    types: Types,
    actors: DashMap<ActorId, Entry, RandomState>,
    ends: Mutex<Ends>,
    /// It leaves: actors that stop now don't stop by themselves.
    leaving: AtomicBool,
    pids: DashMap<ractor::ActorId, ActorId>,
    next: AtomicU64,
    guardian: OnceLock<ractor::ActorRef<()>>,
    /// Of actors that have ended, while a call of theirs is not answered yet or what came from other nodes not dropped.
    left_behind: Mutex<Vec<Arc<Work>>>,
    draining: AtomicBool,
    remote: RwLock<Option<Arc<dyn Remote>>>,
    identities: DashMap<TypeId, (u64, Fingerprint), RandomState>,
    catalog: OnceLock<Catalog>,
    extensions: DashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    pool: BufferPool,
    telemetry: Telemetry,
}

impl System {
    /// Starts a node's actor system.
    ///
    /// # Errors
    /// If ractor can't start its root actor, or a type has the name of one of the node's own.
    pub async fn start(
        node: NodeId,
        incarnation: Incarnation,
        types: Types,
        env: Env,
    ) -> Result<Self> {
        types.check()?;
        let system = System(Arc::new(Inner {
            node,
            incarnation: AtomicU64::new(incarnation.0),
            env,
            types,
            actors: DashMap::default(),
            ends: Mutex::default(),
            leaving: AtomicBool::new(false),
            pids: DashMap::new(),
            next: AtomicU64::new(FIRST_FREE_ACTOR),
            guardian: OnceLock::new(),
            left_behind: Mutex::default(),
            draining: AtomicBool::new(false),
            remote: RwLock::new(None),
            identities: DashMap::default(),
            catalog: OnceLock::new(),
            extensions: DashMap::new(),
            pool: BufferPool::default(),
            telemetry: Telemetry::default(),
        }));
        let (guardian, _) = ractor::Actor::spawn(None, Guardian, system.clone())
            .await
            .map_err(|error| Error::other(error.to_string()))?;
        let _ = system.0.guardian.set(guardian);
        Ok(system)
    }

    /// The node's identifier.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Which life of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.0.incarnation.load(Ordering::Acquire))
    }

    /// Clock, randomness and spawner.
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// The node's counters.
    pub fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    /// Where the memory of arriving tensors comes from.
    pub fn pool(&self) -> &BufferPool {
        &self.0.pool
    }

    /// Names and shapes of all that this node takes.
    pub fn catalog(&self) -> &Catalog {
        self.0.catalog.get_or_init(|| self.0.types.catalog(self))
    }

    /// How many actors run here, the node's own included, as (type name, count), sorted by name.
    pub fn census(&self) -> Vec<(&'static str, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for entry in &self.0.actors {
            *counts.entry(entry.name).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    /// The actors that run here with their types' names, the node's own included, by number.
    pub fn actors(&self) -> Vec<(ActorId, &'static str)> {
        let mut all: Vec<_> =
            self.0.actors.iter().map(|entry| (*entry.key(), entry.name)).collect();
        all.sort_unstable();
        all
    }

    /// The actors of a type that run here, the oldest first.
    pub fn find(&self, name: &str) -> Vec<ActorAddr> {
        let found = self.0.actors.iter().filter(|entry| entry.name == name);
        let mut found: Vec<_> = found.map(|entry| self.addr_of(*entry.key())).collect();
        found.sort();
        found
    }

    /// Connects this node to others. The first connection stays, until
    /// [`disconnect`](Self::disconnect).
    pub fn connect(&self, remote: Arc<dyn Remote>) {
        self.0.remote.write().unwrap_or_else(PoisonError::into_inner).get_or_insert(remote);
    }

    /// Lets the connection go: from here on no other node can be reached. The connection knows the
    /// system and the system the connection; a node that ends calls this, so that both are freed.
    pub fn disconnect(&self) {
        let gone = self.0.remote.write().unwrap_or_else(PoisonError::into_inner).take();
        // Outside the lock: what it frees may ask for the connection.
        drop(gone);
    }

    /// Lays something of the outer rooms beside the actors, one value of each type, so that they
    /// can find it from their context.
    pub fn extend<T: Any + Send + Sync>(&self, value: Arc<T>) {
        self.0.extensions.insert(TypeId::of::<T>(), value);
    }

    /// What [`extend`](Self::extend) laid here.
    pub fn extension<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let found = self.0.extensions.get(&TypeId::of::<T>())?.value().clone();
        found.downcast().ok()
    }

    /// Starts an actor on this node, under the [`fence`] of the task that starts it.
    ///
    /// # Errors
    /// What the actor's `start` said, panics included.
    pub async fn spawn<A: Actor>(&self, args: A::Args) -> Result<ActorRef<A>> {
        self.spawn_with_claim(args, None).await
    }

    /// Starts an actor with what has been reserved for it; it is given back when the actor has
    /// ended, or could not be started.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub async fn spawn_with_claim<A: Actor>(
        &self,
        args: A::Args,
        claim: Option<Arc<dyn Claim>>,
    ) -> Result<ActorRef<A>> {
        let unstarted = Unstarted(claim.clone());
        self.may_spawn(A::NAME)?;
        let id = ActorId(self.fresh_number());
        let started = self.spawn_as(id, args, claim).await?;
        unstarted.has_started();
        Ok(started)
    }

    /// Whether actors of a type may be spawned: those of a node's own types are there once.
    ///
    /// # Errors
    /// [`Error::Start`] of one of the node's own types.
    pub fn may_spawn(&self, name: &str) -> Result<()> {
        if !self.0.types.is_own(name) {
            return Ok(());
        }
        let why = "it is one of the node's own actors: each node has one, and no more".to_owned();
        Err(Error::Start { actor: name.to_owned(), why })
    }

    /// A number that nothing else on this node has.
    pub(crate) fn fresh_number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts one of the node's own actors under a number below 16, which other nodes know.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), and if the number is taken or not below 16.
    pub async fn spawn_well_known<A: Actor>(
        &self,
        id: ActorId,
        args: A::Args,
    ) -> Result<ActorRef<A>> {
        if id.0 >= FIRST_FREE_ACTOR || self.0.actors.contains_key(&id) {
            let why = format!("actor number {} is taken or not a well-known one", id.0);
            return Err(Error::Start { actor: A::NAME.to_owned(), why });
        }
        self.spawn_as(id, args, None).await
    }

    async fn spawn_as<A: Actor>(
        &self,
        id: ActorId,
        args: A::Args,
        claim: Option<Arc<dyn Claim>>,
    ) -> Result<ActorRef<A>> {
        let Some(guardian) = self.0.guardian.get() else {
            return Err(Error::other("the node has not started"));
        };
        let incarnation = self.incarnation();
        let (fence, system) = (fence::held(), self.clone());
        let birth = Birth { id, incarnation, args, fence, claim, system };
        let started =
            ractor::Actor::spawn_linked(None, Cell::<A>::new(), birth, guardian.get_cell()).await;
        if let Err(error) = started {
            let error = start_error::<A>(error);
            // Its own start succeeded if the node ended meanwhile: then nobody else forgets it.
            self.leave(id, Down::Failed(error.to_string()));
            return Err(error);
        }
        if self.is_of_past_life(id, incarnation) {
            return Err(Error::Start { actor: A::NAME.to_owned(), why: BEGAN_ANEW.to_owned() });
        }
        Ok(ActorRef::at(self.addr_of(id), self))
    }

    /// Starts a registered actor type by its name, with arguments that came from elsewhere.
    ///
    /// # Errors
    /// An unknown type, arguments of another shape, or what `start` said.
    pub async fn spawn_by_name(&self, name: &str, args: Opaque) -> Result<ActorAddr> {
        self.spawn_by_name_with_claim(name, args, None).await
    }

    /// As [`spawn_by_name`](Self::spawn_by_name), with what has been reserved for the actor, as in
    /// [`spawn_with_claim`](Self::spawn_with_claim).
    ///
    /// # Errors
    /// As [`spawn_by_name`](Self::spawn_by_name).
    pub async fn spawn_by_name_with_claim(
        &self,
        name: &str,
        args: Opaque,
        claim: Option<Arc<dyn Claim>>,
    ) -> Result<ActorAddr> {
        let unstarted = Unstarted(claim.clone());
        if self.is_draining() {
            return Err(Error::Leaving(self.0.node));
        }
        let started = self.0.types.spawn(name, args, claim, self).await?;
        unstarted.has_started();
        Ok(started)
    }

    /// Hands messages from another node to their receiver. Never waits and never decodes.
    pub fn deliver(&self, batch: Batch) {
        self.0.telemetry.messages_received.add(batch.messages.len() as u64);
        let cause = match self.0.actors.get(&batch.to) {
            Some(_) if self.is_draining() && batch.to.0 >= FIRST_FREE_ACTOR => {
                Cause::Leaving(self.0.node)
            }
            Some(entry) => return (entry.deliver)(batch),
            None if self.ends().of(batch.to) == Some(Down::NodeLeft(self.0.node)) => {
                Cause::Leaving(self.0.node)
            }
            None => Cause::NoSuchActor,
        };
        for message in batch.messages {
            batch.credits.taken(1, message.bytes);
            if let Some(reply) = message.reply {
                reply.answer(Err(Failure::not_sent(cause.clone())));
            }
        }
    }

    /// Learns of the end of an actor, here or on another node.
    pub fn watch(&self, actor: ActorAddr) -> Watch {
        if !self.is_here(actor) {
            if actor.node != self.0.node
                && let Ok(remote) = self.remote()
            {
                return remote.watch(actor);
            }
            // Of a past life of this node, or of a node that this one has no way to.
            let (sender, watch) = Watch::new(actor);
            let _ = sender.send(Down::NodeLost(actor.node));
            return watch;
        }
        let (sender, watch) = Watch::new(actor);
        match self.0.actors.get(&actor.actor) {
            Some(entry) => {
                entry.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
            }
            None => {
                let ended = self.ends().of(actor.actor);
                let _ = sender.send(ended.unwrap_or(Down::NoSuchActor));
            }
        }
        watch
    }

    /// Ends an actor, here or on another node; nothing happens if it has ended already.
    pub fn end(&self, actor: ActorAddr, how: End) {
        if self.is_here(actor) {
            let found = self.0.actors.get(&actor.actor);
            let found = found.map(|entry| (entry.life.clone(), entry.cell.clone()));
            match (found, how) {
                (Some((life, cell)), End::Stop) => {
                    life.stop();
                    cell.stop(None);
                }
                (Some((_, cell)), End::Kill) => cell.kill(),
                (None, _) => {}
            }
        } else if actor.node != self.0.node
            && let Ok(remote) = self.remote()
        {
            remote.end(actor, how);
        }
    }

    /// Begins a new life of this node: it was declared down while it was alive, and others may have
    /// started its actors elsewhere. All actors but the node's own are killed, and what is still
    /// sent to the old incarnation is refused.
    pub fn renew(&self, incarnation: Incarnation) {
        self.0.incarnation.fetch_max(incarnation.0, Ordering::AcqRel);
        for entry in &self.0.actors {
            if entry.key().0 >= FIRST_FREE_ACTOR {
                entry.cell.kill();
            }
        }
    }

    /// How many actors run here, the node's own not counted.
    pub fn population(&self) -> usize {
        let own = (0..FIRST_FREE_ACTOR).filter(|id| self.0.actors.contains_key(&ActorId(*id)));
        self.0.actors.len().saturating_sub(own.count())
    }

    /// The registered name of a running actor's type.
    pub fn kind_of(&self, actor: ActorId) -> Option<&'static str> {
        self.entry(actor, |entry| entry.name)
    }

    /// Whether an actor's work is counted; what the node's own actors do is not.
    pub(crate) fn is_counted(&self, id: ActorId) -> bool {
        id.0 >= FIRST_FREE_ACTOR
    }

    /// Stops all actors and waits until those who watch them have been told, at most `patience`;
    /// then kills what is left.
    pub async fn shutdown(&self, patience: Duration) {
        self.0.leaving.store(true, Ordering::Release);
        let addrs: Vec<_> = self.0.actors.iter().map(|entry| self.addr_of(*entry.key())).collect();
        let watches: Vec<_> = addrs.iter().map(|addr| self.watch(*addr)).collect();
        addrs.iter().for_each(|addr| self.end(*addr, End::Stop));
        // The guardian tells of each end and so goes last: ractor lets its own stop overtake the
        // news of its children, and kills those that are left.
        let all_told = futures::future::join_all(watches);
        if tokio::time::timeout(patience, all_told).await.is_err() {
            addrs.iter().for_each(|addr| self.end(*addr, End::Kill));
        }
        if let Some(guardian) = self.0.guardian.get() {
            let _ = guardian.stop_and_wait(None, Some(Duration::from_secs(1))).await;
        }
        // What never awaits can't be killed; nobody is to wait for it.
        self.forget_all();
    }

    /// Kills all actors, the node's own too, without waiting for anything, and tells those who
    /// watch them; nothing can be started here afterwards. For a node that is dropped and not
    /// [shut down](Self::shutdown). Needs no runtime on this thread.
    pub fn kill_all(&self) {
        if let Some(guardian) = self.0.guardian.get() {
            guardian.kill();
        }
        for entry in &self.0.actors {
            entry.cell.kill();
        }
        self.forget_all();
    }

    /// The guardian is gone: those who watch what it left behind are told here.
    fn forget_all(&self) {
        let left: Vec<_> = self.0.actors.iter().map(|entry| *entry.key()).collect();
        left.into_iter().for_each(|id| self.leave(id, Down::Killed));
    }

    /// Whether what was asked for in a life of this node belongs to a past one by now. The node's
    /// own actors live on.
    pub(crate) fn is_of_past_life(&self, id: ActorId, incarnation: Incarnation) -> bool {
        id.0 >= FIRST_FREE_ACTOR && incarnation != self.incarnation()
    }

    /// Whether an address means this node in its present life.
    pub(crate) fn is_here(&self, addr: ActorAddr) -> bool {
        addr.node == self.0.node && addr.incarnation == self.incarnation()
    }

    /// Whether an actor of this node still takes messages.
    pub(crate) fn receives(&self, addr: ActorAddr) -> Result<(), Failure> {
        if !self.is_here(addr) {
            return Err(Failure::not_sent(Cause::NodeLost(addr.node)));
        }
        match self.0.actors.contains_key(&addr.actor) {
            true => Ok(()),
            false => Err(Failure::not_sent(Cause::NoSuchActor)),
        }
    }

    pub(crate) fn addr_of(&self, actor: ActorId) -> ActorAddr {
        ActorAddr { node: self.0.node, incarnation: self.incarnation(), actor }
    }

    /// As [`receives`](Self::receives), for who holds the actor's mailbox.
    pub(crate) fn still_receives(&self, addr: ActorAddr, life: &Life) -> Result<(), Failure> {
        if !self.is_here(addr) {
            return Err(Failure::not_sent(Cause::NodeLost(addr.node)));
        }
        if life.has_ended() { Err(Failure::not_sent(Cause::NoSuchActor)) } else { Ok(()) }
    }

    pub(crate) fn mailbox<A: Actor>(&self, id: ActorId) -> Option<Arc<Mailbox<A>>> {
        let mailbox = self.0.actors.get(&id)?.mailbox.clone();
        mailbox.downcast().ok()
    }

    pub(crate) fn handlers<A: Actor>(&self) -> Option<Arc<Handlers<A>>> {
        self.0.types.handlers()
    }

    pub(crate) fn remote(&self) -> Result<Arc<dyn Remote>, Failure> {
        let remote = self.0.remote.read().unwrap_or_else(PoisonError::into_inner).clone();
        remote.ok_or_else(|| {
            Failure::not_sent(Cause::Unreachable("this node is connected to no other".into()))
        })
    }

    /// The shape of a message and its reply; worked out once for each type.
    pub fn fingerprint<M: Message>(&self) -> Fingerprint {
        self.identity_of::<M>().1
    }

    /// How a message is known in the envelope: the hash of its name, and its shape. Worked out once
    /// for each type.
    pub(crate) fn identity_of<M: Message>(&self) -> (u64, Fingerprint) {
        if let Some(known) = self.0.identities.get(&TypeId::of::<M>()) {
            return *known;
        }
        let identity = (name_hash(M::NAME), fingerprint_of_message::<M>(self));
        self.0.identities.insert(TypeId::of::<M>(), identity);
        identity
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entry<R>(&self, id: ActorId, look: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.0.actors.get(&id).map(|entry| look(&entry))
    }

    pub(crate) fn enter(&self, id: ActorId, entry: Entry, pid: ractor::ActorId) {
        self.0.pids.insert(pid, id);
        self.0.actors.insert(id, entry);
    }

    pub(crate) fn leave(&self, id: ActorId, down: Down) {
        let leaving = self.0.leaving.load(Ordering::Acquire);
        let mut down = down;
        // Remembered in the same moment in which it is no more, for those who ask just then.
        let gone = self.0.actors.remove_if(&id, |_, entry| {
            if down == Down::Stopped && (leaving || entry.dismissed.load(Ordering::Acquire)) {
                down = Down::NodeLeft(self.0.node);
            }
            self.ends().note(id, down.clone());
            if let Some(work) = &entry.work {
                self.leave_behind(work);
            }
            entry.life.end();
            true
        });
        let Some((_, entry)) = gone else { return };
        self.0.pids.remove(&entry.cell.get_id());
        entry.end(down);
    }

    pub(crate) fn leave_by_pid(&self, pid: ractor::ActorId, down: Down) {
        let id = self.0.pids.get(&pid).map(|id| *id);
        if let Some(id) = id {
            self.leave(id, down);
        }
    }
}

/// What was reserved for an actor that does not start after all, however that comes.
struct Unstarted(Option<Arc<dyn Claim>>);

impl Unstarted {
    fn has_started(mut self) {
        self.0 = None;
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if let Some(claim) = self.0.take() {
            claim.give_back();
        }
    }
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System")
            .field("node", &self.0.node)
            .field("incarnation", &self.incarnation())
            .field("actors", &self.0.actors.len())
            .finish()
    }
}
