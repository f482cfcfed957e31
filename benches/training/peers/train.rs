//! LeNet-5 on MNIST, as the example `image_classification` trains it: a trainer, a data loader, two shards and two
//! workers, each in a process of its own, and this one, which submits the job and looks on.

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use footlight::{
    actors::{
        data::DataSpec,
        model::{LeNet5, ModelSpec},
        training::{JobEvent, TrainingJob},
    },
    cluster::processes::LocalPart,
};
use serde_json::{Value, json};

use crate::cluster;

const EPOCHS: u64 = 2;
/// What a job has unless told. Two, one for each worker, would be nearer to DDP, whose processes take their halves of a
/// batch in one piece, and faster.
pub(crate) const SLOTS: u32 = 4;
/// In the first steps of each epoch nothing counts: then workers start, or the epoch before is evaluated. The peers
/// have the same.
const WARM_STEPS: u64 = 100;
/// Below this, something else than training was measured.
const ACCURACY: f64 = 0.97;

/// Samples a second, and the accuracy on the test images in the end.
pub(crate) async fn lenet(data: PathBuf, slots: u32) -> Result<Value> {
    let parts = [LocalPart::new("loader", "loader")].into_iter();
    let parts = parts.chain(LocalPart::several("server", 2));
    let cluster = cluster::start(parts.chain(LocalPart::several("worker", 2))).await?;
    // Adam with a cosine, batch 128, two workers and two shards: what a job has unless told.
    let job = TrainingJob::new("lenet", ModelSpec::of::<LeNet5>(), DataSpec::idx(data));
    let job = job.slots(slots).epochs(EPOCHS).seed(1);
    let mut running = job.submit(cluster.node()).await?;
    let mut per_epoch = 0;
    let mut begun: Option<(Instant, u64)> = None;
    let (mut seconds, mut counted) = (0.0, 0);
    let report = running
        .follow(|event| match event {
            JobEvent::Started { steps_per_epoch, .. } => per_epoch = u64::from(*steps_per_epoch),
            JobEvent::Step { steps, samples, .. } => match steps % per_epoch.max(1) {
                WARM_STEPS => begun = Some((Instant::now(), *samples)),
                0 => {
                    if let Some((since, before)) = begun.take() {
                        seconds += since.elapsed().as_secs_f64();
                        counted += samples - before;
                    }
                }
                _ => {}
            },
            _ => {}
        })
        .await?;
    running.close().await?;
    let accuracy = report.test_accuracy.unwrap_or_default();
    ensure!(accuracy >= ACCURACY, "the test accuracy is {accuracy}: this was no training");
    ensure!(
        seconds > 0.0,
        "an epoch has no more than {WARM_STEPS} steps: there is nothing to measure"
    );
    cluster.leave().await?;
    Ok(json!({ "value": counted as f64 / seconds, "accuracy": accuracy }))
}
