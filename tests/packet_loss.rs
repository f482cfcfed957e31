//! A network that loses every tenth packet, on a machine with all cores busy: nobody is declared
//! down for a minute, and calls are answered.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use footlight::{
    cluster::processes::{ProcessSpec, Processes, exit_with_parent},
    prelude::*,
};
use support::{netns::Hosts, *};

const MINUTE: Duration = Duration::from_secs(60);
/// One call to each other node in so much time.
const PACE: Duration = Duration::from_millis(100);

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

#[test]
#[ignore = "run by the other test in processes of its own"]
fn burner_process() {
    if exit_with_parent().unwrap() {
        loop {
            std::hint::spin_loop();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_declared_down_in_a_minute_of_ten_per_cent_loss() {
    let Some(hosts) = Hosts::new(5) else { return };
    let cluster = Cluster::with_authority().await;
    let (one, others) = hosts.all().split_first().unwrap();
    let seed = cluster.here(Options::on(one)).await;
    let mut nodes = Vec::new();
    for (number, host) in others.iter().enumerate() {
        let options = Options { seeds: vec![one.addr()], ..Options::on(host) };
        nodes.push(cluster.process(&format!("node-{number}"), options).await);
    }
    let before = one_view(&seed, 5, LONG).await;
    let mut probes = Vec::new();
    for node in &nodes {
        probes.push(soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap());
    }

    let burners = Processes::new();
    for number in 0..thread::available_parallelism().unwrap().get() {
        let burner = ProcessSpec::this_binary(format!("burner-{number}"));
        let burner = burner.args(["--exact", "burner_process", "--ignored"]);
        burners.start(burner).await.unwrap();
    }
    hosts.lose(10);
    let end = Instant::now() + MINUTE;
    let calls = probes.into_iter().map(|probe| {
        tokio::spawn(async move {
            let (mut answered, mut slowest) = (0, Duration::ZERO);
            while Instant::now() < end {
                let asked = Instant::now();
                let text = answered.to_string();
                assert_eq!(probe.call(Echo { text: text.clone() }).await.unwrap(), text);
                slowest = slowest.max(asked.elapsed());
                answered += 1;
                tokio::time::sleep(PACE.saturating_sub(asked.elapsed())).await;
            }
            (answered, slowest)
        })
    });
    for calls in futures::future::join_all(calls).await {
        let (answered, slowest) = calls.expect("a call failed");
        println!("{answered} calls answered, the slowest within {slowest:?}");
        assert!(answered > 60, "{answered}");
    }
    // Whoever had been declared down would be in another life.
    assert_eq!(one_view(&seed, 5, LONG).await, before);
}
