//! With `--network wan` a cluster works whose nodes are 300 ms from each other, there and back: the
//! ledger too, and a crash is told as one.

#[path = "support/far.rs"]
mod far;
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use far::Far;
use footlight::{
    cluster::ledger::{Expect, Holder, LedgerError, LedgerSettings},
    prelude::*,
    runtime::message::name_hash,
};
use support::*;

const ONE_WAY: Duration = Duration::from_millis(150);

/// A node of this process, and its sockets.
async fn start(cluster: &Cluster, options: Options) -> (Node, Far) {
    let far = Far::new(ONE_WAY);
    let options = Options { role: "server", flags: "--network wan", ..options };
    let node = cluster.builder(options).sockets(Arc::new(far.clone())).start().await;
    (node.unwrap(), far)
}

fn holder(node: &Node) -> Holder {
    let (node, incarnation) = (node.id(), node.incarnation());
    Holder { node, incarnation, text: "test".to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_preset_a_ledger_works_at_300_ms_and_a_crash_is_told_as_nothing_else() {
    let cluster = Cluster::new();
    let (first, far) = start(&cluster, Options::default()).await;
    let (second, _) = start(&cluster, Options::join(first.addr())).await;
    let (third, _) = start(&cluster, Options::join(first.addr())).await;
    for node in [&first, &second, &third] {
        sees_up(node, 3).await;
    }
    let ledger = third.ledger().within(LONG);
    until("all vote", async || ledger.status().is_some_and(|status| status.tolerance() == Some(1)))
        .await;
    soon(ledger.put("before", "1", Expect::Absent, None)).await.unwrap();
    let lease = soon(ledger.acquire("kept", holder(&third))).await.unwrap();
    let (before, held) = (lease.until(), ledger.hold(lease));
    // A singleton for which it is the first one's turn.
    let turn = |name: &str, node: &Node| name_hash(&format!("{name} {}", node.id()));
    let name = (0..).map(|number| format!("solo-{number}"));
    let name = name.into_iter().find(|name| turn(name, &first) < turn(name, &second)).unwrap();
    let either = Placement::any_of([first.id(), second.id()]);
    let solo = third.singleton::<Solo>(name, SoloArgs::default()).on(either).start();
    let solo = soon(solo).await.unwrap();
    let (runs_on, generation) = soon(solo.call(Tell)).await.unwrap();
    assert_eq!(runs_on, first.id());

    // To the others the first one has crashed, which is the ledger's leader, as it has founded it.
    let mut events = [second.events(), third.events()];
    assert_eq!(ledger.status().unwrap().leader, Some(first.id()));
    far.cut_off();
    let begun = Instant::now();
    for events in &mut events {
        event(events, |event| {
            let untrue = matches!(event, ClusterEvent::Unreachable { .. });
            assert!(!untrue, "{event:?} after {:?}", begun.elapsed());
            matches!(event, ClusterEvent::Down(down) if down.id == first.id())
        })
        .await;
    }
    println!("down after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // There is another leader, and who holds a lease has hardly noticed.
    soon(ledger.put("after", "1", Expect::Absent, None)).await.unwrap();
    assert_eq!(&soon(ledger.get("before")).await.unwrap().unwrap().value[..], b"1");
    assert!(begun + LedgerSettings::wan().lease > before.into_std());
    until("the lease could have ended", async || tokio::time::Instant::now() > before).await;
    assert!(held.is_held(), "a lease was lost with the leader");
    let mut moved = None;
    until("the singleton runs on the second one", async || {
        let told = solo.call_within(Tell, Duration::from_secs(2)).await.ok();
        moved = told.filter(|(node, _)| *node == second.id());
        moved.is_some()
    })
    .await;
    println!("a singleton elsewhere after {:?}", begun.elapsed());
    assert!(moved.unwrap().1 > generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_other_settings_hold_no_leases_and_are_told_why() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
    let other = cluster
        .builder(Options { role: "server", ..Options::join(seed.addr()) })
        .ledger(LedgerSettings::wan())
        .start()
        .await
        .unwrap();
    let ledger = other.ledger().within(LONG);
    soon(ledger.put("a key", "has no time", Expect::Absent, None)).await.unwrap();
    // What it believes to hold, the leader would give to another one.
    let error = soon(ledger.acquire("kept", holder(&other))).await.unwrap_err();
    assert_eq!(error, LedgerError::OtherSettings);
    assert!(error.to_string().contains("--network"), "{error}");
    let lease = soon(seed.ledger().acquire("kept", holder(&seed))).await.unwrap();
    let error = soon(ledger.renew(&lease)).await.unwrap_err();
    assert_eq!(error, LedgerError::OtherSettings);
    // Nor does it vote: three others do.
    let server = || Options { role: "server", ..Options::join(seed.addr()) };
    let (third, fourth) = (cluster.here(server()).await, cluster.here(server()).await);
    let mut wanted = [seed.id(), third.id(), fourth.id()];
    wanted.sort();
    until("the others vote", async || {
        seed.ledger().status().is_some_and(|status| status.voters == wanted)
    })
    .await;
}
