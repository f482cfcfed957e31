//! In which numbers workers compute.

use serde::{Deserialize, Serialize};
use tch::Kind;

/// The numbers of a worker's forward and backward pass. The shards keep `f32` masters whatever it is, and what is
/// pulled is rounded to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// As the masters.
    #[default]
    F32,
    /// bfloat16: the range of `f32` with 8 significant bits. What to choose first where the device has it.
    Bf16,
    /// IEEE 754 binary16: 11 significant bits, up to 65,504. The loss is
    /// [scaled](crate::parameters::rule::LossScale), so that small gradients don't become 0.
    Fp16,
}

impl Precision {
    /// libtorch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Fp16 => Kind::Half,
        }
    }
}
