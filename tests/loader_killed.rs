//! A job goes on when its data loader is lost, with the same result, bit for bit.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::training::{JobEvent, RunningJob, Trainer, TrainingReport},
    prelude::Placement,
    runtime::NodeId,
};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

const EPOCHS: u64 = 7;

/// Shards and trainer are in this process; each of the others may be lost.
async fn stage() -> Stage {
    Stage::set(&["server"], &[Part::Worker, Part::Worker, Part::Loader, Part::Loader]).await
}

/// What becomes of the job if nothing happens to it.
async fn calm(stage: &Stage) -> TrainingReport {
    let job = stage.job("calm").epochs(EPOCHS).submit(&stage.seed);
    finish(soon(job).await.unwrap()).await.0
}

/// A job in the middle of an epoch, and where its loader is.
async fn struck(stage: &Stage) -> (RunningJob, NodeId) {
    let mut job = soon(stage.job("struck").epochs(EPOCHS).submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { loader, .. }) = soon(job.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    until_step(&mut job, STEPS_PER_EPOCH + 10).await;
    (job, loader)
}

/// Follows a job to its end, which is the calm one's: no worker was lost, and only the loader moved.
async fn goes_on(job: RunningJob, lost: NodeId, calm: &TrainingReport) {
    let (report, events) = finish(job).await;
    let moves: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            JobEvent::LoaderLost { node, why } => {
                assert!(!why.is_empty());
                Some(("lost", *node))
            }
            JobEvent::LoaderUp { node } => Some(("up", *node)),
            JobEvent::WorkerLost { worker, why, .. } => panic!("{worker} was lost too: {why}"),
            _ => None,
        })
        .collect();
    assert_eq!(moves.len(), 2, "{moves:?}");
    assert_eq!(moves[0], ("lost", lost));
    assert!(moves[1].0 == "up" && moves[1].1 != lost, "{moves:?}");
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_loader_is_replaced_and_the_result_is_the_same() {
    let stage = stage().await;
    let calm = calm(&stage).await;
    let (job, loader) = struck(&stage).await;
    stage.process(loader).kill();
    goes_on(job, loader, &calm).await;
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_whose_node_leaves_is_replaced_and_the_result_is_the_same() {
    let stage = stage().await;
    let calm = calm(&stage).await;
    let (job, loader) = struck(&stage).await;
    stage.process(loader).terminate();
    goes_on(job, loader, &calm).await;
    stage.is_cleared().await;
}

/// It is held for lost, and hands nothing out any more when it wakes up: its place is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_loader_is_replaced_and_does_no_harm_when_it_wakes_up() {
    let stage = stage().await;
    let calm = calm(&stage).await;
    let (mut job, loader) = struck(&stage).await;
    stage.process(loader).freeze();
    let lost = soon(async {
        loop {
            match job.next().await.unwrap() {
                Some(JobEvent::LoaderLost { node, .. }) => return node,
                event => assert!(event.is_some()),
            }
        }
    });
    assert_eq!(lost.await, loader);
    stage.process(loader).thaw();
    let (report, _) = finish(job).await;
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}

/// A worker, the loader and another worker, one after the other, and the loader's successor too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_and_loaders_are_lost_one_after_the_other_and_the_result_is_the_same() {
    let parts =
        [Part::Worker, Part::Loader, Part::Worker, Part::Loader, Part::Worker, Part::Loader];
    let stage = Stage::set(&["server"], &parts).await;
    let calm = calm(&stage).await;
    let mut job = soon(stage.job("struck").epochs(EPOCHS).submit(&stage.seed)).await.unwrap();
    for (kill, at) in [(0, 20), (1, 50), (2, 80), (3, 110)] {
        until_step(&mut job, at).await;
        stage.processes[kill].1.kill();
    }
    let (report, _) = finish(job).await;
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_loader_is_killed_together_with_its_trainer_goes_on() {
    // Neither of the two that are lost is one of the voters.
    let parts = [
        Part::Worker,
        Part::Loader,
        Part::Loader,
        Part::Spare,
        Part::Spare,
        Part::Voter,
        Part::Voter,
    ];
    let stage = Stage::set(&["server"], &parts).await;
    three_voters(&stage.seed).await;
    let job = |name: &str| stage.job(name).epochs(EPOCHS).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { loader, .. }) = soon(struck.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    let trainer = stage.seed.find::<Trainer>().await[0].addr().node;
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    stage.process(loader).kill();
    stage.process(trainer).kill();
    let (report, events) = finish(struck).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::Resumed { .. })));
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}

/// The job fails when its loader is lost and something has become of its data.
async fn fails(spoil: impl AsyncFnOnce(&Stage)) -> String {
    let stage = Stage::set(&["server"], &[Part::Worker, Part::Loader]).await;
    let (job, loader) = struck(&stage).await;
    spoil(&stage).await;
    stage.process(loader).kill();
    let error = failure(job).await;
    stage.is_cleared().await;
    error
}

/// Both at once: each is tried for 40 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_that_cannot_be_replaced_ends_the_job_with_the_reason() {
    let without = fails(async |stage| {
        std::fs::remove_file(stage.data().join("train-labels-idx1-ubyte")).unwrap();
    });
    // The same folder on another node may hold something else.
    let with_other = fails(async |stage| write_data(&stage.data(), SAMPLES - 1, TEST_SAMPLES));
    let (without, with_other) = tokio::join!(without, with_other);
    assert!(without.starts_with("the data loader can't be kept up"), "{without}");
    assert!(without.contains("there is no train-labels-idx1-ubyte"), "{without}");
    let expected = "is not what the job began with: 1002 samples of u8 8×8";
    assert!(with_other.contains(expected), "{with_other}");
}
