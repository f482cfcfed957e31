//! Error feedback: what int8 rounds off a slot's gradient is added to the slot's next one.
//!
//! Of the gradient *g* of a slot the shards get *q* = int8(*g* + *e*); *e* + *g* - *q* is the slot's residual for the
//! step after it, so that over the steps nothing of a gradient is lost but the last residual (Seide et al., "1-Bit
//! Stochastic Gradient Descent", 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", 2019). A step that is left
//! out, as its gradient is not finite, takes the residuals along that went into it.
//!
//! - **EF-1** A residual belongs to a slot, not to a worker. Who computes the slot next gets it from the node where it
//!   was computed last.
//! - **EF-2** It is kept until the step that it is for is applied everywhere, so that a slot that is computed twice has
//!   the same bytes twice; and those of the last two steps whose state is saved.
//! - **EF-3** It outlives the worker and the trainer. With its process it is lost: then the slot begins with none, and
//!   the job tells of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use footlight_cluster::{Member, MemberState, Node};
use footlight_runtime::{
    Actor, CallError, Context, Error, Handler, HostTensor, Message, NodeId, Result, System, fence,
    tensor::{BufferPool, WireFormat, WireTensor},
};
use futures::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{sync::OnceCell, time::timeout};

use super::{
    shards::{SUCCESSOR, is_loss},
    weights::VERSION_PATIENCE,
};
use crate::parameters::layout::Layout;

/// A trainer may be on its way to another node, and start its workers anew: a job's residuals wait for them so long.
const FORGET: Duration = Duration::from_secs(300);

/// After a node did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// One submission of a job: a later one of this name has other residuals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobId {
    /// The job's name.
    pub name: String,
    /// Which of this name.
    pub submission: u64,
}

/// The residuals that a node holds, of all jobs. Laid beside the node's actors by [`cast`](crate::cast).
#[derive(Debug, Default)]
pub struct Residuals {
    jobs: Mutex<HashMap<JobId, OfJob>>,
    /// Whether there is one who reads them for other nodes. Not who: a reference holds the node, and the node this.
    has_reader: OnceCell<()>,
}

#[derive(Debug, Default)]
struct OfJob {
    /// Workers and trainers of the job on this node.
    users: usize,
    /// How many there have been.
    stays: u64,
    /// By the step that they are for, and the slot.
    held: BTreeMap<(u64, u32), HostTensor>,
}

impl Residuals {
    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, OfJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The residual of a slot for this step.
    fn get(&self, job: &JobId, step: u64, slot: u32) -> Option<HostTensor> {
        self.jobs().get(job)?.held.get(&(step, slot)).cloned()
    }

    fn put(&self, job: &JobId, step: u64, slot: u32, residual: HostTensor) {
        self.jobs().entry(job.clone()).or_default().held.insert((step, slot), residual);
    }

    /// So many steps are applied everywhere, and the state is saved after each `every`: what is older goes, but for the
    /// last two that are saved, as who saves may come late.
    fn applied(&self, job: &JobId, steps: u64, every: Option<u64>) {
        let is_kept = |step: u64| {
            let is_saved =
                |every: u64| step.is_multiple_of(every) && step.saturating_add(2 * every) > steps;
            step >= steps || every.is_some_and(is_saved)
        };
        if let Some(job) = self.jobs().get_mut(job) {
            job.held.retain(|(step, _), _| is_kept(*step));
        }
    }

    /// One more of a job is here. Another submission of its name that nobody works at any more is forgotten.
    fn enter(&self, job: &JobId) {
        let mut jobs = self.jobs();
        jobs.retain(|other, of| of.users > 0 || other.name != job.name || other == job);
        let of = jobs.entry(job.clone()).or_default();
        of.users += 1;
        of.stays += 1;
    }

    /// One fewer. If it was the last: how many there have been.
    fn leave(&self, job: &JobId) -> Option<u64> {
        let mut jobs = self.jobs();
        let of = jobs.get_mut(job)?;
        of.users = of.users.saturating_sub(1);
        (of.users == 0).then_some(of.stays)
    }

    /// Forgets a job if nobody has come since there had been so many.
    fn forget(&self, job: &JobId, stays: u64) {
        let mut jobs = self.jobs();
        if jobs.get(job).is_some_and(|of| of.users == 0 && of.stays == stays) {
            jobs.remove(job);
        }
    }

