//! One order of the samples for each (seed, epoch), and its cut into batches and slots.
//!
//! The order depends on nothing else: not on the number of workers, the platform or a library's version. It is a
//! Fisher–Yates shuffle (Durstenfeld's form) of `0..n` whose random numbers are derived as follows, and a test pins
//! the outcome:
//!
//! - the generator is ChaCha with 20 rounds, stream 0; its 32-byte key is the seed (8 bytes, little-endian), the
//!   epoch (8 bytes, little-endian) and the text `footlight.order1`;
//! - an index below `bound` comes from 32-bit words `w` of the stream as `(w × bound) >> 32`; a word whose product's
//!   lower half is below `2³² mod bound` is skipped, so that every index is equally likely (Lemire, 2019).

use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The order in which an epoch sees the samples `0..n`: each exactly once. See the [module](self) for how it is made.
///
/// ```
/// # use footlight_actors::data::order;
/// assert_eq!(order(7, 0, 8), [5, 2, 3, 4, 1, 6, 7, 0]);
/// ```
pub fn order(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let mut random = generator(seed, epoch);
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last as usize, below(last + 1, &mut random) as usize);
    }
    order
}

fn generator(seed: u64, epoch: u64) -> ChaCha20Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"footlight.order1");
    ChaCha20Rng::from_seed(key)
}

/// A number of `0..bound`, each equally likely. `bound` is at least 1.
fn below(bound: u32, random: &mut ChaCha20Rng) -> u32 {
    let uneven = bound.wrapping_neg() % bound; // 2³² mod bound
    loop {
        let product = u64::from(random.next_u32()) * u64::from(bound);
        if product as u32 >= uneven {
            return (product >> 32) as u32;
        }
    }
}

/// How an epoch's order is cut: into steps of one batch each, and each batch into slots.
///
/// Steps are numbered from 0 through all epochs. An epoch has `ceil(samples / batch)` of them; its last batch is
/// smaller where the numbers do not divide, so that each sample counts exactly once an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Batches {
    samples: u32,
    batch: u32,
    slots: u32,
}

#[derive(Deserialize)]
struct Parts {
    samples: u32,
    batch: u32,
    slots: u32,
}

impl TryFrom<Parts> for Batches {
    type Error = BatchesError;

    fn try_from(parts: Parts) -> Result<Self, BatchesError> {
        Self::new(parts.samples, parts.batch, parts.slots)
    }
}

/// One of the numbers that a [`Batches`] is made of is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "an epoch needs at least one sample, one sample a batch and one slot: got {samples}, {batch} and {slots}"
)]
pub struct BatchesError {
    /// Samples in an epoch.
    pub samples: u32,
    /// Samples in a batch.
    pub batch: u32,
    /// Slots in a batch.
    pub slots: u32,
}

impl Batches {
    /// Epochs of `samples` samples in batches of `batch`, each cut into `slots` slots. More slots than samples are
    /// allowed: some are empty then.
    ///
    /// # Errors
    /// One of the numbers is zero.
    pub fn new(samples: u32, batch: u32, slots: u32) -> Result<Self, BatchesError> {
        if samples == 0 || batch == 0 || slots == 0 {
            return Err(BatchesError { samples, batch, slots });
        }
        Ok(Self { samples, batch, slots })
    }

    /// Samples in an epoch, at least 1.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// Samples in a batch (but the last of an epoch), at least 1.
    pub fn batch(&self) -> u32 {
        self.batch
    }

    /// Slots in a batch, at least 1.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Steps in an epoch, at least 1.
    pub fn steps_per_epoch(&self) -> u32 {
        self.samples.div_ceil(self.batch)
    }

    /// Steps in so many epochs. It stops at `u64::MAX`.
    pub fn steps(&self, epochs: u64) -> u64 {
        epochs.saturating_mul(self.steps_per_epoch().into())
    }

    /// The epoch of a step.
    pub fn epoch(&self, step: u64) -> u64 {
        step / u64::from(self.steps_per_epoch())
    }

    /// The step's number within its epoch.
    pub fn step_in_epoch(&self, step: u64) -> u32 {
        (step % u64::from(self.steps_per_epoch())) as u32
    }

    /// A step's batch: a range of positions in its epoch's [`order()`]. It is never empty.
    pub fn range(&self, step: u64) -> Range<usize> {
        let start = u64::from(self.step_in_epoch(step)) * u64::from(self.batch);
        let end = (start + u64::from(self.batch)).min(self.samples.into());
        start as usize..end as usize
    }

