//! LeNet-5 that waits in each slot, as for a device.

use std::{env, sync::OnceLock, time::Duration};

use footlight::actors::model::{LeNet5, Model};
use tch::{Tensor, nn};

/// Says how many microseconds a process's worker waits in each slot.
pub(crate) const WAIT: &str = "FOOTLIGHT_BENCH_MICROS_A_SLOT";

#[derive(Debug)]
pub(crate) struct Waiting(LeNet5);

fn wait() -> Duration {
    static WAITS: OnceLock<Duration> = OnceLock::new();
    let read = || env::var(WAIT).ok().and_then(|micros| micros.parse().ok()).unwrap_or(0);
    *WAITS.get_or_init(|| Duration::from_micros(read()))
}

impl Model for Waiting {
    const NAME: &'static str = "bench.waiting_lenet5";
    const INPUT: &'static [usize] = LeNet5::INPUT;
    const CLASSES: usize = LeNet5::CLASSES;
    const RANDOM: bool = LeNet5::RANDOM;

    fn new(vs: &nn::Path) -> Self {
        Waiting(LeNet5::new(vs))
    }

    fn input(samples: &Tensor) -> Tensor {
        LeNet5::input(samples)
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        if train {
            std::thread::sleep(wait());
        }
        self.0.forward(input, train)
    }
}
