//! One shard of the parameter server, without I/O: it sums gradients, applies the optimiser, and publishes the new
//! parameters, chunk by chunk.
//!
//! A chunk has a *version*, the number of steps that were applied to it whole. The gradients of step `s` are due when
//! the version is `s`, or up to a [window](Consistency::window) of steps sooner: one for each slot of the step's batch.
//! When the last of them is there, they are summed in the order of the slots, the optimiser takes one step, and the
//! version is `s + 1`. In an asynchronous job the optimiser takes a step with each slot that comes, and the version
//! goes up when the last one of the step has come.
//!
//! - **PS-1** The result has the same bits in whatever order the slots arrive, unless they are applied one by one.
//! - **PS-2** Each slot of a step counts once: a second push is recognised, before the step is applied and after.
//! - **PS-3** Versions go up one by one; a push for a step that is not due yet is refused.
//! - **PS-4** Published parameters never change: who reads an old version keeps it whole.
//! - **PS-5** A number that is not finite is never published: the push that would bring it is refused, and so is every
//!   later one for that chunk.
//! - **PS-6** A push that is refused changes nothing.
//! - **PS-7** Under a [rule](super::rule) that concerns the whole gradient no chunk takes a step before its verdict;
//!   a step that is left out changes neither parameters nor the optimiser's state, and has its version all the same.
//! - **PS-8** A shard that is given the sums of another one, instead of the slots, has the same bits after each step.
//! - **PS-9** Steps are applied whole and in order, unless slots are applied one by one: then each is, once.

mod error;

use std::collections::{BTreeMap, btree_map::Entry};
use std::sync::Arc;

pub use error::{Numbers, ShardError};

use super::layout::Layout;
use super::optimizer::{OptimizerSpec, OptimizerState};
use super::rule::{StepRule, Verdict};
use super::square_sum::SquareSum;
use crate::consistency::Consistency;

/// One slot's gradient of one chunk, in whatever format it is stored.
pub trait Gradient {
    /// How many numbers it has: as many as the chunk.
    fn count(&self) -> usize;

    /// Writes those from number `at` on over `values`. `at` is a multiple of [`BLOCK`].
    fn copy_to(&self, at: usize, values: &mut [f32]);

    /// Adds those from number `at` on to `sums`. `at` is a multiple of [`BLOCK`].
    fn add_to(&self, at: usize, sums: &mut [f32]);
}

impl Gradient for Vec<f32> {
    fn count(&self) -> usize {
        self.len()
    }

    fn copy_to(&self, at: usize, values: &mut [f32]) {
        values.copy_from_slice(&self[at..][..values.len()]);
    }

    fn add_to(&self, at: usize, sums: &mut [f32]) {
        sums.iter_mut().zip(&self[at..]).for_each(|(sum, value)| *sum += value);
    }
}

/// A step is taken for so many numbers at a time: what one part of it leaves (sums, new parameters) is
/// still in the processor's cache for the next.
pub const BLOCK: usize = 4096;

/// What became of a push that was in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Push {
    /// It is kept until the step's other slots are there.
    Accepted,
    /// There are new parameters: it was the step's last slot, or each is applied on its own.
    Applied {
        /// The chunk's version: the number of steps applied to it whole.
        version: u64,
    },
    /// It was the step's last: the sum of its slots waits for the [verdict](Shard::decide).
    Summed {
        /// The squares of all its numbers, if the rule needs them.
        squares: Option<Box<SquareSum>>,
    },
    /// The same slot was pushed before and waits for the others. This one is dropped.
    Duplicate,
    /// The step has been applied already. This one is dropped.
    AlreadyApplied,
}

/// All that is known of a chunk between two steps: what it begins with, and what is saved of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkState {
    /// The number of steps applied.
    pub version: u64,
    /// Of them, those that the optimiser took: steps that were left out don't count.
    pub taken: u64,
    /// The parameters.
    pub params: Arc<Vec<f32>>,
    /// What the optimiser remembers.
    pub optimizer: OptimizerState,
}

