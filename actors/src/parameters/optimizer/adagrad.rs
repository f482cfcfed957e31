//! Adagrad (Duchi, Hazan and Singer, 2011), as PyTorch's `torch.optim.Adagrad`.

use serde::{Deserialize, Serialize};

use super::{OptimizerError, OptimizerSpec, check};
use crate::schedule::Schedule;

/// Adagrad. A step of a parameter `p` with gradient `g`:
///
/// ```text
/// g   += weight_decay × p
/// sum += g²
/// p   −= lr × g / (√sum + eps)
/// ```
///
/// Parameters that seldom have a gradient keep a large step: for embeddings and other sparse features.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adagrad {
    lr: f64,
    eps: f64,
    weight_decay: f64,
    schedule: Schedule,
}

impl Adagrad {
    /// Adagrad with the learning rate `lr` (PyTorch's own default is 0.01), eps 1e-10, no weight decay, a constant
    /// rate; the sums begin at 0.
    pub fn new(lr: f64) -> Self {
        Self { lr, eps: 1e-10, weight_decay: 0.0, schedule: Schedule::Constant }
    }

    /// What is added to the denominator, above 0. Default 1e-10.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// L2 regularisation, added to the gradient. Default 0: none.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// How the learning rate changes besides what Adagrad does itself. Default [`Schedule::Constant`].
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    pub(super) fn course(&self) -> Schedule {
        self.schedule
    }

    pub(super) fn validate(&self) -> Result<(), OptimizerError> {
        check("learning rate", self.lr, "a number of at least 0", self.lr >= 0.0)?;
        let eps = "at least 1e-30, so that nothing is divided by 0";
        check("eps", self.eps, eps, self.eps >= 1e-30)?;
        check("weight decay", self.weight_decay, "a number of at least 0", self.weight_decay >= 0.0)
    }

    pub(super) fn apply(
        &self,
        sum: &mut [f32],
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) {
        let rate = (self.lr * lr_scale) as f32;
        let (eps, decay) = (self.eps as f32, self.weight_decay as f32);
        for (((out, &p), &g), sum) in params_out.iter_mut().zip(params_in).zip(grad).zip(sum) {
            let g = g + decay * p;
            *sum += g * g;
            *out = p - rate * g / (sum.sqrt() + eps);
        }
    }
}

impl From<Adagrad> for OptimizerSpec {
    fn from(adagrad: Adagrad) -> Self {
        Self::Adagrad(adagrad)
    }
}
