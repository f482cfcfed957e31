//! Every process of a job is killed at the same moment, and it goes on from its checkpoint: with the bits of a job that
//! nothing happened to.
#![cfg(feature = "torch")]

#[path = "support/s3.rs"]
mod s3;
#[path = "support/training/mod.rs"]
mod training;

use std::{env, path::Path};

use footlight::{
    actors::{checkpoint::Checkpoints, training::JobEvent},
    cluster::processes::{Process, ProcessSpec, Processes, exit_with_parent},
    runtime::tensor::WireFormat,
};
use tokio::sync::Mutex;
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// Each test has up to twelve processes: on a small machine two at once would hold each other for lost.
static ALONE: Mutex<()> = Mutex::const_new(());
const EPOCHS: u64 = 10;
const EVERY: u64 = 25;

/// A job and all that it needs: this process is the seed and has submitted it, its children are the other nodes.
#[test]
#[ignore = "run by the other tests in processes of its own"]
fn cluster_process() {
    let Some(folder) = env::var_os("TEST_CHECKPOINTS") else { return };
    assert!(exit_with_parent().unwrap());
    let number = |name: &str| env::var(name).unwrap().parse().unwrap();
    let (workers, servers) = (number("TEST_WORKERS"), number("TEST_SERVERS"));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut parts = vec![Part::Loader];
        parts.extend((0..workers).map(|_| Part::Worker));
        parts.extend((0..servers).map(|_| Part::Server));
        let stage = Stage::set(&["seed"], &parts).await;
        let pids: Vec<String> =
            stage.processes.iter().map(|(_, process)| process.pid().to_string()).collect();
        println!("\npids {}", pids.join(" "));
        let checkpoints = Checkpoints::to(folder).every_steps(EVERY);
        let wire = wire(&env::var("TEST_WIRE").unwrap());
        let job = stage.job("struck").epochs(EPOCHS).workers(workers).servers(servers).wire(wire);
        let mut job = match job.checkpoints(checkpoints).resume().submit(&stage.seed).await {
            Ok(job) => job,
            Err(error) => {
                // Whoever waits for something else sees it among the complaints.
                eprintln!("refused {error}");
                return println!("refused {error}");
            }
        };
        let report = job.follow(|event| match event {
            JobEvent::FromCheckpoint { steps, .. } => println!("from {steps}"),
            JobEvent::Saved { steps, .. } => println!("saved {steps}"),
            JobEvent::NotSaved { steps, why } => eprintln!("not saved {steps}: {why}"),
            JobEvent::Step { steps, .. } => println!("step {steps}."),
            _ => {}
        });
        let report = report.await.unwrap();
        let accuracy = report.test_accuracy.unwrap();
        println!("done {} {} {accuracy}", report.parameters_sha256, report.samples);
        job.close().await.unwrap();
    });
}

fn wire(name: &str) -> WireFormat {
    WireFormat::ALL.into_iter().find(|format| format.name() == name).unwrap()
}

