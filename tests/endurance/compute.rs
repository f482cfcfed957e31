//! Threads that train a network, as workers do, for as long as they are kept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use footlight::runtime::compute::{ComputeThread, Device};
use tch::{
    Kind, Tensor,
    nn::{self, Module, OptimizerConfig},
};

const BATCH: i64 = 64;
/// The first steps wait for memory and kernels.
const FIRST_STEP: Duration = Duration::from_secs(60);

/// Computes until it is dropped.
pub(crate) struct Computing {
    stop: Arc<AtomicBool>,
}

impl Computing {
    /// Returns once all threads have taken a step. A thread that can't go on ends the process: what
    /// is measured beside it would say nothing.
    pub(crate) async fn start(threads: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let steps: Vec<_> = (0..threads).map(|_| Arc::new(AtomicU64::new(0))).collect();
        for steps in &steps {
            let thread = ComputeThread::spawn("train", Device::Cpu, |_| Ok(())).await?;
            let (stop, steps) = (stop.clone(), steps.clone());
            tokio::spawn(async move {
                if let Err(error) = thread.run(move |()| Ok(train(&stop, &steps)?)).await {
                    eprintln!("error: cannot compute: {error}");
                    std::process::exit(1);
                }
            });
        }
        let all = async {
            while steps.iter().any(|steps| steps.load(Ordering::Relaxed) == 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        ensure!(tokio::time::timeout(FIRST_STEP, all).await.is_ok(), "nothing is computed");
        Ok(Computing { stop })
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Trains a LeNet-5 on noise.
fn train(stop: &AtomicBool, steps: &AtomicU64) -> Result<(), tch::TchError> {
    let variables = nn::VarStore::new(tch::Device::Cpu);
    let root = variables.root();
    let net = nn::seq()
        .add(nn::conv2d(&root / "conv1", 1, 6, 5, nn::ConvConfig { padding: 2, ..<_>::default() }))
        .add_fn(|x| x.relu().max_pool2d_default(2))
        .add(nn::conv2d(&root / "conv2", 6, 16, 5, <_>::default()))
        .add_fn(|x| x.relu().max_pool2d_default(2).flatten(1, -1))
        .add(nn::linear(&root / "dense1", 400, 120, <_>::default()))
        .add_fn(|x| x.relu())
        .add(nn::linear(&root / "dense2", 120, 10, <_>::default()));
    let mut adam = nn::Adam::default().build(&variables, 1e-3)?;
    let images = Tensor::f_randn([BATCH, 1, 28, 28], (Kind::Float, tch::Device::Cpu))?;
    let labels = Tensor::f_randint(10, [BATCH], (Kind::Int64, tch::Device::Cpu))?;
    while !stop.load(Ordering::Relaxed) {
        let loss = net.forward(&images).cross_entropy_for_logits(&labels);
        adam.backward_step(&loss);
        steps.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
