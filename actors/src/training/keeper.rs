//! The shards of a job, kept up: when a primary is lost a backup takes its place, and when a backup is lost, or has
//! become the primary, another one is made.
//!
//! So it is with one that is [cut off](super::cuts) for a while, though it is not down.
//!
//! Which actors hold a shard stands in the ledger, each time under a greater view, before anybody hears of it; so the
//! next trainer knows whom to ask. A backup is written there once it has the whole state, so that none takes over
//! that has not. A trainer that is no longer the only one can't write, and gives up.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use footlight_cluster::{
    Node, Placement, are_cut, cut_between,
    ledger::{Expect, LedgerError},
};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Cause, Error, Message, NodeId, Result, actor::Receives, fence,
};
use futures::{
    StreamExt,
    future::{join_all, try_join_all},
    stream::FuturesUnordered,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    cuts::{Cut, cuts},
    event::JobEvent,
    job::JobSpec,
    log::Log,
    parts::{Began, nodes_for},
    shards::{Shards, is_loss},
    trainer::{Trainer, WatchShard},
    weights::VERSION_PATIENCE,
};
use crate::{
    data::loader::Description,
    owner::Dismiss,
    parameters::{
        ParameterServer, ShardSpec,
        gate::Meet,
        layout::Layout,
        replication::Configure,
        server::{AskVersion, PushError},
    },
};

/// A shard has so long to hear that it is dismissed.
const DISMISS: Duration = Duration::from_secs(2);
/// So often it is looked at who is cut off, and, when no node can take a backup, at the nodes again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Who is cut off for so long is lost to its shard.
const CUT_PATIENCE: Duration = Duration::from_secs(5);
/// Who is to hold a shard without those who are cut off is there if it answers within this time.
const ANSWERS: Duration = Duration::from_secs(1);
/// After a connection broke.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// Those who hold one shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Group {
    /// Under which they were told who is who.
    pub(super) view: u64,
    /// The primary, then its backups; each has all that anybody has seen.
    pub(super) members: Vec<ActorAddr>,
}

/// What the ledger keeps of a job for the next trainer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parts {
    /// Of which job of this name.
    pub(super) submission: u64,
    /// By shard.
    pub(super) groups: Vec<Group>,
    /// What the job's first loader found.
    pub(super) data: Description,
    /// When the first slot was handed out, in microseconds since 1970.
    pub(super) begun: u64,
    /// What it began with.
    pub(super) from: Began,
}

/// The shards of a job that its trainer has found or started: they outlive it.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    node: Node,
    /// The ledger's key of where they are.
    key: String,
    groups: Arc<Mutex<Vec<Group>>>,
}

/// What the end of a shard's actor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It was the last that held this shard.
    Fatal(usize),
    /// Others hold it.
    Survived(usize),
    /// It held nothing yet, or nothing any more.
    Nothing,
}

/// What became of telling a primary who its backups are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Configured {
    Yes,
    /// A backup is missing, which is the next news.
    WithoutAll,
    /// The primary is lost, and why.
    Lost(ActorAddr, String),
}

impl Cast {
    pub(super) fn new(node: &Node, key: String) -> Self {
        Cast { node: node.clone(), key, groups: Arc::default() }
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refs(&self, addrs: impl IntoIterator<Item = ActorAddr>) -> Vec<ActorRef<ParameterServer>> {
        addrs.into_iter().map(|addr| ActorRef::at(addr, self.node.system())).collect()
    }

    /// All who hold a shard.
    pub(super) fn members(&self) -> Vec<ActorRef<ParameterServer>> {
        let all: Vec<_> = self.groups().iter().flat_map(|group| group.members.clone()).collect();
        self.refs(all)
    }

    /// Where they are.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.groups().iter().flat_map(|group| &group.members).map(|member| member.node).collect()
    }

    /// Those to whom one talks, in the layout's order.
    pub(super) fn primaries(&self) -> Vec<ActorRef<ParameterServer>> {
        let first: Vec<_> =
            self.groups().iter().filter_map(|group| group.members.first().copied()).collect();
        self.refs(first)
    }

