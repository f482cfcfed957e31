//! A job outlives its workers; what it can't outlive ends it with one clear error, and soon.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        model::ModelSpec,
        parameters::optimizer::Sgd,
        training::{JobEvent, RunningJob, Trainer, TrainingJob},
    },
    prelude::Placement,
    runtime::compute::DeviceChoice,
};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// Everything but the workers runs in this process.
async fn stage(parts: &[Part]) -> Stage {
    Stage::set(&["loader", "server"], parts).await
}

/// More epochs than a test waits for.
fn endless(job: TrainingJob) -> TrainingJob {
    job.epochs(1_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_panics_is_started_again_and_the_result_is_the_same() {
    let stage = stage(&[Part::Worker, Part::Worker]).await;
    let (calm, _) = finish(soon(stage.job("calm").submit(&stage.seed)).await.unwrap()).await;
    stage.order(Order::Panic);
    let (report, events) =
        finish(soon(stage.job("panic").submit(&stage.seed)).await.unwrap()).await;
    assert!(!stage.has_order(Order::Panic), "no model took the order");
    let lost: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            // One may have begun before the trainer had heard of all nodes.
            JobEvent::WorkerLost { why, .. } if !why.contains("moves") => Some(why),
            _ => None,
        })
        .collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert!(lost[0].contains("the model panics on purpose"), "{}", lost[0]);
    assert!(events.iter().any(|e| matches!(e, JobEvent::WorkerUp { starts: 1.., .. })));
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_node_leaves_is_started_on_another_one() {
    let stage = stage(&[Part::Worker, Part::Worker]).await;
    let mut job = soon(stage.job("drained").epochs(20).submit(&stage.seed)).await.unwrap();
    until_step(&mut job, 5).await;
    stage.processes[0].1.terminate();
    let (report, events) = finish(job).await;
    assert_eq!(report.steps, 20 * STEPS_PER_EPOCH);
    let leaves = stage.processes[0].0;
    let stays = stage.processes[1].0;
    assert!(
        events
            .iter()
            .any(|event| matches!(event, JobEvent::WorkerLost { node, .. } if *node == leaves))
    );
    assert!(events.iter().any(
        |event| matches!(event, JobEvent::WorkerUp { node, starts: 1.., .. } if *node == stays)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_can_never_start_end_the_job_with_the_reason() {
    // One node knows the model: its worker alone would not end the wait for the other.
    let stage = stage(&[Part::Stranger, Part::Worker]).await;
    let error =
        failure(soon(endless(stage.job("strange")).submit(&stage.seed)).await.unwrap()).await;
    assert!(error.contains("can't be started"), "{error}");
    assert!(error.contains("there is no model \"test.tiny\" in this binary"), "{error}");
    stage.is_cleared().await;

    let job = endless(stage.job("no such device")).workers(1).device(DeviceChoice::Cuda(77));
    let error = failure(soon(job.submit(&stage.seed)).await.unwrap()).await;
    assert!(error.contains("can't be started") && error.contains("cuda:77"), "{error}");
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_begin_says_why_at_once_and_leaves_nothing() {
    let stage = stage(&[]).await;
    let refused = async |job: TrainingJob| {
        let error = soon(job.submit(&stage.seed)).await.expect_err("refused").to_string();
        stage.is_cleared().await;
        error
    };
    let error = refused(stage.job("x").workers(0)).await;
    assert_eq!(error, "job `x`: workers must be at least 1");
    let error = refused(stage.job("x").slots(41)).await;
    assert_eq!(error, "job `x`: slots can't be more than samples of a batch");
    let error = refused(stage.job("x").servers(1_000_000)).await;
    assert!(error.contains("cannot be shared by 1000000 shards"), "{error}");
    let data = footlight::actors::data::DataSpec::idx("/no/such/folder");
    let error = refused(TrainingJob::new("x", ModelSpec::of::<Tiny>(), data)).await;
    assert!(error.contains("there is no t10k-images-idx3-ubyte"), "{error}");
    std::fs::remove_file(stage.data().join("train-labels-idx1-ubyte")).unwrap();
    let error = refused(stage.job("x")).await;
    assert!(error.contains("there is no train-labels-idx1-ubyte"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_that_diverges_ends_with_the_step_and_the_chunk() {
    let stage = stage(&[Part::Worker]).await;
    let job = endless(stage.job("diverges")).optimizer(Sgd::new(1e30)).workers(1);
    let error = failure(soon(job.submit(&stage.seed)).await.unwrap()).await;
    assert!(error.contains("not all finite"), "{error}");
    assert!(error.contains("of chunk ") && error.contains(" at step "), "{error}");
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_shard_ends_the_job_and_is_named() {
    let stage =
        Stage::set(&["loader"], &[Part::Worker, Part::Worker, Part::Server, Part::Server]).await;
    let here = Placement::node(stage.seed.id());
    let job = endless(stage.job("shard")).trainer_on(here);
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { servers, .. }) = soon(job.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    until_step(&mut job, 5).await;
    stage.process(servers[1]).kill();
    let error = failure(job).await;
    assert!(error.starts_with("shard 1 of the parameter server ended"), "{error}");
    assert!(error.ends_with(&format!("node {} lost", servers[1])), "{error}");
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_job_learns_that_its_trainer_has_ended() {
    let stage = stage(&[Part::Worker]).await;
    let mut job = soon(endless(stage.job("closed")).workers(1).submit(&stage.seed)).await.unwrap();
    until_step(&mut job, 5).await;
    let mut follower = soon(RunningJob::attach(&stage.seed, "closed")).await.unwrap();
    let trainers = stage.seed.find::<Trainer>().await;
    assert_eq!(trainers.len(), 1);
    soon(job.close()).await.unwrap();
    let error = soon(follower.wait()).await.unwrap_err().to_string();
    assert_eq!(error, "the job was closed, or its trainer ended, before it was done");
    let error = RunningJob::attach(&stage.seed, "closed").await.unwrap_err().to_string();
    assert_eq!(error, "there is no job `closed` in this cluster; there are: none");
    stage.is_cleared().await;
}
