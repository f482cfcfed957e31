//! Optimisers as shards apply them: plain `f32` arithmetic on one chunk, with the formulas of PyTorch.
//!
//! The same step on the same numbers gives the same bits on every CPU: each operation is rounded on its own (Rust
//! fuses none), and what a step needs of `pow` and `sqrt` is computed in `f64` by software that is the same
//! everywhere. libtorch's own kernels fuse multiplications with additions where the CPU can, so they differ from
//! these in the last bits.

mod adagrad;
mod adam;
mod sgd;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW};
pub use sgd::Sgd;

use crate::schedule::Schedule;

/// Which optimiser a job uses and how it is set.
///
/// ```
/// # use footlight_actors::parameters::optimizer::{Adam, OptimizerSpec, Sgd};
/// # use footlight_actors::schedule::Schedule;
/// let adam: OptimizerSpec = Adam::new(1e-3).schedule(Schedule::Cosine).into();
/// let sgd: OptimizerSpec = Sgd::new(0.1).momentum(0.9).nesterov(true).into();
///
/// let mut state = sgd.state(2);
/// let mut next = [0.0; 2];
/// sgd.apply(&mut state, 1, 1.0, &[1.0, 2.0], &[0.5, -0.5], &mut next)?;
/// assert_eq!(next, [0.905, 2.095]);
/// # Ok::<(), footlight_actors::parameters::optimizer::OptimizerError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent, with momentum if wanted.
    Sgd(Sgd),
    /// Adam, and [`AdamW`].
    Adam(Adam),
    /// Adagrad.
    Adagrad(Adagrad),
}

/// What an optimiser remembers of one chunk from step to step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OptimizerState {
    /// The momentum buffer of [`Sgd`]; empty without momentum.
    Sgd {
        /// A running sum of gradients.
        momentum: Vec<f32>,
    },
    /// The running means of [`Adam`] and [`AdamW`].
    Adam {
        /// Of the gradient (`exp_avg` in PyTorch).
        mean: Vec<f32>,
        /// Of its square (`exp_avg_sq` in PyTorch).
        square: Vec<f32>,
    },
    /// What [`Adagrad`] has summed.
    Adagrad {
        /// The squares of all gradients.
        sum: Vec<f32>,
    },
}

impl OptimizerState {
    /// Its buffers and their names, each as long as the chunk. None where nothing is remembered.
    pub fn buffers(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Sgd { momentum } if momentum.is_empty() => Vec::new(),
            Self::Sgd { momentum } => vec![("momentum", momentum)],
            Self::Adam { mean, square } => vec![("mean", mean), ("square", square)],
            Self::Adagrad { sum } => vec![("sum", sum)],
        }
    }

    /// The same, to keep.
    pub(crate) fn into_buffers(self) -> Vec<Vec<f32>> {
        match self {
            Self::Sgd { momentum } if momentum.is_empty() => Vec::new(),
            Self::Sgd { momentum } => vec![momentum],
            Self::Adam { mean, square } => vec![mean, square],
            Self::Adagrad { sum } => vec![sum],
        }
    }

    fn buffers_mut(&mut self) -> Vec<&mut Vec<f32>> {
        match self {
            Self::Sgd { momentum } if momentum.is_empty() => Vec::new(),
            Self::Sgd { momentum } => vec![momentum],
            Self::Adam { mean, square } => vec![mean, square],
            Self::Adagrad { sum } => vec![sum],
        }
    }
}

/// Why an optimiser could not be set so, or a step not be taken.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum OptimizerError {
    /// A setting is out of its range.
    #[error("the optimiser's {setting} is {value}, and must be {range}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The buffers of one step do not have the same length, or the state is another optimiser's.
    #[error(
        "the optimiser's state, parameters and gradient do not fit together: {found} where {expected} belong"
    )]
    Mismatch {
        /// Number of parameters.
        expected: usize,
        /// The length that differs (0 for a state of another kind).
        found: usize,
    },
}