    /// How many are held of a job.
    #[cfg(test)]
    fn held(&self, job: &JobId) -> usize {
        self.jobs().get(job).map_or(0, |job| job.held.len())
    }
}

/// As long as there is one of a job on a node, its residuals stay there, and a while longer.
#[derive(Debug)]
pub(super) struct Stay {
    residuals: Arc<Residuals>,
    job: JobId,
    /// After each so many steps the job's state is saved.
    every: Option<u64>,
    /// The job's parameters.
    len: usize,
    /// Nodes that may hold residuals, besides those that this one knows: it may have joined a moment ago.
    peers: Vec<NodeId>,
    node: Node,
}

impl Stay {
    /// # Errors
    /// The node has no place for residuals.
    pub(super) async fn new(
        system: &System,
        job: &JobId,
        every: Option<u64>,
        layout: &Layout,
        peers: Vec<NodeId>,
    ) -> Result<Self> {
        let missing = || Error::other("int8 needs `footlight::actors::cast` on this node");
        let node = Node::of(system).ok_or_else(missing)?;
        let residuals = system.extension::<Residuals>().ok_or_else(missing)?;
        // It outlives whoever is the first.
        let reader = || fence::under(None, system.spawn::<ResidualReader>(()));
        residuals.has_reader.get_or_try_init(async || reader().await.map(drop)).await?;
        residuals.enter(job);
        Ok(Stay { residuals, job: job.clone(), every, len: layout.len(), peers, node })
    }

    /// Keeps a slot's residual for this step.
    pub(super) fn put(&self, step: u64, slot: u32, residual: HostTensor) {
        self.residuals.put(&self.job, step, slot, residual);
    }

    /// So many steps are applied everywhere: what is older goes.
    pub(super) fn applied(&self, steps: u64) {
        self.residuals.applied(&self.job, steps, self.every);
    }

    /// Finds a residual on this node or another one. `None` if none has it that can be reached within a minute: a node
    /// that does not answer and is not gone is asked again.
    pub(super) async fn find(&self, step: u64, slot: u32) -> Option<HostTensor> {
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
    async fn ask(&self, there: NodeId, ask: &AskResidual) -> Option<HostTensor> {
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
    ) -> std::result::Result<Option<HostTensor>, CallError> {
        for reader in self.node.find_on::<ResidualReader>(there).await? {
            let answer = reader.call_within(ask.clone(), VERSION_PATIENCE).await?;
            let Some(residual) = answer else { continue };
            if residual.as_slice::<f32>().is_ok_and(|floats| floats.len() == self.len) {
                return Ok(Some(residual));
            }
            tracing::warn!(node = %there, "a residual that came is none of this model's");
        }
        Ok(None)
    }
}

/// The nodes that may hold residuals, as this one knows them.
pub(super) fn holders(node: &Node) -> Vec<NodeId> {
    let may_hold = |member: &Member| {
        let hosts_it = || member.actors.iter().any(|hosted| hosted == ResidualReader::NAME);
        // One that has not told about itself yet may.
        !member.state.is_gone() && (member.state == MemberState::Joining || hosts_it())
    };
    node.members().iter().filter(|member| may_hold(member)).map(|member| member.id).collect()
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Some(stays) = self.residuals.leave(&self.job) else { return };
        let (residuals, job) = (self.residuals.clone(), self.job.clone());
        drop(self.node.system().env().spawner.spawn(async move {
            tokio::time::sleep(FORGET).await;
            residuals.forget(&job, stays);
        }));
    }
}

/// Reads a node's residuals for other nodes. There is one where a job feeds back what it rounds off.
#[derive(Debug)]
pub struct ResidualReader {
    residuals: Arc<Residuals>,
}

/// Asks for the residual of a slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AskResidual {
    /// Of which job.
    pub job: JobId,
    /// The step that it is for.
    pub step: u64,
    /// The slot.
    pub slot: u32,
}

impl Message for AskResidual {
    /// As many floats as the job has parameters, if the node has it.
    type Reply = Option<HostTensor>;
    const NAME: &'static str = "training.ask_residual";
}

