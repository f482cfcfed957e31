//! Large tensors on a slow link take their time, and nobody is declared down for it.

mod support;

use std::time::{Duration, Instant};

use footlight::prelude::*;
use support::{netns::Hosts, *};

/// What each host may send, in bits per second.
const RATE: u64 = 20_000_000;
/// Bytes of a tensor. Four of them take 3.3 s of such a link at least.
const TENSOR: usize = 2 << 20;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_tensors_on_a_slow_link_declare_nobody_down() {
    let Some(hosts) = Hosts::new(3) else { return };
    let cluster = Cluster::with_authority().await;
    let [one, two, three] = hosts.all() else { unreachable!() };
    let seed = cluster.here(Options::on(one)).await;
    let join = |host| Options { seeds: vec![one.addr()], ..Options::on(host) };
    let second = cluster.process("two", join(two)).await;
    let third = cluster.process("three", join(three)).await;
    let before = one_view(&seed, 3, LONG).await;
    let mut probes = Vec::new();
    for node in [&second, &third] {
        probes.push(soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap());
    }

    hosts.all().iter().for_each(|host| hosts.limit(host, RATE));
    let begun = Instant::now();
    let tensor = HostTensor::from_vec(vec![1.5f32; TENSOR / 4], &[TENSOR / 4]).unwrap();
    let mirrored = probes.iter().flat_map(|probe| [probe, probe]).map(|probe| {
        let mirror = Mirror { tensor: tensor.clone() };
        probe.call_within(mirror, Duration::from_secs(60))
    });
    let mirrored = futures::future::join_all(mirrored);
    let mut mirrored = std::pin::pin!(mirrored);
    // Small calls pass meanwhile.
    let (mut small, mut slowest) = (0, Duration::ZERO);
    let mirrored = loop {
        let asked = Instant::now();
        let call = probes[small % 2].call(Where {});
        tokio::select! {
            biased;
            mirrored = &mut mirrored => break mirrored,
            answer = call => {
                answer.unwrap();
                slowest = slowest.max(asked.elapsed());
                small += 1;
            }
        }
    };
    let took = begun.elapsed();
    println!(
        "4 tensors there and back in {took:?}, {small} calls meanwhile, the slowest {slowest:?}"
    );
    for answer in mirrored {
        assert_eq!(answer.unwrap(), tensor);
    }
    // The link was slow indeed.
    assert!(took > Duration::from_secs(3), "{took:?}");
    assert_eq!(one_view(&seed, 3, LONG).await, before);
}
