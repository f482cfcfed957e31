//! A leader that stands still and goes on later does no harm: nobody reads what is out of date, and
//! no lease has two holders.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use footlight::{
    cluster::ledger::{Expect, Holder, Ledger, LedgerError},
    prelude::*,
};

use crate::support::*;

async fn read(ledger: &Ledger) -> Result<Option<(u64, u64)>, LedgerError> {
    let found = ledger.get("number").await?;
    Ok(found
        .map(|found| (std::str::from_utf8(&found.value).unwrap().parse().unwrap(), found.version)))
}

/// Counts up, one after another; what is acknowledged can be read from then on.
async fn count(ledger: Ledger, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(SeqCst) {
        let Ok(now) = read(&ledger).await else { continue };
        let (number, expect) = match now {
            Some((number, version)) => (number + 1, Expect::Version(version)),
            None => (1, Expect::Absent),
        };
        if ledger.put("number", number.to_string(), expect, None).await.is_ok() {
            acknowledged.fetch_max(number, SeqCst);
        }
    }
}

/// LE-5: each read gives what was acknowledged before it began, or something later.
async fn check(ledger: Ledger, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> u64 {
    let (mut last, mut reads) = (0, 0);
    while !stop.load(SeqCst) {
        let before = acknowledged.load(SeqCst);
        if let Ok(now) = read(&ledger).await {
            let now = now.map_or(0, |(number, _)| number);
            assert!(now >= before, "{now} was read, {before} was acknowledged before");
            assert!(now >= last, "{now} was read after {last}");
            (last, reads) = (now, reads + 1);
        }
    }
    reads
}

/// LE-1: takes the lease again and again, keeps it for a while, and sees nobody else in it.
async fn hold(node: Node, inside: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> u64 {
    let holder =
        Holder { node: node.id(), incarnation: node.incarnation(), text: "test".to_owned() };
    let (ledger, mut held_so_far, mut generation) = (node.ledger(), 0, 0);
    while !stop.load(SeqCst) {
        let Ok(lease) = ledger.acquire("only", holder.clone()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let held = ledger.hold(lease);
        assert!(held.generation() > generation);
        generation = held.generation();
        if !held.is_held() {
            continue;
        }
        assert_eq!(inside.fetch_add(1, SeqCst), 0, "two hold the lease");
        tokio::select! {
            () = held.lost() => {}
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        inside.fetch_sub(1, SeqCst);
        drop(held);
        held_so_far += 1;
    }
    held_so_far
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le5_le1_a_leader_that_stood_still_tells_nothing_old_and_grants_nothing_twice() {
    let cluster = Cluster::new();
    let founder = Options { role: "server", ..Options::default() };
    let mut voters = vec![cluster.process("voter 0", founder).await];
    for name in ["voter 1", "voter 2"] {
        let options = Options { role: "server", ..Options::join(voters[0].addr) };
        voters.push(cluster.process(name, options).await);
    }
    let join = || Options::join(voters[0].addr);
    let askers = [cluster.here(join()).await, cluster.here(join()).await];
    until("there are three voters", async || {
        askers
            .iter()
            .all(|node| node.ledger().status().is_some_and(|status| status.voters.len() == 3))
    })
    .await;

    let (acknowledged, inside) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let counts = tokio::spawn(count(askers[0].ledger(), acknowledged.clone(), stop.clone()));
    let checks = askers
        .each_ref()
        .map(|node| tokio::spawn(check(node.ledger(), acknowledged.clone(), stop.clone())));
    let holds = askers
        .each_ref()
        .map(|node| tokio::spawn(hold(node.clone(), inside.clone(), stop.clone())));
    let goes_on = async || {
        let wanted = acknowledged.load(SeqCst) + 30;
        until("it goes on", async || acknowledged.load(SeqCst) >= wanted).await;
    };
    for _ in 0..3 {
        goes_on().await;
        let leader = askers[0].ledger().status().unwrap().leader;
        let frozen = voters.iter().find(|voter| Some(voter.id) == leader).unwrap();
        frozen.process.freeze();
        // Others lead by now. The frozen one does not know it when it goes on.
        goes_on().await;
        frozen.process.thaw();
        goes_on().await;
    }
    stop.store(true, SeqCst);
    soon(counts).await.unwrap();
    let mut reads = 0;
    for check in checks {
        reads += soon(check).await.unwrap();
    }
    let mut held = 0;
    for hold in holds {
        held += soon(hold).await.unwrap();
    }
    println!("{} writes, {reads} reads, {held} times held", acknowledged.load(SeqCst));
    assert!(reads > 100 && held > 5, "{reads} reads, {held} times held");
}
