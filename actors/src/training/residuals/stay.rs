//! A worker or trainer of a job on a node: finds residuals wherever they are, and has its own kept elsewhere, too.

use std::{
    collections::BTreeSet,
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
use tokio::time::timeout;

use super::{AskResidual, JobId, KeepResidual, ResidualKeeper, Residuals};
use crate::training::{
    shards::{SUCCESSOR, is_loss},
    weights::{VERSION_PATIENCE, Weights},
};

/// After a node did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);

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
    /// Who keeps what is computed here, too: who did so last.
    second: Mutex<Option<ActorRef<ResidualKeeper>>>,
    /// It was told that there is nobody.
    is_alone: AtomicBool,
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
        // It outlives whoever is the first.
        let keeper = || fence::under(None, system.spawn::<ResidualKeeper>(()));
        residuals.has_keeper.get_or_try_init(async || keeper().await.map(drop)).await?;
        residuals.enter(job);
        Ok(Stay {
            residuals,
            job: job.clone(),
            every,
            weights: weights.clone(),
            peers,
            node,
            second: Mutex::default(),
            is_alone: AtomicBool::new(false),
        })
    }

    fn second(&self) -> MutexGuard<'_, Option<ActorRef<ResidualKeeper>>> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a slot's residual for this step here alone.
    pub(in crate::training) fn put(&self, step: u64, slot: u32, residual: WireTensor) {
        self.residuals.put(&self.job, step, slot, residual);
    }

    /// Keeps it here and on another node; when this returns both have it, or no other node could be had.
    pub(in crate::training) async fn put_twice(&self, step: u64, slot: u32, residual: WireTensor) {
        self.put(step, slot, residual.clone());
        let (job, saved_every) = (self.job.clone(), self.every);
        let keep = KeepResidual { job, step, slot, residual, saved_every };
        let second = self.second().clone();
        if let Some(second) = second
            && is_kept_by(&second, &keep).await
        {
            return;
        }
        for there in self.seconds() {
            // One that does not answer, or has no keeper, is passed over.
            for keeper in self.node.find_on::<ResidualKeeper>(there).await.unwrap_or_default() {
                if is_kept_by(&keeper, &keep).await {
                    *self.second() = Some(keeper);
                    return;
                }
            }
        }
        if !self.is_alone.swap(true, Ordering::Relaxed) {
            let job = &self.job.name;
            tracing::warn!(
                job,
                "no other node keeps what int8 rounds off here: it is lost with this one"
            );
        }
    }

    /// The nodes that may keep what is computed here, the best first: those of other machines, and such as have no
    /// shard, whose links have the most to carry. Each node begins with another one.
    fn seconds(&self) -> Vec<NodeId> {
        let (me, members) = (self.node.id(), self.node.members());
        let shards: BTreeSet<NodeId> =
            self.weights.shards.now().iter().map(|shard| shard.addr().node).collect();
        let address =
            |node| members.iter().find(|member| member.id == node).map(|it| it.address.ip());
        let here = address(me);
        let up = members.iter().filter(|member| member.is_up() && may_hold(member));
        let mut nodes: Vec<NodeId> = up
            .map(|member| member.id)
            .chain(self.peers.iter().copied())
            .filter(|node| *node != me)
            .collect();
        nodes
            .sort_by_key(|node| (address(*node) == here, shards.contains(node), *node < me, *node));
        nodes.dedup();
        nodes
    }

    /// So many steps are applied everywhere: what is older goes.
    pub(in crate::training) fn applied(&self, steps: u64) {
        self.residuals.applied(&self.job, steps, self.every);
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
        loop {
            match self.node.members().iter().find(|member| member.id == there) {
                Some(member) if member.state.is_gone() => return None,
                Some(_) => {}
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
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.residuals.leave(&self.job);
    }
}

/// Whether a node has taken a residual. One that can't be reached has not, nor one that does not answer until it is
/// declared down.
async fn is_kept_by(keeper: &ActorRef<ResidualKeeper>, keep: &KeepResidual) -> bool {
    let kept = keeper.call_within(keep.clone(), VERSION_PATIENCE).await;
    kept.unwrap_or_else(|error| {
        tracing::debug!(%error, "a node did not take a residual");
        false
    })
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

/// Has these nodes keep residuals, though no worker or trainer is there. One that can't is left out.
pub(in crate::training) async fn bring_keepers(node: &Node, on: BTreeSet<NodeId>) {
    let bring = async |there: NodeId| {
        if node.find_on::<ResidualKeeper>(there).await.is_ok_and(|found| !found.is_empty()) {
            return;
        }
        let spawned = node.spawn::<ResidualKeeper>(()).on(Placement::any_of([there]));
        if let Err(error) = fence::under(None, spawned.into_future()).await {
            tracing::debug!(node = %there, %error, "a node does not keep residuals");
        }
    };
    join_all(on.into_iter().map(bring)).await;
}