/// The chunks of one shard.
#[derive(Debug)]
pub struct Shard<G> {
    optimizer: OptimizerSpec,
    rule: StepRule,
    consistency: Consistency,
    total_steps: u64,
    slots: u32,
    /// Numbers of the whole layout.
    space: usize,
    /// Sums wait for a verdict, whether the rule needs one or not.
    holds_sums: bool,
    chunks: BTreeMap<usize, Chunk<G>>,
}

#[derive(Debug)]
struct Chunk<G> {
    len: usize,
    /// Nothing before it was initialised.
    live: Option<Live<G>>,
}

#[derive(Debug)]
struct Live<G> {
    version: u64,
    params: Arc<Vec<f32>>,
    /// The version before, for those who have yet to compute with it: another chunk may still wait for their gradients.
    /// If nobody reads it any more when the next version comes, its memory takes that.
    retired: Option<Arc<Vec<f32>>>,
    state: OptimizerState,
    /// Steps that the optimiser took: those that were left out don't count.
    taken: u64,
    /// Where sums wait for their verdict; empty while no step has needed that. Others may read them.
    sums: Arc<Vec<f32>>,
    is_summed: bool,
    /// What has come of the steps that are not applied whole, by step.
    rows: BTreeMap<u64, Row<G>>,
    diverged: Option<ShardError>,
}

/// The slots of one step that have come, in their order. `None` is one that is applied already, on its own.
type Row<G> = BTreeMap<u32, Option<G>>;

impl<G: Gradient> Shard<G> {
    /// Shard number `shard` of `layout`, in a job of `total_steps` steps (for the learning rate's schedule) whose
    /// batches are cut into `slots` slots, and whose steps are taken by `rule`. Its chunks wait for [`Shard::init`].
    ///
    /// # Errors
    /// No such shard, no slots, or settings of the optimiser or the rule that are out of range.
    pub fn new(
        layout: &Layout,
        shard: usize,
        optimizer: OptimizerSpec,
        rule: StepRule,
        total_steps: u64,
        slots: u32,
    ) -> Result<Self, ShardError> {
        if shard >= layout.shards() {
            return Err(ShardError::UnknownShard { shard, shards: layout.shards() });
        }
        if slots == 0 {
            return Err(ShardError::NoSlots);
        }
        optimizer.validate()?;
        rule.validate()?;
        let chunk = |chunk| Some((chunk, Chunk { len: layout.chunk(chunk)?.len(), live: None }));
        let chunks = layout.chunks_of(shard).filter_map(chunk).collect();
        let (space, holds_sums) = (layout.len(), false);
        let consistency = Consistency::default();
        Ok(Self { optimizer, rule, consistency, total_steps, slots, space, holds_sums, chunks })
    }

    /// How far apart the workers may be. Default: bulk synchronous.
    ///
    /// # Errors
    /// One that is out of range, or that the rule can't be kept in.
    pub fn consistency(mut self, consistency: Consistency) -> Result<Self, ShardError> {
        consistency.validate()?;
        if consistency.is_by_slot() && self.rule.is_global() {
            return Err(ShardError::NoWholeGradient);
        }
        self.consistency = consistency;
        Ok(self)
    }

    /// Gives a chunk its first parameters: version 0. The same parameters a second time change nothing, so that who
    /// does not know whether the first time arrived may try again.
    ///
    /// # Errors
    /// No such chunk, another length, numbers that are not finite, or a chunk that has other parameters already.
    pub fn init(&mut self, chunk: usize, params: Vec<f32>) -> Result<(), ShardError> {
        let optimizer = self.optimizer.state(params.len());
        let params = Arc::new(params);
        self.restore(chunk, ChunkState { version: 0, taken: 0, params, optimizer })
    }

