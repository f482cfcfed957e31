//! What is done to each sample before it is put into a batch.
//!
//! Transforms run at the data loader, ahead of the workers that ask, and at the trainer for the test samples. Not at
//! the workers: their threads are libtorch's, and a slot that has to be computed again is made again from the same
//! numbers here, whoever computes it. What can be done to a whole batch (scaling the pixels of images, say) is cheaper
//! in [`Model::input`](crate::model::Model::input), on the worker's device: then the samples travel as they are stored.

use std::fmt::Debug;

use footlight_runtime::{HostTensor, tensor::DType};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    DataError, Field, Sample, Sources, Split,
    sample::rows,
    source::{arguments, parsed},
};

/// The random numbers of one sample in one epoch: the same for whoever computes it. It is a generator of the crate
/// `rand`'s traits.
pub type Draws = ChaCha20Rng;

/// The random numbers of a sample: ChaCha with 20 rounds, whose key is the seed, the epoch and the sample's number (8
/// bytes each, little-endian) and the text `augment1`.
pub(super) fn draws(seed: u64, epoch: u64, sample: u64) -> Draws {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&sample.to_le_bytes());
    key[24..].copy_from_slice(b"augment1");
    ChaCha20Rng::from_seed(key)
}

/// A transform of a user's own, registered by [`Sources::transform`] in the binary that all nodes run.
///
/// ```
/// # use footlight_actors::data::*;
/// # use footlight_runtime::HostTensor;
/// use rand_chacha::rand_core::Rng;
///
/// /// Turns images of bytes around, every second one.
/// struct Flip;
///
/// impl Transform for Flip {
///     const NAME: &'static str = "flip";
///     type Args = ();
///     fn new((): ()) -> Result<Self, DataError> { Ok(Flip) }
///     fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError> {
///         if draws.next_u32() % 2 == 0 {
///             return Ok(sample);
///         }
///         let wrong = |why| DataError::custom(Self::NAME, why);
///         let mut pixels = sample.input.as_slice::<u8>().map_err(wrong)?.to_vec();
///         pixels.reverse();
///         let input = HostTensor::from_vec(pixels, sample.input.shape()).map_err(wrong)?;
///         Ok(Sample { input, ..sample })
///     }
/// }
///
/// let data = DataSpec::idx("data/mnist").transform::<Flip>(&())?;
/// # Ok::<(), DataError>(())
/// ```
pub trait Transform: Send + Sync + Sized + 'static {
    /// What a job calls it.
    const NAME: &'static str;
    /// What it is made with: data that travels as JSON.
    type Args: Serialize + DeserializeOwned;
    /// Whether it is for training samples only, as what makes more of them by chance is. `false`: test samples go
    /// through it too, always with the numbers of epoch 0.
    const TRAINING_ONLY: bool = true;

    /// Makes it.
    ///
    /// # Errors
    /// Arguments that can't work, see [`DataError::custom`].
    fn new(args: Self::Args) -> Result<Self, DataError>;

    /// What becomes of a sample's input and target. Default: they stay of the same type and shape.
    fn fields(&self, input: Field, target: Field) -> (Field, Field) {
        (input, target)
    }

    /// Transforms one sample. Whatever is random comes from `draws`, so that it does not matter who computes.
    ///
    /// # Errors
    /// See [`DataError::custom`].
    fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError>;
}

/// Describes a transform: data that travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum TransformSpec {
    /// Inputs become `f32`: the mean is taken away, and what is left divided by the deviation.
    Normalise { mean: Vec<f32>, deviation: Vec<f32> },
    /// What is longer is cut.
    Truncate(usize),
    /// A user's.
    Custom { name: String, args: String },
}

impl TransformSpec {
    pub(super) fn custom<T: Transform>(args: &T::Args) -> Result<Self, DataError> {
        let args = arguments(T::NAME, args)?;
        Ok(TransformSpec::Custom { name: T::NAME.to_owned(), args })
    }

    /// Builds it for a split; `None` if it is not for that one.
    pub(super) fn build(
        &self,
        split: Split,
        sources: &Sources,
    ) -> Result<Option<Box<dyn AnyTransform>>, DataError> {
        Ok(match self {
            TransformSpec::Normalise { mean, deviation } => {
                Some(Box::new(Normalise::new(mean.clone(), deviation.clone())?))
            }
            TransformSpec::Truncate(0) => {
                return Err(DataError::Spec("samples are truncated to 1 at least".to_owned()));
            }
            TransformSpec::Truncate(len) => Some(Box::new(Truncate(*len))),
            TransformSpec::Custom { name, args } => {
                let built = sources.build(name, args)?;
                (split == Split::Train || !built.is_for_training_only()).then_some(built)
            }
        })
    }
}

