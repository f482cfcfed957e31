//! A job whose shards have backups goes on when shards are lost, with the same result, bit for bit.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        parameters::{ParameterServer, optimizer::Adam},
        schedule::Schedule,
        training::{JobEvent, RunningJob, Trainer, TrainingJob, TrainingReport},
    },
    prelude::*,
    runtime::{NodeId, tensor::WireFormat},
};
use tokio::sync::Mutex;
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

const EPOCHS: u64 = 7;
/// Each test has up to eight processes: on a small machine two at once would hold each other for lost.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The loader and the trainer are in this process; each of the others may be lost.
async fn stage(servers: usize) -> Stage {
    let mut parts = vec![Part::Worker, Part::Worker];
    parts.extend(vec![Part::Server; servers]);
    Stage::set(&["loader"], &parts).await
}

fn job(stage: &Stage, name: &str) -> TrainingJob {
    stage.job(name).epochs(EPOCHS).trainer_on(Placement::node(stage.seed.id()))
}

fn replicated(stage: &Stage, name: &str) -> TrainingJob {
    job(stage, name).servers(2).replicas(1)
}

/// What becomes of the job if nothing happens to it.
async fn calm(job: TrainingJob, stage: &Stage) -> TrainingReport {
    finish(soon(job.submit(&stage.seed)).await.unwrap()).await.0
}

/// A job in the middle of an epoch, and where the primaries of its shards are.
async fn struck(job: TrainingJob, stage: &Stage) -> (RunningJob, Vec<NodeId>) {
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { servers, .. }) = soon(job.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    until_step(&mut job, STEPS_PER_EPOCH + 10).await;
    (job, servers)
}

fn same(report: &TrainingReport, calm: &TrainingReport) {
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
}

/// Of these events, the shards that had another backup.
fn backups(events: &[JobEvent]) -> Vec<u32> {
    let backup = |event: &JobEvent| match event {
        JobEvent::BackupUp { shard, .. } => Some(*shard),
        _ => None,
    };
    events.iter().filter_map(backup).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shard_goes_on_at_its_backup_and_the_result_is_the_same() {
    a_shard_is_killed(WireFormat::F32).await;
}

/// What was rounded off the slots that are computed again is still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_whose_gradients_travel_as_int8() {
    a_shard_is_killed(WireFormat::Int8).await;
}

async fn a_shard_is_killed(wire: WireFormat) {
    let _alone = ALONE.lock().await;
    let stage = stage(3).await;
    // Backups change no bit either.
    let calm = calm(job(&stage, "calm").servers(2).wire(wire), &stage).await;
    let (mut job, servers) = struck(replicated(&stage, "struck").wire(wire), &stage).await;
    stage.process(servers[0]).kill();
    let now = taken_over(&mut job, 0).await;
    assert!(now != servers[0]);
    let (report, events) = finish(job).await;
    same(&report, &calm);
    assert!(backups(&events).contains(&0), "it has a backup again");
    assert!(!events.iter().any(|event| matches!(event, JobEvent::WorkerLost { .. })));
    stage.is_cleared().await;
}

/// With a rule for the whole gradient, for which the shards talk with each other, and an optimiser that remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shard_that_steps_together_with_others_goes_on_with_the_same_result() {
    let _alone = ALONE.lock().await;
    let stage = stage(3).await;
    let job = |name: &str| {
        let job = job(&stage, name).servers(2);
        job.optimizer(Adam::new(3e-3).schedule(Schedule::Cosine)).clip_norm(0.5)
    };
    let calm = calm(job("calm"), &stage).await;
    let (mut job, servers) = struck(job("struck").replicas(1), &stage).await;
    stage.process(servers[1]).kill();
    assert!(taken_over(&mut job, 1).await != servers[1]);
    let (report, _) = finish(job).await;
    same(&report, &calm);
    stage.is_cleared().await;
}

/// Each has a backup elsewhere, and both backups take over; the shards talk with each other in every step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shards_that_are_killed_at_once_go_on_with_the_same_result() {
    let _alone = ALONE.lock().await;
    // Servers vote: of five, three are left.
    let mut parts = vec![Part::Worker, Part::Worker, Part::Voter];
    parts.extend([Part::Server; 4]);
    let stage = Stage::set(&["loader"], &parts).await;
    voters(&stage.seed, 5).await;
    let job = |name: &str| {
        let job = job(&stage, name).servers(2);
        job.optimizer(Adam::new(3e-3).schedule(Schedule::Cosine)).clip_norm(0.5)
    };
    let calm = calm(job("calm"), &stage).await;
    let (job, servers) = struck(job("struck").replicas(1), &stage).await;
    for primary in &servers {
        stage.process(*primary).kill();
    }
    let (report, events) = finish(job).await;
    same(&report, &calm);
    for shard in 0..2 {
        let has_moved = |event: &JobEvent| match event {
            JobEvent::ShardUp { shard: up, node } => *up == shard && !servers.contains(node),
            _ => false,
        };
        assert!(events.iter().any(has_moved), "{events:?}");
    }
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_backup_is_replaced_while_the_job_goes_on() {
    let _alone = ALONE.lock().await;
    let stage = stage(3).await;
    let calm = calm(job(&stage, "calm").servers(1), &stage).await;
    let job = job(&stage, "struck").servers(1).replicas(1);
    let (mut job, servers) = struck(job, &stage).await;
    let holds = |actor: &ActorRef<ParameterServer>| actor.addr().node;
    let all = stage.seed.find::<ParameterServer>().await;
    let backup = all.iter().map(holds).find(|node| *node != servers[0]).unwrap();
    stage.process(backup).kill();
    let on = backup_up(&mut job, 0).await;
    assert!(on != backup && on != servers[0]);
    let (report, _) = finish(job).await;
    same(&report, &calm);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_killed_together_with_the_trainer_goes_on() {
    let _alone = ALONE.lock().await;
    // The shard's node may be one of the voters: two are left.
    let parts = [
        Part::Worker,
        Part::Worker,
        Part::Server,
        Part::Server,
        Part::Server,
        Part::Spare,
        Part::Spare,
    ];
    let stage = Stage::set(&["server", "loader"], &parts).await;
    three_voters(&stage.seed).await;
    let job = |name: &str| replicated(&stage, name).trainer_on(Placement::role("spare"));
    let calm = calm(job("calm"), &stage).await;
    let (job, servers) = struck(job("struck"), &stage).await;
    let elsewhere = servers.into_iter().find(|node| *node != stage.seed.id()).unwrap();
    let trainer = stage.seed.find::<Trainer>().await[0].addr().node;
    stage.process(trainer).kill();
    stage.process(elsewhere).kill();
    let (report, events) = finish(job).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::Resumed { .. })));
    same(&report, &calm);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_nodes_for_backups_are_told_before_anything_begins() {
    let _alone = ALONE.lock().await;
    let stage = Stage::set(&["loader"], &[Part::Worker, Part::Server]).await;
    let job = replicated(&stage, "short").submit(&stage.seed);
    let why = match soon(job).await {
        Ok(job) => failure(job).await,
        Err(error) => error.to_string(),
    };
    let expected =
        "1 replicas of each shard need 2 nodes that host `parameters.server`, and there are 1";
    assert!(why.contains(expected), "{why}");
    stage.is_cleared().await;
}