    /// An actor has ended.
    pub(super) fn lost(&self, actor: ActorAddr) -> Loss {
        let mut groups = self.groups();
        let at = groups.iter().position(|group| group.members.contains(&actor));
        let Some(at) = at else { return Loss::Nothing };
        let members = &mut groups[at].members;
        members.retain(|member| *member != actor);
        if members.is_empty() { Loss::Fatal(at) } else { Loss::Survived(at) }
    }

    /// Those who are cut off.
    fn cuts(&self) -> Vec<Cut> {
        let members = self.node.members();
        cuts(&self.groups(), self.node.id(), |one, other| are_cut(&members, one, other))
    }

    /// Whether the trainer can't reach an actor.
    fn is_out_of_reach(&self, actor: ActorAddr) -> bool {
        are_cut(&self.node.members(), self.node.id(), actor.node)
    }

    /// Writes down who holds what; gives the version of that.
    ///
    /// # Errors
    /// Another trainer has written since `version`: it is the one now.
    pub(super) async fn write(&self, parts: &Parts, version: u64) -> Result<u64> {
        let value = serde_json::to_vec(parts).map_err(|error| Error::other(error.to_string()))?;
        let ledger = self.node.ledger();
        let written = ledger.put(&self.key, value, Expect::Version(version), None).await;
        written.map_err(|error| match error {
            LedgerError::Conflict { .. } => Error::other("another trainer has taken the job over"),
            error => Error::other(error),
        })
    }

    /// Tells a shard's primary who its backups are, with perhaps a new one, and waits until they have all.
    pub(super) async fn configure(
        &self,
        shard: usize,
        new: Option<ActorAddr>,
    ) -> Result<Configured> {
        let Group { view, members } = self.groups()[shard].clone();
        let Some((&primary, backups)) = members.split_first() else {
            return Err(Error::other(format!("nobody holds shard {shard}")));
        };
        let backups = self.refs(backups.iter().copied().chain(new));
        let at = ActorRef::at(primary, self.node.system());
        Ok(match tell(&at, Configure { view, backups }).await? {
            Told::Yes => Configured::Yes,
            Told::Refused(error) => {
                tracing::warn!(shard, %error, "a backup could not be made");
                Configured::WithoutAll
            }
            Told::Lost(why) => Configured::Lost(primary, why),
        })
    }

    /// The job is over: its shards end. One that can't be told ends when nobody adopts it.
    pub(super) async fn dismiss(&self) {
        if let Err(error) = self.node.ledger().delete(&self.key, Expect::Any).await {
            tracing::debug!(%error, "an ended job stays in the ledger");
        }
        let members = self.members();
        join_all(members.iter().map(|shard| shard.call_within(Dismiss, DISMISS))).await;
    }
}

/// How a member of a shard's group is started.
pub(super) struct Starts<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) node: &'a Node,
    pub(super) layout: &'a Layout,
    pub(super) total_steps: u64,
    pub(super) owner: ActorAddr,
}

impl Starts<'_> {
    /// The nodes that may hold shards.
    pub(super) fn nodes(&self) -> Result<Vec<NodeId>> {
        let members = self.node.members();
        nodes_for(&members, self.spec.submitter, "server", ParameterServer::NAME)
    }

    pub(super) async fn start(&self, shard: u32, on: NodeId) -> Result<ActorRef<ParameterServer>> {
        let spec = ShardSpec {
            layout: self.layout.clone(),
            shard,
            optimizer: self.spec.optimizer,
            rule: self.spec.rule,
            consistency: self.spec.consistency,
            total_steps: self.total_steps,
            slots: self.spec.slots,
            owner: self.owner,
        };
        // It outlives this trainer, so it does not act under its lease.
        let spawned = self.node.spawn::<ParameterServer>(spec).on(Placement::node(on));
        fence::under(None, spawned.into_future()).await
    }
}

