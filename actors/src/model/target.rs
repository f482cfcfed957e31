//! What a model learns of each sample.

use footlight_runtime::{HostTensor, tensor::DType};
use tch::{Kind, Reduction, Tensor};

use super::{Model, ModelError};
use crate::data::{Field, IGNORE, integers};

/// What a model is to say of each sample: decides its loss and how it is evaluated, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One of [`Model::CLASSES`]: an integer. The output is a score for each class, `[n, CLASSES]`; the loss is
    /// cross-entropy.
    Class,
    /// One of [`Model::CLASSES`] for each element of a sequence, as language models: integers `[len]`, of which
    /// [`IGNORE`] is left out. The output is `[n, len, CLASSES]`; the loss of a sample is the mean cross-entropy of its
    /// elements.
    Sequence,
    /// Numbers of this shape, as in a regression: `f32`. The output is `[n, …]`; the loss of a sample is the mean of
    /// its numbers' squared errors.
    Values(&'static [usize]),
}

impl Target {
    /// How errors call it.
    pub(super) fn text(self, classes: usize) -> String {
        match self {
            Target::Class => format!("one of {classes} classes, an integer"),
            Target::Sequence => format!("one of {classes} classes for each element, integers"),
            Target::Values(shape) => Field::new(DType::F32, shape).to_string(),
        }
    }

    /// Whether targets of this kind can be had from such a field.
    pub(super) fn admits(self, field: &Field) -> bool {
        let is_integer = !is_float(field.dtype);
        match self {
            Target::Class => is_integer && field.shape.iter().product::<usize>() == 1,
            Target::Sequence => is_integer && field.shape.len() == 1,
            Target::Values(shape) => {
                is_float(field.dtype)
                    && !field.is_ragged()
                    && field.shape.iter().product::<usize>() == shape.iter().product::<usize>()
            }
        }
    }

    /// The targets of `n` samples as libtorch takes them: `i64` `[n]` or `[n, len]`, or `f32` `[n, …]`.
    pub(super) fn tensor(self, targets: &HostTensor, classes: usize) -> Result<Tensor, ModelError> {
        let (n, rest) = targets.shape().split_first().map_or((0, &[][..]), |(n, rest)| (*n, rest));
        let wrong = || ModelError::Targets {
            found: Field::new(targets.dtype(), rest).to_string(),
            expected: self.text(classes),
        };
        if !self.admits(&Field::new(targets.dtype(), rest)) {
            return Err(wrong());
        }
        let sizes = |rest: &[usize]| -> Vec<i64> {
            [n].iter().chain(rest).map(|axis| *axis as i64).collect()
        };
        if let Target::Values(shape) = self {
            let numbers = targets.to_tensor(footlight_runtime::compute::Device::Cpu)?;
            return Ok(numbers.f_to_kind(Kind::Float)?.f_view(&sizes(shape)[..])?);
        }
        let labels: Vec<i64> = integers(targets).ok_or_else(wrong)?.collect();
        let is_one = |label: i64| usize::try_from(label).is_ok_and(|label| label < classes);
        let may_be = |label: i64| is_one(label) || self == Target::Sequence && label == IGNORE;
        if let Some(&label) = labels.iter().find(|label| !may_be(**label)) {
            return Err(ModelError::Label { label, classes });
        }
        let rest = if self == Target::Class { &[][..] } else { rest };
        Ok(Tensor::f_from_slice(&labels)?.f_view(&sizes(rest)[..])?)
    }

    /// The loss of [`Model::loss`] if the model has none of its own.
    pub(super) fn loss(self, output: &Tensor, targets: &Tensor) -> Tensor {
        match self {
            Target::Class => {
                output.cross_entropy_loss::<Tensor>(targets, None, Reduction::Sum, IGNORE, 0.0)
            }
            Target::Sequence => {
                let (scores, flat) = (output.flatten(0, 1), targets.flatten(0, 1));
                let each =
                    scores.cross_entropy_loss::<Tensor>(&flat, None, Reduction::None, IGNORE, 0.0);
                let of_sample = each.view_as(targets).sum_dim_intlist(-1, false, Kind::Float);
                let counted = targets.not_equal(IGNORE).sum_dim_intlist(-1, false, Kind::Float);
                (of_sample / counted.clamp_min(1.0)).sum(Kind::Float)
            }
            Target::Values(_) => {
                let each = (output - targets).square().flatten(1, -1);
                each.mean_dim(1, false, Kind::Float).sum(Kind::Float)
            }
        }
    }

    /// How many targets there are to be told rightly, and how many were. `None` for numbers, which are never quite right.
    pub(super) fn count(
        self,
        output: &Tensor,
        targets: &Tensor,
    ) -> Result<Option<Counted>, ModelError> {
        let all = match self {
            Target::Class => targets.numel() as i64,
            Target::Sequence => {
                targets.f_not_equal(IGNORE)?.f_sum(Kind::Int64)?.f_int64_value(&[])?
            }
            Target::Values(_) => return Ok(None),
        };
        let right = output.f_argmax(-1, false)?.f_eq_tensor(targets)?.f_sum(Kind::Int64)?;
        Ok(Some(Counted { targets: all as usize, correct: right.f_int64_value(&[])? as usize }))
    }

    /// Whether the output for `n` samples, with targets of this shape where there are some, has the right one.
    pub(super) fn is_output<M: Model>(
        self,
        output: &[i64],
        n: i64,
        targets: Option<&[i64]>,
    ) -> bool {
        let classes = M::CLASSES as i64;
        match (self, output) {
            (Target::Class, output) => output == [n, classes],
            (Target::Sequence, [samples, len, of]) => {
                let fits = |targets: &[i64]| targets == [n, *len];
                *samples == n && *of == classes && targets.is_none_or(fits)
            }
            (Target::Sequence, _) => false,
            (Target::Values(shape), [samples, rest @ ..]) => {
                *samples == n && rest.iter().copied().eq(shape.iter().map(|axis| *axis as i64))
            }
            (Target::Values(_), []) => false,
        }
    }
}

/// How many targets were told rightly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) targets: usize,
    pub(super) correct: usize,
}

/// Whether elements are floating-point numbers.
pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
}
