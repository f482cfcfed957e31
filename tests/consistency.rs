//! Where workers may be apart, each sample's gradient is applied exactly once an epoch all the same, while workers and
//! loaders are killed at random; and in an asynchronous job nobody waits for one that is slow.
//!
//! The model counts at the shards how often each sample was applied, as in `each_sample_once`.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        checkpoint::Checkpoints,
        consistency::Consistency,
        model::ModelSpec,
        parameters::optimizer::Sgd,
        training::{JobEvent, RunningJob, TrainingJob, weights::Weights},
    },
    runtime::{compute::DeviceChoice, tensor::WireFormat},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// A power of 2, so that all sums of its parts are exact; and a part of [`Counter::SAMPLES`].
const BATCH: u32 = 64;
const EPOCHS: u64 = 8;
const STEPS: u64 = EPOCHS * Counter::SAMPLES as u64 / BATCH as u64;

const APART: [Consistency; 2] = [Consistency::BoundedStaleness(3), Consistency::Asynchronous];

fn counts(name: &str, consistency: Consistency) -> (TrainingJob, TempDir) {
    let data = tempfile::tempdir().unwrap();
    Counter::write_data(data.path());
    let job = TrainingJob::new(name, ModelSpec::of::<Counter>(), Counter::data(data.path()))
        .optimizer(Sgd::new(1.0))
        .consistency(consistency)
        .device(DeviceChoice::Cpu)
        .batch(BATCH)
        .slots(8)
        .epochs(EPOCHS);
    (job, data)
}

/// How often each sample's gradient is in the newest parameters, where so many steps are applied.
async fn times(weights: &Weights, steps: u64) -> Vec<f32> {
    let newest = soon(weights.pull_newest(steps, WireFormat::F32)).await.unwrap();
    newest.flat().unwrap().into_iter().map(|value| -value * BATCH as f32).collect()
}

async fn each_was_applied_once_an_epoch(weights: &Weights) {
    for (sample, times) in times(weights, STEPS).await.into_iter().enumerate() {
        assert_eq!(times, EPOCHS as f32, "sample {sample}");
    }
}