    /// Gives a chunk what it had after some steps. The same state a second time changes nothing.
    ///
    /// # Errors
    /// As [`Shard::init`]; a state of another optimiser.
    pub fn restore(&mut self, chunk: usize, state: ChunkState) -> Result<(), ShardError> {
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let ChunkState { version, taken, params, optimizer } = state;
        if params.len() != at.len {
            return Err(ShardError::WrongLength { chunk, expected: at.len, got: params.len() });
        }
        let buffers = optimizer.buffers();
        if !all_finite(&params) || !buffers.iter().all(|(_, buffer)| all_finite(buffer)) {
            let numbers = Numbers::Parameters;
            return Err(ShardError::NonFinite { chunk, step: version, numbers });
        }
        self.optimizer.fits(&optimizer, at.len)?;
        match &at.live {
            Some(live) if live.version == version && same_bits(&live.params, &params) => Ok(()),
            Some(live) => Err(ShardError::AlreadyInitialised { chunk, version: live.version }),
            None => {
                at.live = Some(Live {
                    version,
                    params,
                    retired: None,
                    state: optimizer,
                    taken,
                    sums: Arc::default(),
                    is_summed: false,
                    rows: BTreeMap::new(),
                    diverged: None,
                });
                Ok(())
            }
        }
    }

    /// Gives a chunk a state in place of whatever it has.
    ///
    /// # Errors
    /// As [`Shard::restore`].
    pub fn replace(&mut self, chunk: usize, state: ChunkState) -> Result<(), ShardError> {
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        at.live = None;
        self.restore(chunk, state)
    }

    /// Whether sums are kept for a [verdict](Shard::decide_one) also where the rule needs none: others are told of
    /// them before they are applied.
    pub fn hold_sums(&mut self, holds: bool) {
        self.holds_sums = holds;
    }

    /// Whether there are sums of whole steps that others can be told of.
    pub fn has_sums(&self) -> bool {
        !self.consistency.is_by_slot()
    }

    /// Takes one slot's gradient of one chunk, of the mean loss's share of that slot. If it is the step's last, the
    /// step is applied, or waits for its verdict where the rule wants one.
    ///
    /// # Errors
    /// See [`ShardError`]. After [`ShardError::NonFinite`] the job must stop: the chunk repeats that error for ever.
    pub fn push(
        &mut self,
        step: u64,
        slot: u32,
        chunk: usize,
        grad: G,
    ) -> Result<Push, ShardError> {
        let slots = self.slots;
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_mut().ok_or(ShardError::NotInitialised { chunk })?;
        let (expected, got) = (at.len, grad.count());
        if got != expected {
            return Err(ShardError::WrongLength { chunk, expected, got });
        }
        if slot >= slots {
            return Err(ShardError::SlotOutOfRange { slot, slots });
        }
        if let Some(diverged) = &live.diverged {
            return Err(diverged.clone());
        }
        let version = live.version;
        let Some(ahead) = step.checked_sub(version) else {
            return Ok(Push::AlreadyApplied);
        };
        if ahead > self.consistency.window() {
            return Err(ShardError::FromTheFuture { chunk, step, version });
        }
        if ahead == 0 && live.is_summed {
            return Ok(Push::Duplicate);
        }
        match live.rows.entry(step).or_default().entry(slot) {
            Entry::Occupied(has) if has.get().is_none() => return Ok(Push::AlreadyApplied),
            Entry::Occupied(_) => return Ok(Push::Duplicate),
            Entry::Vacant(place) => drop(place.insert(Some(grad))),
        }
        Ok(self.advance(chunk)?.unwrap_or(Push::Accepted))
    }

