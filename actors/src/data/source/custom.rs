//! Sources that a user's binary knows by name.

use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{DataError, Source, Split};

/// A source of a user's own, registered by [`Sources::source`](super::Sources::source) in the binary that all nodes run.
///
/// ```
/// # use footlight_actors::data::*;
/// # use footlight_runtime::{HostTensor, tensor::DType};
/// /// Numbers and their squares.
/// struct Squares(u32);
///
/// impl Source for Squares {
///     fn len(&self) -> usize { self.0 as usize }
///     fn input(&self) -> Field { Field::new(DType::F32, &[1]) }
///     fn target(&self) -> Field { Field::new(DType::F32, &[1]) }
///     fn sample(&self, index: usize) -> Result<Sample, DataError> {
///         let one = |value: f32| {
///             HostTensor::from_vec(vec![value], &[1]).map_err(|why| DataError::custom(Self::NAME, why))
///         };
///         let x = index as f32;
///         Ok(Sample { input: one(x)?, target: one(x * x)? })
///     }
/// }
///
/// impl CustomSource for Squares {
///     const NAME: &'static str = "squares";
///     type Args = u32;
///     fn open(count: u32, _: Split) -> Result<Self, DataError> { Ok(Squares(count)) }
/// }
///
/// let mut sources = Sources::new();
/// sources.source::<Squares>()?;
/// let data = DataSpec::new(Custom::of::<Squares>(&1000)?).hold_out(0.1);
/// assert_eq!(data.open_with(Split::Train, &sources)?.len(), 900);
/// # Ok::<(), DataError>(())
/// ```
pub trait CustomSource: Source + Sized {
    /// What a job calls it. Unlike a type's name it stays the same when the code moves.
    const NAME: &'static str;
    /// What it is opened with: data that travels as JSON.
    type Args: Serialize + DeserializeOwned;

    /// Opens one part of it; may block. Where the job holds out a part of the training samples for its test, only
    /// [`Split::Train`] is asked for.
    ///
    /// # Errors
    /// Whatever keeps it from being opened, see [`DataError::custom`].
    fn open(args: Self::Args, split: Split) -> Result<Self, DataError>;
}

/// Names a [`CustomSource`] with what it is opened with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custom {
    pub(in crate::data) name: String,
    pub(in crate::data) args: String,
}

impl Custom {
    /// Names `S`.
    ///
    /// # Errors
    /// Arguments that JSON can't tell.
    pub fn of<S: CustomSource>(args: &S::Args) -> Result<Self, DataError> {
        Ok(Custom { name: S::NAME.to_owned(), args: arguments(S::NAME, args)? })
    }
}

/// Opens a [`CustomSource`].
pub(in crate::data) type OpenCustom = fn(&str, Split) -> Result<Arc<dyn Source>, DataError>;

pub(in crate::data) fn open<S: CustomSource>(
    args: &str,
    split: Split,
) -> Result<Arc<dyn Source>, DataError> {
    Ok(Arc::new(S::open(parsed(S::NAME, args)?, split)?))
}

/// Arguments as they travel.
pub(in crate::data) fn arguments(name: &str, args: &impl Serialize) -> Result<String, DataError> {
    serde_json::to_string(args).map_err(|error| DataError::custom(name, error))
}

/// Arguments as they came.
pub(in crate::data) fn parsed<A: DeserializeOwned>(name: &str, args: &str) -> Result<A, DataError> {
    serde_json::from_str(args)
        .map_err(|error| DataError::custom(name, format!("it takes other arguments: {error}")))
}