async fn is_disturbed(consistency: Consistency) {
    let seed = rand::random::<u64>();
    println!("{consistency}: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let parts = [Part::Worker, Part::Loader, Part::Worker, Part::Loader, Part::Worker];
    let mut stage = Stage::set(&["server"], &parts).await;
    let (job, _data) = counts("apart", consistency);
    let mut job = soon(job.workers(3).seed(seed).submit(&stage.seed)).await.unwrap();
    let weights = soon(job.weights()).await.unwrap();
    let (mut kills, mut next, mut told) = (0, random.random_range(20..60), 0);
    let report = loop {
        match soon(job.next()).await.unwrap() {
            Some(JobEvent::Step { steps, .. }) => {
                assert_eq!(steps, told + 1, "steps are told in order");
                told = steps;
                if steps >= next && steps < STEPS - 60 {
                    let (part, process) = stage.random_process(&mut random);
                    process.kill();
                    stage.add(part).await;
                    kills += 1;
                    next = steps + random.random_range(30..60);
                }
            }
            Some(JobEvent::Done(report)) => break report,
            Some(JobEvent::Failed(why)) => panic!("{why}"),
            event => assert!(event.is_some()),
        }
    };
    assert_eq!((report.steps, told), (STEPS, STEPS));
    assert_eq!(report.samples, EPOCHS * u64::from(Counter::SAMPLES));
    each_was_applied_once_an_epoch(&weights).await;
    assert!(kills >= 2, "nothing was disturbed: {kills}");
    soon(job.close()).await.unwrap();
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_bounded_staleness_each_sample_counts_once_while_parts_are_killed_at_random() {
    is_disturbed(APART[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asynchronously_each_sample_counts_once_while_parts_are_killed_at_random() {
    is_disturbed(APART[1]).await;
}

/// Bulk synchronous, nothing would come after the step of the slot that is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_asynchronous_job_nobody_waits_for_a_worker_that_stands_still() {
    let stage = Stage::set(&["server"], &[Part::Worker, Part::Worker]).await;
    let job = stage.job("slow").consistency(Consistency::Asynchronous).slots(2).epochs(4);
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    let weights = soon(job.weights()).await.unwrap();
    until_step(&mut job, 8).await;
    stage.order(Order::Hold);
    stage.holding().await;
    // The other worker goes on: the parameters change, though the step that is held is not whole.
    let newest = async || weights.pull_newest(0, WireFormat::F32).await.unwrap().flat().unwrap();
    let applied = soon(weights.applied()).await.unwrap();
    let mut before = soon(newest()).await;
    for change in 0..20 {
        until(&format!("change {change} of the parameters"), async || {
            let now = newest().await;
            std::mem::replace(&mut before, now.clone()) != now
        })
        .await;
    }
    let held = soon(weights.applied()).await.unwrap();
    assert!(held <= applied + 1, "{held} steps are whole, and one is held since {applied}");
    stage.let_go();
    let (report, _) = finish(job).await;
    assert_eq!(report.steps, 4 * STEPS_PER_EPOCH);
}

/// Follows a job to the first checkpoint after so many steps.
async fn saved(job: &mut RunningJob, after: u64) -> u64 {
    soon(async {
        loop {
            match job.next().await.unwrap() {
                Some(JobEvent::Saved { steps, .. }) if steps >= after => return steps,
                Some(JobEvent::Failed(why)) => panic!("{why}"),
                event => assert!(event.is_some(), "the job has ended"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_resumed_counts_each_sample_once_too() {
    let stage = Stage::set(&["server"], &[Part::Worker, Part::Worker, Part::Loader]).await;
    for consistency in APART {
        let dir = tempfile::tempdir().unwrap();
        let (job, _data) = counts("resumed", consistency);
        let job = job.checkpoints(Checkpoints::to(dir.path()).every_steps(12)).workers(2);
        let mut first = soon(job.clone().submit(&stage.seed)).await.unwrap();
        let steps = saved(&mut first, 60).await;
        assert_eq!(steps % 12, 0);
        soon(first.close()).await.unwrap();
        let mut second = soon(job.resume().servers(1).submit(&stage.seed)).await.unwrap();
        let weights = soon(second.weights()).await.unwrap();
        let mut from = 0;
        let follow = second.follow(|event| {
            if let JobEvent::FromCheckpoint { steps, .. } = event {
                from = *steps;
            }
        });
        assert_eq!(soon(follow).await.unwrap().steps, STEPS);
        assert!(from >= steps && from % 12 == 0, "{from}");
        each_was_applied_once_an_epoch(&weights).await;
        soon(second.close()).await.unwrap();
        stage.is_cleared().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clipping_goes_with_bounded_staleness() {
    let stage = Stage::set(&["server"], &[Part::Worker, Part::Worker]).await;
    let job = stage.job("clipped").consistency(Consistency::BoundedStaleness(2)).clip_norm(1.0);
    let (report, events) = finish(soon(job.epochs(6).submit(&stage.seed)).await.unwrap()).await;
    assert!(report.test_accuracy.unwrap() > 0.5, "{report:?}");
    let norms = events.iter().filter(
        |event| matches!(event, JobEvent::Step { norm: Some(norm), .. } if norm.is_finite()),
    );
    assert_eq!(norms.count() as u64, report.steps);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mode_can_not_do_is_refused_in_one_line() {
    let stage = Stage::set(&["server"], &[]).await;
    let apart = || stage.job("refused").consistency(Consistency::Asynchronous);
    let stale = |steps| stage.job("refused").consistency(Consistency::BoundedStaleness(steps));
    for (job, says) in [
        (apart().clip_norm(1.0), "has no whole gradient"),
        (apart().replicas(1), "has no backups of shards"),
        (stale(0), "a staleness of 0 steps"),
        (stale(65), "a staleness of 65 steps"),
    ] {
        let error = soon(job.submit(&stage.seed)).await.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}
