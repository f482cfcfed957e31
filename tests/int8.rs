//! Gradients travel as int8, and what is rounded off them is not lost: residuals go with their slots, whoever computes
//! those, so that the result has the same bits.
#![cfg(feature = "torch")]

#[path = "support/second_node.rs"]
mod second_node;
#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::{
        checkpoint::Checkpoints,
        consistency::Consistency,
        model::Precision,
        parameters::{
            ParameterServer,
            message::{AskVersion, AwaitVersion},
        },
        training::{
            JobEvent, RunningJob, Trainer, TrainingJob, TrainingReport, Worker,
            residuals::{AskResidual, ResidualKeeper},
            trainer::AskJob,
        },
    },
    prelude::Placement,
    runtime::{NodeId, tensor::WireFormat},
};
use second_node::{Asked, second_node, take_all};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::Mutex, time::timeout};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

const EPOCHS: u64 = 7;
const SLOTS: u32 = 4;
/// Each test has up to eight processes: on a small machine two at once would hold each other for lost.
static ALONE: Mutex<()> = Mutex::const_new(());

fn job(stage: &Stage, name: &str) -> TrainingJob {
    stage.job(name).wire(WireFormat::Int8).epochs(EPOCHS)
}

fn lost(events: &[JobEvent]) -> usize {
    events.iter().filter(|event| matches!(event, JobEvent::ResidualLost { .. })).count()
}

fn are_same(one: &TrainingReport, other: &TrainingReport) {
    assert_eq!(one.parameters_sha256, other.parameters_sha256);
    assert_eq!((one.samples, one.test_accuracy), (other.samples, other.test_accuracy));
}

/// Follows a job until a worker is up on a node.
async fn worker_up(job: &mut RunningJob, there: NodeId) {
    let is_there =
        |event: &JobEvent| matches!(event, JobEvent::WorkerUp { node, .. } if *node == there);
    soon(async { while !is_there(&job.next().await.unwrap().expect("it goes on")) {} }).await;
}

/// The same until one is lost there.
async fn worker_lost(job: &mut RunningJob, there: NodeId) {
    let is_lost =
        |event: &JobEvent| matches!(event, JobEvent::WorkerLost { node, .. } if *node == there);
    soon(async { while !is_lost(&job.next().await.unwrap().expect("it goes on")) {} }).await;
}

/// Slots go from one to another in the job with more workers, and all are computed by one in the other job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_workers_gives_the_same_bits() {
    let _alone = ALONE.lock().await;
    let stage = Stage::set(&["loader", "server"], &[Part::Worker; 3]).await;
    let one = job(&stage, "one").workers(1).servers(1);
    let (one, events) = finish(soon(one.submit(&stage.seed)).await.unwrap()).await;
    assert_eq!(lost(&events), 0);
    let three = job(&stage, "three").workers(3).servers(2);
    let (three, events) = finish(soon(three.submit(&stage.seed)).await.unwrap()).await;
    assert_eq!(lost(&events), 0);
    are_same(&one, &three);

    // It learns what it learns with f32, and is another job than that.
    let exact = stage.job("exact").epochs(EPOCHS).submit(&stage.seed);
    let (exact, _) = finish(soon(exact).await.unwrap()).await;
    assert_ne!(exact.parameters_sha256, one.parameters_sha256);
    let accuracies = [exact, one].map(|report| report.test_accuracy.unwrap());
    assert!((accuracies[0] - accuracies[1]).abs() < 0.05, "{accuracies:?}");
    stage.is_cleared().await;
}

