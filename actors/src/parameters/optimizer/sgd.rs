//! Stochastic gradient descent, as PyTorch's `torch.optim.SGD` with dampening 0.

use serde::{Deserialize, Serialize};

use super::{OptimizerError, OptimizerSpec, check};
use crate::schedule::Schedule;

/// Stochastic gradient descent: without momentum `p -= lr × g`; with momentum `b = momentum × b + g; p -= lr × b`, or
/// with Nesterov's form (Sutskever et al., 2013) `p -= lr × (g + momentum × b)`. Weight decay is added to the
/// gradient first: `g += weight_decay × p`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    pub(super) lr: f64,
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f64,
    pub(super) schedule: Schedule,
}

impl Sgd {
    /// Plain descent with the learning rate `lr`: no momentum, no weight decay, a constant rate.
    pub fn new(lr: f64) -> Self {
        Self { lr, momentum: 0.0, nesterov: false, weight_decay: 0.0, schedule: Schedule::Constant }
    }

    /// Momentum, in `0.0..1.0`. Default 0: none.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Nesterov's momentum instead of the classical one. Default no. It needs a momentum.
    pub fn nesterov(mut self, nesterov: bool) -> Self {
        self.nesterov = nesterov;
        self
    }

    /// L2 regularisation. Default 0: none.
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
        check("momentum", self.momentum, "0 to below 1", (0.0..1.0).contains(&self.momentum))?;
        let momentum_there = !self.nesterov || self.momentum > 0.0;
        check("momentum", self.momentum, "above 0 for Nesterov's form", momentum_there)?;
        check("weight decay", self.weight_decay, "a number of at least 0", self.weight_decay >= 0.0)
    }

    pub(super) fn apply_plain(
        &self,
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) {
        let rate = (self.lr * lr_scale) as f32;
        let decay = self.weight_decay as f32;
        for ((out, &p), &g) in params_out.iter_mut().zip(params_in).zip(grad) {
            *out = p - rate * (g + decay * p);
        }
    }

    pub(super) fn apply_momentum(
        &self,
        buffer: &mut [f32],
        lr_scale: f64,
        params_in: &[f32],
        grad: &[f32],
        params_out: &mut [f32],
    ) {
        let rate = (self.lr * lr_scale) as f32;
        let (momentum, decay) = (self.momentum as f32, self.weight_decay as f32);
        // One loop for both forms: Nesterov's looks one step of momentum further.
        let (of_grad, of_buffer) = if self.nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        for (((out, &p), &g), b) in params_out.iter_mut().zip(params_in).zip(grad).zip(buffer) {
            let g = g + decay * p;
            *b = momentum * *b + g;
            *out = p - rate * (of_grad * g + of_buffer * *b);
        }
    }
}

impl From<Sgd> for OptimizerSpec {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}
