//! A worker or trainer of a job on a node: finds residuals wherever they are, and has its own kept elsewhere, too.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use footlight_cluster::{Member, MemberState, Node, Placement};
use footlight_runtime::{
    Actor, ActorRef, CallError, Error, NodeId, Result, System, fence,
    tensor::{DType, WireTensor},
};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::{Instant, timeout};

use super::{AreWanted, AskResidual, JobId, KeepResidual, ResidualKeeper, Residuals};
use crate::training::{
    shards::{SUCCESSOR, is_loss},
    weights::{VERSION_PATIENCE, Weights},
};

/// After a node did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A node that one was told of, and that is not known here, is waited for so long: one of the two has just joined.
const JOINS: Duration = Duration::from_secs(5);
/// A node has so long to take a residual, and a second more for each [`BYTES_A_SECOND`]; then the next one is asked.
const TAKE: Duration = Duration::from_secs(5);
const BYTES_A_SECOND: usize = 10 << 20;
/// A node that did not take one is not asked again for so long.
const PASSED_OVER: Duration = Duration::from_secs(10);
/// Nodes have so long to learn whether residuals are wanted, and to begin keeping some.
const TELL: Duration = Duration::from_secs(5);
/// So often they are told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// As long as there is one of a job on a node, its residuals stay there, and a while longer.
#[derive(Debug)]
pub(in crate::training) struct Stay {
    residuals: Arc<Residuals>,
    job: JobId,
    /// After each so many steps the job's state is saved.
    every: Option<u64>,
    /// The job's parameters.
    weights: Weights,
    /// Nodes that may hold residuals, besides those that this one knows: it may have joined a moment ago.
    peers: Vec<NodeId>,
    node: Node,
    seconds: Mutex<Seconds>,
    /// It was told that nobody else keeps what is computed here.
    is_alone: AtomicBool,
}

/// Who keeps what is computed here, too.
#[derive(Debug, Default)]
struct Seconds {
    /// Who did so last.
    last: Option<ActorRef<ResidualKeeper>>,
    /// Nodes that did not, and when.
    passed_over: HashMap<NodeId, Instant>,
}

impl Stay {
    /// # Errors
    /// The node has no place for residuals.
    pub(in crate::training) async fn new(
        system: &System,
        job: &JobId,
        every: Option<u64>,
        weights: &Weights,
        peers: Vec<NodeId>,
    ) -> Result<Self> {
        let missing = || Error::other("int8 needs `footlight::actors::cast` on this node");
        let node = Node::of(system).ok_or_else(missing)?;
        let residuals = system.extension::<Residuals>().ok_or_else(missing)?;
        {
            let _one_at_a_time = residuals.starting.lock().await;
            // One that was here ended if the node was declared down meanwhile. It outlives whoever is the first.
            if !has_keeper(&node, node.id()).await {
                fence::under(None, system.spawn::<ResidualKeeper>(())).await?;
            }
        }
        residuals.enter(job);
        residuals.are_swept(system);
        Ok(Stay {
            residuals,
            job: job.clone(),
            every,
            weights: weights.clone(),
            peers,
            node,
            seconds: Mutex::default(),
            is_alone: AtomicBool::new(false),
        })
    }

    fn seconds(&self) -> MutexGuard<'_, Seconds> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a slot's residual for this step here and on another node; when this returns both have it, or no other node
    /// could be had.
    pub(in crate::training) async fn put(&self, step: u64, slot: u32, residual: WireTensor) {
        self.residuals.put(&self.job, step, slot, residual.clone());
        let (job, saved_every) = (self.job.clone(), self.every);
        let keep = KeepResidual { job, step, slot, residual, saved_every };
        for there in self.may_keep() {
            let last = self.seconds().last.clone().filter(|last| last.addr().node == there);
            let keepers = match last {
                Some(last) => vec![last],
                None if self.is_passed_over(there) => continue,
                None => self.node.find_on(there).await.unwrap_or_default(),
            };
            for keeper in keepers {
                if is_kept_by(&keeper, &keep).await {
                    self.seconds().last = Some(keeper);
                    self.is_alone.store(false, Ordering::Relaxed);
                    return;
                }
            }
            let mut seconds = self.seconds();
            seconds.last.take_if(|last| last.addr().node == there);
            seconds.passed_over.insert(there, Instant::now());
        }
        if !self.is_alone.swap(true, Ordering::Relaxed) {
            let job = &self.job.name;
            tracing::warn!(
                job,
                "no other node keeps what int8 rounds off here: if this one is lost, so is that"
            );
        }
    }