/// Nodes that may be workers and nothing else ask each other all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_joined_as_workers_get_residuals_from_each_other() {
    let _alone = ALONE.lock().await;
    let stage = Stage::with_tokens(&["loader", "server"], &[Part::Worker; 2]).await;
    let one = job(&stage, "one").workers(1).submit(&stage.seed);
    let (one, _) = finish(soon(one).await.unwrap()).await;
    let mut two = soon(job(&stage, "two").workers(2).submit(&stage.seed)).await.unwrap();
    until_step(&mut two, STEPS_PER_EPOCH + 10).await;
    // Its slots go to the other one, which asks for what was rounded off them, and come back.
    stage.order(Order::Panic);
    let (two, events) = finish(two).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::WorkerLost { .. })), "{events:?}");
    assert_eq!(lost(&events), 0);
    are_same(&one, &two);
    stage.is_cleared().await;
}

/// A worker's node loses a worker to one that joins, with all its slots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn residuals_come_along_when_workers_move_to_a_node_that_joins() {
    let _alone = ALONE.lock().await;
    let mut stage = Stage::slow(&["server"], &[Part::Worker, Part::Loader], 10).await;
    let job = |name: &str| job(&stage, name).workers(2);
    let (alone, _) = finish(soon(job("alone").submit(&stage.seed)).await.unwrap()).await;
    let joined = job("joined");
    let mut running = soon(joined.submit(&stage.seed)).await.unwrap();
    until_step(&mut running, 5).await;
    stage.add(Part::Worker).await;
    let second = stage.processes.last().unwrap().0;
    let (report, events) = finish(running).await;
    let has_moved = events
        .iter()
        .any(|event| matches!(event, JobEvent::WorkerUp { node, .. } if *node == second));
    assert!(has_moved, "{events:?}");
    assert_eq!(lost(&events), 0);
    are_same(&report, &alone);
}

/// Nodes keep what their workers have rounded off when the trainer is lost, with whom its workers end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_loader_and_trainer_leaves_no_trace() {
    let _alone = ALONE.lock().await;
    // Neither of the two that are lost is one of the voters.
    let parts = [
        Part::Worker,
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
    let job = |name: &str| job(&stage, name).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { loader, .. }) = soon(struck.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    stage.process(loader).kill();
    until_step(&mut struck, 2 * STEPS_PER_EPOCH + 10).await;
    let trainer = stage.seed.find::<Trainer>().await[0].addr().node;
    stage.process(trainer).kill();
    let (report, events) = finish(struck).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::Resumed { .. })));
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    stage.is_cleared().await;
}

/// What a process has rounded off is on another node, too: that is where the next one gets it, which then is lost as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_workers_processes_leaves_no_trace() {
    let _alone = ALONE.lock().await;
    let mut stage = Stage::slow(&["loader", "server"], &[Part::Worker; 2], 20).await;
    let (calm, _) = finish(soon(job(&stage, "calm").submit(&stage.seed)).await.unwrap()).await;
    let mut struck = soon(job(&stage, "struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    stage.processes[1].1.kill();
    until_step(&mut struck, 2 * STEPS_PER_EPOCH + 10).await;
    stage.add(Part::Worker).await;
    let second = stage.processes[2].0;
    worker_up(&mut struck, second).await;
    stage.processes[0].1.kill();
    let (report, events) = finish(struck).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::WorkerLost { .. })), "{events:?}");
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    stage.is_cleared().await;
}

