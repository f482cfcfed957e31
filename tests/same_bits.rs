//! The same seed gives the same parameters, bit for bit, whoever computed and whoever died.
//!
//! The model is the test's own, with dropout, so random numbers are a part of it. Each worker and
//! each shard is a process of its own. Runs are compared with one another and with no number written
//! here: libtorch's kernels differ between types of processors.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        model::Precision,
        parameters::optimizer::AdamW,
        training::{JobEvent, TrainingReport},
    },
    cluster::processes::Process,
    runtime::tensor::WireFormat,
};
use training::*;

const STEPS: u64 = 3 * STEPS_PER_EPOCH;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

async fn stage(workers: usize) -> Stage {
    let mut parts = vec![Part::Loader, Part::Server, Part::Server];
    parts.extend(vec![Part::Worker; workers]);
    Stage::set(&[], &parts).await
}

/// Trains to the end with so many workers.
async fn train(stage: &Stage, workers: u32, seed: u64) -> TrainingReport {
    let name = format!("{workers} workers, seed {seed}");
    let job = stage.job(&name).workers(workers).seed(seed).submit(&stage.seed);
    let (report, events) = finish(soon(job).await.unwrap()).await;
    assert_eq!((report.steps, report.samples), (STEPS, 3 * u64::from(SAMPLES)), "{name}");
    let count = |is_one: fn(&JobEvent) -> bool| events.iter().filter(|event| is_one(event)).count();
    let up = count(|event| matches!(event, JobEvent::WorkerUp { .. }));
    // One may have begun before the trainer had heard of all nodes.
    let moved =
        count(|event| matches!(event, JobEvent::WorkerLost { why, .. } if why.contains("moves")));
    assert_eq!(up - moved, workers as usize, "{name}: {events:?}");
    let evaluated = events.iter().filter_map(|event| match event {
        JobEvent::Evaluated { steps, .. } => Some(*steps),
        _ => None,
    });
    let at_each_end: Vec<u64> = (1..=3).map(|epoch| epoch * STEPS_PER_EPOCH).collect();
    assert_eq!(evaluated.collect::<Vec<_>>(), at_each_end, "{name}");
    report
}

/// Trains while a worker's model holds in the middle of a slot, and lets `strike` deal with its
/// process; the training can't have ended, as that slot is missing.
async fn train_and_strike(
    stage: &Stage,
    workers: u32,
    strike: impl FnOnce(&Process),
    at_loss: impl Fn(&Process),
) -> TrainingReport {
    stage.order(Order::Hold);
    let mut job = soon(stage.job("struck").workers(workers).submit(&stage.seed)).await.unwrap();
    let (victim, process) = stage.holding().await;
    strike(process);
    let (mut steps_at_loss, mut last_step, mut started_again, mut moved) = (None, 0, 0, 0);
    let report = soon(job.follow(|event| match event {
        JobEvent::Step { steps, .. } => last_step = *steps,
        // To the node that stood still, once it is back.
        JobEvent::WorkerLost { why, .. } if why.contains("moves") => moved += 1,
        JobEvent::WorkerLost { node, why, .. } => {
            assert_eq!(*node, victim, "{why}");
            assert!(why.contains("lost"), "{why}");
            steps_at_loss = Some(last_step);
            at_loss(process);
        }
        JobEvent::WorkerUp { starts: 1.., .. } => started_again += 1,
        _ => {}
    }))
    .await
    .unwrap();
    job.close().await.unwrap();
    let steps_at_loss = steps_at_loss.expect("the worker's loss is told");
    assert!(steps_at_loss < STEPS, "nothing was left to do after step {steps_at_loss}");
    assert_eq!((started_again, last_step), (1 + moved, STEPS));
    assert_eq!((report.steps, report.samples), (STEPS, 3 * u64::from(SAMPLES)));
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_two_three_and_one_that_is_killed_give_the_same_bits_and_another_seed_others() {
    let stage = stage(3).await;
    let one = train(&stage, 1, 7).await;
    assert!(one.test_accuracy > Some(0.6), "it learns: {one:?}");
    assert_eq!(one.parameters_sha256.len(), 64);

    for workers in [2, 3] {
        let same = train(&stage, workers, 7).await;
        assert_eq!(same.parameters_sha256, one.parameters_sha256, "{workers} workers");
        assert_eq!(same.test_accuracy, one.test_accuracy);
    }
    let other = train(&stage, 2, 8).await;
    assert_ne!(other.parameters_sha256, one.parameters_sha256);

    let killed = train_and_strike(&stage, 3, Process::kill, |_| {}).await;
    assert_eq!(killed.parameters_sha256, one.parameters_sha256);

    // Two nodes are left for workers. The next loss leaves both workers on the last one.
    let killed = train_and_strike(&stage, 2, Process::kill, |_| {}).await;
    assert_eq!(killed.parameters_sha256, one.parameters_sha256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stood_still_and_comes_back_changes_no_bit() {
    let stage = stage(2).await;
    let undisturbed = train(&stage, 2, 7).await;
    // It goes on in the midst of the job, as a node that was declared down.
    let back = |process: &Process| {
        stage.let_go();
        process.thaw();
    };
    let struck = train_and_strike(&stage, 2, Process::freeze, back).await;
    assert_eq!(struck.parameters_sha256, undisturbed.parameters_sha256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clipped_by_the_norm_of_all_shards_one_worker_and_shard_give_the_bits_of_two_of_each() {
    const NORM: f64 = 0.5;
    let stage = stage(2).await;
    let train = async |many: u32, clip: bool| {
        let name = format!("{many} of each, clipped: {clip}");
        let job = stage.job(&name).workers(many).servers(many).optimizer(AdamW::new(1e-2));
        let job = job.wire(WireFormat::Bf16);
        let job = if clip { job.clip_norm(NORM) } else { job };
        finish(soon(job.submit(&stage.seed)).await.unwrap()).await
    };
    let (one, events) = train(1, true).await;
    let norms = events.iter().filter_map(|event| match event {
        JobEvent::Step { norm, .. } => Some(norm.expect("a job that clips knows the norms")),
        _ => None,
    });
    assert!(norms.filter(|norm| *norm > NORM).count() > 0, "something was clipped");
    assert_eq!((one.steps, one.skipped_steps), (STEPS, 0));
    let (two, _) = train(2, true).await;
    assert_eq!(two.parameters_sha256, one.parameters_sha256);
    let (free, events) = train(2, false).await;
    assert_ne!(free.parameters_sha256, one.parameters_sha256);
    assert!(events.iter().all(|event| !matches!(event, JobEvent::Step { norm: Some(_), .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_halves_and_in_parts_one_worker_gives_the_bits_of_two_and_learns_as_much() {
    let stage = stage(2).await;
    for precision in [Precision::Bf16, Precision::Fp16] {
        let train = async |workers: u32| {
            let job = stage.job(&format!("{precision:?}, {workers} workers")).workers(workers);
            let job = job.precision(precision).accumulate(3).submit(&stage.seed);
            finish(soon(job).await.unwrap()).await.0
        };
        let (one, two) = (train(1).await, train(2).await);
        assert_eq!(two.parameters_sha256, one.parameters_sha256, "{precision:?}");
        assert!(one.test_accuracy > Some(0.6), "it learns: {one:?}");
    }
}
