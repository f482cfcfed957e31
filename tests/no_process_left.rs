//! No process stays behind, not even when its parent is killed.

mod support;

use std::fs;

use support::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

/// Starts a cluster of processes and is killed.
#[test]
#[ignore = "run by the other tests in processes of its own"]
fn parent_process() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::new();
        let seed = cluster.process("seed", Options::default()).await;
        let one = cluster.process("one", Options::join(seed.addr)).await;
        let frozen = cluster.process("frozen", Options::join(seed.addr)).await;
        if cfg!(target_os = "linux") {
            frozen.process.freeze();
        }
        let [a, b, c] = [&seed, &one, &frozen].map(|node| node.process.pid());
        // The harness has begun a line.
        println!("\nnodes {a} {b} {c} {}", cluster.state().display());
        std::future::pending::<()>().await;
    });
}

/// Whether a process runs; one that has ended and waits to be reaped does not.
fn runs(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_killed_parent_end() {
    use footlight::cluster::processes::{ProcessSpec, Processes};

    let processes = Processes::new();
    let spec = ProcessSpec::this_binary("parent").args([
        "--exact",
        "parent_process",
        "--ignored",
        "--nocapture",
    ]);
    let parent = processes.start(spec).await.unwrap();
    let line = parent.wait_line("nodes ", LONG).await.unwrap();
    let words: Vec<&str> = line.splitn(5, ' ').collect();
    let pids: Vec<u32> = words[1..4].iter().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    parent.kill();
    until("all nodes end", async || !pids.iter().any(|pid| runs(*pid))).await;
    // What a killed process can't take away itself.
    fs::remove_dir_all(words[4]).unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_cluster_that_is_dropped_have_ended() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr)).await;
    node.process.freeze();
    let pids = [seed.process.pid(), node.process.pid()];
    drop(cluster);
    assert!(!pids.iter().any(|pid| runs(*pid)), "they are gone when the drop returns");
}
