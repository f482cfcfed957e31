//! Processes that know only a seed's address join, call each other, and spawn on each other.

use std::time::{Duration, Instant};

use footlight::prelude::*;

use crate::support::*;

/// A node that has nothing in hand has left after this time at the latest: sooner than any failure
/// could be detected.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_joined_is_spawned_on_and_called_and_answers_from_there() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;

    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap(), (seed.id, seed.process.pid()));
    assert_eq!(soon(probe.call(Echo { text: "x".repeat(1 << 20) })).await.unwrap().len(), 1 << 20);

    // Another one hears of this node from the seed alone.
    let other = cluster.process("other", Options::join(seed.addr)).await;
    sees_up(&node, 3).await;
    let theirs = soon(node.spawn::<Probe>(()).on(Placement::node(other.id))).await.unwrap();
    assert_eq!(soon(theirs.call(Where {})).await.unwrap().1, other.process.pid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_handed_to_a_third_node_works_there() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let other = cluster.process("other", Options::join(seed.addr)).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    sees_up(&node, 3).await;
    let here = node.spawn::<Probe>(()).await.unwrap();
    let on = async |id| soon(node.spawn::<Probe>(()).on(Placement::node(id))).await.unwrap();
    let (on_seed, on_other) = (on(seed.id).await, on(other.id).await);
    let beside_other = on(other.id).await;
    // To the third node, to this one, and home to the node on which its actor is.
    for (through, to) in [(&on_seed, &on_other), (&on_other, &here), (&on_other, &beside_other)] {
        let answer = soon(through.call(Relay { to: to.clone() })).await.unwrap().unwrap();
        assert_eq!(answer.0, to.addr().node);
    }
    // A watch through a reference that travelled.
    soon(on_seed.call(WatchIt { other: on_other.clone() })).await.unwrap();
    until("the watch is laid and answered", async || {
        on_other.stop();
        soon(on_seed.call(Ends {})).await.unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_before_their_seed_join_when_it_comes() {
    let cluster = Cluster::new();
    let addr = free_addr();
    let early = [
        cluster.launch("early-1", Options::join(addr)).await,
        cluster.launch("early-2", Options::join(addr)).await,
    ];
    // They call in vain, and say so.
    for process in &early {
        until("it says that no seed answers", async || {
            let log = process.stderr().join("\n");
            log.contains("no seed answers; this node is alone and goes on calling")
                && log.contains(&addr.to_string())
        })
        .await;
    }
    let seed = cluster.here(Options { listen: Some(addr), ..Options::default() }).await;
    for process in early {
        NodeProcess::up(process).await;
    }
    sees_up(&seed, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_asked_to_end_leaves() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    for peer in [&seed, &other] {
        sees_up(peer, 3).await;
    }
    let all_events = [seed.events(), other.events()];
    let asked = Instant::now();
    node.process.terminate();
    for mut events in all_events {
        // A busy machine may make it a suspect for a moment, but not more.
        let is_end = |event: &_| matches!(event, ClusterEvent::Left(_) | ClusterEvent::Down(_));
        let gone = event(&mut events, is_end).await;
        assert!(matches!(&gone, ClusterEvent::Left(member) if member.id == node.id), "{gone:?}");
    }
    println!("all knew {:?} after it was asked", asked.elapsed());
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    node.process.wait_line("left", LONG).await.unwrap();
    assert!(node.process.wait(LONG).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_connect_with_each_other_at_once_lose_no_call() {
    let cluster = Cluster::new();
    let first = cluster.here(Options::default()).await;
    let second = cluster.here(Options::join(first.addr())).await;
    let third = cluster.here(Options::join(first.addr())).await;
    sees_up(&first, 3).await;
    let standing = [&first, &second, &third];
    for _ in 0..40 {
        // It calls all three, while those who hear of it from another call it.
        let seeds = standing.map(Node::addr).to_vec();
        let guest = cluster.here(Options { seeds, ..Options::default() }).await;
        sees_up(&guest, 4).await;
        for node in standing {
            let there = Placement::node(node.id());
            let probe = soon(guest.spawn::<Probe>(()).on(there)).await.unwrap();
            assert_eq!(soon(probe.call(Where {})).await.unwrap().0, node.id());
            let back = ActorRef::<Probe>::at(
                soon(node.spawn::<Probe>(())).await.unwrap().addr(),
                guest.system(),
            );
            assert_eq!(soon(back.call(Where {})).await.unwrap().0, node.id());
        }
        soon(guest.leave()).await.unwrap();
        sees_up(&first, 3).await;
    }
}
