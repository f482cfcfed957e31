//! What a sample is: an input array and a target array.

use std::fmt;

use footlight_runtime::{HostTensor, tensor::DType};
use serde::{Deserialize, Serialize};

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What it is evaluated on.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "training",
            Split::Test => "test",
        })
    }
}

/// The element type and the shape of one array of each sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape, without an axis for samples; empty for a scalar. The first axis may be [`Field::ANY`].
    pub shape: Vec<usize>,
}

impl Field {
    /// The length of an axis that differs from sample to sample.
    pub const ANY: usize = 0;

    /// An array of this type and shape.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Field { dtype, shape: shape.to_vec() }
    }

    /// One number.
    pub fn scalar(dtype: DType) -> Self {
        Field::new(dtype, &[])
    }

    /// Whether its length differs from sample to sample.
    pub fn is_ragged(&self) -> bool {
        self.shape.first() == Some(&Field::ANY)
    }

    /// Whether a sample's array is such a one.
    pub fn admits(&self, array: &HostTensor) -> bool {
        self.dtype == array.dtype()
            && self.shape.len() == array.shape().len()
            && self
                .shape
                .iter()
                .zip(array.shape())
                .all(|(own, its)| *own == Field::ANY || own == its)
    }

    /// The shape alone: `28×28`, `?×3`, or `a number`.
    pub(crate) fn shape_text(&self) -> String {
        if self.shape.is_empty() {
            return "a number".to_owned();
        }
        let axes = self.shape.iter().map(|&axis| match axis {
            Field::ANY => "?".to_owned(),
            axis => axis.to_string(),
        });
        axes.collect::<Vec<_>>().join("×")
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape.as_slice() {
            [] => write!(f, "{}", self.dtype),
            _ => write!(f, "{} {}", self.dtype, self.shape_text()),
        }
    }
}

/// One sample. Cloning it copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What the model is given.
    pub input: HostTensor,
    /// What it is to say of it.
    pub target: HostTensor,
}

/// Some samples in one array each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[n, …]`: the inputs of `n` samples.
    pub inputs: HostTensor,
    /// `[n, …]`: their targets.
    pub targets: HostTensor,
}

impl Batch {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.inputs.shape().first().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The elements `range` of a tensor's first axis. Shares its memory.
pub(crate) fn rows(of: &HostTensor, range: std::ops::Range<usize>) -> Option<HostTensor> {
    let (&count, rest) = of.shape().split_first()?;
    if range.start > range.end || range.end > count {
        return None;
    }
    let row = of.bytes().len().checked_div(count).unwrap_or(0);
    let bytes = of.bytes().slice(range.start * row..range.end * row);
    let shape: Vec<usize> = [range.len()].iter().chain(rest).copied().collect();
    HostTensor::from_bytes(of.dtype(), &shape, bytes).ok()
}

/// The element `index` of a tensor's first axis, without that axis. Shares its memory.
pub(crate) fn row(of: &HostTensor, index: usize) -> Option<HostTensor> {
    let (&count, rest) = of.shape().split_first()?;
    if index >= count {
        return None;
    }
    let row = of.bytes().len() / count;
    let bytes = of.bytes().slice(index * row..(index + 1) * row);
    HostTensor::from_bytes(of.dtype(), rest, bytes).ok()
}
