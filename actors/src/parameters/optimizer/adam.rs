//! Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019), as PyTorch's `torch.optim.Adam` and
//! `torch.optim.AdamW` without AMSGrad.

use serde::{Deserialize, Serialize};

use super::{OptimizerError, OptimizerSpec, check};
use crate::schedule::Schedule;

/// Adam. Step `t` (from 1) of a parameter `p` with gradient `g`:
///
/// ```text
/// g += weight_decay × p
/// m  = beta1 × m + (1 − beta1) × g
/// v  = beta2 × v + (1 − beta2) × g²
/// p −= lr / (1 − beta1ᵗ) × m / (√v / √(1 − beta2ᵗ) + eps)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    pub(super) lr: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    /// The decay is taken from the parameters and not added to the gradient.
    decoupled: bool,
    pub(super) schedule: Schedule,
}

impl Adam {
    /// Adam with the learning rate `lr` and PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, no weight decay, a
    /// constant rate.
    pub fn new(lr: f64) -> Self {
        Self {
            lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            schedule: Schedule::Constant,
        }
    }

    /// How slowly the running means of the gradient and of its square forget, each in `0.0..1.0`. Default 0.9 and
    /// 0.999.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        (self.beta1, self.beta2) = (beta1, beta2);
        self
    }

    /// What is added to the denominator, above 0. Default 1e-8.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// L2 regularisation, added to the gradient (not decoupled, as [`AdamW`]'s is). Default 0: none.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// How the learning rate changes. Default [`Schedule::Constant`].
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    pub(super) fn validate(&self) -> Result<(), OptimizerError> {
        check("learning rate", self.lr, "a number of at least 0", self.lr >= 0.0)?;
        check("beta1", self.beta1, "0 to below 1", (0.0..1.0).contains(&self.beta1))?;
        check("beta2", self.beta2, "0 to below 1", (0.0..1.0).contains(&self.beta2))?;
        check(
            "eps",
            self.eps,
            "at least 1e-30, so that nothing is divided by 0",
            self.eps >= 1e-30,
        )?;
        check("weight decay", self.weight_decay, "a number of at least 0", self.weight_decay >= 0.0)
    }

    #[allow(clippy::too_many_arguments, reason = "the buffers of one step")]
    pub(super) fn apply(
        &self,
        mean: &mut [f32],
        square: &mut [f32],
        t: u64,
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) {
        let (shrink, decay) = match self.decoupled {
            true => (1.0 - self.lr * lr_scale * self.weight_decay, 0.0),
            false => (1.0, self.weight_decay),
        };
        // As PyTorch does: what is the same for all elements in f64, and rounded once.
        let correction1 = 1.0 - libm::pow(self.beta1, t as f64);
        let correction2 = 1.0 - libm::pow(self.beta2, t as f64);
        let step_size = (self.lr * lr_scale / correction1) as f32;
        let root = correction2.sqrt() as f32;
        let (beta1, one_less_beta1) = (self.beta1 as f32, (1.0 - self.beta1) as f32);
        let (beta2, one_less_beta2) = (self.beta2 as f32, (1.0 - self.beta2) as f32);
        let (eps, shrink, decay) = (self.eps as f32, shrink as f32, decay as f32);

        let buffers = params_out.iter_mut().zip(params_in).zip(grad).zip(mean).zip(square);
        for ((((out, &p), &g), m), v) in buffers {
            // Neither changes a bit where it is not wanted: the parameters are finite.
            let p = shrink * p;
            let g = g + decay * p;
            *m = beta1 * *m + one_less_beta1 * g;
            *v = beta2 * *v + one_less_beta2 * g * g;
            *out = p - step_size * (*m / (v.sqrt() / root + eps));
        }
    }
}

/// AdamW: [`Adam`] whose weight decay is decoupled from the gradient. Before each step `p *= 1 − lr × weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW(Adam);

impl AdamW {
    /// AdamW with the learning rate `lr` and PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, a
    /// constant rate.
    pub fn new(lr: f64) -> Self {
        Self(Adam { decoupled: true, ..Adam::new(lr).weight_decay(0.01) })
    }

    /// As [`Adam::betas`].
    pub fn betas(self, beta1: f64, beta2: f64) -> Self {
        Self(self.0.betas(beta1, beta2))
    }

    /// As [`Adam::eps`].
    pub fn eps(self, eps: f64) -> Self {
        Self(self.0.eps(eps))
    }

    /// What part of itself, times the learning rate, each parameter loses in a step. Default 0.01.
    pub fn weight_decay(self, weight_decay: f64) -> Self {
        Self(self.0.weight_decay(weight_decay))
    }

    /// How the learning rate, and the decay with it, changes. Default [`Schedule::Constant`].
    pub fn schedule(self, schedule: Schedule) -> Self {
        Self(self.0.schedule(schedule))
    }
}

impl From<AdamW> for OptimizerSpec {
    fn from(adamw: AdamW) -> Self {
        Self::Adam(adamw.0)
    }
}

impl From<Adam> for OptimizerSpec {
    fn from(adam: Adam) -> Self {
        Self::Adam(adam)
    }
}
