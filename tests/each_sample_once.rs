//! Each sample's gradient is applied exactly once an epoch, while workers and loaders are killed at random.
//!
//! The model has one parameter for each sample, whose gradient is 1 for that sample and 0 for all others: so the
//! parameters at the shards count how often each sample's gradient was applied.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        model::ModelSpec,
        parameters::optimizer::Sgd,
        training::{JobEvent, TrainingJob, weights::Weights},
    },
    runtime::compute::DeviceChoice,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// A power of 2, so that all sums of its parts are exact; and a part of [`Counter::SAMPLES`].
const BATCH: u32 = 64;
const EPOCHS: u64 = 20;
const STEPS_PER_EPOCH: u64 = Counter::SAMPLES as u64 / BATCH as u64;

/// Checks how often each sample was applied by the version that is there when so many steps are done, and says which
/// that is.
async fn counts_after(weights: &Weights, steps: u64) -> u64 {
    let version = soon(weights.pull(steps)).await.unwrap();
    let (epochs, into) = (version.number / STEPS_PER_EPOCH, version.number % STEPS_PER_EPOCH);
    let mut ahead = 0;
    for (sample, value) in version.flat().unwrap().into_iter().enumerate() {
        let times = -value * BATCH as f32;
        assert!(
            times == epochs as f32 || into > 0 && times == (epochs + 1) as f32,
            "sample {sample} was applied {times} times after {} steps",
            version.number
        );
        ahead += u64::from(times > epochs as f32);
    }
    assert_eq!(ahead, into * u64::from(BATCH), "after {} steps", version.number);
    version.number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sample_is_applied_once_an_epoch_while_workers_and_loaders_are_killed_at_random() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let parts = [Part::Worker, Part::Loader, Part::Worker, Part::Loader];
    let mut stage = Stage::set(&["server"], &parts).await;
    let data = tempfile::tempdir().unwrap();
    Counter::write_data(data.path());
    let job = TrainingJob::new("counts", ModelSpec::of::<Counter>(), Counter::data(data.path()))
        .optimizer(Sgd::new(1.0))
        .device(DeviceChoice::Cpu)
        .batch(BATCH)
        .slots(8)
        .epochs(EPOCHS)
        .seed(seed);
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    let weights = soon(job.weights()).await.unwrap();
    let steps = EPOCHS * STEPS_PER_EPOCH;
    let (mut kills, mut next) = (0, random.random_range(20..60));
    let (mut workers_lost, mut loaders_lost) = (0, 0);
    let report = loop {
        match soon(job.next()).await.unwrap() {
            Some(JobEvent::Step { steps: at, .. }) if at >= next && at < steps - 100 => {
                // What is left of a part for a moment is none: the job waits for its successor.
                let (part, process) = stage.random_process(&mut random);
                process.kill();
                stage.add(part).await;
                kills += 1;
                next = counts_after(&weights, at).await + random.random_range(20..60);
            }
            Some(JobEvent::WorkerLost { .. }) => workers_lost += 1,
            Some(JobEvent::LoaderLost { .. }) => loaders_lost += 1,
            Some(JobEvent::Done(report)) => break report,
            Some(JobEvent::Failed(why)) => panic!("{why}"),
            event => assert!(event.is_some()),
        }
    };
    assert_eq!(counts_after(&weights, steps).await, steps);
    assert_eq!(report.samples, EPOCHS * u64::from(Counter::SAMPLES));
    println!("{kills} kills: {workers_lost} workers and {loaders_lost} loaders were lost");
    assert!(kills >= 5 && workers_lost + loaders_lost >= 1, "nothing was disturbed");
    soon(job.close()).await.unwrap();
    stage.is_cleared().await;
}
