//! A running node: spawn actors, watch members, leave.

use std::{
    fmt,
    future::{Future, IntoFuture},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorRef, Error, NodeId, Result, System, Watch, codec::Opaque, env::deadline_after,
    id::Incarnation, message::fingerprint_of, telemetry::Counts,
};
use tokio::{
    runtime::Handle,
    sync::{broadcast, oneshot, watch},
    time::Instant,
};

use crate::{
    ClusterError, NodeArgs, NodeBuilder, Placement,
    builder::Observed,
    control::ControlThread,
    network::{
        Network,
        membership_task::Input,
        view::{ClusterEvent, Member, MemberState},
    },
    node_actor::{AskStatus, FindActors, NodeActor, Spawn, Status},
    placement,
    transport::{frame::Header, handshake::Purpose},
};

/// Starting an actor on another node may take so long (a model may have to be loaded).
const SPAWN_TIMEOUT: Duration = Duration::from_secs(120);
/// A node has so long to tell which actors it has.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// Actors have so long to stop when the node leaves.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The goodbyes have so long to arrive.
const GOODBYE: Duration = Duration::from_millis(500);

/// A node of a cluster. Cheap to clone; the node lives until [`leave`](Node::leave), or until its
/// last clone is dropped, which looks to the others like a crash.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    system: System,
    network: Arc<Network>,
    threads: Mutex<Option<[ControlThread; 2]>>,
    control_handle: Handle,
    is_seed: bool,
    seed: OnceLock<NodeId>,
    /// Why the node can't go on, once it can't.
    failed: watch::Sender<Option<String>>,
}

