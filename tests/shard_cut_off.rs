//! Two nodes can't reach each other, though all others reach both, so that neither is declared down: the shards do without
//! one of them, and the job has the bits of one that nothing happened to.
#![cfg(feature = "torch")]

#[path = "support/lossy.rs"]
mod lossy;
#[path = "support/training/mod.rs"]
mod training;

use std::collections::BTreeSet;

use footlight::{
    actors::{
        parameters::ParameterServer,
        training::{JobEvent, RunningJob, Trainer, TrainingJob, trainer::AskWeights},
    },
    prelude::*,
    runtime::NodeId,
};
use lossy::Cuts;
use tokio::sync::{Mutex, OnceCell};
use training::*;

const EPOCHS: u64 = 7;
/// Each test has up to five nodes: on a small machine two at once would hold each other for lost.
static ALONE: Mutex<()> = Mutex::const_new(());

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// So many nodes for shards in this process, which may be cut off. All know each other.
async fn servers(stage: &Stage, cuts: &Cuts, count: usize) -> Vec<Node> {
    let mut servers = Vec::new();
    for _ in 0..count {
        let listen = Some("127.0.0.1:0".to_owned());
        let args = NodeArgs { listen, roles: vec!["server".to_owned()], ..stage.joiner_args() };
        let node = builder(args, true).unwrap().sockets(cuts.sockets());
        servers.push(node.start().await.unwrap());
    }
    // The seed and the worker, too.
    let nodes = count + 2;
    let all_up = |members: &[Member]| members.iter().filter(|m| m.is_up()).count() == nodes;
    for node in servers.iter().chain([&stage.seed]) {
        node.wait_for_members(LONG, all_up).await.unwrap();
    }
    servers
}

fn job(stage: &Stage, name: &str) -> TrainingJob {
    stage.job(name).servers(1).replicas(1).epochs(EPOCHS)
}

/// The parameters of the job if nothing happens to it.
async fn calm() -> &'static str {
    static CALM: OnceCell<String> = OnceCell::const_new();
    let run = async || {
        let stage = Stage::set(&["loader", "server"], &[Part::Worker]).await;
        finish(submit(&stage, stage.job("calm").epochs(EPOCHS)).await).await.0.parameters_sha256
    };
    CALM.get_or_init(run).await
}

async fn submit(stage: &Stage, job: TrainingJob) -> RunningJob {
    soon(job.submit(&stage.seed)).await.unwrap()
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

/// A node holds no shard any more, though the job goes on.
async fn has_none(stage: &Stage, node: &Node) {
    until("the end of the one that was given up", async || {
        stage.seed.find_on::<ParameterServer>(node.id()).await.unwrap().is_empty()
    })
    .await;
}

/// The trainer reaches both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cut_off_from_its_primary_is_replaced() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader"], &[Part::Worker], 10).await;
    let cuts = Cuts::default();
    let servers = servers(&stage, &cuts, 3).await;
    let struck = job(&stage, "struck").trainer_on(Placement::node(stage.seed.id()));
    let mut struck = submit(&stage, struck).await;
    until_step(&mut struck, 10).await;
    let (primary, backup) = primary_and_backup(&stage, &servers).await;
    cuts.cut(primary.addr(), backup.addr());
    let (node, why) = lost(&mut struck).await;
    assert_eq!(node, backup.id());
    assert_eq!(why, format!("node {node} and node {} can't reach each other", primary.id()));
    let other = backup_up(&mut struck, 0).await;
    assert!(other != primary.id() && other != backup.id());
    has_none(&stage, backup).await;
    let (report, _) = finish(struck).await;
    assert_eq!(report.parameters_sha256, calm().await);
    stage.is_cleared().await;
}