impl OptimizerSpec {
    /// Checks all settings.
    ///
    /// # Errors
    /// [`OptimizerError::Setting`] names the first that is out of range.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        match self {
            Self::Sgd(sgd) => sgd.validate(),
            Self::Adam(adam) => adam.validate(),
            Self::Adagrad(adagrad) => adagrad.validate(),
        }
    }

    /// How the learning rate changes in the course of the job.
    pub fn schedule(&self) -> Schedule {
        match self {
            Self::Sgd(sgd) => sgd.schedule,
            Self::Adam(adam) => adam.schedule,
            Self::Adagrad(adagrad) => adagrad.course(),
        }
    }

    /// The state before the first step, for a chunk of `len` floats: zeros.
    pub fn state(&self, len: usize) -> OptimizerState {
        match self {
            Self::Sgd(sgd) => OptimizerState::Sgd {
                momentum: vec![0.0; if sgd.momentum == 0.0 { 0 } else { len }],
            },
            Self::Adam(_) => OptimizerState::Adam { mean: vec![0.0; len], square: vec![0.0; len] },
            Self::Adagrad(_) => OptimizerState::Adagrad { sum: vec![0.0; len] },
        }
    }

    /// Whether a state is one of this optimiser, for a chunk of `len` floats.
    ///
    /// # Errors
    /// [`OptimizerError::Mismatch`] if it is not.
    pub fn fits(&self, state: &OptimizerState, len: usize) -> Result<(), OptimizerError> {
        let buffers = |state: &OptimizerState| -> Vec<(&'static str, usize)> {
            state.buffers().into_iter().map(|(name, buffer)| (name, buffer.len())).collect()
        };
        let (expected, found) = (buffers(&self.state(len)), buffers(state));
        if expected == found {
            return Ok(());
        }
        let found = found.first().map_or(0, |(_, len)| *len);
        Err(OptimizerError::Mismatch { expected: len, found })
    }

    /// The names of its state's [buffers](OptimizerState::buffers).
    pub fn buffer_names(&self) -> Vec<&'static str> {
        self.state(1).buffers().into_iter().map(|(name, _)| name).collect()
    }

    /// The state of a chunk of `len` floats with these buffers, in the order of [`OptimizerSpec::buffer_names`].
    ///
    /// # Errors
    /// [`OptimizerError::Mismatch`] if they are not as many or not as long as this optimiser's.
    pub fn state_of(
        &self,
        len: usize,
        buffers: Vec<Vec<f32>>,
    ) -> Result<OptimizerState, OptimizerError> {
        let mut state = self.state(len);
        let places = state.buffers_mut();
        let wrong = buffers.iter().find(|buffer| buffer.len() != len);
        if let Some(found) = wrong.map(Vec::len).or((places.len() != buffers.len()).then_some(0)) {
            return Err(OptimizerError::Mismatch { expected: len, found });
        }
        places.into_iter().zip(buffers).for_each(|(place, buffer)| *place = buffer);
        Ok(state)
    }

    /// Takes one step: reads `params_in`, writes `params_out`, and brings `state` forward.
    ///
    /// `t` counts steps from 1. `lr_scale` multiplies the learning rate (see [`Schedule::factor`]). `grad` is the
    /// gradient of the mean loss.
    ///
    /// # Errors
    /// [`OptimizerError::Mismatch`], or [`OptimizerError::Setting`] for step 0; then nothing was changed.
    pub fn apply(
        &self,
        state: &mut OptimizerState,
        t: u64,
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) -> Result<(), OptimizerError> {
        self.apply_to(0..params_in.len(), state, t, lr_scale, params_in, grad, params_out)
    }

    /// As [`apply`](Self::apply), of a part of the chunk: the buffers hold that part, and `state` is the
    /// whole chunk's. A step that is taken part by part gives the same bits.
    #[allow(clippy::too_many_arguments, reason = "the buffers of one step")]
    pub(crate) fn apply_to(
        &self,
        part: Range<usize>,
        state: &mut OptimizerState,
        t: u64,
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) -> Result<(), OptimizerError> {
        check("step", t as f64, "counted from 1", t > 0)?;
        let expected = part.len();
        let fits = |len: usize| match len == expected {
            true => Ok(()),
            false => Err(OptimizerError::Mismatch { expected, found: len }),
        };
        fits(params_in.len())?;
        fits(grad.len())?;
        fits(params_out.len())?;
        let of = |buffer: usize| OptimizerError::Mismatch { expected: part.end, found: buffer };
        match (self, state) {
            (Self::Sgd(sgd), OptimizerState::Sgd { momentum }) => {
                if sgd.momentum == 0.0 {
                    sgd.apply_plain(lr_scale, params_in, grad, params_out);
                } else {
                    let found = momentum.len();
                    let momentum = momentum.get_mut(part.clone()).ok_or_else(|| of(found))?;
                    sgd.apply_momentum(momentum, lr_scale, params_in, grad, params_out);
                }
                Ok(())
            }
            (Self::Adam(adam), OptimizerState::Adam { mean, square }) => {
                let found = mean.len().min(square.len());
                let both = mean.get_mut(part.clone()).zip(square.get_mut(part.clone()));
                let (mean, square) = both.ok_or_else(|| of(found))?;
                adam.apply(mean, square, t, lr_scale, params_in, grad, params_out);
                Ok(())
            }
            (Self::Adagrad(adagrad), OptimizerState::Adagrad { sum }) => {
                let found = sum.len();
                let sum = sum.get_mut(part.clone()).ok_or_else(|| of(found))?;
                adagrad.apply(sum, lr_scale, params_in, grad, params_out);
                Ok(())
            }
            _ => Err(OptimizerError::Mismatch { expected, found: 0 }),
        }
    }
}

/// One setting's check. A value that is not a number is in no range.
fn check(
    setting: &'static str,
    value: f64,
    range: &'static str,
    holds: bool,
) -> Result<(), OptimizerError> {
    if holds && value.is_finite() {
        Ok(())
    } else {
        Err(OptimizerError::Setting { setting, value, range })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
