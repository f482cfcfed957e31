//! The ledger as programs see it: keys, leases, watching; from any node.

use std::time::Duration;

use footlight::{
    cluster::ledger::{Expect, Holder, LedgerError, LedgerSettings, Life},
    prelude::*,
};

use crate::support::*;

fn holder(node: &Node, text: &str) -> Holder {
    Holder { node: node.id(), incarnation: node.incarnation(), text: text.to_owned() }
}

fn life(node: &Node) -> Life {
    Life { node: node.id(), incarnation: node.incarnation() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_written_as_expected_and_read_from_every_node() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    for node in [&seed, &other] {
        let ledger = node.ledger();
        let key = format!("test/{}", node.id());
        let version = soon(ledger.put(&key, "one", Expect::Absent, None)).await.unwrap();
        let error = soon(ledger.put(&key, "two", Expect::Absent, None)).await.unwrap_err();
        assert_eq!(error, LedgerError::Conflict { key: key.clone(), version: Some(version) });
        let next = soon(ledger.put(&key, "two", Expect::Version(version), None)).await.unwrap();
        assert!(next > version);
        for reader in [&seed, &other] {
            let value = soon(reader.ledger().get(&key)).await.unwrap().unwrap();
            assert_eq!((&value.value[..], value.version), (&b"two"[..], next));
        }
    }
    let listed = soon(other.ledger().list("test/")).await.unwrap();
    assert_eq!(listed.len(), 2);
    for (key, value) in listed {
        soon(seed.ledger().delete(&key, Expect::Version(value.version))).await.unwrap();
        assert_eq!(soon(other.ledger().get(&key)).await.unwrap(), None);
    }
    let long = "k".repeat(257);
    let error = soon(other.ledger().put(&long, "", Expect::Any, None)).await.unwrap_err();
    assert!(error.to_string().contains("this one has 257"), "{error}");
    let wide = vec![0; 64 * 1024 + 1];
    let error = soon(other.ledger().put("wide", wide, Expect::Any, None)).await.unwrap_err();
    assert!(error.to_string().contains("keep it elsewhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_one_holder_until_it_is_given_back_or_not_renewed() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let (one, two) = (seed.ledger(), other.ledger());

    let lease = soon(two.acquire("only", holder(&other, "first"))).await.unwrap();
    let error = soon(one.acquire("only", holder(&seed, "second"))).await.unwrap_err();
    let LedgerError::Held { by, generation, .. } = error else { panic!("{error}") };
    assert_eq!((by, generation), (holder(&other, "first"), lease.generation()));
    let renewed = soon(two.renew(&lease)).await.unwrap();
    assert!(renewed.until() > lease.until());
    soon(two.release(renewed)).await.unwrap();
    let error = soon(two.renew(&lease)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Lost { .. }), "{error}");

    // Kept for longer than its time, then no more.
    let lease = soon(one.acquire("only", holder(&seed, "second"))).await.unwrap();
    let held = one.hold(lease.clone());
    let waiting = tokio::spawn({
        let (two, holder) = (two.clone(), holder(&other, "third"));
        async move { two.acquire_when_free("only", holder).await.unwrap() }
    });
    tokio::select! {
        () = held.lost() => panic!("a lease that is kept was lost"),
        () = tokio::time::sleep(LedgerSettings::lan().lease + Duration::from_millis(500)) => {}
    }
    assert!(held.is_held() && !waiting.is_finished());
    drop(held);
    let next = soon(waiting).await.unwrap();
    assert!(next.generation() > lease.generation());

    // Nobody renews it: it lapses, and not before its holder has stopped to believe in it.
    let lease = soon(one.acquire_when_free("only", holder(&seed, "fourth"))).await.unwrap();
    assert!(!next.is_held() && lease.generation() > next.generation());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_is_told_what_is_there_and_then_each_change() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let ledger = seed.ledger();
    soon(ledger.put("seen/a", "1", Expect::Any, None)).await.unwrap();
    soon(ledger.put("unseen", "1", Expect::Any, None)).await.unwrap();
    for node in [&seed, &other] {
        let mut watch = node.ledger().watch("seen/");
        let next = async |watch: &mut footlight::cluster::ledger::LedgerWatch| {
            let (key, now) = soon(watch.next()).await.unwrap();
            (key, now.map(|now| String::from_utf8(now.value.to_vec()).unwrap()))
        };
        assert_eq!(next(&mut watch).await, ("seen/a".to_owned(), Some("1".to_owned())));
        soon(ledger.put("seen/b", "2", Expect::Any, None)).await.unwrap();
        assert_eq!(next(&mut watch).await, ("seen/b".to_owned(), Some("2".to_owned())));
        soon(ledger.put("unseen", "2", Expect::Any, None)).await.unwrap();
        soon(ledger.delete("seen/b", Expect::Any)).await.unwrap();
        assert_eq!(next(&mut watch).await, ("seen/b".to_owned(), None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le9_a_key_goes_with_the_life_of_its_owner() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let ledger = seed.ledger();
    soon(other.ledger().put("owned", "", Expect::Any, Some(life(&other)))).await.unwrap();
    soon(other.ledger().put("free", "", Expect::Any, None)).await.unwrap();
    soon(other.leave()).await.unwrap();
    until("the key of a node that left is gone", async || {
        ledger.get("owned").await.unwrap().is_none()
    })
    .await;
    assert!(soon(ledger.get("free")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_who_votes_and_what_may_be_lost() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    until("both know the ledger", async || {
        [&seed, &other].iter().all(|node| node.ledger().status().is_some())
    })
    .await;
    let status = other.ledger().status().unwrap();
    assert_eq!(status.voters, [seed.id()]);
    assert_eq!(status.to_string(), "1 voter: its loss stops the ledger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ledger_there_is_an_error_that_says_so() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    soon(seed.leave()).await.unwrap();
    let patience = Duration::from_millis(300);
    until("the seed is known to have left", async || other.ledger().status().is_none()).await;
    let error = soon(other.ledger().within(patience).get("a")).await.unwrap_err();
    assert_eq!(error, LedgerError::NoVoters { waited: patience });
}
