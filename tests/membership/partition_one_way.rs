//! A node that hears the others and is not heard is declared down, and is one of them again soon
//! after it is heard. To the others nothing happens.

use std::time::{Duration, Instant};

use footlight::{prelude::*, runtime::Failure};

use crate::support::{netns::Hosts, *};

/// How long the cluster has to become one again.
const HEALED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_and_is_not_heard() {
    let Some(hosts) = Hosts::new(4) else { return };
    let cluster = Cluster::with_authority().await;
    let [one, two, three, four] = hosts.all() else { unreachable!() };
    let seed = cluster.here(Options::on(one)).await;
    let join = |host| Options { seeds: vec![one.addr()], ..Options::on(host) };
    let mute = cluster.here(join(two)).await;
    let third = cluster.process("three", join(three)).await;
    let fourth = cluster.process("four", join(four)).await;
    let before = one_view(&seed, 4, LONG).await;
    let [there, back] = [(&seed, mute.id()), (&mute, third.id)].map(async |(node, at)| {
        soon(node.spawn::<Probe>(()).on(Placement::node(at))).await.unwrap()
    });
    let (there, back) = futures::join!(there, back);

    hosts.cut_one_way(&hosts.all()[1..2], &[one.clone(), three.clone(), four.clone()]);
    sees_down(&seed, 1).await;
    assert_eq!(soon(seed.watch(&there)).await, Down::NodeLost(mute.id()));
    let error = soon(there.call(Where {})).await.unwrap_err();
    assert_eq!(error.failure, Failure::not_sent(Cause::NodeLost(mute.id())));
    // It hears no answers, so its own calls end too, by their deadline at the latest.
    let patience = Duration::from_secs(3);
    let error = soon(back.call_within(Where {}, patience)).await.unwrap_err();
    let named =
        matches!(error.cause(), Cause::NodeLost(_) | Cause::TimedOut(_) | Cause::Unreachable(_));
    assert!(named, "{error}");
    // It hears of its own fate, or it finds that nobody answers.
    sees_down(&mute, 3).await;
    one_view(&seed, 3, LONG).await;

    hosts.heal();
    let healed = Instant::now();
    let after = one_view(&seed, 4, HEALED).await;
    println!("one view {:?} after it was heard again", healed.elapsed());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before == after, before.0 != mute.id(), "{before:?} {after:?}");
    }
    // What the others have is there for it again, and new actors are there for them.
    soon(back.call(Where {})).await.unwrap();
    let fresh = soon(seed.spawn::<Probe>(()).on(Placement::node(mute.id()))).await.unwrap();
    soon(fresh.call(Where {})).await.unwrap();
    assert_eq!(soon(seed.watch(&there)).await, Down::NodeLost(mute.id()));
    assert!(third.process.is_running() && fourth.process.is_running());
}
