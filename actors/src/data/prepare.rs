//! Prepares slots ahead of the workers that ask for them, within bounds.
//!
//! - **PR-1** At most [`Prefetch::slots`] slots that nobody has asked for are prepared or being prepared.
//! - **PR-2** They take at most [`Prefetch::bytes`], going by the largest slot so far; one slot may always be.
//! - **PR-3** What is asked for is prepared at once if it was not, whatever is ahead.
//! - **PR-4** A slot's content depends on the seed, its step and its number, and not on when it was prepared or by
//!   whom.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Batches, Dataset, dataset::Pass, leases::Work, loader::SlotWork, order::order};

/// How far a loader prepares slots ahead of the workers that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch {
    /// So many slots at most; 0: a slot is prepared when it is asked for.
    pub slots: u32,
    /// So many bytes of samples at most, but for one slot.
    pub bytes: u64,
}

impl Default for Prefetch {
    /// 8 slots, 256 MiB.
    fn default() -> Self {
        Prefetch { slots: 8, bytes: 256 << 20 }
    }
}

/// A slot, or why it can't be had.
pub(super) type Prepared = Result<SlotWork, String>;

type At = (u64, u32);

/// Orders of so many epochs are kept: that which ends, and the next one.
const ORDERS: usize = 2;

pub(super) struct Preparer(Arc<Shared>);

struct Shared {
    data: Dataset,
    seed: u64,
    batches: Batches,
    limits: Prefetch,
    orders: Mutex<BTreeMap<u64, Arc<Vec<u32>>>>,
    state: Mutex<State>,
    handle: Handle,
}

#[derive(Default)]
struct State {
    /// What comes next, in order.
    wanted: VecDeque<Work>,
    /// Being prepared, and nobody has asked.
    running: BTreeMap<At, ()>,
    /// Being prepared for somebody.
    asked: BTreeMap<At, oneshot::Sender<Prepared>>,
    ready: BTreeMap<At, Prepared>,
    /// What is ready takes so many bytes.
    bytes: u64,
    /// The largest slot so far.
    largest: u64,
}

impl State {
    /// The next slot to prepare ahead, if the bounds let it.
    fn next(&mut self, limits: Prefetch) -> Option<Work> {
        let ahead = self.running.len() + self.ready.len();
        if ahead >= limits.slots as usize {
            return None;
        }
        let with_one_more = self.bytes + (self.running.len() as u64 + 1) * self.largest;
        // Before the first is there nobody knows how large they are.
        let unknown = self.largest == 0 && ahead > 0;
        if ahead > 0 && (unknown || with_one_more > limits.bytes) {
            return None;
        }
        while let Some(work) = self.wanted.pop_front() {
            let at = (work.step, work.slot);
            let there = self.running.contains_key(&at) || self.ready.contains_key(&at);
            if !there && !self.asked.contains_key(&at) {
                self.running.insert(at, ());
                return Some(work);
            }
        }
        None
    }
}

/// A slot that was asked for.
pub(super) enum Taken {
    /// It is ready.
    Now(Box<Prepared>),
    /// It comes.
    Soon(oneshot::Receiver<Prepared>),
}

impl Preparer {
    pub(super) fn new(
        data: Dataset,
        seed: u64,
        batches: Batches,
        limits: Prefetch,
        handle: Handle,
    ) -> Self {
        let (orders, state) = (Mutex::default(), Mutex::default());
        Preparer(Arc::new(Shared { data, seed, batches, limits, orders, state, handle }))
    }

    pub(super) fn data(&self) -> &Dataset {
        &self.0.data
    }

    /// What comes next, in order: to be prepared ahead. What is prepared and does not come any more is let go.
    pub(super) fn want(&self, next: impl Iterator<Item = Work>, committed: u64) {
        {
            let mut state = self.0.state();
            state.wanted = next.take(self.0.limits.slots as usize).collect();
            let kept = state.ready.split_off(&(committed, 0));
            let gone = std::mem::replace(&mut state.ready, kept);
            state.bytes -= gone.values().map(size).sum::<u64>();
        }
        self.0.clone().fill();
    }

    /// Takes a slot; it is not prepared ahead then until it is wanted again.
    pub(super) fn take(&self, work: Work) -> Taken {
        let at = (work.step, work.slot);
        let mut state = self.0.state();
        if let Some(ready) = state.ready.remove(&at) {
            state.bytes -= size(&ready);
            return Taken::Now(Box::new(ready));
        }
        let (told, soon) = oneshot::channel();
        let is_running = state.running.remove(&at).is_some() || state.asked.contains_key(&at);
        // Of several that ask only the last one holds the lease.
        state.asked.insert(at, told);
        drop(state);
        if !is_running {
            self.0.clone().start(work);
        }
        Taken::Soon(soon)
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.0.state().wanted.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what the bounds let be prepared ahead.
    fn fill(self: Arc<Self>) {
        loop {
            let Some(work) = self.state().next(self.limits) else { return };
            self.clone().start(work);
        }
    }

    fn start(self: Arc<Self>, work: Work) {
        let handle = self.handle.clone();
        handle.spawn_blocking(move || {
            // A user's source or transform may panic: that is one worker's error, and no silence.
            let made = catch_unwind(AssertUnwindSafe(|| self.make(work))).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(format!(
                    "the data's source or a transform panicked: {}",
                    text.unwrap_or_default()
                ))
            });
            self.finish(work, made);
        });
    }

    fn finish(self: Arc<Self>, work: Work, made: Prepared) {
        let at = (work.step, work.slot);
        {
            let mut state = self.state();
            let size = size(&made);
            state.largest = state.largest.max(size);
            state.running.remove(&at);
            match state.asked.remove(&at) {
                // Who asked may have gone: then the lease goes to another, who asks anew.
                Some(asked) => drop(asked.send(made)),
                None => {
                    state.bytes += size;
                    state.ready.insert(at, made);
                }
            }
        }
        self.fill();
    }

    fn make(&self, work: Work) -> Prepared {
        let Work { epoch, step, slot } = work;
        let order = self.order(epoch);
        let range = self.batches.slot_range(step, slot);
        let indices = range.and_then(|range| order.get(range));
        let indices = indices.ok_or_else(|| format!("there is no slot {slot} of step {step}"))?;
        let pass = Pass { seed: self.seed, epoch };
        let batch = self.data.batch(indices.iter().copied(), pass);
        let batch = batch.map_err(|error| error.to_string())?;
        let samples = self.batches.len(step) as u32;
        Ok(SlotWork { step, slot, batch: samples, inputs: batch.inputs, targets: batch.targets })
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let (seed, samples) = (self.seed, self.batches.samples());
        let found = orders.entry(epoch).or_insert_with(|| Arc::new(order(seed, epoch, samples)));
        let found = found.clone();
        while orders.len() > ORDERS {
            orders.pop_first();
        }
        found
    }
}

fn size(of: &Prepared) -> u64 {
    match of {
        Ok(slot) => (slot.inputs.bytes().len() + slot.targets.bytes().len()) as u64,
        Err(_) => 0,
    }
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