/// One that is declared down, and wakes up; then it has the only copies, as the other one is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_workers_process_leaves_no_trace_and_helps_again() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader", "server"], &[Part::Worker; 2], 20).await;
    let (calm, _) = finish(soon(job(&stage, "calm").submit(&stage.seed)).await.unwrap()).await;
    let mut struck = soon(job(&stage, "struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    let (frozen, process) = &stage.processes[1];
    process.freeze();
    worker_lost(&mut struck, *frozen).await;
    process.thaw();
    worker_up(&mut struck, *frozen).await;
    // All actors of its life before are gone.
    assert_eq!(stage.seed.find_on::<ResidualKeeper>(*frozen).await.unwrap().len(), 1);
    until_step(&mut struck, 0).await;
    until_step(&mut struck, 0).await;
    stage.processes[0].1.kill();
    let (report, events) = finish(struck).await;
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    stage.is_cleared().await;
}

/// While a slot is computed, what was rounded off the step before is on two nodes, of each slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_residual_is_on_two_nodes() {
    let _alone = ALONE.lock().await;
    let stage = Stage::set(&["loader", "server"], &[Part::Worker; 2]).await;
    let mut running = soon(job(&stage, "held").submit(&stage.seed)).await.unwrap();
    until_step(&mut running, 10).await;
    let spec = soon(stage.seed.find::<Trainer>().await[0].call(AskJob)).await.unwrap();
    stage.order(Order::Hold);
    soon(stage.holding()).await;
    let keepers = stage.seed.find::<ResidualKeeper>().await;
    let mut on_nodes = BTreeMap::<u64, Vec<usize>>::new();
    for (step, slot) in
        (1..EPOCHS * STEPS_PER_EPOCH).flat_map(|step| (0..SLOTS).map(move |slot| (step, slot)))
    {
        let mut nodes = BTreeSet::new();
        for keeper in &keepers {
            let ask = AskResidual { job: spec.id(), step, slot };
            if soon(keeper.call(ask)).await.unwrap().is_some() {
                nodes.insert(keeper.addr().node);
            }
        }
        on_nodes.entry(step).or_default().push(nodes.len());
    }
    // The slot that is held has none for the step after its own.
    let is_whole = |(_, nodes): &(&u64, &Vec<usize>)| !nodes.contains(&0);
    let (_, nodes) = on_nodes.iter().rfind(is_whole).expect("the step that is under way");
    assert!(nodes.iter().all(|nodes| *nodes >= 2), "{on_nodes:?}");
    stage.let_go();
    let (_, events) = finish(running).await;
    assert_eq!(lost(&events), 0);
    stage.is_cleared().await;
}

/// A slot's gradient goes to the shards when another node has what was rounded off it, and not before. That node is
/// exchanged for a better one that joins, here for one without a shard; and for another one if it is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gradient_goes_out_once_another_node_has_its_residual() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader", "server"], &[Part::Worker], 10).await;
    let job = |name: &str| job(&stage, name).workers(1);
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;
    let mut held = soon(job("held").submit(&stage.seed)).await.unwrap();
    until_step(&mut held, 5).await;
    let shard = &stage.seed.find::<ParameterServer>().await[0];
    let (second, mut asked) = second_node(&stage).await;
    for _ in 0..3 {
        let Asked { keep, reply } = soon(asked.recv()).await.unwrap();
        // The slot's own step, and the one that its residual is for.
        let (step, next) = (keep.step - 1, keep.step);
        let applied = shard.call(AwaitVersion { version: next });
        // Long enough for a dozen steps.
        assert!(timeout(Duration::from_millis(500), applied).await.is_err(), "{step} was applied");
        assert_eq!(soon(shard.call(AskVersion)).await.unwrap(), Some(step));
        reply.send(true);
        tokio::select! {
            applied = soon(shard.call(AwaitVersion { version: next })) => drop(applied.unwrap()),
            () = take_all(&mut asked) => {}
        }
    }
    // Now it takes none for as long as the job does not go on.
    let Asked { keep, reply: _unanswered } = soon(asked.recv()).await.unwrap();
    soon(shard.call(AwaitVersion { version: keep.step })).await.unwrap().unwrap();
    let (report, events) = tokio::select! {
        finished = finish(held) => finished,
        () = take_all(&mut asked) => unreachable!("it has no end"),
    };
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    second.leave().await.unwrap();
    stage.is_cleared().await;
}

