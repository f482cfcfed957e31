//! The models that the tests train, what these may be told to do, and their data.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use footlight::actors::{data::DataSpec, model::Model};
use tch::{
    Device, Kind, Tensor,
    nn::{self, Module},
};

/// Height and width of the samples.
pub(crate) const SIDE: usize = 8;
/// Training samples: no multiple of the batch, so that each epoch ends with a smaller one.
pub(crate) const SAMPLES: u32 = 1003;
pub(crate) const TEST_SAMPLES: u32 = 200;
pub(crate) const BATCH: u32 = 40;
pub(crate) const STEPS_PER_EPOCH: u64 = 26;

/// A small net with dropout: its training draws random numbers.
#[derive(Debug)]
pub(crate) struct Tiny {
    convolution: nn::Conv2D,
    hidden: nn::Linear,
    out: nn::Linear,
}

impl Model for Tiny {
    const NAME: &'static str = "test.tiny";
    const INPUT: &'static [usize] = &[SIDE, SIDE];
    const CLASSES: usize = 10;

    fn new(vs: &nn::Path) -> Self {
        Tiny {
            convolution: nn::conv2d(vs / "convolution", 1, 4, 3, Default::default()),
            hidden: nn::linear(vs / "hidden", 4 * 6 * 6, 64, Default::default()),
            out: nn::linear(vs / "out", 64, 10, Default::default()),
        }
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        if train {
            obey();
        }
        let maps = self.convolution.forward(&input.unsqueeze(1)).relu();
        let hidden = self.hidden.forward(&maps.flatten(1, -1)).relu();
        self.out.forward(&hidden.dropout(0.3, train))
    }
}

/// Has a parameter for each sample, whose gradient is 1 for that sample and 0 for all others. With plain SGD and a rate of
/// 1 a parameter is, times the batch, minus the number of times that its sample was applied.
#[derive(Debug)]
pub(crate) struct Counter {
    counts: Tensor,
}

impl Counter {
    /// Training samples; each one's first two pixels are its number.
    pub(crate) const SAMPLES: u32 = 2048;

    pub(crate) fn write_data(dir: &Path) {
        let count = Self::SAMPLES;
        for (split, count) in [("train", count), ("t10k", 10)] {
            let image = |sample: u32| {
                let [low, high, ..] = sample.to_le_bytes();
                [low, high].into_iter().chain([0; SIDE * SIDE - 2])
            };
            let images =
                idx(0x0803, &[count, SIDE as u32, SIDE as u32], (0..count).flat_map(image));
            fs::write(dir.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
            let labels = idx(0x0801, &[count], (0..count).map(|sample| (sample % 10) as u8));
            fs::write(dir.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
        }
    }

    pub(crate) fn data(dir: &Path) -> DataSpec {
        DataSpec::idx(dir)
    }
}

impl Model for Counter {
    const NAME: &'static str = "test.counter";
    const INPUT: &'static [usize] = &[SIDE, SIDE];
    const CLASSES: usize = 10;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Counter { counts: vs.zeros("counts", &[i64::from(Self::SAMPLES)]) }
    }

    fn input(samples: &Tensor) -> Tensor {
        samples.to_kind(Kind::Float)
    }

    /// The first class has a score of 0 through which the gradient flows.
    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        let pixels = input.flatten(1, -1).to_kind(Kind::Int64);
        let samples = pixels.select(1, 0) + pixels.select(1, 1) * 256;
        let counts = self.counts.index_select(0, &samples).unsqueeze(1);
        let first = &counts - counts.detach();
        Tensor::cat(&[first, Tensor::zeros([input.size()[0], 9], (Kind::Float, Device::Cpu))], 1)
    }

    fn loss(&self, logits: &Tensor, _labels: &Tensor) -> Tensor {
        logits.sum(Kind::Float)
    }
}

/// What a model may be told to do in the middle of its training. Whoever takes the order first obeys
/// it, and nobody else.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Order {
    /// Print `holding` and compute until [`Stage::let_go`].
    Hold,
    /// Panic.
    Panic,
}

impl Order {
    const ALL: [Order; 2] = [Order::Hold, Order::Panic];

    pub(super) fn file(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Order::Hold => "hold",
            Order::Panic => "panic",
        })
    }
}

/// Takes the time that this process's environment says, and carries an order out if there is one; not before this
/// process has computed a little.
fn obey() {
    static COMPUTED: AtomicU32 = AtomicU32::new(0);
    if let Ok(millis) = env::var("TEST_MILLIS_A_SLOT") {
        std::thread::sleep(Duration::from_millis(millis.parse().unwrap()));
    }
    let Some(dir) = env::var_os("TEST_ORDERS").map(PathBuf::from) else { return };
    if COMPUTED.fetch_add(1, SeqCst) < 10 {
        return;
    }
    // Of several that try, one succeeds in taking the file away.
    match Order::ALL.into_iter().find(|order| fs::remove_file(order.file(&dir)).is_ok()) {
        Some(Order::Hold) => {
            println!("\nholding");
            while !dir.join("go").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Some(Order::Panic) => panic!("the model panics on purpose"),
        None => {}
    }
}

/// Writes a data set as four IDX files: noise, with a brighter patch whose place tells the class.
pub(crate) fn write_data(dir: &Path, samples: u32, test_samples: u32) {
    let mut state = 1u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for (split, count) in [("train", samples), ("t10k", test_samples)] {
        let mut images = Vec::new();
        let mut labels = Vec::new();
        for index in 0..count {
            let class = (index % 10) as usize;
            let mut image: Vec<u8> = (0..SIDE * SIDE).map(|_| random() / 2).collect();
            for pixel in [class * 6, class * 6 + 1, class * 6 + SIDE, class * 6 + SIDE + 1] {
                image[pixel] = image[pixel].saturating_add(90);
            }
            images.extend(image);
            labels.push(class as u8);
        }
        let images = idx(0x0803, &[count, SIDE as u32, SIDE as u32], images);
        fs::write(dir.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        fs::write(dir.join(format!("{split}-labels-idx1-ubyte")), idx(0x0801, &[count], labels))
            .unwrap();
    }
}

/// An IDX file.
fn idx(magic: u32, dimensions: &[u32], data: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let header = [magic].into_iter().chain(dimensions.iter().copied());
    header.flat_map(u32::to_be_bytes).chain(data).collect()
}