/// Where a shard's backups go: nodes that hold none of it, those with fewer parts of the job first.
pub(super) fn nodes_for_backups(nodes: &[NodeId], groups: &[Group], shard: usize) -> Vec<NodeId> {
    let holds = |group: &Group, node: NodeId| group.members.iter().any(|m| m.node == node);
    let free = nodes.iter().filter(|node| !groups.get(shard).is_some_and(|g| holds(g, **node)));
    let mut free: Vec<NodeId> = free.copied().collect();
    let parts = |node: &NodeId| groups.iter().filter(|group| holds(group, *node)).count();
    // Stable: nodes of the same load stay in their order, beginning behind the primary's.
    let behind = shard % free.len().max(1);
    free.rotate_left(behind);
    free.sort_by_key(parts);
    free
}

/// Keeps the shards of a job up.
pub(super) struct Keeper {
    pub(super) cast: Cast,
    pub(super) spec: JobSpec,
    pub(super) layout: Layout,
    pub(super) shards: Shards,
    pub(super) me: ActorRef<Trainer>,
    /// As written last, but for the groups.
    pub(super) parts: Parts,
    /// The ledger's version of them.
    pub(super) version: u64,
    pub(super) log: Arc<Log>,
    pub(super) waiting: Waiting,
}

/// What waits for a cut to heal.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Shards whose primaries are to be told who their backups are.
    untold: BTreeSet<usize>,
    /// Not all shards know where the others are.
    must_meet: bool,
    /// They hold a shard that does without them, and are to end.
    released: Vec<ActorAddr>,
}

/// Shards have moved; what is sent here tells that all who must know do.
pub(super) type Moved = oneshot::Sender<()>;

impl Keeper {
    fn node(&self) -> &Node {
        &self.cast.node
    }

