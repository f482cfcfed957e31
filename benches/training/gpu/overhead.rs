//! What the runtime costs: a job (trainer, loader, shards and a worker, in one process) beside a plain loop with the same
//! model, batch and optimiser, one after the other, several times.
//!
//! The loop's parameters stay on the device, with Adam's. The job's gradients go to the shards in each step, which sum the
//! slots and apply Adam on the processor, and parameters come back: that, and every message, is the cost. The figure is the
//! median over the rounds of (job's step ÷ loop's step) − 1, each the median of its steps.

use std::{path::Path, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use footlight::{
    actors::{
        self,
        data::{DataSpec, IdxDataset, Split},
        model::{LeNet5, Model, ModelSpec, Models},
        parameters::optimizer::Adam,
        training::{JobEvent, TrainingJob},
    },
    prelude::*,
    runtime::compute::{ComputeThread, Device, DeviceChoice},
};
use serde_json::json;

use crate::{
    Settings, data,
    models::{Perceptron, Timed, VitBase},
    plain,
    report::Check,
};

const LIMIT: f64 = 0.03;
/// The trainer evaluates with them, on the processor, when all that is timed is over.
const TEST_SAMPLES: usize = 1;

/// How much is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Samples of a step.
    pub(crate) batch: u32,
    slots: u32,
    /// Steps that count, behind the first two.
    counted: u32,
}

impl Shape {
    pub(crate) const LEARNING_RATE: f64 = 1e-4;
    const WARM_STEPS: u32 = 2;

    /// So that no slot has more samples than this.
    fn new(batch: u32, counted: u32) -> Result<Self> {
        let slots = batch.div_ceil(256).max(4);
        ensure!(batch.is_multiple_of(slots), "a batch of {batch} is not {slots} equal slots");
        Ok(Shape { batch, slots, counted })
    }

    /// Samples of a slot.
    pub(crate) fn slot(&self) -> usize {
        (self.batch / self.slots) as usize
    }

    pub(crate) fn steps(&self) -> u32 {
        Self::WARM_STEPS + self.counted
    }

    /// The median of the steps that count.
    fn median(&self, mut taken: Vec<f64>) -> Result<f64> {
        taken.drain(..(Self::WARM_STEPS as usize).min(taken.len()));
        ensure!(taken.len() == self.counted as usize, "{} steps were timed", taken.len());
        taken.sort_unstable_by(f64::total_cmp);
        let middle = taken.len() / 2;
        let lower = if taken.len().is_multiple_of(2) { taken[middle - 1] } else { taken[middle] };
        Ok(f64::midpoint(lower, taken[middle]))
    }
}

pub(crate) async fn check(settings: &Settings, device: Device) -> Result<Check> {
    let gpu = device != Device::Cpu;
    let shape =
        Shape::new(settings.batch.unwrap_or(if gpu { 2048 } else { 1024 }), settings.steps)?;
    match settings.model.unwrap_or(if gpu { Timed::Vit } else { Timed::Mlp }) {
        Timed::Vit => of::<VitBase>(settings, &shape, device).await,
        Timed::Mlp => of::<Perceptron>(settings, &shape, device).await,
        Timed::Lenet => of::<LeNet5>(settings, &shape, device).await,
    }
}

async fn of<M: Model>(settings: &Settings, shape: &Shape, device: Device) -> Result<Check> {
    let data = data::first(&settings.data, (shape.batch * shape.steps()) as usize, TEST_SAMPLES)?;
    let (mut costs, mut loops, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let plain = alone::<M>(data.path(), shape, device).await?;
        let job = job::<M>(data.path(), shape, device).await?;
        costs.push(job / plain - 1.0);
        loops.push(plain);
        jobs.push(job);
    }
    let mut sorted = costs.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let value = sorted.get(sorted.len() / 2).copied().context("there were no rounds")?;
    let (batch, slots) = (shape.batch, shape.slots);
    Ok(Check {
        name: "overhead".to_owned(),
        value: Some(value),
        limit: LIMIT,
        detail: format!("of a step of {} beside a plain tch loop, batch {batch}", M::NAME),
        more: json!({
            "model": M::NAME, "batch": batch, "slots": slots,
            "seconds_plain": loops, "seconds_job": jobs, "costs": costs,
        }),
    })
}

/// Seconds of a step of the loop, on a thread as the job's worker has it.
async fn alone<M: Model>(data: &Path, shape: &Shape, device: Device) -> Result<f64> {
    let samples = IdxDataset::open(data, Split::Train)?;
    let thread = ComputeThread::spawn("plain", device, |_| Ok(())).await?;
    let timed = *shape;
    let taken =
        thread.run(move |()| Ok(plain::train::<M>(&samples, &timed, device.to_tch()))).await?;
    shape.median(taken?)
}

/// Seconds of a step of the job.
async fn job<M: Model>(data: &Path, shape: &Shape, device: Device) -> Result<f64> {
    let keys = tempfile::tempdir().context("no folder for the node's keys")?;
    let mut models = Models::new();
    models.register::<M>()?;
    let args = NodeArgs {
        listen: Some("127.0.0.1:0".to_owned()),
        state: Some(keys.path().to_owned()),
        ..NodeArgs::default()
    };
    let node = Node::builder(args).with(actors::cast(models)).start().await?;
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let job = TrainingJob::new("overhead", ModelSpec::of::<M>(), DataSpec::idx(data))
        .optimizer(Adam::new(Shape::LEARNING_RATE))
        .device(DeviceChoice::from(device))
        .workers(1)
        // Each sums with one thread.
        .servers(cores.min(8))
        .batch(shape.batch)
        .slots(shape.slots)
        .epochs(1);
    let mut running = job.submit(&node).await?;
    let (mut taken, mut since) = (Vec::new(), Instant::now());
    running
        .follow(|event| match event {
            JobEvent::Started { .. } => since = Instant::now(),
            JobEvent::Step { .. } => {
                taken.push(since.elapsed().as_secs_f64());
                since = Instant::now();
            }
            _ => {}
        })
        .await?;
    running.close().await?;
    node.leave().await?;
    shape.median(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_equal_and_hold_no_more_than_256_samples() {
        let shape = Shape::new(2048, 4).unwrap();
        assert_eq!((shape.slots, shape.slot(), shape.steps()), (8, 256, 6));
        assert_eq!(Shape::new(64, 1).unwrap().slot(), 16);
        assert!(Shape::new(66, 1).is_err());
    }

    #[test]
    fn the_first_steps_do_not_count() {
        let shape = Shape::new(64, 4).unwrap();
        assert_eq!(shape.median(vec![9.0, 9.0, 4.0, 1.0, 3.0, 2.0]).unwrap(), 2.5);
        assert!(shape.median(vec![9.0, 9.0, 4.0]).is_err());
    }
}
