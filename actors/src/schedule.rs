//! How the learning rate changes in the course of a job.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The learning rate's course: at each step the optimiser's own rate is multiplied by [`Schedule::factor`].
///
/// A schedule knows no length: the trainer fills in the job's total number of steps.
///
/// ```
/// # use footlight_actors::schedule::Schedule;
/// assert_eq!(Schedule::Constant.factor(500, 1000), 1.0);
/// assert_eq!(Schedule::Cosine.factor(0, 1000), 1.0);
/// assert!((Schedule::Cosine.factor(500, 1000) - 0.5).abs() < 1e-9);
/// assert_eq!(Schedule::WarmUp { steps: 10 }.factor(0, 1000), 0.1);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// The same rate from the first step to the last: 1.
    #[default]
    Constant,
    /// Half a cosine from 1 at the first step towards 0 after the last one, without restarts: SGDR
    /// (Loshchilov and Hutter, 2017), PyTorch's `CosineAnnealingLR` with `eta_min = 0`.
    Cosine,
    /// A straight line from 1 at the first step to 0 after the last one, PyTorch's `LinearLR` from 1 to 0.
    Linear,
    /// Is multiplied by `percent` / 100 after every `every` steps: PyTorch's `StepLR`.
    Steps {
        /// Length of a stair, in steps. 0 is no stair.
        every: u64,
        /// What of the rate is left after each, in percent.
        percent: u32,
    },
    /// Grows in a straight line over the first `steps` steps (`1/steps`, `2/steps`, …, 1) and then stays at 1.
    WarmUp {
        /// Length of the rise, in steps. 0 is no rise.
        steps: u64,
    },
    /// Grows as [`Schedule::WarmUp`] does, then falls as [`Schedule::Cosine`] does over the steps that are left.
    WarmUpCosine {
        /// Length of the rise, in steps. 0 is no rise.
        steps: u64,
    },
    /// Grows as [`Schedule::WarmUp`] does, then falls as [`Schedule::Linear`] does over the steps that are left.
    WarmUpLinear {
        /// Length of the rise, in steps. 0 is no rise.
        steps: u64,
    },
}

impl Schedule {
    /// The factor of step `step` (counted from 0) in a job of `total` steps: in `0.0..=1.0` (more only for stairs that
    /// go up), and 0 for a cosine or a line past its end.
    ///
    /// The cosine comes from a software implementation, so every platform computes the same bits.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Cosine => cosine(step, total),
            Self::Linear => line(step, total),
            Self::Steps { every: 0, .. } => 1.0,
            Self::Steps { every, percent } => {
                libm::pow(f64::from(percent) / 100.0, (step / every) as f64)
            }
            Self::WarmUp { steps } => rise(step, steps),
            Self::WarmUpCosine { steps } if step < steps => rise(step, steps),
            Self::WarmUpCosine { steps } => cosine(step - steps, total.saturating_sub(steps)),
            Self::WarmUpLinear { steps } if step < steps => rise(step, steps),
            Self::WarmUpLinear { steps } => line(step - steps, total.saturating_sub(steps)),
        }
    }
}

fn rise(step: u64, steps: u64) -> f64 {
    if step < steps { (step + 1) as f64 / steps as f64 } else { 1.0 }
}

fn line(step: u64, total: u64) -> f64 {
    if step < total { (total - step) as f64 / total as f64 } else { 0.0 }
}

fn cosine(step: u64, total: u64) -> f64 {
    if step >= total {
        return 0.0;
    }
    0.5 * (1.0 + libm::cos(PI * (step as f64 / total as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cosine_falls_at_every_step_and_stays_above_nothing_until_its_end() {
        let factors: Vec<f64> = (0..100).map(|step| Schedule::Cosine.factor(step, 100)).collect();
        assert_eq!(factors[0], 1.0);
        assert!(factors.is_sorted_by(|a, b| a > b));
        assert!(factors[99] > 0.0);
        assert_eq!(Schedule::Cosine.factor(100, 100), 0.0);
        assert_eq!(Schedule::Cosine.factor(u64::MAX, 100), 0.0);
    }

    #[test]
    fn a_cosine_has_the_same_bits_on_every_platform() {
        assert_eq!(Schedule::Cosine.factor(1234, 4690).to_bits(), 0x3fea_d691_fc8b_2ad8);
    }

    #[test]
    fn a_warm_up_reaches_one_at_its_last_step() {
        let schedule = Schedule::WarmUpCosine { steps: 4 };
        let factors: Vec<f64> = (0..5).map(|step| schedule.factor(step, 10)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!(schedule.factor(9, 10) > 0.0);
        assert_eq!(schedule.factor(10, 10), 0.0);
    }

    #[test]
    fn a_line_falls_evenly_and_stairs_all_at_once() {
        let all = |schedule: Schedule| [0, 1, 2, 3, 4, 5].map(|step| schedule.factor(step, 4));
        assert_eq!(all(Schedule::Linear), [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        assert_eq!(all(Schedule::WarmUpLinear { steps: 2 }), [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]);
        let stairs = Schedule::Steps { every: 2, percent: 50 };
        assert_eq!(all(stairs), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]);
        assert_eq!(all(Schedule::Steps { every: 0, percent: 50 }), [1.0; 6]);
    }

    #[test]
    fn lengths_of_nothing_or_of_everything_give_a_factor_all_the_same() {
        assert_eq!(Schedule::Cosine.factor(0, 0), 0.0);
        assert_eq!(Schedule::WarmUp { steps: 0 }.factor(0, 0), 1.0);
        assert_eq!(Schedule::WarmUpCosine { steps: u64::MAX }.factor(u64::MAX, u64::MAX), 0.0);
    }
}
