//! A node that stood still until it was declared down comes back as new, and its old life is over.

use std::time::{Duration, Instant};

use footlight::{prelude::*, runtime::Failure};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_declared_down_while_it_stood_still_comes_back_as_new() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let old = seed.spawn::<Probe>(()).on(Placement::node(node.id)).await.unwrap();
    let watch = seed.watch(&old);
    // Something of the old life that sends here all the time, and again as soon as it goes on.
    let here = seed.spawn::<Probe>(()).await.unwrap();
    let args = SoloArgs { witness: Some(here.clone()), ..SoloArgs::default() };
    soon(seed.spawn::<Solo>(args).on(Placement::node(node.id))).await.unwrap();
    until("it sends", async || !soon(here.call(Notes {})).await.unwrap().is_empty()).await;

    node.process.freeze();
    assert_eq!(soon(watch).await, Down::NodeLost(node.id));
    let heeded = soon(here.call(Notes {})).await.unwrap().len();
    let lost = Failure::not_sent(Cause::NodeLost(node.id));
    assert_eq!(soon(old.call(Where {})).await.unwrap_err().failure, lost);

    node.process.thaw();
    let members = seed
        .wait_for_members(LONG, |members| {
            members.iter().any(|m| m.id == node.id && m.is_up() && m.incarnation > node.incarnation)
        })
        .await
        .unwrap();
    assert_eq!(members.len(), 2, "one entry for each node: {members:?}");
    // Its old actors are dead to all, whatever it did meanwhile.
    assert_eq!(soon(old.call(Where {})).await.unwrap_err().failure, lost);
    assert_eq!(soon(seed.watch(&old)).await, Down::NodeLost(node.id));
    until("they were stopped there too", async || {
        let status = soon(seed.status_of(node.id)).await.unwrap();
        !status.actors.iter().any(|(name, _)| name == Probe::NAME)
    })
    .await;
    assert_eq!(soon(here.call(Notes {})).await.unwrap().len(), heeded, "not heeded any more");
    // New ones work, both ways.
    let fresh = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    assert_eq!(soon(fresh.call(Where {})).await.unwrap().0, node.id);
    let answer = soon(fresh.call(Relay { to: here })).await.unwrap().unwrap();
    assert_eq!(answer.0, seed.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_agree_on_the_new_life() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    sees_up(&other, 3).await;
    sees_up(&seed, 3).await;
    node.process.freeze();
    for watcher in [&seed, &other] {
        watcher
            .wait_for_members(LONG, |members| {
                members.iter().any(|m| m.id == node.id && m.state == MemberState::Down)
            })
            .await
            .unwrap();
    }
    node.process.thaw();
    for caller in [&seed, &other] {
        sees_up(caller, 3).await;
        let probe = soon(caller.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
        assert_eq!(soon(probe.call(Where {})).await.unwrap().0, node.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_is_down_for_all_others_soon() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let (addr, mut others) = (seed.addr(), vec![seed]);
    for _ in 0..2 {
        others.push(cluster.here(Options::join(addr)).await);
    }
    let bystander = cluster.process("bystander", Options::join(addr)).await;
    let victim = cluster.process("victim", Options::join(addr)).await;
    for node in &others {
        sees_up(node, 5).await;
    }
    let mut events: Vec<_> = others.iter().map(Node::events).collect();
    let began = Instant::now();
    victim.process.freeze();
    for events in &mut events {
        let is_down =
            |event: &_| matches!(event, ClusterEvent::Down(member) if member.id == victim.id);
        event(events, is_down).await;
    }
    // 1.3 s on a quiet machine; this one may be busy.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let bystander = others[0].status_of(bystander.id);
    let there = soon(bystander).await.unwrap().members;
    assert!(there.iter().any(|member| member.id == victim.id && !member.is_up()), "{there:?}");
}