/// Where a cluster saves, what its environment says of that, and how its gradients travel.
struct Place {
    at: String,
    env: Vec<(&'static str, String)>,
    wire: WireFormat,
}

async fn cluster(
    keeper: &Processes,
    dir: &Path,
    place: &Place,
    workers: u32,
    servers: u32,
) -> Process {
    let temporary = dir.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut spec = ProcessSpec::this_binary("cluster")
        .args(["--exact", "cluster_process", "--ignored", "--nocapture"])
        .env("TEST_CHECKPOINTS", &place.at)
        .env("TEST_WORKERS", workers.to_string())
        .env("TEST_SERVERS", servers.to_string())
        .env("TEST_WIRE", place.wire.name())
        // Or the job may be over before it is saved, on a busy machine.
        .env("TEST_MILLIS_A_SLOT", "10")
        // What it leaves behind goes with this test's folder.
        .env("TMPDIR", temporary);
    for (name, value) in &place.env {
        spec = spec.env(name, value);
    }
    keeper.start(spec).await.unwrap()
}

async fn line(process: &Process, prefix: &str) -> String {
    let line = process.wait_line(prefix, LONG).await;
    line.unwrap_or_else(|error| panic!("{error}: {:?}", process.stderr()))
}

/// What was told as saved is not lost; the one after it may have been finished too, and not told any more.
async fn goes_on_from(process: &Process, saved: u64) {
    let from: u64 = line(process, "from ").await["from ".len()..].parse().unwrap();
    assert!(from >= saved && from.is_multiple_of(EVERY), "{from}, and {saved} was saved");
}

/// Kills the process and its children in one moment, some steps after it told that it has saved those after at least so
/// many. Says which.
async fn kill_all(cluster: &Process, pids: &str, at_least: u64) -> u64 {
    let mut saved = 0;
    while saved < at_least {
        // The job goes on while it is saved, so this is told later than the step itself, and some may be left out.
        saved = line(cluster, "saved ").await["saved ".len()..].parse().unwrap();
    }
    for _ in 0..5 {
        line(cluster, "step ").await;
    }
    let pids = pids["pids ".len()..].split(' ').map(|pid| pid.parse::<i32>().unwrap());
    for pid in pids.chain([cluster.pid() as i32]) {
        // SAFETY: a signal to a process that this test has started, or that such a one has; its parent lives, so its id
        // is no other's yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    }
    soon(cluster.wait(LONG)).await.unwrap();
    saved
}

/// What becomes of the job if nothing happens to it: the line that it ends with.
async fn calm(wire: WireFormat) -> String {
    let stage = Stage::set(&["loader", "server"], &[Part::Worker, Part::Worker]).await;
    let job = stage.job("calm").epochs(EPOCHS).wire(wire).submit(&stage.seed);
    let report = finish(soon(job).await.unwrap()).await.0;
    let (bits, samples, accuracy) =
        (report.parameters_sha256, report.samples, report.test_accuracy.unwrap());
    format!("done {bits} {samples} {accuracy}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_every_process_is_killed_at_once_is_resumed_with_the_same_bits() {
    is_resumed(WireFormat::F32).await;
}

/// What was rounded off gradients is saved with the state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_one_whose_gradients_travel_as_int8() {
    is_resumed(WireFormat::Int8).await;
}

async fn is_resumed(wire: WireFormat) {
    let _alone = ALONE.lock().await;
    let (keeper, dir) = (Processes::new(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("checkpoints").to_str().unwrap().to_owned();
    let place = Place { at: folder, env: Vec::new(), wire };
    let calm = calm(wire).await;
    // Between two checkpoints: twice.
    let mut saved = 0;
    for _ in 0..2 {
        let cluster = cluster(&keeper, dir.path(), &place, 2, 2).await;
        let pids = line(&cluster, "pids ").await;
        if saved > 0 {
            goes_on_from(&cluster, saved).await;
        }
        saved = kill_all(&cluster, &pids, saved + 2 * EVERY).await;
    }
    // With another number of workers and of shards.
    let cluster = cluster(&keeper, dir.path(), &place, 1, 3).await;
    goes_on_from(&cluster, saved).await;
    assert_eq!(line(&cluster, "done ").await, calm);
}

/// The same with a server that speaks S3's protocol, on loopback.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_resumed_from_an_object_store() {
    let _alone = ALONE.lock().await;
    let (keeper, dir) = (Processes::new(), tempfile::tempdir().unwrap());
    let bucket = dir.path().join("store").join("jobs");
    std::fs::create_dir_all(&bucket).unwrap();
    let server = s3::serve(bucket.parent().unwrap()).await;
    let place = Place {
        at: "s3://jobs/digits/first".to_owned(),
        env: s3::env(server),
        wire: WireFormat::F32,
    };
    let calm = calm(WireFormat::F32).await;
    let before = cluster(&keeper, dir.path(), &place, 2, 2).await;
    let pids = line(&before, "pids ").await;
    let saved = kill_all(&before, &pids, 2 * EVERY).await;
    let after = cluster(&keeper, dir.path(), &place, 2, 2).await;
    goes_on_from(&after, saved).await;
    assert_eq!(line(&after, "done ").await, calm);
    // This server keeps folders that are empty.
    let kept = std::fs::read_dir(bucket.join("digits/first")).unwrap();
    let kept = kept
        .filter(|folder| std::fs::read_dir(folder.as_ref().unwrap().path()).unwrap().count() == 3);
    assert_eq!(kept.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_store_that_does_not_answer_is_named() {
    let _alone = ALONE.lock().await;
    let (keeper, dir) = (Processes::new(), tempfile::tempdir().unwrap());
    // Nobody listens there for TCP.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let env = s3::env(taken.local_addr().unwrap());
    let place = Place { at: "s3://jobs/digits".to_owned(), env, wire: WireFormat::F32 };
    let refused = line(&cluster(&keeper, dir.path(), &place, 1, 1).await, "refused ").await;
    assert!(refused.contains("checkpoints in s3://jobs/digits: "), "{refused}");
    assert!(refused.contains("onnect"), "{refused}");

    let place = Place { at: "gs://jobs/digits".to_owned(), env: Vec::new(), wire: WireFormat::F32 };
    let refused = line(&cluster(&keeper, dir.path(), &place, 1, 1).await, "refused ").await;
    assert!(refused.ends_with("they go to a folder, or to s3://bucket/prefix"), "{refused}");
}
