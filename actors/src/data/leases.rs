//! Who works on which slot: a state machine without I/O, driven by a loader.
//!
//! A job is a number of steps, each cut into slots. A worker asks and is leased one slot; a step is *committed* when
//! every shard has applied it, and with it all its slots are done. A worker may die at any time.
//!
//! - **DL-1** A slot is leased to at most one living worker at a time.
//! - **DL-2** Slots are handed out in order of (step, slot), but for those of a lost worker, which come first; where
//!   slots stay (DL-8) in order of steps, and within a step in any.
//! - **DL-3** No slot is handed out whose step is `ahead` or more steps past the committed ones.
//! - **DL-4** No slot of a committed step is handed out again.
//! - **DL-5** As long as workers ask and steps are committed, every slot of every step is leased in the end, whoever
//!   is lost.
//! - **DL-6** What is kept is bounded by `ahead × slots` leases.
//! - **DL-7** No slot past a [meeting](Leases::meeting_every) is handed out before all steps up to it are committed.
//! - **DL-8** Where [slots stay with workers](Leases::slots_stay), a worker is leased the slots of a step that it had
//!   in the step before, as long as they are free; else one that nobody has had who lives; else the first.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One slot of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Work {
    /// The epoch that the step belongs to, from 0.
    pub epoch: u64,
    /// The step, from 0 through all epochs.
    pub step: u64,
    /// The slot within the step, from 0.
    pub slot: u32,
}

/// What a loader cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// A job of nothing.
    #[error("a job needs at least one step an epoch, one slot a step and a look-ahead of one step")]
    Nothing,
    /// A step was committed that the job does not have.
    #[error(
        "step {step} was committed, and the job has {steps}: shard and loader work on different jobs"
    )]
    NoSuchStep {
        /// The step that was committed.
        step: u64,
        /// Number of steps of the job.
        steps: u64,
    },
}

/// The leases of one job. `W` names a worker; a worker that comes back after it was lost should have a new name.
///
/// ```
/// # use footlight_actors::data::{Leases, Work};
/// let mut leases = Leases::new(1, 10, 2, 2)?;                // one epoch of ten steps, each in two slots
/// let first = leases.ask("ada").unwrap();
/// assert_eq!(first, Work { epoch: 0, step: 0, slot: 0 });
/// leases.worker_lost(&"ada");
/// assert_eq!(leases.ask("grace"), Some(first));              // what ada had is done again
/// leases.committed(9)?;
/// assert!(leases.is_done());
/// # Ok::<(), footlight_actors::data::LeaseError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Leases<W> {
    steps_per_epoch: u64,
    steps: u64,
    slots: u32,
    ahead: u64,
    /// Workers meet after each so many steps.
    meetings: Option<u64>,
    /// All steps below this one are committed.
    committed: u64,
    /// The first step of which no slot was ever handed out.
    next: u64,
    /// Slots of the step before that one that were never handed out.
    open: BTreeSet<(u64, u32)>,
    /// Slots that lost workers had.
    returned: BTreeSet<(u64, u32)>,
    live: BTreeMap<(u64, u32), W>,
    /// Who had each slot last, of those who live, if slots stay with workers.
    holders: Option<BTreeMap<u32, W>>,
}

impl<W: Ord + Clone> Leases<W> {
    /// A job of `epochs × steps_per_epoch` steps, each cut into `slots` slots. Slots of up to `ahead` steps that are not
    /// committed are handed out: 1 is no look-ahead, a step begins when the one before it is committed; with 2 the
    /// next one's data can travel in the meantime.
    ///
    /// # Errors
    /// [`LeaseError::Nothing`] if an epoch has no step, a step no slot, or `ahead` is 0. No epochs at all is a job that
    /// is done.
    pub fn new(
        epochs: u64,
        steps_per_epoch: u32,
        slots: u32,
        ahead: u64,
    ) -> Result<Self, LeaseError> {
        if steps_per_epoch == 0 || slots == 0 || ahead == 0 {
            return Err(LeaseError::Nothing);
        }
        let steps_per_epoch = u64::from(steps_per_epoch);
        Ok(Self {
            steps_per_epoch,
            steps: epochs.saturating_mul(steps_per_epoch),
            slots,
            ahead,
            meetings: None,
            committed: 0,
            next: 0,
            open: BTreeSet::new(),
            returned: BTreeSet::new(),
            live: BTreeMap::new(),
            holders: None,
        })
    }

    /// A slot goes to who had it in the step before, where that can be. Default: it goes to whoever asks.
    pub fn slots_stay(mut self, they_do: bool) -> Self {
        self.holders = they_do.then(BTreeMap::new);
        self
    }