/// How an actor finds the node it runs on, without keeping it alive.
struct Found(Weak<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Node {
    /// A node as the options say: register actor types on the result, then start it.
    pub fn builder(args: NodeArgs) -> NodeBuilder {
        NodeBuilder::new(args)
    }

    pub(crate) fn assemble(
        system: System,
        network: Arc<Network>,
        threads: [ControlThread; 2],
        is_seed: bool,
    ) -> Self {
        let inner = Arc::new(Inner {
            control_handle: threads[0].handle().clone(),
            threads: Mutex::new(Some(threads)),
            system,
            network,
            is_seed,
            seed: OnceLock::new(),
            failed: watch::Sender::new(None),
        });
        inner.system.extend(Arc::new(Found(Arc::downgrade(&inner))));
        Node(inner)
    }

    /// The node that an actor runs on.
    ///
    /// `None` while the node is ending, and in a runtime without a cluster.
    pub fn of(system: &System) -> Option<Node> {
        system.extension::<Found>()?.0.upgrade().map(Node)
    }

    /// The node's identifier.
    pub fn id(&self) -> NodeId {
        self.0.system.node()
    }

    /// Which life of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        self.0.system.incarnation()
    }

    /// Where it takes connections.
    pub fn addr(&self) -> SocketAddr {
        self.0.network.record().addr
    }

    /// Whether it was started without a seed to join.
    pub fn is_seed(&self) -> bool {
        self.0.is_seed
    }

    /// The node through which this one joined; on a seed, itself.
    pub fn seed(&self) -> NodeId {
        self.0.seed.get().copied().unwrap_or_else(|| self.id())
    }

    pub(crate) fn set_seed(&self, seed: NodeId) {
        let _ = self.0.seed.set(seed);
    }

    /// Its actors.
    pub fn system(&self) -> &System {
        &self.0.system
    }

    pub(crate) fn network(&self) -> &Arc<Network> {
        &self.0.network
    }

    pub(crate) fn control(&self) -> &Handle {
        &self.0.control_handle
    }

    /// Its counters.
    pub fn counts(&self) -> Counts {
        self.0.network.counts()
    }

    /// The members as this node sees them: itself first, then the others by id, those that are gone
    /// included for an hour.
    pub fn members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        if self.0.network.purpose == Purpose::Member {
            members.push(Member::of(&self.0.network.record(), MemberState::Up));
        }
        members.extend(self.0.network.view.others());
        members
    }

    /// Changes in the cluster from now on. A listener that is 1,024 events behind misses some, and
    /// is told how many.
    pub fn events(&self) -> broadcast::Receiver<ClusterEvent> {
        self.0.network.view.subscribe()
    }

    /// Waits until the members satisfy a condition.
    ///
    /// # Errors
    /// After `patience`, with the members that there are.
    pub async fn wait_for_members(
        &self,
        patience: Duration,
        enough: impl Fn(&[Member]) -> bool,
    ) -> Result<Vec<Member>> {
        let deadline = deadline_after(patience);
        let mut changes = self.0.network.view.changes();
        loop {
            let members = self.members();
            if enough(&members) {
                return Ok(members);
            }
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(Error::other(format!(
                    "the cluster did not become as expected within {patience:?}; members: {}",
                    placement::describe(&members)
                )));
            }
        }
    }

    /// Starts an actor: on this node, or where [`on`](SpawnBuilder::on) says. Await the result.
    pub fn spawn<A: Actor>(&self, args: A::Args) -> SpawnBuilder<'_, A> {
        SpawnBuilder { node: self, args, placement: Placement::Here }
    }

    /// Learns of the end of an actor, wherever it is. The same as [`ActorRef::watch`].
    pub fn watch<A: Actor>(&self, actor: &ActorRef<A>) -> Watch {
        self.0.system.watch(actor.addr())
    }

    /// Asks a node how it and its cluster are.
    ///
    /// # Errors
    /// If the node is not known here or does not answer.
    pub async fn status_of(&self, node: NodeId) -> Result<Status> {
        let members = self.members();
        let incarnation = members.iter().find(|member| member.id == node);
        let incarnation = incarnation.map(|member| member.incarnation);
        let incarnation =
            incarnation.ok_or_else(|| Error::other(format!("node {node} is not known here")))?;
        let asked = NodeActor::of(node, incarnation, &self.0.system);
        Ok(asked.call(AskStatus).await?)
    }

    /// Finds the actors of a type on all nodes that are up. A node that does not answer is left out.
    pub async fn find<A: Actor>(&self) -> Vec<ActorRef<A>> {
        let system = &self.0.system;
        let members = self.members().into_iter().filter(Member::is_up);
        let asked = members.map(|member| async move {
            let asked = NodeActor::of(member.id, member.incarnation, system);
            let find = FindActors { actor: A::NAME.to_owned() };
            asked.call_within(find, FIND_TIMEOUT).await.unwrap_or_default()
        });
        let found = futures::future::join_all(asked).await.into_iter().flatten();
        found.map(|addr| ActorRef::at(addr, system)).collect()
    }

    /// Asks an [observed](NodeBuilder::observe) node how it and its cluster are.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status_of_observed(&self, observed: &Observed) -> Result<Status> {
        let record = &observed.0;
        // Observed nodes are reached by the connection that was made for it.
        let asked = NodeActor::of(record.node, record.incarnation, &self.0.system);
        Ok(asked.call_within(AskStatus, Duration::from_secs(5)).await?)
    }

    /// Says that this node can't go on, a GPU that this process has lost for good, say: its actors
    /// are needed elsewhere. [`until_shutdown`](Self::until_shutdown) then leaves with an error.
    pub fn fail(&self, why: impl Into<String>) {
        let why = why.into();
        tracing::error!(why, "this node can't go on");
        self.0.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(why);
            first
        });
    }

    /// Runs until SIGINT (Ctrl-C) or SIGTERM, or until the node [fails](Self::fail); then leaves.
    ///
    /// The signals are caught from this call on, before the future is first awaited: whoever tells
    /// that the node is up can call this first.
    ///
    /// # Errors
    /// Why the node failed, or that the signals can't be waited for.
    pub fn until_shutdown(self) -> impl Future<Output = Result<()>> + Send {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = signal(SignalKind::terminate())
            .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
        async move {
            let (mut terminate, mut interrupt) = signals?;
            let mut failed = self.0.failed.subscribe();
            let failure = tokio::select! {
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                why = failed.wait_for(Option::is_some) => why.ok().and_then(|why| why.clone()),
            };
            self.leave().await?;
            failure.map_or(Ok(()), |why| Err(Error::other(why)))
        }
    }

    /// Leaves the cluster: stops this node's actors (at most 5 s), says goodbye, ends. The others
    /// see it as left at once.
    ///
    /// # Errors
    /// None today; a later way of leaving may have some.
    pub async fn leave(self) -> Result<()> {
        self.0.system.shutdown(STOP_TIMEOUT).await;
        let network = &self.0.network;
        network.leaving.store(true, Ordering::Release);
        for peer in network.peers() {
            if let Some(session) = peer.session() {
                session.control(Header::Leaving);
            }
        }
        let (done, said) = oneshot::channel();
        if network.membership.send(Input::Leave(done)).is_ok() {
            let _ = tokio::time::timeout(GOODBYE, said).await;
        }
        // What was written last must be acknowledged before the connections close.
        let deadline = Instant::now() + GOODBYE;
        for peer in network.peers() {
            if let Some(session) = peer.session() {
                let _ = tokio::time::timeout_at(deadline, session.goodbye()).await;
            }
        }
        self.halt().await;
        Ok(())
    }

    /// Ends the node without a goodbye.
    pub(crate) async fn halt(&self) {
        let network = &self.0.network;
        network.leaving.store(true, Ordering::Release);
        network.close_sessions("the node has ended");
        network.endpoint.quinn().close(0u32.into(), b"the node has ended");
        network.bulk.quinn().close(0u32.into(), b"the node has ended");
        let idle = network.endpoint.quinn().wait_idle();
        let _ = tokio::time::timeout(GOODBYE, idle).await;
        let soon = Instant::now() + Duration::from_millis(200);
        let _ = self.0.system.env().spawner.close_and_wait(soon).await;
        let threads = lock(&self.0.threads).take();
        for thread in threads.into_iter().flatten() {
            thread.stop().await;
        }
        self.0.system.disconnect();
    }
}