/// Nor is one asked to be the backup again before the two reach each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_other_node_is_left_the_shard_has_no_backup_until_the_cut_heals() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader"], &[Part::Worker], 40).await;
    let cuts = Cuts::default();
    let servers = servers(&stage, &cuts, 2).await;
    let struck = job(&stage, "struck").trainer_on(Placement::node(stage.seed.id()));
    let mut struck = submit(&stage, struck).await;
    until_step(&mut struck, 10).await;
    let (primary, backup) = primary_and_backup(&stage, &servers).await;
    cuts.cut(primary.addr(), backup.addr());
    assert_eq!(lost(&mut struck).await.0, backup.id());
    has_none(&stage, backup).await;
    until_step(&mut struck, STEPS_PER_EPOCH).await;
    has_none(&stage, backup).await;
    cuts.heal();
    assert_eq!(backup_up(&mut struck, 0).await, backup.id());
    let (report, _) = finish(struck).await;
    assert_eq!(report.parameters_sha256, calm().await);
    stage.is_cleared().await;
}

/// The trainer is beside the backup, so it reaches the primary no more than that does. Everybody else goes over to the
/// backup; the one that was the primary publishes nothing, and ends when it can be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_cut_off_from_trainer_and_backup_is_replaced() {
    let _alone = ALONE.lock().await;
    let stage = Stage::slow(&["loader"], &[Part::Worker], 40).await;
    let cuts = Cuts::default();
    let servers = servers(&stage, &cuts, 2).await;
    // The first shard goes to the first node.
    let last = servers.iter().map(Node::id).max().unwrap();
    let struck = job(&stage, "struck").trainer_on(Placement::node(last));
    let mut struck = submit(&stage, struck).await;
    until_step(&mut struck, 10).await;
    let (primary, backup) = primary_and_backup(&stage, &servers).await;
    assert_eq!(backup.id(), last);
    cuts.cut(primary.addr(), backup.addr());
    let (node, why) = lost(&mut struck).await;
    assert_eq!(node, primary.id());
    assert_eq!(why, format!("node {node} and node {} can't reach each other", backup.id()));
    until_step(&mut struck, STEPS_PER_EPOCH).await;
    assert_eq!(primary_and_backup(&stage, &servers).await.0.id(), backup.id());
    cuts.heal();
    assert_eq!(backup_up(&mut struck, 0).await, primary.id());
    until("only one actor holds the shard there", async || {
        stage.seed.find_on::<ParameterServer>(primary.id()).await.unwrap().len() == 1
    })
    .await;
    let (report, _) = finish(struck).await;
    assert_eq!(report.parameters_sha256, calm().await);
    stage.is_cleared().await;
}

/// A trainer can't reach the primaries of two shards, and the third's, which is beside it, not its backup. With a rule for
/// the whole gradient all shards must know each other before any of them goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_are_all_primaries_that_are_cut_off_at_once() {
    let _alone = ALONE.lock().await;
    let clipped = |job: TrainingJob| job.servers(3).clip_norm(0.5);
    let calm = {
        let stage = Stage::set(&["loader", "server"], &[Part::Worker]).await;
        let calm = clipped(stage.job("calm").epochs(EPOCHS));
        finish(submit(&stage, calm).await).await.0
    };
    let stage = Stage::slow(&["loader"], &[Part::Worker], 40).await;
    let cuts = Cuts::default();
    let servers = servers(&stage, &cuts, 2).await;
    let last = servers.iter().map(Node::id).max().unwrap();
    let struck = clipped(job(&stage, "struck")).trainer_on(Placement::node(last));
    let mut struck = submit(&stage, struck).await;
    until_step(&mut struck, 10).await;
    cuts.cut(servers[0].addr(), servers[1].addr());
    for _ in 0..3 {
        assert_ne!(lost(&mut struck).await.0, last);
    }
    until_step(&mut struck, STEPS_PER_EPOCH).await;
    let weights = soon(stage.seed.find::<Trainer>().await[0].call(AskWeights)).await.unwrap();
    assert!(weights.shards.now().iter().all(|shard| shard.addr().node == last));
    cuts.heal();
    let (report, events) = finish(struck).await;
    let have_backups: BTreeSet<u32> = events
        .iter()
        .filter_map(|event| match event {
            JobEvent::BackupUp { shard, node } => (*node != last).then_some(*shard),
            _ => None,
        })
        .collect();
    assert_eq!(have_backups, BTreeSet::from([0, 1, 2]));
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    stage.is_cleared().await;
}
