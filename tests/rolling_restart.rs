//! Every node of six is restarted, one after another, while all of them call, those that are back
//! too: no call is lost without an error, none is handled twice. All of them are servers: the ledger
//! has its voters again after each restart, and what runs once moves and never runs twice. In the end
//! all are members.

mod support;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use footlight::{
    cluster::supervise::{AskChildren, Supervisor},
    prelude::*,
    runtime::{Incarnation, NodeId, supervision::strategy::Backoff},
};
use support::{
    netns::{Host, Hosts},
    *,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const NODES: u8 = 6;
/// Of six servers.
const VOTERS: usize = 5;
/// One call of each node in so much time.
const PACE: Duration = Duration::from_millis(50);
const TALLIES: u64 = 10;
/// How long a call may take, and how much later it may tell.
const PATIENCE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(2);

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node_with(async |node, left| {
        let state = PathBuf::from(env::var("TEST_STATE").unwrap());
        call(node, accounts(&state), left).await;
    });
}

/// Where each life of each node writes how its calls ended.
fn accounts(state: &Path) -> PathBuf {
    state.join("accounts")
}

fn account(accounts: &Path, node: NodeId, life: Incarnation) -> PathBuf {
    accounts.join(format!("{node} {}", life.0))
}

/// What a life of a node has written: its calls, by number.
fn read_account(account: &Path) -> BTreeMap<u64, Outcome> {
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(account).unwrap().lines() {
        let (number, outcome) = line.split_once(' ').unwrap();
        let before = calls.insert(number.parse().unwrap(), outcome.parse().unwrap());
        assert_eq!(before, None, "{line}");
    }
    calls
}

/// Waits until a life of a node has had an answer to a call.
async fn has_answers(accounts: &Path, node: NodeId, life: Incarnation) {
    let account = account(accounts, node, life);
    until("its calls are answered", async || {
        read_account(&account).values().any(|outcome| *outcome == Outcome::Answered)
    })
    .await;
}