impl Drop for Inner {
    /// A node that was not told to leave ends here all the same: to the others it crashes.
    fn drop(&mut self) {
        self.system.kill_all();
        self.system.disconnect();
        self.system.env().spawner.stopping().cancel();
        self.network.leaving.store(true, Ordering::Release);
        self.network.close_sessions("the node was dropped");
        self.network.endpoint.quinn().close(0u32.into(), b"the node was dropped");
        self.network.bulk.quinn().close(0u32.into(), b"the node was dropped");
        // The threads end when what tells them to goes with this.
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).field("addr", &self.addr()).finish()
    }
}

/// An actor that is about to be started; await it.
#[must_use = "nothing is started until this is awaited"]
pub struct SpawnBuilder<'a, A: Actor> {
    node: &'a Node,
    args: A::Args,
    placement: Placement,
}

impl<A: Actor> fmt::Debug for SpawnBuilder<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnBuilder")
            .field("actor", &A::NAME)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl<'a, A: Actor> SpawnBuilder<'a, A> {
    /// Where to start it. Default: on this node.
    pub fn on(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }
}

impl<'a, A: Actor> IntoFuture for SpawnBuilder<'a, A> {
    type Output = Result<ActorRef<A>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let SpawnBuilder { node, args, placement } = self;
            let members = node.members();
            let system = node.system();
            let chosen = placement.choose(node.id(), Some(node.seed()), &members, A::NAME);
            let member = chosen.and_then(|id| members.iter().find(|member| member.id == id));
            let Some(member) = member else {
                let there = placement::describe(&members);
                let (actor, asked) = (A::NAME.to_owned(), placement.to_string());
                return Err(ClusterError::NoNode { actor, asked, there }.into());
            };
            if member.id == node.id() {
                return system.spawn::<A>(args).await;
            }
            let spawn = Spawn {
                actor: A::NAME.to_owned(),
                args_shape: fingerprint_of::<A::Args>(system),
                args: Opaque::of(&args)?,
            };
            let there = NodeActor::of(member.id, member.incarnation, system);
            let started = there.call_within(spawn, SPAWN_TIMEOUT).await?;
            let addr = started.map_err(|why| Error::Start { actor: A::NAME.to_owned(), why })?;
            Ok(ActorRef::at(addr, system))
        })
    }
}
