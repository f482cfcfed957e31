//! Large tensors between processes of one host are read straight from memory, unless a node would rather not.

use footlight::prelude::*;

use crate::support::*;

const LEN: usize = 8 << 20;

/// Another one for each number.
fn tensor(number: usize) -> HostTensor {
    let values = (0..LEN).map(|at| ((at + number) % 251) as u8).collect();
    HostTensor::from_vec(values, &[LEN]).unwrap()
}

async fn mirror(probe: &ActorRef<Probe>, number: usize) {
    let tensor = tensor(number);
    let back = soon(probe.call(Mirror { tensor: tensor.clone() })).await.unwrap();
    assert!(back == tensor, "another tensor came back");
}

/// Tensors go to and fro until they pass through memory both ways: the first may be ahead of the proof.
async fn until_memory(node: &Node, probe: &ActorRef<Probe>) {
    until("a tensor passed through memory both ways", async || {
        mirror(probe, 0).await;
        let counts = node.counts();
        counts.memory_bytes_sent > 0 && counts.memory_bytes_received > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_one_host_large_tensors_do_not_cross_the_network() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    until_memory(&node, &probe).await;
    let before = node.counts();
    for number in 0..10 {
        mirror(&probe, number).await;
    }
    // What was fetched is told behind the answer, at the latest with the next.
    until("all tensors count", async || {
        node.counts().memory_bytes_sent - before.memory_bytes_sent == 10 * LEN as u64
    })
    .await;
    let after = node.counts();
    assert_eq!(after.memory_bytes_received - before.memory_bytes_received, 10 * LEN as u64);
    assert!(after.wire_bytes_sent - before.wire_bytes_sent < LEN as u64, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_do_if_either_node_would_rather() {
    let network = "--same-host network";
    for (of_seed, of_node) in [(network, ""), ("", network)] {
        let cluster = Cluster::new();
        let flags = Options { flags: of_seed, ..Options::default() };
        let seed = cluster.process("seed", flags).await;
        let node = cluster.here(Options { flags: of_node, ..Options::join(seed.addr) }).await;
        let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
        for number in 0..3 {
            mirror(&probe, number).await;
        }
        let counts = node.counts();
        assert_eq!((counts.memory_bytes_sent, counts.memory_bytes_received), (0, 0));
        assert!(counts.wire_bytes_sent > 3 * LEN as u64, "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tensors_at_once_arrive_whole_and_in_order() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    until_memory(&node, &probe).await;
    // Longer ones, shorter ones and some within their frames.
    for number in 0..100 {
        let len = [3 << 20, 100 << 10, 1 << 10][number as usize % 3];
        let tensor = HostTensor::from_vec(vec![number as u8; len], &[len]).unwrap();
        soon(probe.cast(Sip { number, tensor, millis: 0 })).await.unwrap();
    }
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_lender_is_killed_its_calls_fail_and_nothing_false_arrives() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    for _ in 0..5 {
        let process = cluster.process("lender", Options::join(seed.addr())).await;
        let there = Placement::node(process.id);
        let probe = soon(seed.spawn::<Probe>(()).on(there)).await.unwrap();
        let (started, mut first) = tokio::sync::mpsc::channel(1);
        let calls = tokio::spawn(async move {
            for number in 0.. {
                let tensor = tensor(number);
                match probe.call(Mirror { tensor: tensor.clone() }).await {
                    Ok(back) => assert!(back == tensor, "another tensor came back"),
                    Err(error) => return error,
                }
                let _ = started.try_send(());
            }
            unreachable!()
        });
        soon(first.recv()).await.unwrap();
        process.process.kill();
        soon(calls).await.unwrap();
    }
}