/// Those of a job that goes on from a checkpoint are on two nodes before anything is computed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_job_begins_with_its_residuals_on_another_node() {
    let _alone = ALONE.lock().await;
    // Nobody else has kept any before.
    let stage = Stage::set(&["loader", "server", "worker"], &[]).await;
    let job = |name: &str, epochs| job(&stage, name).epochs(epochs).workers(1);
    let (calm, _) = finish(soon(job("calm", 2).submit(&stage.seed)).await.unwrap()).await;
    let folder = tempfile::tempdir().unwrap();
    let saved = |epochs| job("saved", epochs).checkpoints(Checkpoints::to(folder.path()));
    finish(soon(saved(1).submit(&stage.seed)).await.unwrap()).await;
    stage.is_cleared().await;

    let (second, mut asked) = second_node(&stage).await;
    let resumed = soon(saved(2).resume().submit(&stage.seed)).await.unwrap();
    for slot in 0..SLOTS {
        let Asked { keep, reply } = soon(asked.recv()).await.unwrap();
        assert_eq!((keep.step, keep.slot), (STEPS_PER_EPOCH, slot));
        assert!(stage.seed.find::<Worker>().await.is_empty());
        reply.send(true);
    }
    let (report, events) = tokio::select! {
        finished = finish(resumed) => finished,
        () = take_all(&mut asked) => unreachable!("it has no end"),
    };
    assert!(events.iter().any(|event| matches!(event, JobEvent::FromCheckpoint { .. })));
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    second.leave().await.unwrap();
    stage.is_cleared().await;
}

/// All that the job computes and who holds it together are in one process: a shard's node has what was rounded off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_only_worker_together_with_the_trainer_leaves_no_trace() {
    let _alone = ALONE.lock().await;
    let parts = [Part::Worker, Part::Loader, Part::Voter, Part::Voter];
    let mut stage = Stage::slow(&["server"], &parts, 10).await;
    three_voters(&stage.seed).await;
    let job = |name: &str| job(&stage, name).workers(1).trainer_on(Placement::role("worker"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let struck = job("struck");
    let mut struck = soon(struck.submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, 10).await;
    stage.add(Part::Worker).await;
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    let (first, process) = &stage.processes[0];
    assert_eq!(stage.seed.find::<Trainer>().await[0].addr().node, *first);
    process.kill();
    let (report, events) = finish(struck).await;
    assert!(events.iter().any(|event| matches!(event, JobEvent::Resumed { .. })), "{events:?}");
    assert_eq!(lost(&events), 0);
    are_same(&report, &calm);
    stage.is_cleared().await;
}

/// Both nodes that had a residual at once: that is told, and the job goes on and learns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_with_two_nodes_at_once_is_told() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader", "server"], &[Part::Worker; 3], 10).await;
    let (calm, _) = finish(soon(job(&stage, "calm").submit(&stage.seed)).await.unwrap()).await;
    let mut struck = soon(job(&stage, "struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    // Each has its residuals kept where the other one is: the shards' node is the last that is asked.
    let workers: Vec<_> =
        stage.seed.find::<Worker>().await.iter().map(|worker| worker.addr().node).collect();
    assert_eq!(workers.len(), 2);
    for worker in &workers {
        stage.process(*worker).kill();
    }
    let (report, events) = finish(struck).await;
    // So what is rounded off is fed back otherwise.
    assert_ne!(report.parameters_sha256, calm.parameters_sha256);
    // At most one for each slot.
    assert!((1..=4).contains(&lost(&events)), "{events:?}");
    assert_eq!(report.samples, EPOCHS * u64::from(SAMPLES));
    assert!(report.test_accuracy > Some(0.5), "{report:?}");
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_step_before_or_another_scale_is_refused() {
    let _alone = ALONE.lock().await;
    let stage = Stage::set(&["loader", "server"], &[Part::Worker]).await;
    for mode in [Consistency::BoundedStaleness(2), Consistency::Asynchronous] {
        let refused = job(&stage, "stale").consistency(mode).submit(&stage.seed).await;
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("wire format int8 needs the bulk synchronous mode"), "{why}");
    }
    let refused = job(&stage, "half").precision(Precision::Fp16).submit(&stage.seed).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("wire format int8 can't be had with fp16"), "{why}");
}
