//! Two members that can't reach each other, though a third reaches both, are told so, and nobody
//! waits for ever.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use footlight::{prelude::*, runtime::NodeId};

use crate::support::{lossy::Cuts, *};

/// A connection over which nothing comes is given up after 2 s, which are counted in looks; a busy
/// machine takes longer.
const SILENT: RangeInclusive<Duration> = Duration::from_millis(1_500)..=Duration::from_secs(6);

fn tells_unreachable(node: &Node, from: NodeId, to: NodeId) -> bool {
    node.members().iter().any(|member| member.id == from && member.unreachable == [to])
}

async fn cut_is_told(one_way: bool) {
    let cluster = Cluster::new();
    let cuts = Cuts::default();
    let start =
        async |options| cluster.builder(options).sockets(cuts.sockets()).start().await.unwrap();
    let third = start(Options::default()).await;
    let one = start(Options::join(third.addr())).await;
    let other = start(Options::join(third.addr())).await;
    for node in [&third, &one, &other] {
        sees_up(node, 3).await;
    }
    let probe = soon(one.spawn::<Probe>(()).on(Placement::node(other.id()))).await.unwrap();
    let mut events = [one.events(), other.events(), third.events()];
    let held = tokio::spawn({
        let probe = probe.clone();
        async move { (probe.call(Hold {}).await.unwrap_err(), Instant::now()) }
    });
    until("a call is under way", async || soon(probe.call(Held {})).await.unwrap() == 1).await;

    let cut_at = Instant::now();
    cuts.cut_one_way(one.addr(), other.addr());
    if !one_way {
        cuts.cut_one_way(other.addr(), one.addr());
    }
    // The call that was under way does not wait for its deadline, nor for what the connection itself
    // bears without a packet, 10 s.
    let (error, failed_at) = soon(held).await.unwrap();
    assert_eq!(error.fate(), Fate::MayHaveRun, "{error}");
    assert!(matches!(error.cause(), Cause::Unreachable(_)), "{error}");
    let took = failed_at - cut_at;
    println!("the call under way failed {took:?} after the cut: {error}");
    assert!(SILENT.contains(&took), "{took:?}");
    // Both, and whoever asks, learn it of both.
    for events in &mut events {
        let mut missing = BTreeSet::from([(one.id(), other.id()), (other.id(), one.id())]);
        event(events, |event| {
            assert!(!matches!(event, ClusterEvent::Down(_)), "{event:?}");
            if let ClusterEvent::Unreachable { from, to } = event {
                missing.remove(&(*from, *to));
            }
            missing.is_empty()
        })
        .await;
    }
    for node in [&one, &other, &third] {
        assert!(tells_unreachable(node, one.id(), other.id()));
        assert!(tells_unreachable(node, other.id(), one.id()));
        assert!(!node.members().iter().any(|member| member.state.is_gone()));
    }
    // A call across the cut says so at once, long before its deadline, and between which two it is;
    // so does a cast that does not wait, and it is the same from the other side.
    let back = soon(one.spawn::<Probe>(())).await.unwrap();
    let back = ActorRef::<Probe>::at(back.addr(), other.system());
    let asked = Instant::now();
    let called = soon(probe.call(Where {})).await.unwrap_err();
    let cast = probe.try_cast(Note { number: 1, tensor: None }).unwrap_err();
    let back = soon(back.call(Where {})).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    for (error, between) in [
        (called, (one.id(), other.id())),
        (cast, (one.id(), other.id())),
        (back, (other.id(), one.id())),
    ] {
        assert_eq!(error.fate(), Fate::NotSent, "{error}");
        let Cause::CutOff { from, to, .. } = error.cause() else { panic!("{error}") };
        assert_eq!((*from, *to), between);
        let says = format!("unreachable: node {from} and node {to} can't reach each other");
        assert!(error.to_string().contains(&says), "{error}");
    }
    // The third one reaches it.
    let there = ActorRef::<Probe>::at(probe.addr(), third.system());
    assert_eq!(soon(there.call(Where {})).await.unwrap().0, other.id());

    cuts.heal();
    until("they reach each other again", async || {
        [&one, &other, &third]
            .iter()
            .all(|node| node.members().iter().all(|member| member.unreachable.is_empty()))
    })
    .await;
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, other.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_two_members_is_told_to_all_and_calls_across_fail_with_it() {
    cut_is_told(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_a_cut_of_one_way_only() {
    cut_is_told(true).await;
}
