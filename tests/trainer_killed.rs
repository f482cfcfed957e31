//! A job is held by the cluster: it goes on when its trainer's node is lost, and when the seed is, or the
//! process that submitted it.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{
    actors::training::{JobEvent, RunningJob, Trainer, TrainingReport},
    prelude::*,
    runtime::{NodeId, message::name_hash},
};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// A stage with three voters.
async fn stage(roles: &[&str], parts: &[Part]) -> Stage {
    let stage = Stage::set(roles, parts).await;
    three_voters(&stage.seed).await;
    stage
}

/// One of the voters is in this process; what can't be lost is on them. The trainer is elsewhere.
async fn with_spares() -> Stage {
    let parts = [Part::Worker, Part::Server, Part::Server, Part::Spare, Part::Spare];
    stage(&["loader", "server"], &parts).await
}

/// The node of a job's trainer.
async fn trainer(stage: &Stage) -> NodeId {
    let trainers = stage.seed.find::<Trainer>().await;
    assert_eq!(trainers.len(), 1);
    trainers[0].addr().node
}

/// Follows a job whose trainer's node was killed to its end, which is that of the one that nothing
/// happened to.
async fn goes_on(struck: RunningJob, killed: NodeId, calm: &TrainingReport) {
    let (report, events) = finish(struck).await;
    let resumed = events.iter().find_map(|event| match event {
        JobEvent::Resumed { trainer } => Some(*trainer),
        _ => None,
    });
    assert!(resumed.is_some_and(|after| after != killed), "{resumed:?}");
    assert_eq!(report.steps, 12 * STEPS_PER_EPOCH);
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_trainer_is_killed_goes_on_and_has_the_same_result() {
    let stage = with_spares().await;
    let job = |name| stage.job(name).epochs(12).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, 30).await;
    let before = trainer(&stage).await;
    stage.process(before).kill();
    goes_on(struck, before, &calm).await;
    stage.is_cleared().await;
}

/// It stands still while its workers finish, and is then held for lost: its successor finds all steps
/// applied, and nobody has evaluated the last of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_last_step_is_applied_while_its_trainer_is_lost_is_done_all_the_same() {
    let stage = with_spares().await;
    let job = |name| stage.job(name).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    let weights = soon(struck.weights()).await.unwrap();
    let before = trainer(&stage).await;
    until_step(&mut struck, calm.steps - 10).await;
    stage.process(before).freeze();
    assert_eq!(soon(weights.pull(calm.steps)).await.unwrap().number, calm.steps);
    let (report, _) = finish(struck).await;
    assert_eq!((report.steps, report.samples), (calm.steps, calm.samples));
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
    stage.is_cleared().await;
}

/// Two of three voters stand still, so that no trainer may go on. The job waits for them, and so does who follows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_ledger_is_away_for_a_while_goes_on_and_has_the_same_result() {
    let parts = [Part::Worker, Part::Spare, Part::Voter, Part::Voter];
    let stage = stage(&["loader", "server"], &parts).await;
    let job = |name| stage.job(name).epochs(12).trainer_on(Placement::role("spare"));
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job("struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, 30).await;
    let voters = [&stage.processes[2].1, &stage.processes[3].1];
    voters.iter().for_each(|voter| voter.freeze());
    let followed = tokio::spawn(finish(struck));
    // Each time it is asked for 5 s, and who follows has asked once by the end of the second time.
    for _ in 0..2 {
        let error = soon(stage.seed.ledger().get("anything")).await.unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
    }
    voters.iter().for_each(|voter| voter.thaw());
    let (report, events) = soon(followed).await.unwrap();
    assert!(events.iter().any(|event| matches!(event, JobEvent::Resumed { .. })), "{events:?}");
    assert_eq!(report.steps, 12 * STEPS_PER_EPOCH);
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}

/// The trainer, the ledger's leader and a voter are lost at one blow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_trainer_is_killed_with_the_leader_of_the_ledger_goes_on_all_the_same() {
    let parts = [Part::Worker, Part::Worker, Part::Voter, Part::Voter, Part::Voter];
    let stage = stage(&["loader"], &parts).await;
    let leader = || stage.seed.ledger().status().and_then(|ledger| ledger.leader);
    let voters = || stage.seed.ledger().status().unwrap().voters;
    until("the founder, which is in this process, votes no more", async || {
        voters().len() == 3 && !voters().contains(&stage.seed.id())
    })
    .await;
    let job = |name: &str| stage.job(name).epochs(12);
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;

    // Which of the servers holds a job's trainer depends on the job's name.
    let mut tries = 0..100;
    let (struck, before) = loop {
        let name = format!("struck-{}", tries.next().expect("no trainer came to the leader"));
        let turn = |node: &NodeId| name_hash(&format!("job/{name} {node}"));
        if voters().into_iter().min_by_key(turn) != leader() {
            continue;
        }
        let mut struck = soon(job(&name).submit(&stage.seed)).await.unwrap();
        until_step(&mut struck, 30).await;
        let node = trainer(&stage).await;
        if Some(node) == leader() {
            break (struck, node);
        }
        // It came to another one, which had its turn sooner on a busy machine.
        soon(struck.close()).await.unwrap();
        stage.is_cleared().await;
    };
    stage.process(before).kill();
    goes_on(struck, before, &calm).await;
    until("another one leads", async || leader().is_some_and(|leader| leader != before)).await;
    stage.is_cleared().await;
}

/// One process is both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_seed_and_submitter_is_killed_goes_on_and_has_the_same_result() {
    let parts = [Part::Worker, Part::Worker, Part::Server, Part::Server, Part::Spare];
    let (stage, seed) = Stage::set_by_another(&["loader", "server"], &parts, "struck", 12).await;
    let mut struck = soon(RunningJob::attach(&stage.seed, "struck")).await.unwrap();
    until_step(&mut struck, 30).await;
    seed.kill();
    let (report, _) = finish(struck).await;
    let job = stage.job("calm").epochs(12).submit(&stage.seed);
    let (calm, _) = finish(soon(job).await.unwrap()).await;
    assert_eq!((report.steps, report.samples), (calm.steps, calm.samples));
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_submitter_leaves_goes_on_and_is_found_by_its_name() {
    let stage = with_spares().await;
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
