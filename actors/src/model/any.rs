//! What the actors ask of a model, whatever model it is.

use std::ops::Range;

use footlight_runtime::HostTensor;

use super::{ModelError, PendingGradient, Precision};
use crate::data::{Dataset, Field};
use crate::parameters::layout::Layout;

/// Where the random numbers of one slot's forward pass come from: the same for whoever computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The job's seed.
    pub seed: u64,
    /// The step.
    pub step: u64,
    /// The slot within the step.
    pub slot: u32,
    /// The part of the slot, where its samples go through the model in several: from 0.
    pub part: u32,
}

impl Draw {
    /// Rounds of SplitMix64's finaliser (Steele et al., 2014), one for each number.
    pub(super) fn seed(self) -> u64 {
        let part = (self.part > 0).then_some(u64::from(self.part));
        let numbers = [self.seed, self.step, self.slot.into()].into_iter().chain(part);
        numbers.fold(0, |state: u64, number| {
            let mut z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }
}

/// What one slot gives to its step.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotGradient {
    /// The loss, summed over the slot's samples.
    pub loss_sum: f32,
    /// How many of its targets the model told rightly (before the step): classes; 0 for numbers.
    pub correct: usize,
    /// Number of samples of the slot.
    pub samples: usize,
    /// The gradient of `loss_sum / samples of the whole batch`, in the order of the flat parameters: the sum over all
    /// slots of a step is the gradient of the batch's mean loss.
    pub gradient: Vec<f32>,
}

/// What a model makes of some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// Number of classes; of a model that tells numbers, how many it tells of each sample.
    pub classes: usize,
    /// Rows of `classes` probabilities that add up to 1: a row for each sample, or for each element of each sequence.
    /// Of a model that tells numbers, these.
    pub probabilities: Vec<f32>,
}

impl Predictions {
    /// The probabilities of each sample, or of each element of each sequence.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.probabilities.chunks(self.classes.max(1))
    }

    /// Each row's most probable class and its probability. Of equal ones the first.
    pub fn best(&self) -> impl Iterator<Item = (usize, f32)> {
        self.rows().map(|row| {
            row.iter().copied().enumerate().fold(
                (0, f32::NEG_INFINITY),
                |best, (class, probability)| {
                    if probability > best.1 { (class, probability) } else { best }
                },
            )
        })
    }
}

/// How good a model is on a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Number of samples.
    pub samples: usize,
    /// Number of classes that were to be told: one a sample, or one a token of a language model; 0 for numbers.
    pub targets: usize,
    /// How many of them were told rightly.
    pub correct: usize,
    /// The mean of the samples' losses. For windows of one length that is the mean over all tokens.
    pub loss: f64,
}

impl Evaluation {
    /// The share of the classes that was told rightly: 0 to 1. `None` for a model that tells numbers.
    pub fn accuracy(&self) -> Option<f64> {
        (self.targets > 0).then(|| self.correct as f64 / self.targets as f64)
    }
}

/// A [`Replica`](super::Replica) of whatever model: what the actors work with. It stays on the thread where it was built.
pub trait AnyReplica {
    /// The model's [`Model::NAME`](super::Model::NAME).
    fn name(&self) -> &'static str;

    /// What one sample's input is.
    fn input(&self) -> Field;

    /// Checks that data is what this model takes and learns. `part` says in errors which.
    ///
    /// # Errors
    /// [`ModelError::Fit`].
    fn fits(&self, part: &str, input: &Field, target: &Field) -> Result<(), ModelError>;

    /// Number of classes.
    fn classes(&self) -> usize;

    /// Number of parameters (floats).
    fn len(&self) -> usize;

    /// Whether there are none. There always are.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flat space of the parameters, sorted by name, for a number of shards.
    ///
    /// # Errors
    /// No shards, or more than parameters.
    fn layout(&self, shards: usize) -> Result<Layout, ModelError>;

    /// All parameters.
    ///
    /// # Errors
    /// libtorch's.
    fn flat_parameters(&self) -> Result<Vec<f32>, ModelError>;

    /// Sets the parameters `range` of the flat space.
    ///
    /// # Errors
    /// [`ModelError::Range`] if there are no such parameters or `values` has another length; then nothing changes.
    fn set_chunk(&mut self, range: Range<usize>, values: &[f32]) -> Result<(), ModelError>;

    /// Sets all parameters.
    ///
    /// # Errors
    /// As [`AnyReplica::set_chunk`].
    fn set_all(&mut self, values: &[f32]) -> Result<(), ModelError> {
        self.set_chunk(0..self.len(), values)
    }

    /// Computes in other numbers from here on; the parameters are rounded to them.
    ///
    /// # Errors
    /// libtorch's.
    fn set_precision(&mut self, precision: Precision) -> Result<(), ModelError>;

    /// Multiplies the loss before each backward pass, and divides the gradient by it afterwards. 1 at first.
    fn set_loss_scale(&mut self, scale: f32);

    /// Begins to compute the gradient of one slot of a batch of `batch` samples, from the inputs `[n, …]` and the
    /// targets `[n, …]` of its samples. A slot without samples has a gradient of zeros. The samples go through the
    /// model in `parts` equal parts, of which the last one may be smaller, one after the other; 0 counts as 1. `draw`
    /// is that of the first part.
    ///
    /// On a GPU this returns before anything is computed, and the next slot may be begun: the gradient is copied to the
    /// host while that one is computed.
    ///
    /// # Errors
    /// Inputs or targets that are not the model's, which are looked at in host memory and told of here; or libtorch's.
    fn begin(
        &mut self,
        inputs: &HostTensor,
        targets: &HostTensor,
        batch: usize,
        parts: usize,
        draw: Draw,
    ) -> Result<PendingGradient, ModelError>;

    /// The gradient of one slot in one part, once it is there.
    ///
    /// # Errors
    /// As [`AnyReplica::begin`], and what goes wrong on the device meanwhile.
    fn gradient(
        &mut self,
        inputs: &HostTensor,
        targets: &HostTensor,
        batch: usize,
        draw: Draw,
    ) -> Result<SlotGradient, ModelError> {
        Ok(self.begin(inputs, targets, batch, 1, draw)?.wait()?.into())
    }

    /// What the model makes of samples `[n, …]`.
    ///
    /// # Errors
    /// Inputs that are not the model's, or libtorch's.
    fn predict(&self, inputs: &HostTensor) -> Result<Predictions, ModelError>;

    /// How good the model is on a whole data set, as it is without a pass's random numbers.
    ///
    /// # Errors
    /// Data that can't be read or is not the model's, or libtorch's.
    fn evaluate(&self, data: &Dataset) -> Result<Evaluation, ModelError>;
}
