//! A node that is asked to end finishes what it has in hand, takes nothing new, and leaves.

use std::time::{Duration, Instant};

use footlight::{prelude::*, runtime::Failure};

use crate::support::*;

fn leaving(node: &NodeProcess) -> Failure {
    Failure::not_sent(Cause::Leaving(node.id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_hand_at_sigterm_are_answered_and_new_ones_refused() {
    const CALLS: u64 = 40;
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let mut events = seed.events();
    let spawn = async || soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    let (busy, blocked, idle) = (spawn().await, spawn().await, spawn().await);
    // Some seconds of work in one mailbox, a call that waits for another node's actor, and one whose
    // answer is large.
    busy.cast(Nap { millis: 2500 }).await.unwrap();
    let naps = (0..CALLS).map(|_| {
        let busy = busy.clone();
        tokio::spawn(async move { busy.call(Nap { millis: 10 }).await })
    });
    let naps: Vec<_> = naps.collect();
    let here = seed.spawn::<Probe>(()).await.unwrap();
    here.cast(Nap { millis: 3000 }).await.unwrap();
    let relayed = {
        let blocked = blocked.clone();
        tokio::spawn(async move { blocked.call(Relay { to: here }).await })
    };
    let mirrored = {
        let (busy, zeros) =
            (busy.clone(), HostTensor::from_vec(vec![0f32; 1 << 20], &[1 << 20]).unwrap());
        tokio::spawn(async move { busy.call(Mirror { tensor: zeros }).await })
    };
    until("all calls have arrived", async || {
        soon(seed.status_of(node.id)).await.unwrap().in_hand == CALLS + 3
    })
    .await;

    node.process.terminate();
    let is_leaving = |event: &_| matches!(event, ClusterEvent::Leaving(_));
    event(&mut events, is_leaving).await;
    assert_eq!(soon(idle.call(Where {})).await.unwrap_err().failure, leaving(&node));
    let refused = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap_err();
    assert!(refused.to_string().contains("leaving"), "{refused}");
    // It still tells how it is.
    assert_eq!(soon(seed.status_of(node.id)).await.unwrap().node, node.id);

    for nap in naps {
        soon(nap).await.unwrap().expect("what was in the mailbox is handled and answered");
    }
    assert_eq!(soon(relayed).await.unwrap().unwrap().unwrap().0, seed.id());
    assert_eq!(soon(mirrored).await.unwrap().unwrap().shape(), [1 << 20]);
    let is_end = |event: &_| matches!(event, ClusterEvent::Left(_) | ClusterEvent::Down(_));
    let gone = event(&mut events, is_end).await;
    assert!(matches!(&gone, ClusterEvent::Left(member) if member.id == node.id), "{gone:?}");
    node.process.wait_line("left", LONG).await.unwrap();
    assert!(soon(node.process.wait(LONG)).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_node_at_once() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    let mut events = seed.events();
    let held = {
        let probe = probe.clone();
        tokio::spawn(async move { probe.call(Hold {}).await })
    };
    until("the call is held", async || soon(probe.call(Held {})).await.unwrap() == 1).await;
    node.process.terminate();
    event(&mut events, |event| matches!(event, ClusterEvent::Leaving(_))).await;
    let asked = Instant::now();
    node.process.terminate();
    // Its own end of the drain would come after 20 s.
    assert_eq!(
        soon(held).await.unwrap().unwrap_err().failure,
        Failure::may_have_run(Cause::Stopped)
    );
    event(&mut events, |event| matches!(event, ClusterEvent::Left(_))).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(soon(node.process.wait(LONG)).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_from_elsewhere_drains_in_the_time_that_was_given() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    let mut events = seed.events();
    let held = {
        let probe = probe.clone();
        tokio::spawn(async move { probe.call(Hold {}).await })
    };
    until("the call is held", async || soon(probe.call(Held {})).await.unwrap() == 1).await;
    let within = Duration::from_millis(300);
    let draining = soon(seed.drain_node(node.id, Some(within))).await.unwrap();
    assert_eq!(draining.within, within);
    // The last question was answered a moment ago, and may count still.
    assert!((1..=2).contains(&draining.in_hand), "{}", draining.in_hand);
    // What is never answered ends with the time, and with an error.
    assert_eq!(
        soon(held).await.unwrap().unwrap_err().failure,
        Failure::may_have_run(Cause::Stopped)
    );
    event(&mut events, |event| matches!(event, ClusterEvent::Left(_))).await;
    node.process.wait_line("left", LONG).await.unwrap();
    assert!(soon(node.process.wait(LONG)).await.unwrap().success());
    let gone = soon(seed.drain_node(node.id, None)).await.unwrap_err();
    assert!(gone.to_string().contains("is no member"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_children_of_a_node_that_drains_are_started_elsewhere() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let worker = |seed: &Node| Options { role: "worker", ..Options::join(seed.addr()) };
    let nodes =
        [cluster.process("one", worker(&seed)).await, cluster.process("two", worker(&seed)).await];
    sees_up(&seed, 3).await;
    let supervisor =
        seed.supervise(OneForOne::new()).child::<Probe>("probe", (), Placement::role("worker"));
    let supervisor = soon(supervisor.start()).await.unwrap();
    let mut children = soon(supervisor.events()).await.unwrap();
    let first = soon(supervisor.place("probe")).await.unwrap().unwrap();
    let (node, other) = match &nodes {
        [one, two] if one.id == first.node => (one, two),
        [one, two] => (two, one),
    };
    soon(seed.drain_node(node.id, None)).await.unwrap();
    let moved = soon(async {
        loop {
            match children.next().await.unwrap().unwrap() {
                ChildEvent::Started { actor, .. } if actor != first => return actor,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(moved.node, other.id);
    let probe = ActorRef::<Probe>::at(moved, seed.system());
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, other.id);
    soon(supervisor.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_is_done_is_started_elsewhere_while_its_neighbour_is_busy() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let worker = || Options { role: "worker", ..Options::join(seed.addr()) };
    let drains = cluster.process("drains", worker()).await;
    sees_up(&seed, 2).await;
    let supervisor = seed
        .supervise(OneForOne::new())
        .child::<Probe>("idle", (), Placement::role("worker"))
        .child::<Probe>("busy", (), Placement::role("worker"));
    let supervisor = soon(supervisor.start()).await.unwrap();
    let mut children = soon(supervisor.events()).await.unwrap();
    let other = cluster.process("other", worker()).await;
    sees_up(&seed, 3).await;
    let busy = soon(supervisor.child::<Probe>("busy")).await.unwrap();
    let idle = soon(supervisor.child::<Probe>("idle")).await.unwrap();
    let held = tokio::spawn({
        let busy = busy.clone();
        async move { busy.call_within(Hold {}, 2 * LONG).await }
    });
    until("the call is held", async || soon(busy.call(Held {})).await.unwrap() == 1).await;
    let watch = seed.watch(&idle);
    soon(seed.drain_node(drains.id, Some(2 * LONG))).await.unwrap();
    assert_eq!(soon(watch).await, Down::NodeLeft(drains.id));
    let moved = soon(async {
        loop {
            match children.next().await.unwrap().unwrap() {
                ChildEvent::Started { actor, .. } if actor.node == other.id => return actor,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(soon(supervisor.place("idle")).await.unwrap(), Some(moved));
    // To those who still have the old reference the reason is the same as for its neighbours.
    assert_eq!(soon(idle.call(Where {})).await.unwrap_err().failure, leaving(&drains));
    // Its node is still there, with the call that it has in hand.
    assert_eq!(soon(seed.status_of(drains.id)).await.unwrap().in_hand, 1);
    assert!(!held.is_finished());
    soon(seed.drain_node(drains.id, Some(Duration::ZERO))).await.unwrap();
    assert_eq!(
        soon(held).await.unwrap().unwrap_err().failure,
        Failure::may_have_run(Cause::Stopped)
    );
    soon(supervisor.stop()).await.unwrap();
}
