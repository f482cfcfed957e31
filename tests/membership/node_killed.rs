//! A process that is killed is noticed, told about, and may come back.

use std::time::{Duration, Instant};

use footlight::{prelude::*, runtime::Failure};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_told_to_watchers_and_callers_and_may_come_back() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let options = Options { listen: Some(free_addr()), ..Options::join(seed.addr()) };
    let victim = cluster.process("victim", options.clone()).await;
    let mut events = seed.events();
    sees_up(&seed, 2).await;
    let probe = seed.spawn::<Probe>(()).on(Placement::node(victim.id)).await.unwrap();
    let watch = seed.watch(&probe);
    let pending = tokio::spawn({
        let probe = probe.clone();
        async move { probe.call(Hold {}).await }
    });
    until("the call is under way", async || probe.call(Held {}).await.unwrap() == 1).await;

    victim.process.kill();
    assert_eq!(soon(watch).await, Down::NodeLost(victim.id));
    let pending = soon(pending).await.unwrap().unwrap_err();
    assert_eq!(pending.failure, Failure::may_have_run(Cause::NodeLost(victim.id)));
    let after = soon(probe.call(Where {})).await.unwrap_err();
    assert_eq!(after.failure, Failure::not_sent(Cause::NodeLost(victim.id)));
    event(&mut events, |event| matches!(event, ClusterEvent::Down(_))).await;
    let member = seed.members().into_iter().find(|member| member.id == victim.id).unwrap();
    assert_eq!(member.state, MemberState::Down);

    // On the same port it is the same node in a new life; references to the old one stay dead.
    let again = cluster.process("again", options).await;
    assert_eq!(again.id, victim.id);
    assert!(again.incarnation > victim.incarnation);
    sees_up(&seed, 2).await;
    let fresh = soon(seed.spawn::<Probe>(()).on(Placement::node(again.id))).await.unwrap();
    assert_eq!(soon(fresh.call(Where {})).await.unwrap(), (again.id, again.process.pid()));
    let old = soon(probe.call(Where {})).await.unwrap_err();
    assert_eq!(old.failure, Failure::not_sent(Cause::NodeLost(victim.id)));
    assert_eq!(soon(seed.watch(&probe)).await, Down::NodeLost(victim.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_back_before_it_was_missed_is_known_as_new_at_once() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let options = Options { listen: Some(free_addr()), ..Options::join(seed.addr()) };
    let victim = cluster.process("victim", options.clone()).await;
    sees_up(&seed, 2).await;
    let probe = seed.spawn::<Probe>(()).on(Placement::node(victim.id)).await.unwrap();
    let watch = seed.watch(&probe);
    victim.process.kill();
    victim.process.wait(LONG).await.unwrap();
    let again = cluster.process("again", options).await;
    assert_eq!(soon(watch).await, Down::NodeLost(victim.id));
    seed.wait_for_members(LONG, |members| {
        members.iter().any(|m| m.is_up() && m.incarnation == again.incarnation)
    })
    .await
    .unwrap();
    let fresh = soon(seed.spawn::<Probe>(()).on(Placement::node(again.id))).await.unwrap();
    assert_eq!(soon(fresh.call(Where {})).await.unwrap(), (again.id, again.process.pid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_is_killed_and_comes_back_finds_its_cluster_again() {
    let cluster = Cluster::new();
    let at_seed = Options { listen: Some(free_addr()), ..Options::default() };
    let seed = cluster.process("seed", at_seed.clone()).await;
    let [one, two] = [
        cluster.here(Options::join(seed.addr)).await,
        cluster.here(Options::join(seed.addr)).await,
    ];
    sees_up(&one, 3).await;
    sees_up(&two, 3).await;
    seed.process.kill();
    // The others need no seed to stay together.
    one.wait_for_members(LONG, |members| {
        members.iter().any(|m| m.id == seed.id && m.state == MemberState::Down)
    })
    .await
    .unwrap();
    sees_up(&one, 2).await;
    let probe = soon(one.spawn::<Probe>(()).on(Placement::node(two.id()))).await.unwrap();
    soon(probe.call(Where {})).await.unwrap();
    // It comes back as it was started, without a seed of its own: the others call on it.
    let again = cluster.process("again", at_seed).await;
    sees_up(&one, 3).await;
    let probe = soon(one.spawn::<Probe>(()).on(Placement::node(again.id))).await.unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap().1, again.process.pid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_down_for_all_others_soon() {
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
    victim.process.kill();
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