/// A [`Transform`] of whatever type.
pub(super) trait AnyTransform: Send + Sync {
    fn is_for_training_only(&self) -> bool {
        false
    }
    fn fields(&self, input: Field, target: Field) -> Result<(Field, Field), DataError>;
    fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError>;
}

pub(super) type BuildTransform = fn(&str) -> Result<Box<dyn AnyTransform>, DataError>;

struct User<T>(T);

pub(super) fn build<T: Transform>(args: &str) -> Result<Box<dyn AnyTransform>, DataError> {
    Ok(Box::new(User(T::new(parsed(T::NAME, args)?)?)))
}

impl<T: Transform> AnyTransform for User<T> {
    fn is_for_training_only(&self) -> bool {
        T::TRAINING_ONLY
    }

    fn fields(&self, input: Field, target: Field) -> Result<(Field, Field), DataError> {
        Ok(self.0.fields(input, target))
    }

    fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError> {
        self.0.apply(sample, draws)
    }
}

/// One number for all elements, or one for each of the last axis.
struct Normalise {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Normalise {
    fn new(mean: Vec<f32>, deviation: Vec<f32>) -> Result<Self, DataError> {
        let wrong = |why: &str| Err(DataError::Spec(format!("to normalise, {why}")));
        if mean.is_empty() || mean.len() != deviation.len() {
            return wrong("as many deviations as means are needed, and at least one");
        }
        let is_wrong = |deviation: &f32| !deviation.is_finite() || *deviation <= 0.0;
        if deviation.iter().any(is_wrong) || mean.iter().any(|mean| !mean.is_finite()) {
            return wrong("means are finite numbers, and deviations above 0");
        }
        Ok(Normalise { mean, deviation })
    }
}

impl AnyTransform for Normalise {
    fn fields(&self, input: Field, target: Field) -> Result<(Field, Field), DataError> {
        let last = input.shape.last().copied().unwrap_or(1);
        if self.mean.len() != 1 && self.mean.len() != last {
            return Err(DataError::Spec(format!(
                "to normalise inputs of {input}, one mean or {last} are needed: there are {}",
                self.mean.len()
            )));
        }
        if !matches!(input.dtype, DType::U8 | DType::F32 | DType::F64) {
            return Err(DataError::Spec(format!("inputs of {input} can't be normalised")));
        }
        Ok((Field { dtype: DType::F32, ..input }, target))
    }

    fn apply(&self, sample: Sample, _: &mut Draws) -> Result<Sample, DataError> {
        let wrong = |error: &dyn std::fmt::Display| DataError::custom("normalise", error);
        let input = &sample.input;
        let mut values: Vec<f32> = match input.dtype() {
            DType::U8 => input.bytes().iter().map(|&one| one.into()).collect(),
            DType::F64 => {
                let values = input.as_slice::<f64>().map_err(|error| wrong(&error))?;
                values.iter().map(|&one| one as f32).collect()
            }
            _ => input.as_slice::<f32>().map_err(|error| wrong(&error))?.to_vec(),
        };
        let both = self.mean.iter().zip(&self.deviation).cycle();
        for (value, (mean, deviation)) in values.iter_mut().zip(both) {
            *value = (*value - mean) / deviation;
        }
        let input = HostTensor::from_vec(values, input.shape()).map_err(|error| wrong(&error))?;
        Ok(Sample { input, ..sample })
    }
}

struct Truncate(usize);

impl AnyTransform for Truncate {
    fn fields(&self, input: Field, target: Field) -> Result<(Field, Field), DataError> {
        if !input.is_ragged() {
            return Err(DataError::Spec(format!("inputs of {input} can't be truncated")));
        }
        Ok((input, target))
    }

    fn apply(&self, sample: Sample, _: &mut Draws) -> Result<Sample, DataError> {
        let Sample { input, target } = sample;
        let before = input.shape().first().copied().unwrap_or(0);
        if before <= self.0 {
            return Ok(Sample { input, target });
        }
        let cut = |of: &HostTensor| {
            rows(of, 0..self.0).ok_or_else(|| DataError::custom("truncate", "it has no first axis"))
        };
        // A target that belongs to the elements is cut with them.
        let belongs = target.shape().first() == Some(&before);
        Ok(Sample { input: cut(&input)?, target: if belongs { cut(&target)? } else { target } })
    }
}
