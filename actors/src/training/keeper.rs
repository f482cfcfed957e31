//! The shards of a job, kept up: when a primary is lost a backup takes its place, and when a backup is lost, or has
//! become the primary, another one is made.
//!
//! Two nodes may not reach each other though all others reach both, so that neither is declared down. A backup that is
//! cut off from its primary for a while is lost to the shard, and so is a primary that is cut off from the trainer and
//! has a backup that is not: otherwise the shard's steps would wait for the cut to heal.
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
        ParameterServer, ShardSpec, gate::Meet, layout::Layout, replication::Configure,
        server::PushError,
    },
};

/// A shard has so long to hear that it is dismissed.
const DISMISS: Duration = Duration::from_secs(2);
/// So often it is looked at who is cut off, and, when no node can take a backup, at the nodes again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Who is cut off from whom it has to reach, though both are members, is replaced after so long.
const CUT_PATIENCE: Duration = Duration::from_secs(5);
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
    /// It held nothing yet.
    Nothing,
}

/// One who holds a shard is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cut {
    shard: usize,
    lost: ActorAddr,
    /// From there.
    from: NodeId,
    /// Who had the shard then.
    primary: ActorAddr,
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

    /// Takes one who is cut off out of its shard's group, if it is still as it was and others hold the shard.
    fn release(&self, cut: Cut) -> bool {
        let mut groups = self.groups();
        let Some(Group { members, .. }) = groups.get_mut(cut.shard) else { return false };
        if members.first() != Some(&cut.primary) || members.len() < 2 {
            return false;
        }
        let before = members.len();
        members.retain(|member| *member != cut.lost);
        members.len() < before
    }

    /// Those who hold a shard and can't be reached from where they must be.
    fn cuts(&self) -> Vec<Cut> {
        let (members, me) = (self.node.members(), self.node.id());
        let groups = self.groups();
        let cuts = groups.iter().enumerate().flat_map(|(shard, group)| {
            let is_cut = |one: NodeId, actor: &ActorAddr| are_cut(&members, one, actor.node);
            let Some((&primary, backups)) = group.members.split_first() else { return Vec::new() };
            let cut = |lost: &ActorAddr, from| Cut { shard, lost: *lost, from, primary };
            if is_cut(me, &primary) {
                let may_take_over = backups.first().is_some_and(|next| !is_cut(me, next));
                return may_take_over.then(|| cut(&primary, me)).into_iter().collect();
            }
            let lost = backups.iter().filter(|backup| is_cut(primary.node, backup));
            lost.map(|backup| cut(backup, primary.node)).collect()
        });
        cuts.collect()
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
    /// They hold a shard that does without them, and can't be told yet.
    pub(super) released: Vec<ActorAddr>,
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
            self.end_released();
            for cut in self.cut_for_long(&mut cut_since) {
                telling.extend(self.do_without(cut, &moved).await?);
            }
            while telling.is_empty()
                && losses.is_empty()
                && let Some(shard) = self.short()
                && self.add_backup(shard).await?
            {}
        }
    }

    /// Those who have been cut off for long, where `since` remembers since when.
    fn cut_for_long(&self, since: &mut HashMap<Cut, Instant>) -> Vec<Cut> {
        let cuts = self.cast.cuts();
        since.retain(|cut, _| cuts.contains(cut));
        let mut is_long =
            |cut: &Cut| since.entry(*cut).or_insert_with(Instant::now).elapsed() >= CUT_PATIENCE;
        cuts.into_iter().filter(&mut is_long).collect()
    }

    /// Who is cut off holds the shard's steps up: it is lost to the shard, though it is there.
    async fn do_without(
        &mut self,
        cut: Cut,
        moved: &mpsc::UnboundedSender<Moved>,
    ) -> Result<Option<oneshot::Receiver<()>>> {
        if !self.cast.release(cut) {
            return Ok(None);
        }
        let Cut { shard, lost, from, .. } = cut;
        let node = lost.node;
        let why = format!("node {node} and node {from} can't reach each other");
        self.log.tell(JobEvent::ShardLost { shard: shard as u32, node, why });
        self.released.push(lost);
        self.end_released();
        self.take_over(shard, moved).await
    }

    /// Ends those whom the shards do without, as soon as they can be told. The job's end is theirs, too.
    fn end_released(&mut self) {
        let node = self.cast.node.clone();
        let members = node.members();
        self.released.retain(|actor| {
            let is_out_of_reach = are_cut(&members, node.id(), actor.node);
            if !is_out_of_reach {
                ActorRef::<ParameterServer>::at(*actor, node.system()).stop();
            }
            is_out_of_reach
        });
    }

    /// A shard that has fewer backups than it should.
    fn short(&self) -> Option<usize> {
        let whole = self.spec.replicas as usize + 1;
        self.cast.groups().iter().position(|group| group.members.len() < whole)
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
            meet(&primaries).await?;
        }
        self.shards.move_to(primaries);
        self.log.tell(JobEvent::ShardUp { shard: shard as u32, node: at.node });
        let (told, is_told) = oneshot::channel();
        Ok(moved.send(told).is_ok().then_some(is_told))
    }

    /// Tells a shard's primary who its backups are, and waits until they have all. False if one of them is lost.
    async fn configure(&self, shard: usize, new: Option<ActorAddr>) -> Result<bool> {
        Ok(self.cast.configure(shard, new).await? == Configured::Yes)
    }

    /// Gives a new backup all that its primary has. False if one of them is lost, or they are cut off from each other.
    async fn give_all(&self, shard: usize, primary: NodeId, backup: ActorAddr) -> Result<bool> {
        tokio::select! {
            given = self.configure(shard, Some(backup)) => given,
            () = cut_between(self.node().system(), primary, backup.node, CUT_PATIENCE) => Ok(false),
        }
    }

    /// Starts a backup where there is room for one. False if there is none now.
    async fn add_backup(&mut self, shard: usize) -> Result<bool> {
        let Some(primary) = self.cast.primaries().get(shard).map(|primary| primary.addr().node)
        else {
            return Ok(false);
        };
        let members = self.node().members();
        let mut nodes = self.starts().nodes().unwrap_or_default();
        nodes.retain(|node| !are_cut(&members, primary, *node));
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
            if !self.give_all(shard, primary, backup.addr()).await? {
                // Without the one that could not be made.
                backup.stop();
                self.cast.groups()[shard].view += 1;
                self.configure(shard, None).await?;
                return Ok(false);
            }
            self.cast.groups()[shard].members.push(backup.addr());
            self.write().await?;
            self.log.tell(JobEvent::BackupUp { shard: shard as u32, node: on });
            return Ok(true);
        }
        Ok(false)
    }
}

/// Under a rule for the whole gradient, shards know each other. One that is lost need not: all meet again when another
/// has taken its place.
pub(super) async fn meet(shards: &[ActorRef<ParameterServer>]) -> Result<()> {
    let met = shards.iter().map(|shard| tell(shard, Meet { shards: shards.to_vec() }));
    for met in try_join_all(met).await? {
        if let Told::Refused(error) = met {
            return Err(Error::other(error));
        }
    }
    Ok(())
}

enum Told {
    Yes,
    Refused(PushError),
    Lost(String),
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