    fn starts(&self) -> Starts<'_> {
        Starts {
            spec: &self.spec,
            node: self.node(),
            layout: &self.layout,
            total_steps: self.parts.data.steps,
            owner: self.me.addr(),
        }
    }

    /// Writes down who holds what.
    async fn write(&mut self) -> Result<()> {
        self.parts.groups = self.cast.groups().clone();
        self.version = self.cast.write(&self.parts, self.version).await?;
        Ok(())
    }

    /// Takes note of losses as they come, to the job's end.
    ///
    /// # Errors
    /// Another trainer has taken the job over; the ledger can't be written.
    pub(super) async fn keep(
        mut self,
        mut losses: mpsc::UnboundedReceiver<usize>,
        moved: mpsc::UnboundedSender<Moved>,
    ) -> Result<()> {
        // Those who must know of a move may need another shard first, which is lost as well and has still to move.
        let mut telling = FuturesUnordered::new();
        let mut cut_since = HashMap::new();
        loop {
            tokio::select! {
                biased;
                loss = losses.recv() => match loss {
                    Some(shard) => telling.extend(self.take_over(shard, &moved).await?),
                    None => return Ok(()),
                },
                Some(_) = telling.next() => {}
                () = tokio::time::sleep(LOOK_AGAIN), if self.spec.replicas > 0 => {}
            }
            for cut in self.cut_for_long(&mut cut_since) {
                telling.extend(self.do_without(cut, &moved).await?);
            }
            telling.extend(self.after_cuts(&moved).await?);
            let mut short = self.short().into_iter();
            while telling.is_empty()
                && losses.is_empty()
                && let Some(shard) = short.next()
            {
                self.add_backup(shard).await?;
            }
        }
    }

    /// Those who have been cut off for long, where `since` remembers since when.
    fn cut_for_long(&self, since: &mut HashMap<Cut, Instant>) -> Vec<Cut> {
        let cuts = self.cast.cuts();
        since.retain(|cut, _| cuts.contains(cut));
        let mut is_long = |cut: &Cut| {
            since.entry(cut.clone()).or_insert_with(Instant::now).elapsed() >= CUT_PATIENCE
        };
        cuts.into_iter().filter(&mut is_long).collect()
    }

    /// Those who are cut off hold the shard's steps up: they are lost to it, though they are there.
    async fn do_without(
        &mut self,
        cut: Cut,
        moved: &mpsc::UnboundedSender<Moved>,
    ) -> Result<Option<oneshot::Receiver<()>>> {
        // It may have ended a moment ago, which is not known yet: then those who are cut off have the shard.
        let stays = ActorRef::<ParameterServer>::at(cut.stays, self.node().system());
        if stays.call_within(AskVersion, ANSWERS).await.is_err()
            || !cut.release(&mut self.cast.groups())
        {
            return Ok(None);
        }
        let Cut { shard, lost, from, .. } = cut;
        for lost in &lost {
            let node = lost.node;
            let why = format!("node {node} and node {from} can't reach each other");
            self.log.tell(JobEvent::ShardLost { shard: shard as u32, node, why });
        }
        let told = self.take_over(shard, moved).await?;
        // Not before the ledger says so: another trainer may need them.
        self.waiting.released.extend(lost);
        Ok(told)
    }

    /// Does what cuts were in the way of, as far as they have healed.
    async fn after_cuts(
        &mut self,
        moved: &mpsc::UnboundedSender<Moved>,
    ) -> Result<Vec<oneshot::Receiver<()>>> {
        let (node, cast) = (self.node().clone(), self.cast.clone());
        self.waiting.released.retain(|actor| {
            let stays = cast.is_out_of_reach(*actor);
            if !stays {
                ActorRef::<ParameterServer>::at(*actor, node.system()).stop();
            }
            stays
        });
        let mut telling = Vec::new();
        let primaries = cast.primaries();
        let is_in_reach =
            |shard: &usize| primaries.get(*shard).is_some_and(|p| !cast.is_out_of_reach(p.addr()));
        for shard in self.waiting.untold.clone().into_iter().filter(is_in_reach) {
            telling.extend(self.take_over(shard, moved).await?);
        }
        let shards = self.shards.now();
        if self.waiting.must_meet && !shards.iter().any(|p| cast.is_out_of_reach(p.addr())) {
            self.meet(&shards).await?;
        }
        Ok(telling)
    }

    /// The shards that have fewer backups than they should.
    fn short(&self) -> Vec<usize> {
        let whole = self.spec.replicas as usize + 1;
        let groups = self.cast.groups();
        (0..groups.len()).filter(|shard| groups[*shard].members.len() < whole).collect()
    }

    /// One of those who hold a shard is gone: the first of the others is the primary. If it was not, gives what tells
    /// that all who must know do.
    async fn take_over(
        &mut self,
        shard: usize,
        moved: &mpsc::UnboundedSender<Moved>,
    ) -> Result<Option<oneshot::Receiver<()>>> {
        let before = self.shards.get(shard)?.addr();
        self.cast.groups()[shard].view += 1;
        self.write().await?;
        if !self.configure(shard, None).await? {
            // It is lost, too: that is the next news.
            return Ok(None);
        }
        let Some(now) = self.cast.primaries().into_iter().nth(shard) else { return Ok(None) };
        let at = now.addr();
        if at == before {
            return Ok(None);
        }
        // Of another shard that is lost, too, the first that is left is no primary yet.
        let mut primaries = self.shards.now();
        if let Some(place) = primaries.get_mut(shard) {
            *place = now;
        }
        if self.spec.rule.is_global() {
            self.meet(&primaries).await?;
        }
        self.shards.move_to(primaries);
        self.log.tell(JobEvent::ShardUp { shard: shard as u32, node: at.node });
        let (told, is_told) = oneshot::channel();
        Ok(moved.send(told).is_ok().then_some(is_told))
    }

    /// Tells a shard's primary who its backups are, with perhaps a new one, and waits until they have all. False if one
    /// of them is lost, which is the next news, or is cut off: then it is told again.
    async fn configure(&mut self, shard: usize, new: Option<ActorAddr>) -> Result<bool> {
        let configured = tokio::select! {
            configured = self.cast.configure(shard, new) => Some(configured?),
            () = self.is_cut_off(shard, new) => None,
        };
        match configured {
            Some(_) => self.waiting.untold.remove(&shard),
            None => self.waiting.untold.insert(shard),
        };
        Ok(configured == Some(Configured::Yes))
    }

    /// Ready when a shard's primary has been cut off for long, from here or from one of its backups.
    async fn is_cut_off(&self, shard: usize, new: Option<ActorAddr>) {
        let mut since = None;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let group = self.cast.groups()[shard].clone();
            let Some((primary, backups)) = group.members.split_first() else { continue };
            let members = self.node().members();
            let must_reach = backups.iter().chain(&new).map(|backup| backup.node);
            let is_cut = must_reach
                .chain([self.node().id()])
                .any(|other| are_cut(&members, primary.node, other));
            since = is_cut.then(|| since.unwrap_or_else(Instant::now));
            if since.is_some_and(|since| since.elapsed() >= CUT_PATIENCE) {
                return;
            }
        }
    }

    /// Has the shards know each other, but for those that are cut off: then all meet again.
    async fn meet(&mut self, shards: &[ActorRef<ParameterServer>]) -> Result<()> {
        let node = self.node().clone();
        let met = shards.iter().map(async |shard| {
            let (here, there) = (node.id(), shard.addr().node);
            if are_cut(&node.members(), here, there) {
                return Ok(None);
            }
            tokio::select! {
                told = tell(shard, Meet { shards: shards.to_vec() }) => told.map(Some),
                () = cut_between(node.system(), here, there, CUT_PATIENCE) => Ok::<_, Error>(None),
            }
        });
        let met = try_join_all(met).await?;
        self.waiting.must_meet = met.iter().any(Option::is_none);
        met.into_iter().flatten().try_for_each(Told::accepted)
    }

    /// Starts a backup where there is room for one.
    async fn add_backup(&mut self, shard: usize) -> Result<()> {
        let Some(primary) = self.cast.primaries().into_iter().nth(shard) else { return Ok(()) };
        if self.cast.is_out_of_reach(primary.addr()) {
            return Ok(());
        }
        let members = self.node().members();
        let mut nodes = self.starts().nodes().unwrap_or_default();
        nodes.retain(|node| !are_cut(&members, primary.addr().node, *node));
        let free = nodes_for_backups(&nodes, &self.cast.groups(), shard);
        for on in free {
            let backup = match self.starts().start(shard as u32, on).await {
                Ok(backup) => backup,
                Err(error) => {
                    tracing::warn!(shard, node = %on, %error, "a backup could not be started");
                    continue;
                }
            };
            self.me.call(WatchShard { shard: backup.addr() }).await?;
            self.cast.groups()[shard].view += 1;
            if self.configure(shard, Some(backup.addr())).await? {
                self.cast.groups()[shard].members.push(backup.addr());
                self.write().await?;
                self.log.tell(JobEvent::BackupUp { shard: shard as u32, node: on });
                return Ok(());
            }
            // Without the one that could not be made.
            backup.stop();
            self.cast.groups()[shard].view += 1;
            self.write().await?;
            self.configure(shard, None).await?;
            return Ok(());
        }
        Ok(())
    }
}

