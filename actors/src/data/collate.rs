//! Puts samples into a batch, and pads them where their lengths differ.

use bytes::Bytes;
use footlight_runtime::{HostTensor, tensor::DType};
use serde::{Deserialize, Serialize};

use super::{Batch, DataError, Field, Sample};

/// The target of what is padded: PyTorch's `ignore_index`, which the loss leaves out.
pub const IGNORE: i64 = -100;

/// What becomes of samples whose lengths differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Padding {
    /// There are none.
    None,
    /// They get as long as the longest of their slot.
    Longest(f64),
    /// All get this long.
    To(usize, f64),
}

/// How the arrays of one kind are put together: inputs or targets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    what: &'static str,
    /// Of each sample, before it is padded.
    pub(super) field: Field,
    /// What is padded with, as one element's bytes.
    pad: Vec<u8>,
    to: Option<usize>,
}

impl Column {
    /// # Errors
    /// Lengths that differ and nothing said of padding; a number that has no place among the elements.
    pub(super) fn new(
        what: &'static str,
        field: Field,
        padding: Padding,
        value: impl Fn(f64) -> f64,
    ) -> Result<Self, DataError> {
        let wrong = |why: String| Err(DataError::Spec(why));
        if field.shape.iter().skip(1).any(|axis| *axis == Field::ANY) {
            return wrong(format!(
                "{what} of {field}: only the first axis may differ in its length"
            ));
        }
        if !field.is_ragged() {
            return Ok(Column { what, field, pad: Vec::new(), to: None });
        }
        let (to, with) = match padding {
            Padding::None => {
                return wrong(format!(
                    "{what} of {field} differ in their lengths: say how they are padded, with pad_to_longest or pad_to"
                ));
            }
            Padding::Longest(with) => (None, with),
            Padding::To(0, _) => return wrong("samples are padded to 1 at least".to_owned()),
            Padding::To(len, with) => (Some(len), with),
        };
        let with = value(with);
        let pad = encoded(field.dtype, with).ok_or_else(|| {
            let dtype = field.dtype;
            DataError::Spec(format!("{what} can't be padded with {with}: they are {dtype}"))
        })?;
        Ok(Column { what, field, pad, to })
    }

    /// What it is after padding.
    pub(super) fn padded(&self) -> Field {
        let mut field = self.field.clone();
        if let (Some(to), Some(first)) = (self.to, field.shape.first_mut()) {
            *first = to;
        }
        field
    }

    /// One array of the samples' arrays, `[n, …]`.
    fn join(&self, arrays: &[(usize, HostTensor)]) -> Result<HostTensor, DataError> {
        for (index, array) in arrays {
            if !self.field.admits(array) {
                return Err(DataError::Sample {
                    index: *index,
                    what: self.what,
                    found: Field::new(array.dtype(), array.shape()).to_string(),
                    expected: self.field.to_string(),
                });
            }
        }
        let mut shape: Vec<usize> =
            std::iter::once(arrays.len()).chain(self.field.shape.iter().copied()).collect();
        if self.field.is_ragged() {
            let len = |array: &HostTensor| array.shape().first().copied().unwrap_or(0);
            if let Some(to) = self.to
                && let Some((index, array)) = arrays.iter().find(|(_, array)| len(array) > to)
            {
                return Err(DataError::TooLong {
                    index: *index,
                    what: self.what,
                    len: len(array),
                    to,
                });
            }
            let longest = arrays.iter().map(|(_, array)| len(array)).max().unwrap_or(0);
            shape[1] = self.to.unwrap_or(longest);
        }
        let each = shape.iter().skip(1).product::<usize>() * self.field.dtype.size();
        let mut bytes = Vec::with_capacity(each * arrays.len());
        for (_, array) in arrays {
            bytes.extend_from_slice(array.bytes());
            let missing = each.saturating_sub(array.bytes().len());
            for _ in 0..missing.checked_div(self.pad.len()).unwrap_or(0) {
                bytes.extend_from_slice(&self.pad);
            }
        }
        HostTensor::from_bytes(self.field.dtype, &shape, Bytes::from(bytes))
            .map_err(|error| DataError::Spec(error.to_string()))
    }
}

/// Puts samples, each with its number in its data set, together.
pub(super) fn collate(
    (inputs, targets): (&Column, &Column),
    samples: Vec<(usize, Sample)>,
) -> Result<Batch, DataError> {
    let (mut of_inputs, mut of_targets) = (Vec::new(), Vec::new());
    for (index, sample) in samples {
        of_inputs.push((index, sample.input));
        of_targets.push((index, sample.target));
    }
    Ok(Batch { inputs: inputs.join(&of_inputs)?, targets: targets.join(&of_targets)? })
}

/// A number as an element, if it has a place there.
fn encoded(dtype: DType, value: f64) -> Option<Vec<u8>> {
    let whole = |from: f64, to: f64| {
        (value.fract() == 0.0 && (from..=to).contains(&value)).then_some(value)
    };
    Some(match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::I64 => (whole(-9e15, 9e15)? as i64).to_le_bytes().to_vec(),
        DType::I32 => (whole(i32::MIN.into(), i32::MAX.into())? as i32).to_le_bytes().to_vec(),
        DType::I16 => (whole(i16::MIN.into(), i16::MAX.into())? as i16).to_le_bytes().to_vec(),
        DType::I8 => (whole(i8::MIN.into(), i8::MAX.into())? as i8).to_le_bytes().to_vec(),
        DType::U8 => vec![whole(0.0, u8::MAX.into())? as u8],
        DType::Bool => vec![whole(0.0, 1.0)? as u8],
        // Zero is all zeros in these too.
        DType::F16 | DType::BF16 => (value == 0.0).then(|| vec![0, 0])?,
    })
}
