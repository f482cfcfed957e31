//! Every node of five is restarted, one after another, while calls go on: no call is lost without an
//! error, none is handled twice, and all are members at the end.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use footlight::{prelude::*, runtime::supervision::strategy::Backoff};
use support::{netns::Hosts, *};
use tokio_util::sync::CancellationToken;

/// One call of each caller in so much time.
const PACE: Duration = Duration::from_millis(20);
const CALLERS: u64 = 3;
const TALLIES: usize = 10;
/// How long a call may take, and how much later it may tell.
const PATIENCE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(2);

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_or_handled_twice_while_every_node_is_restarted() {
    let Some(hosts) = Hosts::new(6) else { return };
    let cluster = Cluster::with_authority().await;
    let (one, others) = hosts.all().split_first().unwrap();
    // This node stays: it supervises and calls.
    let here = cluster.here(Options::on(one)).await;
    let join = |host| Options { seeds: vec![one.addr()], ..Options::on(host) };
    let mut nodes = Vec::new();
    for (number, host) in others.iter().enumerate() {
        nodes.push(cluster.process(&format!("node-{number}"), join(host)).await);
    }
    one_view(&here, 6, LONG).await;

    let book = cluster.state().join("book");
    let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
    let quick = Backoff { max: Duration::from_millis(500), ..Backoff::default() };
    let often = OneForOne::new().at_most(10_000, Duration::from_secs(60)).backoff(quick);
    let supervisor = (0..TALLIES).fold(here.supervise(often), |supervisor, number| {
        let args = TallyArgs { name: number.to_string(), book: book.clone() };
        let somewhere = Placement::any_of(ids.clone()).spread();
        supervisor.child::<Tally>(number.to_string(), args, somewhere)
    });
    let supervisor = soon(supervisor.start()).await.unwrap();

    let (numbers, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let callers = (0..CALLERS).map(|_| {
        let supervisor = supervisor.clone();
        let (numbers, stop) = (numbers.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut calls, mut pace) = (Vec::new(), tokio::time::interval(PACE));
            while !stop.is_cancelled() {
                pace.tick().await;
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let name = (number % TALLIES as u64).to_string();
                // Between two places it is nowhere.
                let Ok(tally) = supervisor.child::<Tally>(&name).await else { continue };
                calls.push(tokio::spawn(async move {
                    (number, call_tally(&tally, number, PATIENCE, GRACE).await)
                }));
            }
            futures::future::join_all(calls).await
        })
    });
    let callers: Vec<_> = callers.collect();

    for (number, node) in nodes.iter_mut().enumerate() {
        node.process.terminate();
        assert!(soon(node.process.wait(LONG)).await.unwrap().success());
        let again = cluster.process(&format!("node-{number}-again"), join(&others[number])).await;
        assert_eq!(again.id, node.id);
        assert!(again.incarnation > node.incarnation);
        *node = again;
        one_view(&here, 6, LONG).await;
    }

    stop.cancel();
    let mut calls = BTreeMap::new();
    for caller in futures::future::join_all(callers).await {
        for call in caller.unwrap() {
            let (number, outcome) = call.unwrap();
            let outcome = outcome.unwrap_or_else(|| panic!("call {number} did not end"));
            calls.insert(number, outcome);
        }
    }
    let mut outcomes = BTreeMap::<String, usize>::new();
    for outcome in calls.values() {
        *outcomes.entry(format!("{outcome:?}")).or_default() += 1;
    }
    println!("{outcomes:#?}");
    let answered = outcomes[&format!("{:?}", Outcome::Answered)];
    assert!(answered > calls.len() / 2, "{outcomes:#?}");
    let found = breaches(&calls, &read_book(&book).unwrap());
    assert!(found.is_empty(), "{found:#?}");
    one_view(&here, 6, LONG).await;
}
