//! LeNet-5, as it is built today.

use tch::nn::{self, ConvConfig, Init, LinearConfig, Module};
use tch::{Kind, Tensor};

use super::Model;

/// LeNet-5 (LeCun et al., 1998) for 28×28 images and 10 classes: two convolutions of 5×5 (6 and 16 channels, the first
/// padded by 2) with maximum pooling, then 120, 84 and 10 units; ReLU in place of the original's sigmoids. 61,706
/// parameters, drawn as PyTorch's layers draw theirs: evenly from ±1/√n for n inputs of a unit. (tch's own default is
/// about 2.4 times wider, and 0.1 percentage points worse on MNIST.)
#[derive(Debug)]
pub struct LeNet5 {
    conv1: nn::Conv2D,
    conv2: nn::Conv2D,
    fc1: nn::Linear,
    fc2: nn::Linear,
    fc3: nn::Linear,
}

impl Model for LeNet5 {
    const NAME: &'static str = "lenet5";
    const INPUT: &'static [usize] = &[28, 28];
    const CLASSES: usize = 10;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Self {
            conv1: nn::conv2d(vs / "conv1", 1, 6, 5, convolution(5 * 5, 2)),
            conv2: nn::conv2d(vs / "conv2", 6, 16, 5, convolution(6 * 5 * 5, 0)),
            fc1: nn::linear(vs / "fc1", 16 * 5 * 5, 120, linear(16 * 5 * 5)),
            fc2: nn::linear(vs / "fc2", 120, 84, linear(120)),
            fc3: nn::linear(vs / "fc3", 84, 10, linear(84)),
        }
    }

    /// To zero mean and unit variance, by the mean 0.1307 and the deviation 0.3081 of MNIST's training images.
    fn input(samples: &Tensor) -> Tensor {
        let scaled = (samples.to_kind(Kind::Float) / 255.0 - 0.1307) / 0.3081;
        scaled.unsqueeze(1)
    }

    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        let maps = self.conv1.forward(input).relu().max_pool2d_default(2);
        let maps = self.conv2.forward(&maps).relu().max_pool2d_default(2);
        let units = self.fc1.forward(&maps.flatten(1, -1)).relu();
        let units = self.fc2.forward(&units).relu();
        self.fc3.forward(&units)
    }
}

fn convolution(inputs: u32, padding: i64) -> ConvConfig {
    ConvConfig { padding, ws_init: even(inputs), bs_init: even(inputs), ..Default::default() }
}

fn linear(inputs: u32) -> LinearConfig {
    LinearConfig { ws_init: even(inputs), bs_init: Some(even(inputs)), bias: true }
}

fn even(inputs: u32) -> Init {
    let bound = 1.0 / f64::from(inputs).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