    fn is_passed_over(&self, there: NodeId) -> bool {
        self.seconds().passed_over.get(&there).is_some_and(|since| since.elapsed() < PASSED_OVER)
    }

    /// The nodes that may keep what is computed here, the best first: those of other machines, and such as have no
    /// shard, whose links have the most to carry. Each node begins with another one.
    fn may_keep(&self) -> Vec<NodeId> {
        let members = self.node.members();
        let up = members.iter().filter(|member| member.is_up() && may_hold(member));
        let nodes = up.map(|member| member.id).chain(self.peers.iter().copied());
        let shards = self.weights.shards.now();
        let shards = shards.iter().map(|shard| shard.addr().node).collect();
        let machine =
            |node| members.iter().find(|member| member.id == node).map(|m| m.address.ip());
        ranked(nodes, self.node.id(), &shards, machine)
    }

    /// So many steps are applied everywhere: what is older goes.
    pub(in crate::training) fn applied(&self, steps: u64) {
        self.residuals.applied(&self.job, steps, self.every);
    }

    /// Keeps a residual that was found on another node here, too.
    pub(in crate::training) fn hold(&self, step: u64, slot: u32, residual: WireTensor) {
        self.residuals.put(&self.job, step, slot, residual);
    }

    /// Finds a residual on this node or another one. `None` if none has it that can be reached within a minute: a node
    /// that does not answer and is not gone is asked again.
    pub(in crate::training) async fn find(&self, step: u64, slot: u32) -> Option<WireTensor> {
        if let Some(here) = self.residuals.get(&self.job, step, slot) {
            return Some(here);
        }
        let ask = AskResidual { job: self.job.clone(), step, slot };
        let hosts: BTreeSet<NodeId> =
            holders(&self.node).into_iter().chain(self.peers.iter().copied()).collect();
        let others = hosts.into_iter().filter(|node| *node != self.node.id());
        let mut answers: FuturesUnordered<_> =
            others.map(|node| timeout(SUCCESSOR, self.ask(node, &ask))).collect();
        while let Some(answer) = answers.next().await {
            if let Ok(Some(residual)) = answer {
                return Some(residual);
            }
        }
        None
    }