/// Under a rule for the whole gradient, shards know each other. One that is lost need not: all meet again when another
/// has taken its place.
pub(super) async fn meet(shards: &[ActorRef<ParameterServer>]) -> Result<()> {
    let met = shards.iter().map(|shard| tell(shard, Meet { shards: shards.to_vec() }));
    try_join_all(met).await?.into_iter().try_for_each(Told::accepted)
}

enum Told {
    Yes,
    Refused(PushError),
    Lost(String),
}

impl Told {
    fn accepted(self) -> Result<()> {
        match self {
            Told::Refused(error) => Err(Error::other(error)),
            Told::Yes | Told::Lost(_) => Ok(()),
        }
    }
}

/// Tells a shard, also over a connection that breaks.
async fn tell<M, How: 'static>(shard: &ActorRef<ParameterServer>, message: M) -> Result<Told>
where
    M: Message<Reply = std::result::Result<(), PushError>> + Clone,
    ParameterServer: Receives<M, How>,
{
    loop {
        let error = match shard.call_within(message.clone(), VERSION_PATIENCE).await {
            Ok(Ok(())) => return Ok(Told::Yes),
            Ok(Err(error)) => return Ok(Told::Refused(error)),
            Err(error) => error,
        };
        match error.cause() {
            cause if is_loss(cause) => return Ok(Told::Lost(error.to_string())),
            Cause::Unreachable(_) | Cause::CutOff { .. } => tokio::time::sleep(TELL_AGAIN).await,
            _ => return Err(error.into()),
        }
    }
}
