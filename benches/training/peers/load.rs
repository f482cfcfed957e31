//! MNIST in batches of 64, shuffled anew in each epoch, as tensors of libtorch: nothing is computed with them.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use footlight::{
    actors::{
        consistency::Consistency,
        data::{
            DataSpec,
            loader::{DataLoader, Describe, LoaderSpec, NextWork},
        },
    },
    cluster::processes::LocalPart,
    prelude::*,
    runtime::compute::Device,
};
use futures::{StreamExt, stream::FuturesOrdered};
use serde_json::{Value, json};

use crate::cluster;

const BATCH: u32 = 64;
/// The first epoch does not count.
const EPOCHS: u64 = 4;

/// Takes the batches. The loader ends with it.
struct Consumer;

impl Actor for Consumer {
    type Args = ();
    const NAME: &'static str = "bench.consumer";
    async fn start((): (), _: &Context<Self>) -> footlight::prelude::Result<Self> {
        Ok(Consumer)
    }
}

/// The loader is a process of its own.
pub(crate) async fn from_another_process(data: PathBuf) -> Result<Value> {
    let cluster = cluster::start([LocalPart::new("loader", "loader")]).await?;
    let rate = load(cluster.node(), Placement::role("loader"), data).await?;
    cluster.leave().await?;
    Ok(json!({ "value": rate }))
}

/// Loader and consumer share a process.
pub(crate) async fn in_process(data: PathBuf) -> Result<Value> {
    let keys = tempfile::tempdir()?;
    let args = NodeArgs {
        listen: Some("127.0.0.1:0".to_owned()),
        state: Some(keys.path().to_owned()),
        ..NodeArgs::default()
    };
    let node = cluster::builder(args)?.start().await?;
    let rate = load(&node, Placement::here(), data).await?;
    node.leave().await?;
    Ok(json!({ "value": rate }))
}

/// Samples a second.
async fn load(node: &Node, place: Placement, data: PathBuf) -> Result<f64> {
    let consumer = node.system().spawn::<Consumer>(()).await?;
    let spec = LoaderSpec {
        data: DataSpec::idx(data),
        seed: 1,
        batch: BATCH,
        slots: 1,
        epochs: EPOCHS,
        committed: 0,
        consistency: Consistency::default(),
        slots_stay: false,
        meeting_every: None,
        owner: consumer.addr(),
    };
    let loader = node.spawn::<DataLoader>(spec).on(place).await?;
    let described = loader.call(Describe).await?;
    let samples = u64::from(described.samples) * (EPOCHS - 1);
    let warm = described.steps / EPOCHS;
    // A task of the runtime takes them, as workers are tasks.
    let loaded = tokio::spawn(async move {
        let ask =
            |committed| loader.call(NextWork { worker: 0, committed, from: None, anew: false });
        // As with a worker in earnest, the next batch is on its way while this one is used.
        let mut asked: FuturesOrdered<_> = [ask(0), ask(0)].into_iter().collect();
        let mut begun = Instant::now();
        let (mut step, mut received, mut sum) = (0, 0, 0.0);
        while let Some(answer) = asked.next().await {
            let Some(work) = answer?.map_err(anyhow::Error::msg)? else { break };
            step += 1;
            asked.push_back(ask(step));
            let images = work.inputs.to_tensor(Device::Cpu)?;
            let labels = work.targets.to_tensor(Device::Cpu)?;
            received += labels.numel() as u64;
            sum += images.double_value(&[0, 14, 14]);
            if step == warm {
                (begun, received) = (Instant::now(), 0);
            }
        }
        ensure!(received == samples && sum > 0.0, "{received} of {samples} samples came");
        Ok(samples as f64 / begun.elapsed().as_secs_f64())
    });
    loaded.await.context("the consumer panicked")?
}
