//! A shard that stands still is replaced by its backup, and does no harm when it wakes up.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use footlight::{actors::training::JobEvent, prelude::*};
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

async fn freezes(clips: bool) {
    let parts = [Part::Worker, Part::Worker, Part::Server, Part::Server, Part::Server];
    let stage = Stage::set(&["loader"], &parts).await;
    let job = |name: &str| {
        let here = Placement::node(stage.seed.id());
        let job = stage.job(name).epochs(EPOCHS).servers(2).trainer_on(here);
        if clips { job.clip_norm(0.5) } else { job }
    };
    let (calm, _) = finish(soon(job("calm").submit(&stage.seed)).await.unwrap()).await;
    let mut struck = soon(job("struck").replicas(1).submit(&stage.seed)).await.unwrap();
    let Some(JobEvent::Started { servers, .. }) = soon(struck.next()).await.unwrap() else {
        panic!("the first event is the start")
    };
    until_step(&mut struck, STEPS_PER_EPOCH + 10).await;
    let frozen = stage.process(servers[0]);
    frozen.freeze();
    taken_over(&mut struck, 0).await;
    // It finds what it had in hand, and workers and shards that it knew.
    frozen.thaw();
    let (report, _) = finish(struck).await;
    assert_eq!(report.samples, calm.samples);
    assert_eq!(report.parameters_sha256, calm.parameters_sha256);
    assert_eq!(report.test_accuracy, calm.test_accuracy);
    stage.is_cleared().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_shard_goes_on_at_its_backup_and_does_no_harm_when_it_wakes_up() {
    let _alone = ALONE.lock().await;
    freezes(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_that_steps_together_with_others() {
    let _alone = ALONE.lock().await;
    freezes(true).await;
}