    /// What can be done with what has been pushed: steps may have come before their turn, so it is looked again after
    /// each step, until there is nothing.
    ///
    /// # Errors
    /// As [`Shard::push`].
    pub fn advance(&mut self, chunk: usize) -> Result<Option<Push>, ShardError> {
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_mut().ok_or(ShardError::NotInitialised { chunk })?;
        if live.is_summed || live.diverged.is_some() {
            return Ok(None);
        }
        let schedule = self.optimizer.schedule();
        let applied = if self.consistency.is_by_slot() {
            let Some((step, grad)) = live.take_slot() else { return Ok(None) };
            let rate = schedule.factor(step, self.total_steps);
            let applied = live.step(chunk, &self.optimizer, rate, |start, sum| {
                grad.copy_to(start, sum);
            });
            let is_whole = |row: &Row<G>| {
                row.len() == self.slots as usize && row.values().all(Option::is_none)
            };
            while live.rows.get(&live.version).is_some_and(is_whole) {
                live.rows.remove(&live.version);
                live.version += 1;
            }
            applied
        } else {
            let (step, slots) = (live.version, self.slots as usize);
            let Some(row) = live.rows.first_entry() else { return Ok(None) };
            if *row.key() != step || row.get().len() < slots {
                return Ok(None);
            }
            let row = row.remove();
            if self.rule.is_global() || self.holds_sums {
                let squares = live.sum(&row, self.rule.is_global().then_some(self.space));
                return Ok(Some(Push::Summed { squares: squares.map(Box::new) }));
            }
            let rate = schedule.factor(step, self.total_steps);
            live.step(chunk, &self.optimizer, rate, |start, sum| add_up(&row, start, sum))
                .inspect(|()| live.version += 1)
        };
        match applied {
            Ok(()) => Ok(Some(Push::Applied { version: live.version })),
            Err(error) => {
                live.diverged = Some(error.clone());
                Err(error)
            }
        }
    }

    /// The whole gradient of `step` is known: all chunks, whose sums have waited for it, take the step or leave it
    /// out.
    ///
    /// # Errors
    /// A chunk that is at another step or not summed yet; then nothing changes. What is not finite, as in
    /// [`Shard::push`].
    pub fn decide(&mut self, step: u64, verdict: Verdict) -> Result<(), ShardError> {
        let summed = |live: &Live<G>| live.is_summed && live.version == step;
        for (&chunk, at) in &self.chunks {
            let live = at.live.as_ref().ok_or(ShardError::NotInitialised { chunk })?;
            if !summed(live) {
                return Err(ShardError::NotSummed { chunk, step, version: live.version });
            }
        }
        let rate = self.optimizer.schedule().factor(step, self.total_steps);
        for (&chunk, at) in &mut self.chunks {
            let Some(live) = &mut at.live else { continue };
            live.decide(chunk, verdict, &self.optimizer, rate).inspect_err(|error| {
                live.diverged = Some(error.clone());
            })?;
        }
        Ok(())
    }

    /// One chunk, whose sum has waited, takes the step or leaves it out: where the rule needs nothing of the others.
    ///
    /// # Errors
    /// As [`Shard::decide`].
    pub fn decide_one(
        &mut self,
        chunk: usize,
        step: u64,
        verdict: Verdict,
    ) -> Result<(), ShardError> {
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_mut().ok_or(ShardError::NotInitialised { chunk })?;
        if !live.is_summed || live.version != step {
            return Err(ShardError::NotSummed { chunk, step, version: live.version });
        }
        let rate = self.optimizer.schedule().factor(step, self.total_steps);
        live.decide(chunk, verdict, &self.optimizer, rate).inspect_err(|error| {
            live.diverged = Some(error.clone());
        })
    }

    /// The sum of a chunk's slots that waits for the verdict, and of which step it is.
    pub fn sum_of(&self, chunk: usize) -> Option<(u64, Arc<Vec<f32>>)> {
        let live = self.chunks.get(&chunk)?.live.as_ref()?;
        live.is_summed.then(|| (live.version, live.sums.clone()))
    }

