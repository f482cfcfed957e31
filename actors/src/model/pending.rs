//! A slot's gradient that the device may still be computing.

use footlight_runtime::{HostTensor, compute::Download};

use super::{ModelError, SlotGradient};

/// A gradient on its way from the device. What comes next may be begun before this one is there.
#[derive(Debug)]
pub struct PendingGradient {
    pub(super) samples: usize,
    /// The loss, summed over the samples, and how many targets were told rightly: two `f64`, which hold any count.
    pub(super) metrics: Download,
    /// All parameters' gradients, flat.
    pub(super) gradient: Download,
}

/// As [`SlotGradient`], with the gradient in memory that serves the next ones when this is dropped.
#[derive(Debug)]
pub struct SlotTensor {
    /// The loss, summed over the slot's samples.
    pub loss_sum: f32,
    /// How many of its targets the model told rightly (before the step): classes; 0 for numbers.
    pub correct: usize,
    /// Number of samples of the slot.
    pub samples: usize,
    /// The gradient: `f32`, flat.
    pub gradient: HostTensor,
}

impl PendingGradient {
    /// Whether [`wait`](Self::wait) may block.
    pub fn is_under_way(&self) -> bool {
        self.gradient.is_under_way() || self.metrics.is_under_way()
    }

    /// The gradient; blocks until it is there.
    ///
    /// # Errors
    /// libtorch's and CUDA's: also those of what was computed meanwhile.
    pub fn wait(self) -> Result<SlotTensor, ModelError> {
        let metrics = self.metrics.wait()?;
        let (loss_sum, correct) = match metrics.as_slice::<f64>() {
            Ok([loss_sum, correct]) => (*loss_sum as f32, *correct as usize),
            other => return Err(ModelError::Torch(format!("the metrics of a slot are {other:?}"))),
        };
        let gradient = self.gradient.wait()?;
        Ok(SlotTensor { loss_sum, correct, samples: self.samples, gradient })
    }
}

impl From<SlotTensor> for SlotGradient {
    fn from(slot: SlotTensor) -> Self {
        let SlotTensor { loss_sum, correct, samples, gradient } = slot;
        let gradient = gradient.as_slice::<f32>().unwrap_or_default().to_vec();
        Self { loss_sum, correct, samples, gradient }
    }
}