/// Calls, until this life of the node is over and all its calls have ended.
async fn call(node: Node, accounts: PathBuf, over: CancellationToken) {
    let account = account(&accounts, node.id(), node.incarnation());
    let account = Arc::new(append(&account).unwrap());
    // The calls of each life begin with a number of their own.
    let mut number = node.unique_number();
    let (mut calls, mut pace) = (JoinSet::new(), tokio::time::interval(PACE));
    let tallies = node.singleton_ref::<Supervisor>("tallies");
    loop {
        let children = async {
            pace.tick().await;
            tallies.call_within(AskChildren, Duration::from_secs(1)).await
        };
        let children = tokio::select! {
            biased;
            () = over.cancelled() => break,
            children = children => children.unwrap_or_default(),
        };
        number = number.wrapping_add(1);
        let name = (number % TALLIES).to_string();
        let child = children.into_iter().find(|child| child.name == name);
        // Between two places it is nowhere.
        let Some(tally) = child.and_then(|child| child.actor) else { continue };
        let tally = ActorRef::<Tally>::at(tally, node.system());
        let account = account.clone();
        calls.spawn(async move {
            let outcome = call_tally(&tally, number, PATIENCE, GRACE).await;
            let outcome = outcome.map_or("never".to_owned(), |outcome| outcome.to_string());
            // One write a line: whoever reads meanwhile finds whole ones.
            let line = format!("{number} {outcome}\n");
            (&*account).write_all(line.as_bytes()).unwrap();
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
}

/// The node of this process: its calls end with each of its lives.
struct Here {
    node: Node,
    over: CancellationToken,
    calls: tokio::task::JoinHandle<()>,
}

impl Here {
    async fn start(cluster: &Cluster, options: Options) -> Self {
        let node = cluster.here(options).await;
        let over = CancellationToken::new();
        let calls = call(node.clone(), accounts(cluster.state()), over.clone());
        Here { node, over, calls: tokio::spawn(calls) }
    }

    async fn drain(self) {
        soon(self.node.drain()).await.unwrap();
        self.over.cancel();
        soon(self.calls).await.unwrap();
    }
}

/// Waits until all are members in one view, and the ledger has all its voters and a leader.
async fn whole(asked: &Node) {
    one_view(asked, NODES.into(), LONG).await;
    until("the ledger is whole", async || {
        asked.ledger().status().is_some_and(|status| {
            status.voters.len() == VOTERS && status.missing.is_empty() && status.leader.is_some()
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_or_handled_twice_while_every_node_is_restarted() {
    let Some(hosts) = Hosts::new(NODES) else { return };
    let cluster = Cluster::with_authority().await;
    let accounts = accounts(cluster.state());
    fs::create_dir(&accounts).unwrap();
    let (one, others) = hosts.all().split_first().unwrap();
    let server = |host: &Host| Options { role: "server", ..Options::on(host) };
    let join = |host, seed: &Host| Options { seeds: vec![seed.addr()], ..server(host) };
    let here = Here::start(&cluster, server(one)).await;
    let mut nodes = Vec::new();
    for (number, host) in others.iter().enumerate() {
        nodes.push(cluster.process(&format!("node-{number}"), join(host, one)).await);
    }
    whole(&here.node).await;

    let (book, trace) = (cluster.state().join("book"), cluster.state().join("trace"));
    let quick = Backoff { max: Duration::from_millis(500), ..Backoff::default() };
    let often = OneForOne::new().at_most(10_000, Duration::from_secs(60)).backoff(quick);
    let tallies = (0..TALLIES).fold(here.node.supervise(often), |tallies, number| {
        let args = TallyArgs { name: number.to_string(), book: book.clone() };
        tallies.child::<Tally>(number.to_string(), args, Placement::role("server").spread())
    });
    let tallies = here.node.singleton::<Supervisor>("tallies", tallies.spec().unwrap());
    soon(tallies.on(Placement::role("server")).start()).await.unwrap();
    let args = SoloArgs { trace: Some(trace.clone()), ..SoloArgs::default() };
    let solo = here.node.singleton::<Solo>("solo", args);
    soon(solo.on(Placement::role("server")).start()).await.unwrap();

    for (number, node) in nodes.iter_mut().enumerate() {
        node.process.terminate();
        assert!(soon(node.process.wait(LONG)).await.unwrap().success());
        let name = format!("node-{number}-again");
        let again = cluster.process(&name, join(&others[number], one)).await;
        assert_eq!(again.id, node.id);
        assert!(again.incarnation > node.incarnation);
        *node = again;
        whole(&here.node).await;
        has_answers(&accounts, node.id, node.incarnation).await;
    }
    let (id, incarnation) = (here.node.id(), here.node.incarnation());
    here.drain().await;
    let here = Here::start(&cluster, join(one, &others[0])).await;
    assert_eq!(here.node.id(), id);
    assert!(here.node.incarnation() > incarnation);
    whole(&here.node).await;
    has_answers(&accounts, id, here.node.incarnation()).await;

    for node in &nodes {
        node.process.terminate();
        assert!(soon(node.process.wait(LONG)).await.unwrap().success());
    }
    here.drain().await;

    let mut calls = BTreeMap::new();
    let written: Vec<_> = fs::read_dir(&accounts).unwrap().flatten().collect();
    assert_eq!(written.len(), 2 * usize::from(NODES));
    for life in written {
        calls.append(&mut read_account(&life.path()));
    }
    let mut outcomes = BTreeMap::<String, usize>::new();
    for outcome in calls.values() {
        *outcomes.entry(outcome.to_string()).or_default() += 1;
    }
    println!("{outcomes:#?}");
    let answered = outcomes[&Outcome::Answered.to_string()];
    assert!(answered > calls.len() / 2, "{outcomes:#?}");
    let found = breaches(&calls, &read_book(&book).unwrap());
    assert!(found.is_empty(), "{found:#?}");

    let lives: Vec<_> = lives(&trace).into_iter().collect();
    assert!(lives.len() >= 2, "it moved with its node: {lives:?}");
    for pair in lives.windows(2) {
        let [(before, (_, ended)), (next, (began, _))] = pair else { unreachable!() };
        assert!(ended < began, "generations {before} and {next} ran at the same time");
    }
}
