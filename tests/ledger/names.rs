//! Names: one actor has a name, all nodes find it, and it goes with its actor.

use std::time::Duration;

use footlight::{cluster::names::NameError, prelude::*};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_found_from_every_node_and_belongs_to_one_actor() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let waiting = tokio::spawn({
        let seed = seed.clone();
        async move { seed.wait_for::<Probe>("worker", LONG).await.unwrap() }
    });
    let probe = soon(other.spawn::<Probe>(())).await.unwrap();
    // Whoever asks: the actor's node keeps the name.
    soon(seed.register("worker", &probe)).await.unwrap();
    soon(other.register("worker", &probe)).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), probe);
    for node in [&seed, &other] {
        let found = soon(node.lookup::<Probe>("worker")).await.unwrap().unwrap();
        assert_eq!(soon(found.call(Where {})).await.unwrap().0, other.id());
    }

    let second = soon(seed.spawn::<Probe>(())).await.unwrap();
    let error = soon(seed.register("worker", &second)).await.unwrap_err();
    let actor = Probe::NAME.to_owned();
    assert_eq!(error, NameError::Taken { name: "worker".to_owned(), by: probe.addr(), actor });
    // Not its name to give away.
    soon(seed.unregister("worker", &second)).await.unwrap();
    assert!(soon(seed.lookup::<Probe>("worker")).await.unwrap().is_some());
    soon(seed.unregister("worker", &probe)).await.unwrap();
    assert_eq!(soon(other.lookup::<Probe>("worker")).await.unwrap(), None);
    soon(seed.register("worker", &second)).await.unwrap();
    assert_eq!(soon(other.lookup::<Probe>("worker")).await.unwrap(), Some(second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_goes_with_its_actor_and_with_its_node() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let process = cluster.process("named", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let spawn = async || {
        let placed = seed.spawn::<Probe>(()).on(Placement::node(process.id));
        soon(placed).await.unwrap()
    };
    let gone = async |name: &str| {
        until("the name is gone", async || seed.lookup::<Probe>(name).await.unwrap().is_none())
            .await;
    };
    let stopped = spawn().await;
    soon(seed.register("stopped", &stopped)).await.unwrap();
    stopped.stop();
    gone("stopped").await;

    let panicked = spawn().await;
    soon(seed.register("panicked", &panicked)).await.unwrap();
    let _ = soon(panicked.call(Boom { text: "on purpose".into() })).await;
    // The name is free at once for another one, whether or not the node has deleted it by then.
    let next = spawn().await;
    soon(seed.register("panicked", &next)).await.unwrap();
    let found = soon(seed.lookup::<Probe>("panicked")).await.unwrap();
    assert_eq!(found, Some(next));

    let error = soon(seed.register("late", &stopped)).await.unwrap_err();
    let actor = stopped.addr();
    assert_eq!(error, NameError::Ended { name: "late".to_owned(), actor });

    process.process.kill();
    gone("panicked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_name_is_said() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let probe = soon(seed.spawn::<Probe>(())).await.unwrap();
    soon(seed.register("probe", &probe)).await.unwrap();
    let error = soon(seed.lookup::<Solo>("probe")).await.unwrap_err();
    assert!(
        matches!(&error, NameError::OtherType { found, .. } if found == Probe::NAME),
        "{error}"
    );
    for length in [0, 252] {
        let name = "n".repeat(length);
        let error = soon(seed.register(&name, &probe)).await.unwrap_err();
        assert_eq!(error, NameError::Length(length));
    }
    let waited = Duration::from_millis(200);
    let error = soon(seed.wait_for::<Probe>("nobody", waited)).await.unwrap_err();
    assert_eq!(error, NameError::Missing { name: "nobody".to_owned(), waited });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le10_names_of_a_ledger_that_went_up_in_another_are_registered_again_if_they_are_free() {
    let cluster = Cluster::new();
    let old = cluster.here(Options::default()).await;
    until("the first is founded", async || old.ledger().status().is_some()).await;
    let young = cluster.here(Options::default()).await;
    until("the second is founded", async || young.ledger().status().is_some()).await;
    let (first, second) =
        (old.spawn::<Probe>(()).await.unwrap(), young.spawn::<Probe>(()).await.unwrap());
    soon(old.register("both", &first)).await.unwrap();
    soon(young.register("both", &second)).await.unwrap();
    soon(young.register("free", &second)).await.unwrap();
    let seeds = vec![old.addr(), young.addr()];
    let between = cluster.here(Options { seeds, ..Options::default() }).await;
    // Before that, a node may have met only the younger one.
    until("all see one ledger", async || {
        [&old, &young, &between]
            .iter()
            .all(|node| node.ledger().status().is_some_and(|status| status.voters == [old.id()]))
    })
    .await;
    for node in [&old, &young, &between] {
        assert_eq!(soon(node.wait_for::<Probe>("free", LONG)).await.unwrap(), second);
        assert_eq!(soon(node.wait_for::<Probe>("both", LONG)).await.unwrap(), first);
    }
}