    /// After each so many steps everybody waits until all of them are committed. Default: never.
    ///
    /// # Errors
    /// [`LeaseError::Nothing`] if that is after no step.
    pub fn meeting_every(mut self, steps: Option<u64>) -> Result<Self, LeaseError> {
        if steps == Some(0) {
            return Err(LeaseError::Nothing);
        }
        self.meetings = steps;
        Ok(self)
    }

    /// Leases the next slot to `worker`, who may hold others already. `None`: there is nothing to do now; ask again
    /// after a step was committed or a worker lost.
    pub fn ask(&mut self, worker: W) -> Option<Work> {
        if self.returned.is_empty() && self.open.is_empty() {
            self.open_next()?;
        }
        let free = if self.returned.is_empty() { &self.open } else { &self.returned };
        let slot = self.best(free, &worker)?;
        self.returned.remove(&slot);
        self.open.remove(&slot);
        if let Some(holders) = &mut self.holders {
            holders.insert(slot.1, worker.clone());
        }
        self.live.insert(slot, worker);
        Some(self.work(slot))
    }

    /// Of the first step of which some are free.
    fn best(&self, free: &BTreeSet<(u64, u32)>, worker: &W) -> Option<(u64, u32)> {
        let first = *free.first()?;
        let Some(holders) = &self.holders else { return Some(first) };
        let of_step = || free.iter().copied().take_while(|(step, _)| *step == first.0);
        let own = of_step().find(|(_, slot)| holders.get(slot) == Some(worker));
        let unheld = || of_step().find(|(_, slot)| !holders.contains_key(slot));
        own.or_else(unheld).or(Some(first))
    }

    /// The slots that are handed out next, in order, whatever the look-ahead: for who prepares them.
    pub fn upcoming(&self) -> impl Iterator<Item = Work> {
        let begun = self.returned.iter().chain(&self.open).copied();
        let fresh = (self.next..self.steps).flat_map(|step| self.slots_of(step));
        begun.chain(fresh).map(|slot| self.work(slot))
    }

    fn slots_of(&self, step: u64) -> impl Iterator<Item = (u64, u32)> + use<W> {
        (0..self.slots).map(move |slot| (step, slot))
    }

    /// Opens the next step; `None` if it is not its time yet.
    fn open_next(&mut self) -> Option<()> {
        let step = self.next;
        if step >= self.steps || step - self.committed >= self.ahead {
            return None;
        }
        if self.meetings.is_some_and(|every| step / every > self.committed / every) {
            return None;
        }
        self.open = self.slots_of(step).collect();
        self.next = step + 1;
        Some(())
    }

    fn work(&self, (step, slot): (u64, u32)) -> Work {
        Work { epoch: step / self.steps_per_epoch, step, slot }
    }

    /// All shards have applied `step`, and so all steps before it. Says whether that was news.
    ///
    /// A step may be committed that was never (or not all) handed out here: then another loader did so before this
    /// one took its place.
    ///
    /// # Errors
    /// [`LeaseError::NoSuchStep`].
    pub fn committed(&mut self, step: u64) -> Result<bool, LeaseError> {
        if step >= self.steps {
            return Err(LeaseError::NoSuchStep { step, steps: self.steps });
        }
        if step < self.committed {
            return Ok(false);
        }
        self.committed = step + 1;
        let first = (self.committed, 0);
        self.live = self.live.split_off(&first);
        self.returned = self.returned.split_off(&first);
        self.open = self.open.split_off(&first);
        self.next = self.next.max(self.committed);
        Ok(true)
    }

    /// The worker is gone: its leases go to those who ask next. Returns how many there were.
    pub fn worker_lost(&mut self, worker: &W) -> usize {
        if let Some(holders) = &mut self.holders {
            holders.retain(|_, holder| holder != worker);
        }
        self.give_back(worker)
    }

    /// The worker lives, and gives back what it was leased: that goes to those who ask next. Returns how many there were.
    pub fn give_back(&mut self, worker: &W) -> usize {
        let before = self.returned.len();
        let returned = &mut self.returned;
        self.live.retain(|slot, holder| holder != worker || !returned.insert(*slot));
        self.returned.len() - before
    }

    /// What a worker has to do: its leases whose steps are not committed, in order. A worker that does not know
    /// whether its question was answered (the reply may be lost) finds out here.
    pub fn held_by(&self, worker: &W) -> impl Iterator<Item = Work> {
        self.live
            .iter()
            .filter(move |(_, holder)| *holder == worker)
            .map(|(slot, _)| self.work(*slot))
    }

    /// Number of steps that are committed: 0 up to [`Leases::steps`].
    pub fn committed_steps(&self) -> u64 {
        self.committed
    }

    /// Number of steps of the whole job.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Every step is committed.
    pub fn is_done(&self) -> bool {
        self.committed >= self.steps
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
