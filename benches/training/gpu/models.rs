//! What is trained: LeNet-5 for its convolutions, a vision transformer, and a perceptron for machines without a GPU.

use clap::ValueEnum;
use footlight::actors::model::Model;
use tch::{
    Kind, Tensor,
    nn::{self, LinearConfig, Module},
};

/// Which model is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Timed {
    /// ViT-B, 85.2 M parameters
    Vit,
    /// A perceptron of 50.4 M parameters
    Mlp,
    /// LeNet-5, 61,706 parameters: for a quick look, as its limit does not hold for it
    Lenet,
}

impl Timed {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Timed::Vit => "vit",
            Timed::Mlp => "mlp",
            Timed::Lenet => "lenet",
        }
    }
}

/// A vision transformer (Dosovitskiy et al., 2021) of so many layers and units, with heads of 64 units, normalised ahead of
/// each part. Patches of 2×2 of 28×28 pixels are 196, as ViT-B/16 has of 224×224: it computes as much a sample.
#[derive(Debug)]
pub(crate) struct Vit<const LAYERS: usize, const WIDTH: i64> {
    patches: nn::Linear,
    class: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: nn::LayerNorm,
    head: nn::Linear,
}

/// ViT-B: 12 layers of 768 units.
pub(crate) type VitBase = Vit<12, 768>;
/// 2 layers of 128 units.
pub(crate) type VitSmall = Vit<2, 128>;

#[derive(Debug)]
struct Layer {
    norm1: nn::LayerNorm,
    qkv: nn::Linear,
    out: nn::Linear,
    norm2: nn::LayerNorm,
    up: nn::Linear,
    down: nn::Linear,
}

const PATCHES: i64 = 14 * 14;
const HEAD: i64 = 64;

impl<const LAYERS: usize, const WIDTH: i64> Model for Vit<LAYERS, WIDTH> {
    const NAME: &'static str = if LAYERS == 12 { "gpu.vit_base" } else { "gpu.vit_small" };
    const INPUT: &'static [usize] = &[28, 28];
    const CLASSES: usize = 10;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        let small = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        let linear = |path: nn::Path, from: i64, to: i64| {
            let config =
                LinearConfig { ws_init: small, bs_init: Some(nn::Init::Const(0.0)), bias: true };
            nn::linear(path, from, to, config)
        };
        let norm = |path: nn::Path| nn::layer_norm(path, vec![WIDTH], Default::default());
        let layer = |vs: nn::Path| Layer {
            norm1: norm(&vs / "norm1"),
            qkv: linear(&vs / "qkv", WIDTH, 3 * WIDTH),
            out: linear(&vs / "out", WIDTH, WIDTH),
            norm2: norm(&vs / "norm2"),
            up: linear(&vs / "up", WIDTH, 4 * WIDTH),
            down: linear(&vs / "down", 4 * WIDTH, WIDTH),
        };
        Vit {
            patches: linear(vs / "patches", 4, WIDTH),
            class: vs.var("class", &[1, 1, WIDTH], small),
            positions: vs.var("positions", &[1, PATCHES + 1, WIDTH], small),
            layers: (0..LAYERS).map(|number| layer(vs / format!("layer{number}"))).collect(),
            norm: norm(vs / "norm"),
            head: linear(vs / "head", WIDTH, 10),
        }
    }

    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        let samples = input.size()[0];
        // [n, 14, 2, 14, 2] to [n, 14 × 14, 2 × 2]
        let patches = input.view([samples, 14, 2, 14, 2]).permute([0, 1, 3, 2, 4]);
        let patches = patches.reshape([samples, PATCHES, 4]).apply(&self.patches);
        let class = self.class.expand([samples, 1, WIDTH], false);
        let mut tokens = Tensor::cat(&[class, patches], 1) + &self.positions;
        for layer in &self.layers {
            tokens = layer.forward(&tokens);
        }
        tokens.select(1, 0).apply(&self.norm).apply(&self.head)
    }
}

impl Module for Layer {
    fn forward(&self, tokens: &Tensor) -> Tensor {
        let [samples, length, width] = tokens.size()[..] else {
            panic!("tokens are [samples, length, width]");
        };
        let qkv = tokens.apply(&self.norm1).apply(&self.qkv);
        let qkv = qkv.view([samples, length, 3, width / HEAD, HEAD]).permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2));
        let scores = (q / (HEAD as f64).sqrt()).matmul(&k.transpose(-2, -1));
        let seen = scores.softmax(-1, Kind::Float).matmul(&v);
        let seen = seen.transpose(1, 2).reshape([samples, length, width]).apply(&self.out);
        let tokens = tokens + seen;
        let more = tokens.apply(&self.norm2).apply(&self.up).gelu("none").apply(&self.down);
        tokens + more
    }
}

/// 784, 7,000, 6,400 and 10 units, with ReLU.
#[derive(Debug)]
pub(crate) struct Perceptron(nn::Linear, nn::Linear, nn::Linear);

impl Model for Perceptron {
    const NAME: &'static str = "gpu.mlp";
    const INPUT: &'static [usize] = &[28, 28];
    const CLASSES: usize = 10;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        let layer = |name: &str, from, to| nn::linear(vs / name, from, to, Default::default());
        Perceptron(layer("1", 784, 7000), layer("2", 7000, 6400), layer("3", 6400, 10))
    }

    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        let units = input.flatten(1, -1).apply(&self.0).relu();
        units.apply(&self.1).relu().apply(&self.2)
    }
}

#[cfg(test)]
mod tests {
    use footlight::{
        actors::model::{AnyReplica, Replica},
        prelude::HostTensor,
    };

    use super::*;

    #[test]
    fn what_is_timed_has_at_least_50_million_parameters() {
        let device = tch::Device::Cpu;
        assert_eq!(Replica::<Perceptron>::new(1, device).unwrap().len(), 50_365_410);
        assert_eq!(Replica::<VitBase>::new(1, device).unwrap().len(), 85_219_594);
    }

    #[test]
    fn a_vision_transformer_gives_each_class_a_score_and_each_parameter_a_gradient() {
        use footlight::actors::model::Draw;
        let mut replica = Replica::<VitSmall>::new(1, tch::Device::Cpu).unwrap();
        let images: Vec<u8> = (0..3 * 784).map(|at| (at % 251) as u8).collect();
        let draw = Draw { seed: 1, step: 0, slot: 0, part: 0 };
        let images = HostTensor::from_vec(images, &[3, 28, 28]).unwrap();
        let labels = HostTensor::from_vec(vec![1u8, 2, 3], &[3]).unwrap();
        let slot = replica.gradient(&images, &labels, 3, draw).unwrap();
        assert!(slot.loss_sum.is_finite());
        let layout = replica.layout(1).unwrap();
        for parameter in layout.parameters() {
            let gradient = &slot.gradient[parameter.range.clone()];
            assert!(gradient.iter().any(|number| *number != 0.0), "{}", parameter.name);
        }
    }
}