impl Actor for ResidualReader {
    type Args = ();
    const NAME: &'static str = "training.residual_reader";

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let residuals = context.system().extension::<Residuals>().unwrap_or_default();
        Ok(ResidualReader { residuals })
    }
}

impl Handler<AskResidual> for ResidualReader {
    async fn handle(&mut self, ask: AskResidual, _: &Context<Self>) -> Option<HostTensor> {
        self.residuals.get(&ask.job, ask.step, ask.slot)
    }
}

/// A slot's gradient as it goes to the shards, and the residual for its next step.
pub(super) struct Compensated {
    /// By chunk.
    pub(super) chunks: Vec<WireTensor>,
    pub(super) residual: HostTensor,
}

/// Adds a slot's residual to its gradient and rounds it. What is not finite leaves no residual: it says nothing of what
/// was rounded off.
pub(super) fn compensate(
    layout: &Layout,
    gradient: &HostTensor,
    residual: Option<&HostTensor>,
    pool: &BufferPool,
) -> Result<Compensated> {
    let gradient = gradient.as_slice::<f32>()?;
    let before = residual.map(HostTensor::as_slice::<f32>).transpose()?;
    let (len, needed) = (layout.len(), before.map_or(layout.len(), <[f32]>::len));
    if gradient.len() != len || needed != len {
        return Err(Error::other(format!(
            "the gradient has {} floats and its residual {needed}, and the job's parameters have {len}",
            gradient.len()
        )));
    }
    let mut after = vec![0.0f32; len];
    let mut chunks = Vec::with_capacity(layout.chunks());
    for chunk in 0..layout.chunks() {
        let range = layout.chunk(chunk).unwrap_or_default();
        let mut wanted = gradient[range.clone()].to_vec();
        if let Some(before) = before {
            wanted.iter_mut().zip(&before[range.clone()]).for_each(|(value, rest)| *value += rest);
        }
        let wanted = HostTensor::from_vec(wanted, &[range.len()])?;
        let encoded = wanted.encoded_in(WireFormat::Int8, pool);
        let after = &mut after[range];
        encoded.copy_to(after)?;
        for (rest, wanted) in after.iter_mut().zip(wanted.as_slice::<f32>()?) {
            let left = wanted - *rest;
            *rest = if left.is_finite() { left } else { 0.0 };
        }
        chunks.push(encoded);
    }
    Ok(Compensated { chunks, residual: HostTensor::from_vec(after, &[len])? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(submission: u64) -> JobId {
        JobId { name: "digits".to_owned(), submission }
    }

    fn one(value: f32) -> HostTensor {
        HostTensor::from_vec(vec![value], &[1]).unwrap()
    }

    #[test]
    fn what_may_be_needed_again_is_kept() {
        let (residuals, job) = (Residuals::default(), job(1));
        for step in 1..=12 {
            residuals.put(&job, step, 0, one(step as f32));
            residuals.put(&job, step, 3, one(step as f32));
            // The step before it is under way, and the state is saved every five.
            residuals.applied(&job, step - 1, Some(5));
        }
        let has = |step| residuals.get(&job, step, 3).is_some();
        assert_eq!((1..=13).filter(|step| has(*step)).collect::<Vec<_>>(), [5, 10, 11, 12]);
        assert_eq!(residuals.held(&job), 8);
        residuals.applied(&job, 12, Some(1));
        assert_eq!((1..=13).filter(|step| has(*step)).collect::<Vec<_>>(), [11, 12]);
        residuals.applied(&job, 12, None);
        assert_eq!(residuals.held(&job), 2);
    }

    #[test]
    fn another_submission_of_a_job_has_residuals_of_its_own() {
        let residuals = Residuals::default();
        residuals.enter(&job(1));
        residuals.put(&job(1), 1, 0, one(1.0));
        assert_eq!(residuals.get(&job(2), 1, 0), None);
        // Somebody still works at the first.
        residuals.enter(&job(2));
        assert_eq!(residuals.held(&job(1)), 1);
        residuals.leave(&job(1)).unwrap();
        residuals.enter(&job(3));
        assert_eq!(residuals.held(&job(1)), 0);
    }

    #[test]
    fn a_job_is_forgotten_if_nobody_has_come_since_the_last_one_left() {
        let residuals = Residuals::default();
        residuals.enter(&job(1));
        residuals.enter(&job(1));
        residuals.put(&job(1), 1, 0, one(1.0));
        assert_eq!(residuals.leave(&job(1)), None, "another one is here");
        let first = residuals.leave(&job(1)).unwrap();
        // It comes back, and leaves again shortly before the first one's time is over.
        residuals.enter(&job(1));
        let second = residuals.leave(&job(1)).unwrap();
        residuals.forget(&job(1), first);
        assert_eq!(residuals.held(&job(1)), 1);
        residuals.forget(&job(1), second);
        assert_eq!(residuals.held(&job(1)), 0);
    }

    fn layout(len: usize) -> Layout {
        Layout::new([("flat", vec![len])], 2).unwrap()
    }

    /// A gradient of numbers that int8 rounds, other ones each time.
    fn gradient(len: usize, step: usize) -> HostTensor {
        let values =
            (0..len).map(|at| (((at * 7919 + step * 104_729) % 2003) as f32 - 1001.0) / 1e3);
        HostTensor::from_vec(values.collect(), &[len]).unwrap()
    }

    #[test]
    fn what_is_sent_over_many_steps_is_what_was_computed_but_for_the_last_residual() {
        let (len, steps) = (3000, 50);
        let (layout, pool) = (layout(len), BufferPool::new(1 << 20));
        let (mut computed, mut sent) = (vec![0.0f64; len], vec![0.0f64; len]);
        let mut residual = None;
        for step in 0..steps {
            let gradient = gradient(len, step);
            let done = compensate(&layout, &gradient, residual.as_ref(), &pool).unwrap();
            let mut flat = vec![0.0f32; len];
            for (chunk, encoded) in done.chunks.iter().enumerate() {
                encoded.copy_to(&mut flat[layout.chunk(chunk).unwrap()]).unwrap();
            }
            let all = sent.iter_mut().zip(&mut computed).zip(&flat);
            for (((sent, computed), q), g) in all.zip(gradient.as_slice::<f32>().unwrap()) {
                *sent += f64::from(*q);
                *computed += f64::from(*g);
            }
            residual = Some(done.residual);
        }
        let residual = residual.unwrap();
        for ((sent, computed), rest) in
            sent.iter().zip(&computed).zip(residual.as_slice::<f32>().unwrap())
        {
            assert!((computed - sent - f64::from(*rest)).abs() < 1e-4);
            // One step's rounding, however many there were: the largest value is 1.01, of 127 parts.
            assert!(rest.abs() < 1.02 / 254.0 * 1.01, "{rest}");
        }
    }

    #[test]
    fn the_same_gradient_and_residual_give_the_same_bytes() {
        let (layout, pool) = (layout(3000), BufferPool::new(1 << 20));
        let rest = gradient(3000, 9);
        let [one, other] =
            [0, 1].map(|_| compensate(&layout, &gradient(3000, 1), Some(&rest), &pool).unwrap());
        let bytes = |done: &Compensated| -> Vec<_> {
            done.chunks.iter().map(|chunk| chunk.bytes().clone()).collect()
        };
        assert_eq!(bytes(&one), bytes(&other));
        assert_eq!(one.residual, other.residual);
    }

    #[test]
    fn what_is_not_finite_leaves_no_residual() {
        let (layout, pool) = (layout(8), BufferPool::new(1 << 20));
        let values = vec![1.0, f32::NAN, f32::INFINITY, 0.3, -0.7, 0.0, 1e-3, 5e-4];
        let gradient = HostTensor::from_vec(values, &[8]).unwrap();
        let done = compensate(&layout, &gradient, None, &pool).unwrap();
        let rest = done.residual.as_slice::<f32>().unwrap();
        assert!(rest.iter().all(|rest| rest.is_finite()));
        assert_eq!((rest[1], rest[2]), (0.0, 0.0));
        assert!(rest[3] != 0.0 || rest[4] != 0.0);
    }

    #[test]
    fn a_residual_of_another_model_is_refused() {
        let (layout, pool) = (layout(8), BufferPool::new(1 << 20));
        let refused = compensate(&layout, &gradient(8, 0), Some(&gradient(9, 0)), &pool);
        let why = refused.err().unwrap().to_string();
        assert!(why.contains("its residual 9") && why.contains("parameters have 8"), "{why}");
    }
}
