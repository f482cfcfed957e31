//! A cluster that was cut in two is one again soon after the cut heals, and what was started twice
//! meanwhile runs once.

use std::time::{Duration, Instant};

use footlight::{
    prelude::*,
    runtime::{Failure, NodeId},
};

use crate::support::{netns::Hosts, *};

/// How long the cluster has to become one again.
const HEALED: Duration = Duration::from_secs(10);

/// How many probes run on a node.
async fn probes(asked: &Node, node: &NodeProcess) -> u64 {
    let status = soon(asked.status_of(node.id)).await.unwrap();
    status.actors.iter().find(|(name, _)| name == Probe::NAME).map_or(0, |(_, count)| *count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_and_three_are_five_again() {
    let Some(hosts) = Hosts::new(5) else { return };
    let cluster = Cluster::with_authority().await;
    let [one, two, three, four, five] = hosts.all() else { unreachable!() };
    let (few, many) = hosts.all().split_at(2);
    // A node on each side is in this process, so that this test sees both.
    let first = cluster.here(Options::on(one)).await;
    let join = |host| Options { seeds: vec![one.addr()], ..Options::on(host) };
    let third = cluster.here(join(three)).await;
    let second = cluster.process("two", join(two)).await;
    let fourth = cluster.process("four", join(four)).await;
    let fifth = cluster.process("five", join(five)).await;
    let before = one_view(&first, 5, LONG).await;

    // A supervisor among the three has a child among the two, and may start it at home.
    let places = [second.id, fourth.id];
    let supervisor = soon(
        third
            .supervise(OneForOne::new())
            .child::<Probe>("child", (), Placement::any_of(places.to_vec()))
            .start(),
    )
    .await
    .unwrap();
    assert_eq!(soon(supervisor.place("child")).await.unwrap().unwrap().node, second.id);
    // Others are called across the cut, either way.
    let there = soon(third.spawn::<Probe>(()).on(Placement::node(second.id))).await.unwrap();
    let back = soon(first.spawn::<Probe>(()).on(Placement::node(fifth.id))).await.unwrap();
    let held = [there.clone(), ActorRef::at(back.addr(), first.system())]
        .map(|probe| tokio::spawn(async move { probe.call(Hold {}).await.unwrap_err().failure }));
    until("both calls are under way", async || {
        there.call(Held {}).await.unwrap() == 1 && back.call(Held {}).await.unwrap() == 1
    })
    .await;

    hosts.cut(few, many);
    sees_down(&first, 3).await;
    sees_down(&third, 2).await;
    one_view(&first, 2, LONG).await;
    one_view(&third, 3, LONG).await;
    for (held, lost) in held.into_iter().zip([second.id, fifth.id]) {
        assert_eq!(soon(held).await.unwrap(), Failure::may_have_run(Cause::NodeLost(lost)));
    }
    for (caller, probe, lost) in [(&third, &there, second.id), (&first, &back, fifth.id)] {
        let probe = ActorRef::<Probe>::at(probe.addr(), caller.system());
        let error = soon(probe.call(Where {})).await.unwrap_err();
        assert_eq!(error.failure, Failure::not_sent(Cause::NodeLost(lost)));
        assert_eq!(soon(caller.watch(&probe)).await, Down::NodeLost(lost));
    }
    until("the child is started at home", async || {
        let place = soon(supervisor.place("child")).await.unwrap();
        place.is_some_and(|place| place.node == fourth.id)
    })
    .await;
    // On the other side it ends with its supervisor, whose node is lost there; what nobody owns stays.
    until("the child is ended over there", async || probes(&first, &second).await == 1).await;

    hosts.heal();
    let healed = Instant::now();
    let after = one_view(&third, 5, HEALED).await;
    println!("one view {:?} after the cut healed", healed.elapsed());
    // The few are in new lives; the many live on, and what runs there never stopped.
    let renewed = before.iter().zip(&after).filter(|(before, after)| before != after);
    let mut renewed: Vec<NodeId> = renewed.map(|((node, ..), _)| *node).collect();
    renewed.sort();
    let mut few = [first.id(), second.id];
    few.sort();
    assert_eq!(renewed, few, "{before:?} {after:?}");
    soon(back.call(Where {})).await.unwrap();
    let lost = Failure::not_sent(Cause::NodeLost(second.id));
    assert_eq!(soon(there.call(Where {})).await.unwrap_err().failure, lost);
    // So the child runs once again, where it was started last.
    let stopped =
        until("the actors of the few are gone", async || probes(&third, &second).await == 0);
    let left = HEALED.saturating_sub(healed.elapsed());
    tokio::time::timeout(left, stopped).await.expect("they are not gone in time");
    let child = soon(supervisor.place("child")).await.unwrap().unwrap();
    assert_eq!(child.node, fourth.id);
    let child = ActorRef::<Probe>::at(child, third.system());
    assert_eq!(soon(child.call(Where {})).await.unwrap(), (fourth.id, fourth.process.pid()));
    assert_eq!((probes(&third, &fourth).await, probes(&third, &fifth).await), (1, 1));
}
