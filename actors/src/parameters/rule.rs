//! What must be known of a step's whole gradient before any of it is applied: its norm, and whether all of it is
//! finite.
//!
//! Without such a rule each chunk takes its step as soon as its slots are there. With one a step has two phases:
//!
//! ```text
//! shard 0:  slots of its chunks ─► sums, their squares ─┐             ┌─► verdict ─► its chunks take the step
//! shard 1:  slots of its chunks ─► sums, their squares ─┼─ to all ────┼─► verdict ─► its chunks take the step
//! ```
//!
//! How they come to one verdict: [`gate`](super::gate).

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How a gradient is treated as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRule {
    clip_norm: Option<f64>,
    non_finite: NonFinite,
    scales_loss: bool,
}

/// What becomes of a gradient that has a NaN or an infinity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NonFinite {
    /// The job stops, and says at which step: such a gradient is a fault in most jobs.
    #[default]
    Stop,
    /// The step is left out, is counted, and is told of; parameters and the optimiser's state stay as they are. More
    /// than `in_a_row` such steps one after the other stop the job.
    Skip {
        /// Steps that may be left out one after the other.
        in_a_row: u32,
    },
}

/// What is done with a step's gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is multiplied by this, and applied.
    Apply(f32),
    /// It is left out.
    Skip,
    /// It is not finite, and the job stops.
    Stop,
}

/// A rule that can't be kept.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("gradients can't be clipped to a norm of {0}: it must be above 0")]
pub struct RuleError(f64);

/// What the loss is multiplied by before a backward pass in fp16, where small gradients would become 0: as PyTorch's
/// `GradScaler` with its defaults. It begins at 65,536, is halved by each step that is left out, since something
/// became infinite, and is doubled after 2,000 steps that were not.
///
/// All shards see the same steps left out, so they have the same scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f32,
    before: f32,
    good: u32,
}

/// As many steps without one that was left out double the scale.
const GROWTH_INTERVAL: u32 = 2000;

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: 65_536.0, before: 65_536.0, good: 0 }
    }
}

impl LossScale {
    /// For the newest version, and for the one before.
    pub fn scales(&self) -> [f32; 2] {
        [self.scale, self.before]
    }

    /// A step was taken or left out. The scale stays a power of 2 that an `f32` holds.
    pub fn step(&mut self, skipped: bool) {
        self.before = self.scale;
        self.good = if skipped { 0 } else { self.good + 1 };
        if skipped {
            self.scale = (self.scale / 2.0).max(f32::MIN_POSITIVE);
        } else if self.good == GROWTH_INTERVAL {
            (self.good, self.scale) = (0, (self.scale * 2.0).min(1.7e38));
        }
    }
}

impl StepRule {
    /// Gradients whose norm is above `norm` are scaled down to it: the Euclidean norm over all parameters, as
    /// PyTorch's `clip_grad_norm_` does. Default: they are not.
    pub fn clip_norm(mut self, norm: f64) -> Self {
        self.clip_norm = Some(norm);
        self
    }

    /// What becomes of a gradient that is not finite. Default: the job stops.
    pub fn non_finite(mut self, non_finite: NonFinite) -> Self {
        self.non_finite = non_finite;
        self
    }

    /// Workers compute in fp16: the loss is [scaled](LossScale), and a gradient that is not finite is left out, 100
    /// in a row if nothing else is said.
    pub fn scale_loss(mut self) -> Self {
        if self.non_finite == NonFinite::Stop {
            self.non_finite = NonFinite::Skip { in_a_row: 100 };
        }
        self.scales_loss = true;
        self
    }

    /// Whether the loss is scaled.
    pub fn scales_loss(&self) -> bool {
        self.scales_loss
    }

    /// # Errors
    /// A norm that is not above 0.
    pub fn validate(&self) -> Result<(), RuleError> {
        match self.clip_norm {
            Some(norm) if !(norm > 0.0 && norm.is_finite()) => Err(RuleError(norm)),
            _ => Ok(()),
        }
    }

    /// Whether a step takes two phases.
    pub fn is_global(&self) -> bool {
        self.clip_norm.is_some() || self.non_finite != NonFinite::Stop
    }

    /// What is done with a gradient of this norm, after so many steps in a row that were left out.
    pub fn verdict(&self, norm: f64, skipped: u32) -> Verdict {
        if !norm.is_finite() {
            return match self.non_finite {
                NonFinite::Skip { in_a_row } if skipped < in_a_row => Verdict::Skip,
                _ => Verdict::Stop,
            };
        }
        match self.clip_norm {
            // PyTorch's formula, its 1e-6 included.
            Some(most) if most / (norm + 1e-6) < 1.0 => {
                Verdict::Apply((most / (norm + 1e-6)) as f32)
            }
            _ => Verdict::Apply(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_scaled_down_to_the_norm_and_never_up() {
        let rule = StepRule::default().clip_norm(1.0);
        assert_eq!(rule.verdict(0.5, 0), Verdict::Apply(1.0));
        let Verdict::Apply(scale) = rule.verdict(4.0, 0) else { panic!() };
        assert!((scale - 0.25).abs() < 1e-6, "{scale}");
        assert_eq!(StepRule::default().verdict(1e30, 0), Verdict::Apply(1.0));
    }

    #[test]
    fn what_is_not_finite_is_left_out_only_so_often_in_a_row() {
        let rule = StepRule::default().non_finite(NonFinite::Skip { in_a_row: 2 });
        for norm in [f64::NAN, f64::INFINITY] {
            assert_eq!(rule.verdict(norm, 1), Verdict::Skip);
            assert_eq!(rule.verdict(norm, 2), Verdict::Stop);
            assert_eq!(StepRule::default().clip_norm(1.0).verdict(norm, 0), Verdict::Stop);
        }
    }

    #[test]
    fn a_loss_scale_is_halved_by_what_is_left_out_and_doubled_after_long_without() {
        let mut scale = LossScale::default();
        scale.step(true);
        assert_eq!(scale.scales(), [32_768.0, 65_536.0]);
        (0..GROWTH_INTERVAL - 1).for_each(|_| scale.step(false));
        assert_eq!(scale.scales(), [32_768.0; 2]);
        scale.step(false);
        assert_eq!(scale.scales(), [65_536.0, 32_768.0]);
        (0..1000).for_each(|_| scale.step(true));
        assert_eq!(scale.scales(), [f32::MIN_POSITIVE; 2]);
        (0..1000 * GROWTH_INTERVAL).for_each(|_| scale.step(false));
        assert!(scale.scales()[0].is_finite());
    }

    #[test]
    fn scaling_leaves_out_what_is_not_finite_as_often_as_was_said() {
        let rule = StepRule::default().scale_loss();
        assert!(rule.is_global() && rule.verdict(f64::NAN, 99) == Verdict::Skip);
        let told = StepRule::default().non_finite(NonFinite::Skip { in_a_row: 1 }).scale_loss();
        assert_eq!(told.verdict(f64::NAN, 1), Verdict::Stop);
    }

    #[test]
    fn a_norm_must_be_a_number_above_nothing() {
        for norm in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(StepRule::default().clip_norm(norm).validate().is_err());
        }
        assert!(StepRule::default().clip_norm(1e-3).validate().is_ok());
        assert!(!StepRule::default().is_global());
    }
}