    /// Number of samples in a step's batch: what its slots' gradients are divided by.
    pub fn len(&self, step: u64) -> usize {
        self.range(step).len()
    }

    /// One slot of a step: a range of positions in the epoch's [`order()`]. Slot `i` of `S` is `i*n/S..(i+1)*n/S` of
    /// the step's `n` samples, so sizes differ by one at most. `None` if there is no such slot.
    pub fn slot_range(&self, step: u64, slot: u32) -> Option<Range<usize>> {
        if slot >= self.slots {
            return None;
        }
        let batch = self.range(step);
        let cut =
            |slot: u64| batch.start + (slot * batch.len() as u64 / u64::from(self.slots)) as usize;
        Some(cut(slot.into())..cut(u64::from(slot) + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The figures come from a program in another language that follows the module's text.
    #[test]
    fn the_order_of_a_seed_and_an_epoch_never_changes() {
        assert_eq!(order(7, 0, 8), [5, 2, 3, 4, 1, 6, 7, 0]);
        assert_eq!(order(7, 1, 8), [1, 3, 7, 0, 2, 4, 6, 5]);
        let long = order(u64::MAX, 3, 60_000);
        let sum = long
            .iter()
            .fold(0u64, |sum, &i| sum.wrapping_mul(0x100_0000_01b3).wrapping_add(i.into()));
        assert_eq!(sum, 0xabd0_3897_4caf_b7b8);
    }

    #[test]
    fn every_order_of_three_comes_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..6000 {
            *counts.entry(order(1, epoch, 3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn no_samples_and_one_sample_have_an_order() {
        assert!(order(0, 0, 0).is_empty());
        assert_eq!(order(0, 0, 1), [0]);
    }

    #[test]
    fn the_last_batch_of_an_epoch_is_smaller_and_none_is_empty() {
        let batches = Batches::new(60_000, 128, 4).unwrap();
        assert_eq!(batches.steps_per_epoch(), 469);
        assert_eq!(batches.steps(10), 4690);
        assert_eq!(batches.len(467), 128);
        assert_eq!(batches.len(468), 96);
        assert_eq!(batches.range(469), 0..128);
        assert_eq!((batches.epoch(938), batches.step_in_epoch(940)), (2, 2));
    }

    #[test]
    fn a_cut_without_samples_or_slots_is_refused_also_when_it_arrives_as_bytes() {
        assert!(
            Batches::new(0, 1, 1).is_err()
                && Batches::new(1, 0, 1).is_err()
                && Batches::new(1, 1, 0).is_err()
        );
        let text = r#"{"samples":10,"batch":0,"slots":1}"#;
        assert!(
            serde_json::from_str::<Batches>(text).unwrap_err().to_string().contains("at least one")
        );
        let batches = Batches::new(10, 4, 2).unwrap();
        let text = serde_json::to_string(&batches).unwrap();
        assert_eq!(serde_json::from_str::<Batches>(&text).unwrap(), batches);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let batches = Batches::new(u32::MAX, u32::MAX, u32::MAX).unwrap();
        assert_eq!(
            batches.slot_range(u64::MAX, u32::MAX - 1),
            Some(u32::MAX as usize - 1..u32::MAX as usize)
        );
        assert_eq!(batches.slot_range(0, u32::MAX), None);
    }

    proptest! {
        #[test]
        fn an_order_holds_each_sample_once(seed: u64, epoch: u64, n in 0u32..500) {
            let mut order = order(seed, epoch, n);
            order.sort_unstable();
            prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
        }

        #[test]
        fn the_slots_of_an_epoch_hold_each_sample_once(
            samples in 1u32..300, batch in 1u32..400, slots in 1u32..20, epoch in 0u64..1000,
        ) {
            let batches = Batches::new(samples, batch, slots).unwrap();
            let mut next = 0;
            for step in batches.steps(epoch)..batches.steps(epoch + 1) {
                let sizes: Vec<_> = (0..slots).map(|slot| {
                    let range = batches.slot_range(step, slot).unwrap();
                    assert_eq!(range.start, next);
                    next = range.end;
                    range.len()
                }).collect();
                prop_assert_eq!(sizes.iter().sum::<usize>(), batches.len(step));
                prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
            prop_assert_eq!(next, samples as usize);
        }
    }
}
