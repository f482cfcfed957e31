//! A backup and its primary can't reach each other, though all others reach both: the shard does without it, and the job
//! has the bits of one that nothing happened to.
#![cfg(feature = "torch")]

#[path = "support/lossy.rs"]
mod lossy;
#[path = "support/training.rs"]
mod training;

use footlight::{
    actors::{
        parameters::ParameterServer,
        training::{JobEvent, RunningJob, Trainer, TrainingJob, trainer::AskWeights},
    },
    prelude::*,
    runtime::NodeId,
};
use lossy::Cuts;
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// A node for shards in this process, which may be cut off.
async fn server(stage: &Stage, cuts: &Cuts) -> Node {
    let listen = Some("127.0.0.1:0".to_owned());
    let args = NodeArgs { listen, roles: vec!["server".to_owned()], ..stage.joiner_args() };
    builder(args, true).unwrap().sockets(cuts.sockets()).start().await.unwrap()
}

fn job(stage: &Stage, name: &str) -> TrainingJob {
    stage.job(name).servers(1).replicas(1).epochs(7)
}

/// Who has the only shard, and who is its backup.
async fn primary_and_backup<'a>(stage: &Stage, servers: &'a [Node]) -> (&'a Node, &'a Node) {
    let weights = soon(stage.seed.find::<Trainer>().await[0].call(AskWeights)).await.unwrap();
    let primary = weights.shards.now()[0].addr().node;
    let all = stage.seed.find::<ParameterServer>().await;
    let backup = all.iter().map(|shard| shard.addr().node).find(|node| *node != primary);
    let node = |id: NodeId| servers.iter().find(|server| server.id() == id).unwrap();
    (node(primary), node(backup.expect("it has one")))
}

/// Follows a job until one who holds a shard is lost; says where it was, and why.
async fn lost(job: &mut RunningJob) -> (NodeId, String) {
    soon(async {
        loop {
            match job.next().await.unwrap().expect("it goes on") {
                JobEvent::ShardLost { node, why, .. } => return (node, why),
                event => assert!(!matches!(event, JobEvent::Failed(_)), "{event:?}"),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cut_off_from_its_primary_is_replaced() {
    let stage = Stage::slow(&["loader"], &[Part::Worker], 10).await;
    let cuts = Cuts::default();
    let servers =
        [server(&stage, &cuts).await, server(&stage, &cuts).await, server(&stage, &cuts).await];
    let (calm, _) = finish(soon(job(&stage, "calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job(&stage, "struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, 10).await;
    let (primary, backup) = primary_and_backup(&stage, &servers).await;
    cuts.cut(primary.addr(), backup.addr());
    let (node, why) = lost(&mut struck).await;
    assert_eq!(node, backup.id());
    let says = format!(
        "node {}, which has the shard, and node {node} can't reach each other",
        primary.id()
    );
    assert_eq!(why, says);
    let other = backup_up(&mut struck, 0).await;
    assert!(other != primary.id() && other != backup.id());
    let (report, _) = finish(struck).await;
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    // The one that was given up has ended as well.
    stage.is_cleared().await;
}

/// Nor is one asked to be the backup again before the two reach each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_other_node_is_left_the_shard_has_no_backup_until_the_cut_heals() {
    let stage = Stage::slow(&["loader"], &[Part::Worker], 20).await;
    let cuts = Cuts::default();
    let servers = [server(&stage, &cuts).await, server(&stage, &cuts).await];
    let (calm, _) = finish(soon(job(&stage, "calm").submit(&stage.seed)).await.unwrap()).await;

    let mut struck = soon(job(&stage, "struck").submit(&stage.seed)).await.unwrap();
    until_step(&mut struck, 10).await;
    let (primary, backup) = primary_and_backup(&stage, &servers).await;
    cuts.cut(primary.addr(), backup.addr());
    assert_eq!(lost(&mut struck).await.0, backup.id());
    until_step(&mut struck, STEPS_PER_EPOCH).await;
    assert!(stage.seed.find_on::<ParameterServer>(backup.id()).await.unwrap().is_empty());
    cuts.heal();
    assert_eq!(backup_up(&mut struck, 0).await, backup.id());
    let (report, _) = finish(struck).await;
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}