    /// Takes the sum of a chunk's slots from the shard that has summed them. It waits for the verdict. False: the step
    /// has been applied already.
    ///
    /// # Errors
    /// No such chunk, it is not initialised, or the step is not due; another length.
    pub fn take_sum(&mut self, chunk: usize, step: u64, sum: &G) -> Result<bool, ShardError> {
        let at = self.chunks.get_mut(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_mut().ok_or(ShardError::NotInitialised { chunk })?;
        let (expected, got) = (at.len, sum.count());
        if got != expected {
            return Err(ShardError::WrongLength { chunk, expected, got });
        }
        if step != live.version {
            let version = live.version;
            return match step < version {
                true => Ok(false),
                false => Err(ShardError::FromTheFuture { chunk, step, version }),
            };
        }
        let sums = live.room_for_sums();
        for (start, sums) in (0..).step_by(BLOCK).zip(sums.chunks_mut(BLOCK)) {
            sum.copy_to(start, sums);
        }
        live.is_summed = true;
        Ok(true)
    }

    /// Forgets sums and slots of steps that were not applied: they come again.
    pub fn forget_unapplied(&mut self) {
        for live in self.chunks.values_mut().filter_map(|at| at.live.as_mut()) {
            live.is_summed = false;
            live.rows.clear();
        }
    }

    /// A chunk's newest version and its parameters.
    ///
    /// # Errors
    /// No such chunk, or it is not initialised.
    pub fn params(&self, chunk: usize) -> Result<(u64, Arc<Vec<f32>>), ShardError> {
        let at = self.chunks.get(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_ref().ok_or(ShardError::NotInitialised { chunk })?;
        Ok((live.version, live.params.clone()))
    }

    /// A copy of what is known of a chunk now; parameters are shared.
    ///
    /// # Errors
    /// No such chunk, it is not initialised, or slots of steps to come are applied already.
    pub fn state(&self, chunk: usize) -> Result<ChunkState, ShardError> {
        let at = self.chunks.get(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_ref().ok_or(ShardError::NotInitialised { chunk })?;
        if live.rows.values().flat_map(BTreeMap::values).any(Option::is_none) {
            return Err(ShardError::BetweenSteps { chunk, version: live.version });
        }
        Ok(ChunkState {
            version: live.version,
            taken: live.taken,
            params: live.params.clone(),
            optimizer: live.state.clone(),
        })
    }

    /// How the shard's optimiser is set.
    pub fn optimizer(&self) -> &OptimizerSpec {
        &self.optimizer
    }

    /// A chunk's parameters of one version: the newest one and the one before are kept. `None` for any other, and for
    /// a chunk that is not here.
    pub fn params_of(&self, chunk: usize, version: u64) -> Option<Arc<Vec<f32>>> {
        let live = self.chunks.get(&chunk)?.live.as_ref()?;
        if version == live.version {
            return Some(live.params.clone());
        }
        live.retired.clone().filter(|_| version.checked_add(1) == Some(live.version))
    }

    /// The number of steps that were applied to all chunks of this shard. `None`: a chunk is not initialised yet.
    pub fn version(&self) -> Option<u64> {
        let versions =
            self.chunks.values().map(|chunk| chunk.live.as_ref().map(|live| live.version));
        versions.min().flatten() // `None` is smaller than any version
    }

    /// This shard's chunks, in ascending order.
    pub fn chunks(&self) -> impl Iterator<Item = usize> {
        self.chunks.keys().copied()
    }

    /// The slots of `step` that are still to come for one chunk: none if the step has been applied, all if it is not
    /// due yet. What a shard waits for, when somebody asks why nothing moves.
    ///
    /// # Errors
    /// No such chunk, or it is not initialised.
    pub fn missing(&self, step: u64, chunk: usize) -> Result<Vec<u32>, ShardError> {
        let at = self.chunks.get(&chunk).ok_or(ShardError::UnknownChunk { chunk })?;
        let live = at.live.as_ref().ok_or(ShardError::NotInitialised { chunk })?;
        let has_come = |slot: &u32| {
            step < live.version
                || step == live.version && live.is_summed
                || live.rows.get(&step).is_some_and(|row| row.contains_key(slot))
        };
        Ok((0..self.slots).filter(|slot| !has_come(slot)).collect())
    }
}

impl<G: Gradient> Live<G> {
    /// The first slot that is to be applied on its own, of the earliest step.
    fn take_slot(&mut self) -> Option<(u64, G)> {
        self.rows
            .iter_mut()
            .find_map(|(step, row)| row.values_mut().find_map(|grad| Some((*step, grad.take()?))))
    }

    /// All slots are there: their sum is kept. Gives its squares if they are wanted, of a layout of so many numbers.
    fn sum(&mut self, row: &Row<G>, squares_in: Option<usize>) -> Option<SquareSum> {
        let mut squares = squares_in.map(|space| (SquareSum::default(), space));
        for (start, sums) in (0..).step_by(BLOCK).zip(self.room_for_sums().chunks_mut(BLOCK)) {
            add_up(row, start, sums);
            if let Some((squares, space)) = &mut squares {
                squares.add(sums, *space);
            }
        }
        self.is_summed = true;
        squares.map(|(squares, _)| squares)
    }

    /// Where to write a sum: that of the step before, unless somebody still reads it.
    fn room_for_sums(&mut self) -> &mut [f32] {
        let len = self.params.len();
        if self.sums.len() != len || Arc::get_mut(&mut self.sums).is_none() {
            self.sums = Arc::new(vec![0.0; len]);
        }
        // Nobody else has it now: nothing is copied.
        Arc::<Vec<f32>>::make_mut(&mut self.sums)
    }

    fn decide(
        &mut self,
        chunk: usize,
        verdict: Verdict,
        optimizer: &OptimizerSpec,
        rate: f64,
    ) -> Result<(), ShardError> {
        self.is_summed = false;
        match verdict {
            Verdict::Stop => Err(self.diverged(chunk, Numbers::Gradient)),
            Verdict::Skip => {
                // The version before is the same one: whoever still needs it finds it.
                self.retired = Some(self.params.clone());
                self.version += 1;
                Ok(())
            }
            Verdict::Apply(scale) => {
                let sums = std::mem::take(&mut self.sums);
                let taken = self.step(chunk, optimizer, rate, |start, sum| {
                    let parts = sum.iter_mut().zip(&sums[start..]);
                    parts.for_each(|(sum, value)| *sum = value * scale);
                });
                self.sums = sums;
                taken.inspect(|()| self.version += 1)
            }
        }
    }

    /// One step of the optimiser, block by block; `fill` writes the gradient of a block that begins at a number.
    fn step(
        &mut self,
        chunk: usize,
        optimizer: &OptimizerSpec,
        rate: f64,
        fill: impl Fn(usize, &mut [f32]),
    ) -> Result<(), ShardError> {
        let reused = self.retired.take().and_then(|retired| Arc::try_unwrap(retired).ok());
        let mut next = reused.unwrap_or_else(|| vec![0.0; self.params.len()]);
        let mut room = [0.0; BLOCK];
        let (mut gradient_is_finite, mut params_are_finite) = (true, true);
        for start in (0..next.len()).step_by(BLOCK) {
            let block = start..next.len().min(start + BLOCK);
            let sum = &mut room[..block.len()];
            fill(start, sum);
            gradient_is_finite &= all_finite(sum);
            let out = &mut next[block.clone()];
            optimizer.apply_to(
                block.clone(),
                &mut self.state,
                self.taken + 1,
                rate,
                &self.params[block],
                sum,
                out,
            )?;
            params_are_finite &= all_finite(out);
        }
        if !gradient_is_finite {
            return Err(self.diverged(chunk, Numbers::Gradient));
        }
        if !params_are_finite {
            return Err(self.diverged(chunk, Numbers::Parameters));
        }
        self.retired = Some(std::mem::replace(&mut self.params, Arc::new(next)));
        self.taken += 1;
        Ok(())
    }

    fn diverged(&self, chunk: usize, numbers: Numbers) -> ShardError {
        ShardError::NonFinite { chunk, step: self.version, numbers }
    }
}

/// The sum of all slots, in their order, from number `start` on.
fn add_up<G: Gradient>(row: &Row<G>, start: usize, sum: &mut [f32]) {
    let mut slots = row.values().flatten();
    slots.by_ref().take(1).for_each(|first| first.copy_to(start, sum));
    slots.for_each(|grad| grad.add_to(start, sum));
}

/// Without an early exit, so that it is vectorised.
fn all_finite(numbers: &[f32]) -> bool {
    numbers.iter().fold(true, |all, number| all & number.is_finite())
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod apart_tests;
#[cfg(test)]
mod tests;
