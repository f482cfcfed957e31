//! Who votes: servers join the founder, leave it, and two clusters that meet keep one ledger.

use std::time::Duration;

use footlight::{
    cluster::ledger::{Expect, Holder, LedgerError, LedgerSettings},
    prelude::*,
    runtime::NodeId,
};

use crate::support::*;

fn server(seed: &Node) -> Options {
    Options { role: "server", ..Options::join(seed.addr()) }
}

fn holder(node: &Node) -> Holder {
    Holder { node: node.id(), incarnation: node.incarnation(), text: "test".to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_vote_with_the_founder_and_take_each_other_s_place() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
    let one = cluster.here(server(&seed)).await;
    soon(seed.ledger().put("early", "1", Expect::Any, None)).await.unwrap();
    let two = cluster.here(server(&seed)).await;
    let worker = cluster.here(Options { role: "worker", ..Options::join(seed.addr()) }).await;
    let all = [&seed, &one, &two, &worker];
    see_voters(&all, &[seed.id(), one.id(), two.id()]).await;
    let status = worker.ledger().status().unwrap();
    assert_eq!(status.to_string(), "3 voters: one may be lost");

    // A fourth does not vote, until one of them leaves.
    let three = cluster.here(server(&seed)).await;
    soon(three.ledger().put("late", "1", Expect::Any, None)).await.unwrap();
    sees_up(&three, 5).await;
    let gone = one.id();
    soon(one.leave()).await.unwrap();
    see_voters(&[&seed, &two, &three, &worker], &[seed.id(), two.id(), three.id()]).await;

    // The founder and leader leaves, and with it what it alone could have known.
    let leader = worker.ledger().status().unwrap().leader;
    assert_eq!(leader, Some(seed.id()));
    soon(seed.leave()).await.unwrap();
    see_voters(&[&two, &three, &worker], &[two.id(), three.id()]).await;
    for key in ["early", "late"] {
        assert!(soon(worker.ledger().get(key)).await.unwrap().is_some(), "{key}");
    }
    let status = worker.ledger().status().unwrap();
    assert_eq!(status.to_string(), "2 voters: the loss of one more stops the ledger");
    assert_ne!(status.leader, Some(gone));

    // The last but one leaves: the last decides alone.
    soon(two.leave()).await.unwrap();
    see_voters(&[&three, &worker], &[three.id()]).await;
    soon(worker.ledger().put("alone", "1", Expect::Any, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_while_its_leader_leaves_and_every_voter_sees_each_change() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
    let one = cluster.here(server(&seed)).await;
    let two = cluster.here(server(&seed)).await;
    see_voters(&[&seed], &[seed.id(), one.id(), two.id()]).await;
    let three = cluster.here(server(&seed)).await;
    see_voters(&[&three], &[seed.id(), one.id(), two.id()]).await;
    let mut watch = three.ledger().watch("seen/");
    let lease = soon(three.ledger().acquire("only", holder(&three))).await.unwrap();
    let held = three.ledger().hold(lease.clone());
    let writer = tokio::spawn({
        let ledger = two.ledger();
        async move {
            for number in 0..100u32 {
                ledger.put("seen/number", number.to_string(), Expect::Any, None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    soon(seed.leave()).await.unwrap();
    soon(writer).await.unwrap();
    // Numbers may be left out while the watch finds another voter; none comes twice or too late.
    let mut last = None;
    while last != Some(99) {
        let (_, now) = soon(watch.next()).await.unwrap();
        let number: u32 = std::str::from_utf8(&now.unwrap().value).unwrap().parse().unwrap();
        assert!(last.is_none_or(|last| last < number), "{last:?}, then {number}");
        last = Some(number);
    }
    assert!(held.is_held(), "a lease was lost because a leader left");
    let error = soon(one.ledger().acquire("only", holder(&one))).await.unwrap_err();
    assert!(matches!(error, LedgerError::Held { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le10_of_two_ledgers_that_meet_the_one_founded_first_stays() {
    let cluster = Cluster::new();
    let old = cluster.here(Options::default()).await;
    until("the first is founded", async || old.ledger().status().is_some()).await;
    let young = cluster.here(Options::default()).await;
    until("the second is founded", async || young.ledger().status().is_some()).await;
    let id = old.ledger().status().unwrap().id;
    assert_ne!(young.ledger().status().unwrap().id, id);
    for node in [&old, &young] {
        let ledger = node.ledger();
        // Another one's id: a node that is revoked is kept out.
        let gone = NodeId(!node.id().0);
        soon(ledger.put(&format!("revoked/{gone}"), "", Expect::Any, None)).await.unwrap();
        soon(ledger.put(&format!("name/{}", node.id()), "", Expect::Any, None)).await.unwrap();
    }
    let in_old = soon(old.ledger().acquire("only", holder(&old))).await.unwrap();
    let in_old = old.ledger().hold(in_old);
    let in_young = soon(young.ledger().acquire("only", holder(&young))).await.unwrap();
    let in_young = young.ledger().hold(in_young);

    let between =
        cluster.here(Options { seeds: vec![old.addr(), young.addr()], ..Options::default() }).await;
    for node in [&old, &young, &between] {
        sees_up(node, 3).await;
    }
    soon(in_young.lost()).await;
    let all = [&old, &young, &between];
    see_voters(&all, &[old.id()]).await;
    assert!(all.iter().all(|node| node.ledger().status().unwrap().id == id));
    until("the second one's revocation is carried over", async || {
        between.ledger().list("revoked/").await.unwrap().len() == 2
    })
    .await;
    let names = soon(between.ledger().list("name/")).await.unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    // Receivers may know the generation of the one that went up: nobody keeps a lower one.
    let (lost, generation) = (in_old.generation(), in_young.generation());
    assert!(lost < generation);
    soon(in_old.lost()).await;
    let again = soon(between.ledger().acquire_when_free("only", holder(&between))).await.unwrap();
    assert!(again.generation() > generation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le1_a_leader_that_is_lost_does_not_shorten_a_lease() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
    let one = cluster.here(server(&seed)).await;
    let two = cluster.here(server(&seed)).await;
    see_voters(&[&seed, &one], &[seed.id(), one.id(), two.id()]).await;
    // Not renewed: it ends by itself, and only then somebody else gets it.
    let lease = soon(one.ledger().acquire("only", holder(&one))).await.unwrap();
    drop(seed);
    let next = soon(two.ledger().acquire_when_free("only", holder(&two))).await.unwrap();
    assert!(!lease.is_held());
    assert!(next.generation() > lease.generation());
    assert!(next.until() > lease.until() + LedgerSettings::lan().lease / 2);
}