    /// Asks a node until it answers or is gone.
    async fn ask(&self, there: NodeId, ask: &AskResidual) -> Option<WireTensor> {
        let begun = Instant::now();
        loop {
            match self.node.members().iter().find(|member| member.id == there) {
                Some(member) if member.state.is_gone() => return None,
                Some(_) => {}
                None if begun.elapsed() > JOINS => return None,
                // This node is about to hear of it.
                None => {
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
            }
            match self.try_ask(there, ask).await {
                Ok(answer) => return answer,
                Err(error) if is_loss(error.cause()) => return None,
                Err(error) => {
                    tracing::debug!(node = %there, %error, "a node was not asked for a residual");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn try_ask(
        &self,
        there: NodeId,
        ask: &AskResidual,
    ) -> std::result::Result<Option<WireTensor>, CallError> {
        for keeper in self.node.find_on::<ResidualKeeper>(there).await? {
            let answer = keeper.call_within(ask.clone(), VERSION_PATIENCE).await?;
            let Some(residual) = answer else { continue };
            if residual.dtype() == DType::F32 && residual.shape() == [self.weights.layout.len()] {
                return Ok(Some(residual));
            }
            tracing::warn!(node = %there, "a residual that came is none of this model's");
        }
        Ok(None)
    }

    /// Has these nodes keep residuals, though no worker or trainer is there, so that there is one besides the node where
    /// all others are. One that can't, or not soon, is left out.
    pub(in crate::training) async fn bring_keepers(&self, on: BTreeSet<NodeId>) {
        let bring = async |there: NodeId| {
            if has_keeper(&self.node, there).await {
                return;
            }
            let spawned = self.node.spawn::<ResidualKeeper>(()).on(Placement::any_of([there]));
            if let Err(error) = fence::under(None, spawned.into_future()).await {
                tracing::debug!(node = %there, %error, "a node does not keep residuals");
            }
        };
        let _ = timeout(TELL, join_all(on.into_iter().map(bring))).await;
    }

    /// Tells all nodes that the job's residuals are wanted still, or not any more.
    pub(in crate::training) async fn are_wanted(&self, wanted: bool) {
        let told = AreWanted { job: self.job.clone(), wanted };
        let tell = async |there: NodeId| {
            for keeper in self.node.find_on::<ResidualKeeper>(there).await.unwrap_or_default() {
                if let Err(error) = keeper.call_within(told.clone(), TELL).await {
                    tracing::debug!(node = %there, %error, "a node was not told of a job's residuals");
                }
            }
        };
        let _ = timeout(TELL, join_all(holders(&self.node).into_iter().map(tell))).await;
    }

    /// The trainer's part, for as long as the job goes on: tells the nodes so, and has the nodes of the shards, as they
    /// are then, keep residuals.
    pub(in crate::training) async fn are_cared_for(&self, shards: impl Fn() -> BTreeSet<NodeId>) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            self.bring_keepers(shards()).await;
            self.are_wanted(true).await;
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.residuals.leave(&self.job);
    }
}

async fn has_keeper(node: &Node, there: NodeId) -> bool {
    node.find_on::<ResidualKeeper>(there).await.is_ok_and(|found| !found.is_empty())
}

/// Whether a node has taken a residual. One that can't be reached, or is slow, has not.
async fn is_kept_by(keeper: &ActorRef<ResidualKeeper>, keep: &KeepResidual) -> bool {
    let seconds = keep.residual.bytes().len() / BYTES_A_SECOND;
    let patience = TAKE + Duration::from_secs(seconds as u64);
    keeper.call_within(keep.clone(), patience).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "a node did not take a residual");
        false
    })
}

/// Other nodes than this one, in the order in which they are to keep what it computes.
fn ranked(
    nodes: impl Iterator<Item = NodeId>,
    me: NodeId,
    shards: &BTreeSet<NodeId>,
    machine: impl Fn(NodeId) -> Option<IpAddr>,
) -> Vec<NodeId> {
    let here = machine(me);
    let nodes: BTreeSet<NodeId> = nodes.filter(|node| *node != me).collect();
    let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
    nodes.sort_by_key(|node| (machine(*node) == here, shards.contains(node), *node < me, *node));
    nodes
}

/// The nodes that may hold residuals, as this one knows them.
pub(in crate::training) fn holders(node: &Node) -> Vec<NodeId> {
    node.members().iter().filter(|member| may_hold(member)).map(|member| member.id).collect()
}

fn may_hold(member: &Member) -> bool {
    let hosts_it = || member.actors.iter().any(|hosted| hosted == ResidualKeeper::NAME);
    // One that has not told about itself yet may.
    !member.state.is_gone() && (member.state == MemberState::Joining || hosts_it())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_to_another_machine_and_not_to_a_shard_if_it_can() {
        let nodes = || (1..=6).map(NodeId);
        let shards = BTreeSet::from([NodeId(5), NodeId(6)]);
        let of = |me: u64, machines: [u8; 6]| -> Vec<u64> {
            let machine = |node: NodeId| {
                let last = *machines.get(node.0 as usize - 1)?;
                Some(IpAddr::from([10, 0, 0, last]))
            };
            let nodes = ranked(nodes(), NodeId(me), &shards, machine);
            nodes.into_iter().map(|node| node.0).collect()
        };
        // All on one machine: the next one, and the shards' last.
        assert_eq!(of(1, [1; 6]), [2, 3, 4, 5, 6]);
        assert_eq!(of(3, [1; 6]), [4, 1, 2, 5, 6]);
        // Two on each: those of the own machine come after all others.
        assert_eq!(of(1, [1, 1, 2, 2, 3, 3]), [3, 4, 5, 6, 2]);
        assert_eq!(of(5, [1, 1, 2, 2, 3, 3]), [1, 2, 3, 4, 6]);
    }
}
