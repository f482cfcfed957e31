//! A job is held by the cluster: it goes on when its trainer's node is lost, and when the process that
//! submitted it has gone.
#![cfg(feature = "torch")]

#[path = "support/training.rs"]
mod training;

use footlight::{
    actors::training::{JobEvent, RunningJob, Trainer},
    prelude::*,
};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// Three voters, one of them in this process; what can't be lost is on them. The trainer is elsewhere.
async fn stage() -> Stage {
    let parts = [Part::Worker, Part::Server, Part::Server, Part::Spare, Part::Spare];
    let stage = Stage::set(&["loader", "server"], &parts).await;
    until("there are three voters", async || {
        stage
            .seed
            .members()
            .iter()
            .any(|member| member.ledger.as_ref().is_some_and(|ledger| ledger.voters.len() == 3))
    })
    .await;
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_trainer_is_killed_goes_on_and_has_the_same_result() {
    let stage = stage().await;
    let job = |name| stage.job(name).epochs(12).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    soon(async {
        while !matches!(struck.next().await.unwrap(), Some(JobEvent::Step { steps: 30.., .. })) {}
    })
    .await;
    let trainers = stage.seed.find::<Trainer>().await;
    assert_eq!(trainers.len(), 1);
    let before = trainers[0].addr().node;
    stage.process(before).kill();
    let (report, events) = finish(struck).await;
    let resumed = events.iter().find_map(|event| match event {
        JobEvent::Resumed { trainer } => Some(*trainer),
        _ => None,
    });
    assert!(resumed.is_some_and(|after| after != before), "{resumed:?}");
    assert_eq!(report.steps, 12 * STEPS_PER_EPOCH);
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_submitter_leaves_goes_on_and_is_found_by_its_name() {
    let stage = stage().await;
    let submitter = stage.joiner().await;
    let job = stage.job("left alone").epochs(12).trainer_on(Placement::role("spare"));
    drop(soon(job.submit(&submitter)).await.unwrap());
    let error = soon(stage.job("left alone").submit(&stage.seed)).await.unwrap_err().to_string();
    assert!(error.contains("there is one of this name already"), "{error}");
    soon(submitter.leave()).await.unwrap();
    let job = soon(RunningJob::attach(&stage.seed, "left alone")).await.unwrap();
    let (report, _) = finish(job).await;
    assert_eq!(report.steps, 12 * STEPS_PER_EPOCH);
}
