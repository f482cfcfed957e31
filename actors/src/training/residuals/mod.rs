//! Error feedback: what int8 rounds off a slot's gradient is added to the slot's next one.
//!
//! Of the gradient *g* of a slot the shards get *q* = int8(*g* + *e*), and *e'* = int8(*g* + *e* - *q*) is the slot's
//! residual for the step after it (Seide et al., "1-Bit Stochastic Gradient Descent", 2014; Karimireddy et al., "Error
//! Feedback Fixes SignSGD", 2019; residuals of 8 bits as in Xie et al., "LoCo", 2024). So of a step that is applied
//! 1/64,516 of the largest value of its block is lost at most, where int8 alone loses 1/254. A step that is left out,
//! as its gradient is not finite, takes the residuals along that went into it.
//!
//! - **EF-1** A residual belongs to a slot, not to a worker. Who computes the slot next gets it from a node that has it.
//! - **EF-2** It is kept until the step that it is for is applied everywhere, so that a slot that is computed twice has
//!   the same bytes twice; and those of the last two steps whose state is saved.
//! - **EF-3** Before a slot's gradient goes to the shards, its residual is on two nodes: where it was computed, and on
//!   another one, on another machine if one there has a part of the job. So it outlives worker, trainer, process and
//!   machine. If both are lost before the slot's next step, or leave, it begins with none there, and the job tells of it.

mod compensate;
mod keeper;
mod stay;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use footlight_runtime::{System, tensor::WireTensor};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use self::keeper::{AreWanted, AskResidual, KeepResidual, ResidualKeeper};
pub(super) use self::{
    compensate::{Compensated, compensate},
    stay::{Stay, holders},
};

/// A trainer may be on its way to another node, and start its workers anew: a job's residuals wait for them so long.
const FORGET: Duration = Duration::from_secs(300);
/// A node keeps no more than this for other nodes, of all jobs.
const MOST_FOR_OTHERS: usize = 16 << 30;

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
    /// Held by who looks whether an actor answers for them to other nodes, and starts it.
    starting: tokio::sync::Mutex<()>,
    /// There is a task that forgets.
    is_swept: AtomicBool,
}

#[derive(Debug)]
struct OfJob {
    /// Workers and trainers of the job on this node.
    users: usize,
    /// When the last one left, another node's residual came, or the trainer said that the job goes on.
    touched: Instant,
    /// By the step that they are for, and the slot.
    held: BTreeMap<(u64, u32), Held>,
}

#[derive(Debug)]
struct Held {
    residual: WireTensor,
    /// It was computed elsewhere.
    is_for_others: bool,
}

impl OfJob {
    fn new() -> Self {
        OfJob { users: 0, touched: Instant::now(), held: BTreeMap::new() }
    }

    /// So many steps are applied everywhere, and the state is saved after each `every`: what is older goes, but for the
    /// last two that are saved, as who saves may come late.
    fn applied(&mut self, steps: u64, every: Option<u64>) {
        let is_kept = |step: u64| {
            let is_saved =
                |every: u64| step.is_multiple_of(every) && step.saturating_add(2 * every) > steps;
            step >= steps || every.is_some_and(is_saved)
        };
        self.held.retain(|(step, _), _| is_kept(*step));
    }
}

impl Residuals {
    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, OfJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The residual of a slot for this step.
    fn get(&self, job: &JobId, step: u64, slot: u32) -> Option<WireTensor> {
        Some(self.jobs().get(job)?.held.get(&(step, slot))?.residual.clone())
    }

    /// Keeps what was computed here.
    fn put(&self, job: &JobId, step: u64, slot: u32, residual: WireTensor) {
        let held = Held { residual, is_for_others: false };
        let mut jobs = self.jobs();
        jobs.entry(job.clone()).or_insert_with(OfJob::new).held.insert((step, slot), held);
    }

    /// Keeps what was computed on another node; not more than [`MOST_FOR_OTHERS`]. Says whether it is here now.
    fn keep(&self, keep: KeepResidual) -> bool {
        let KeepResidual { job, step, slot, residual, saved_every } = keep;
        let mut jobs = self.jobs();
        if let Some(of) = jobs.get_mut(&job) {
            // It is computed from parameters that have had all the steps before.
            of.applied(step.saturating_sub(1), saved_every);
        }
        let had = jobs.get_mut(&job).and_then(|of| of.held.get_mut(&(step, slot)));
        if let Some(held) = had {
            // A slot that is computed twice has the same residual twice, unless what it needs was lost in between.
            held.residual = residual;
            return true;
        }
        let held = jobs.values().flat_map(|of| of.held.values());
        let for_others = held.filter(|held| held.is_for_others);
        let has: usize = for_others.map(|held| held.residual.bytes().len()).sum();
        if has.saturating_add(residual.bytes().len()) > MOST_FOR_OTHERS {
            return false;
        }
        let of = jobs.entry(job).or_insert_with(OfJob::new);
        of.touched = Instant::now();
        of.held.insert((step, slot), Held { residual, is_for_others: true });
        true
    }

    /// So many steps of a job are applied everywhere.
    fn applied(&self, job: &JobId, steps: u64, every: Option<u64>) {
        if let Some(of) = self.jobs().get_mut(job) {
            of.applied(steps, every);
        }
    }

    /// One more of a job is here.
    fn enter(&self, job: &JobId) {
        self.jobs().entry(job.clone()).or_insert_with(OfJob::new).users += 1;
    }

    /// One fewer.
    fn leave(&self, job: &JobId) {
        if let Some(of) = self.jobs().get_mut(job) {
            of.users = of.users.saturating_sub(1);
            of.touched = Instant::now();
        }
    }

