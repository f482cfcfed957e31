//! What a model learns of each sample.

use footlight_runtime::{HostTensor, tensor::DType};
use tch::{Kind, Reduction, TchError, Tensor};

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

    /// Looks at the targets of `n` samples in host memory, and says as what libtorch takes them: `i64` `[n]` or
    /// `[n, len]`, or `f32` `[n, …]`.
    pub(super) fn check(
        self,
        targets: &HostTensor,
        classes: usize,
    ) -> Result<(Kind, Vec<i64>), ModelError> {
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
            return Ok((Kind::Float, sizes(shape)));
        }
        let mut labels = integers(targets).ok_or_else(wrong)?;
        let is_one = |label: i64| usize::try_from(label).is_ok_and(|label| label < classes);
        let may_be = |label: i64| is_one(label) || self == Target::Sequence && label == IGNORE;
        if let Some(label) = labels.find(|label| !may_be(*label)) {
            return Err(ModelError::Label { label, classes });
        }
        let rest = if self == Target::Class { &[][..] } else { rest };
        Ok((Kind::Int64, sizes(rest)))
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

    /// How many targets there are to be told rightly: an `i64` that stays on the device. 0 for numbers, which are never
    /// quite right.
    pub(super) fn count(self, targets: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Target::Class | Target::Sequence => targets.f_not_equal(IGNORE)?.f_sum(Kind::Int64),
            Target::Values(_) => none(targets),
        }
    }

    /// How many of them were: as [`count`](Self::count), so that a GPU is not waited for.
    pub(super) fn count_right(self, output: &Tensor, targets: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Target::Class | Target::Sequence => {
                output.f_argmax(-1, false)?.f_eq_tensor(targets)?.f_sum(Kind::Int64)
            }
            Target::Values(_) => none(targets),
        }
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

/// A count of none, on the device of these.
fn none(targets: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_zeros([0i64; 0], (Kind::Int64, targets.device()))
}

/// Whether elements are floating-point numbers.
pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
}
