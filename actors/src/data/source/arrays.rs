//! Samples in two arrays in memory.

use footlight_runtime::{HostTensor, tensor::DType};

use super::{DataError, Field, Sample, Source};
use crate::data::sample::row;

/// Samples as two arrays in memory, the samples along the first axis of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrays {
    inputs: HostTensor,
    targets: HostTensor,
    len: usize,
}

impl Arrays {
    /// Puts `[n, …]` inputs and `[n, …]` targets together. `at` says in errors where they are from.
    ///
    /// # Errors
    /// None at all, or not as many of one as of the other.
    pub fn new(at: &str, inputs: HostTensor, targets: HostTensor) -> Result<Self, DataError> {
        let count = |of: &HostTensor| of.shape().first().copied().unwrap_or(0);
        let (len, labels) = (count(&inputs), count(&targets));
        if len != labels {
            return Err(DataError::Counts { at: at.to_owned(), inputs: len, targets: labels });
        }
        if inputs.is_empty() || targets.is_empty() {
            return Err(DataError::Empty { at: at.to_owned() });
        }
        Ok(Arrays { inputs, targets, len })
    }

    /// Checks that every target is one of so many classes.
    ///
    /// # Errors
    /// [`DataError::Label`]; targets that are no integers.
    pub fn of_classes(self, at: &str, classes: usize) -> Result<Self, DataError> {
        let each = (self.targets.len() / self.len).max(1);
        let labels = integers(&self.targets).ok_or_else(|| {
            let dtype = self.targets.dtype();
            DataError::Spec(format!("the targets of {at} are {dtype}, and classes are integers"))
        })?;
        let is_class = |label: i64| usize::try_from(label).is_ok_and(|label| label < classes);
        let wrong = labels.enumerate().find(|(_, label)| !is_class(*label));
        match wrong {
            None => Ok(self),
            Some((at_element, label)) => Err(DataError::Label {
                at: at.to_owned(),
                index: at_element / each,
                label,
                classes,
            }),
        }
    }
}

/// The elements as `i64`, if they are integers.
pub(crate) fn integers(of: &HostTensor) -> Option<Box<dyn Iterator<Item = i64> + '_>> {
    Some(match of.dtype() {
        DType::I64 => Box::new(of.as_slice::<i64>().ok()?.iter().copied()),
        DType::I32 => Box::new(of.as_slice::<i32>().ok()?.iter().map(|&one| one.into())),
        DType::I16 => Box::new(of.as_slice::<i16>().ok()?.iter().map(|&one| one.into())),
        DType::I8 => Box::new(of.as_slice::<i8>().ok()?.iter().map(|&one| one.into())),
        DType::U8 | DType::Bool => Box::new(of.bytes().iter().map(|&one| one.into())),
        _ => return None,
    })
}

impl Source for Arrays {
    fn len(&self) -> usize {
        self.len
    }

    fn input(&self) -> Field {
        Field::new(self.inputs.dtype(), self.inputs.shape().get(1..).unwrap_or_default())
    }

    fn target(&self) -> Field {
        Field::new(self.targets.dtype(), self.targets.shape().get(1..).unwrap_or_default())
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        match (row(&self.inputs, index), row(&self.targets, index)) {
            (Some(input), Some(target)) => Ok(Sample { input, target }),
            _ => Err(DataError::NoSample { index, samples: self.len }),
        }
    }
}
