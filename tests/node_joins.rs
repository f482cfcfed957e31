//! A node that joins while a job runs gets workers from those that have more, and the result stays what it is.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use std::collections::HashMap;

use footlight::{
    actors::training::{JobEvent, RunningJob},
    runtime::NodeId,
};
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// Follows a job until so many of its workers are on each of these nodes.
async fn spread(
    job: &mut RunningJob,
    at: &mut HashMap<String, NodeId>,
    wanted: &[(NodeId, usize)],
) {
    soon(async {
        let is_so = |at: &HashMap<String, NodeId>| {
            wanted
                .iter()
                .all(|(node, workers)| at.values().filter(|n| *n == node).count() == *workers)
        };
        while !is_so(at) {
            match job.next().await.unwrap() {
                Some(JobEvent::WorkerUp { worker, node, .. }) => drop(at.insert(worker, node)),
                Some(JobEvent::WorkerLost { worker, why, .. }) => {
                    assert!(why.contains("moves"), "{why}");
                    at.remove(&worker);
                }
                Some(JobEvent::Failed(why)) => panic!("{why}"),
                event => assert!(event.is_some(), "the job has ended"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_move_to_a_node_that_joins_and_the_bits_stay_the_same() {
    let mut stage = Stage::slow(&["server"], &[Part::Worker, Part::Loader], 10).await;
    let job = |name: &str| stage.job(name).workers(4).epochs(12);
    let (undisturbed, _) = finish(soon(job("alone").submit(&stage.seed)).await.unwrap()).await;

    let joined = job("joined");
    let mut running = soon(joined.submit(&stage.seed)).await.unwrap();
    let mut at = HashMap::new();
    let first = stage.processes[0].0;
    spread(&mut running, &mut at, &[(first, 4)]).await;
    until_step(&mut running, 5).await;
    stage.add(Part::Worker).await;
    let second = stage.processes.last().unwrap().0;
    spread(&mut running, &mut at, &[(first, 2), (second, 2)]).await;
    stage.add(Part::Worker).await;
    let third = stage.processes.last().unwrap().0;
    spread(&mut running, &mut at, &[(third, 1)]).await;
    // It computes: what it holds up, the job waits for.
    let (report, _) = finish(running).await;
    assert_eq!(report.parameters_sha256, undisturbed.parameters_sha256);
    assert_eq!(report.samples, undisturbed.samples);
}