    /// A job goes on, or it is over.
    fn are_wanted(&self, job: &JobId, wanted: bool) {
        let mut jobs = self.jobs();
        let Some(of) = jobs.get_mut(job) else { return };
        of.touched = Instant::now();
        if !wanted && of.users == 0 {
            jobs.remove(job);
        }
    }

    /// Forgets the jobs that nobody here has worked at, and nobody elsewhere, for a while. Says whether any are left.
    fn sweep(&self) -> bool {
        let mut jobs = self.jobs();
        jobs.retain(|_, of| of.users > 0 || of.touched.elapsed() < FORGET);
        // Before anybody can add one.
        self.is_swept.store(!jobs.is_empty(), Ordering::Release);
        !jobs.is_empty()
    }

    /// Has a task forget what is not wanted any more, though all actors may end that used it.
    fn are_swept(self: &Arc<Self>, system: &System) {
        if !self.is_swept.swap(true, Ordering::AcqRel) {
            let residuals = self.clone();
            drop(system.env().spawner.spawn(async move {
                loop {
                    tokio::time::sleep(FORGET / 10).await;
                    if !residuals.sweep() {
                        return;
                    }
                }
            }));
        }
    }

    /// How many are held of a job.
    #[cfg(test)]
    fn held(&self, job: &JobId) -> usize {
        self.jobs().get(job).map_or(0, |job| job.held.len())
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::{HostTensor, tensor::WireFormat};
    use tokio::time::advance;

    use super::*;

    fn job(submission: u64) -> JobId {
        JobId { name: "digits".to_owned(), submission }
    }

    fn one(value: f32) -> WireTensor {
        HostTensor::from_vec(vec![value], &[1]).unwrap().encoded(WireFormat::Int8)
    }

    fn keep(job: &JobId, step: u64, slot: u32) -> KeepResidual {
        let residual = one(step as f32);
        KeepResidual { job: job.clone(), step, slot, residual, saved_every: Some(5) }
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
    fn so_is_what_was_computed_elsewhere_though_nobody_of_the_job_is_here() {
        let (residuals, job) = (Residuals::default(), job(1));
        for step in 1..=12 {
            assert!(residuals.keep(keep(&job, step, 0)));
            assert!(residuals.keep(keep(&job, step, 3)));
        }
        let has = |step| residuals.get(&job, step, 3).is_some();
        assert_eq!((1..=13).filter(|step| has(*step)).collect::<Vec<_>>(), [5, 10, 11, 12]);
    }

    #[test]
    fn no_more_is_kept_for_other_nodes_than_there_is_room_for() {
        let (residuals, job) = (Residuals::default(), job(1));
        let len = 1 << 30;
        // Memory that nobody touches.
        let bytes = vec![0; WireFormat::Int8.encoded_len(len)].into();
        let huge = WireTensor::from_bytes(WireFormat::Int8, &[len], bytes).unwrap();
        let keep = |slot| KeepResidual { residual: huge.clone(), ..keep(&job, 1, slot) };
        let fits = (MOST_FOR_OTHERS / huge.bytes().len()) as u32;
        for slot in 0..fits {
            assert!(residuals.keep(keep(slot)));
        }
        assert!(!residuals.keep(keep(fits)));
        assert!(residuals.keep(keep(0)), "it is here already");
        // What is its own is.
        residuals.put(&job, 1, fits, huge.clone());
        assert_eq!(residuals.held(&job), fits as usize + 1);
        // The step is over: there is room.
        residuals.applied(&job, 2, None);
        assert!(residuals.keep(KeepResidual { step: 3, ..keep(0) }));
    }

    #[test]
    fn another_submission_of_a_job_has_residuals_of_its_own() {
        let residuals = Residuals::default();
        residuals.enter(&job(1));
        residuals.put(&job(1), 1, 0, one(1.0));
        assert_eq!(residuals.get(&job(2), 1, 0), None);
        // Somebody still works at the first.
        residuals.are_wanted(&job(1), false);
        assert_eq!(residuals.held(&job(1)), 1);
        residuals.leave(&job(1));
        residuals.are_wanted(&job(2), false);
        assert_eq!(residuals.held(&job(1)), 1);
        residuals.are_wanted(&job(1), false);
        assert_eq!(residuals.held(&job(1)), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_forgotten_when_nobody_has_come_for_a_while() {
        let residuals = Residuals::default();
        residuals.enter(&job(1));
        residuals.put(&job(1), 1, 0, one(1.0));
        advance(2 * FORGET).await;
        residuals.sweep();
        assert_eq!(residuals.held(&job(1)), 1, "there is one");
        residuals.leave(&job(1));
        advance(FORGET / 2).await;
        residuals.sweep();
        // It comes back, and leaves again.
        residuals.enter(&job(1));
        residuals.leave(&job(1));
        advance(FORGET / 2).await;
        residuals.sweep();
        assert_eq!(residuals.held(&job(1)), 1);
        // Another node has something kept here.
        assert!(residuals.keep(keep(&job(1), 2, 0)));
        advance(FORGET / 2).await;
        residuals.sweep();
        assert_eq!(residuals.held(&job(1)), 2);
        // Its trainer says that it goes on.
        residuals.are_wanted(&job(1), true);
        advance(FORGET / 2).await;
        assert!(residuals.sweep());
        assert_eq!(residuals.held(&job(1)), 2);
        advance(FORGET / 2).await;
        assert!(!residuals.sweep());
        assert_eq!(residuals.held(&job(1)), 0);
    }
}
