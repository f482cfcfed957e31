//! Whoever watches an actor on another node learns how it ended: each way is told apart, to all who
//! watch, also to those who come late.

use footlight::prelude::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_end_is_told_apart_to_all_who_watch_from_elsewhere() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let [node, watcher, leaves] = [
        cluster.process("node", Options::join(seed.addr())).await,
        cluster.process("watcher", Options::join(seed.addr())).await,
        cluster.process("leaves", Options::join(seed.addr())).await,
    ];
    one_view(&seed, 4, LONG).await;
    // A busy machine makes a node a suspect, and nothing is placed there for a moment.
    let on =
        async |id| soon(seed.spawn::<Probe>(()).on(Placement::node(id)).wait(LONG)).await.unwrap();
    let watcher = on(watcher.id).await;
    let [stopped, killed, panicked] = [on(node.id).await, on(node.id).await, on(node.id).await];
    let (left, lost) = (on(leaves.id).await, on(node.id).await);
    let tool = || seed.spawn::<Tool>(Begin::Ready).on(Placement::node(node.id)).wait(LONG);
    let failed = soon(tool()).await.unwrap();
    let linked = soon(tool()).await.unwrap();
    soon(failed.call(LinkTo { other: linked.clone(), linked: true })).await.unwrap();

    let mut seen = Vec::new();
    let mut late = Vec::new();
    // In an order, so that the other watcher's list has one.
    let text = "with \"quotes\" and\na second line";
    for (probe, expected) in [
        (&stopped, Down::Stopped),
        (&killed, Down::Killed),
        (&panicked, Down::Panicked(text.into())),
        (&left, Down::NodeLeft(leaves.id)),
        (&lost, Down::NodeLost(node.id)),
    ] {
        soon(watcher.call(WatchIt { other: probe.clone() })).await.unwrap();
        let watch = seed.watch(probe);
        match &expected {
            Down::Stopped => probe.stop(),
            Down::Killed => probe.kill(),
            Down::Panicked(text) => {
                soon(probe.call(Boom { text: text.clone() })).await.unwrap_err();
            }
            Down::NodeLeft(_) => leaves.process.terminate(),
            _ => {
                // An error of its own, not a panic, while the node is there.
                let watch = seed.watch(&failed);
                soon(linked.call(Fall { why: "the other one".into() })).await.unwrap_err();
                let why = format!("linked {} ended: panicked: the other one", linked.addr());
                assert_eq!(soon(watch).await, Down::Failed(why));
                for (probe, how) in late.drain(..) {
                    assert_eq!(soon(seed.watch(probe)).await, how, "told to who comes late");
                }
                node.process.kill();
            }
        }
        assert_eq!(soon(watch).await, expected);
        seen.push(expected.to_string());
        if probe.addr().node == node.id {
            late.push((probe, expected));
        }
        until("the other watcher knows", async || {
            soon(watcher.call(Ends {})).await.unwrap() == seen
        })
        .await;
    }
    // Nothing is left to tell.
    assert_eq!(soon(seed.watch(&stopped)).await, Down::NodeLost(node.id));
}
