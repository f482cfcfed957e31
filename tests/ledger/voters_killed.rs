//! Voters are killed, one and all at once: what was acknowledged is there, the ledger goes on as soon
//! as a majority is there, and a voter that is gone for good is replaced.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use footlight::{
    cluster::ledger::{Expect, Holder, Ledger, LedgerError},
    prelude::*,
    runtime::NodeId,
};

use crate::support::*;

/// Three servers in processes of their own, and a node of this process that asks.
struct Voters {
    cluster: Cluster,
    options: Vec<Options>,
    nodes: Vec<NodeProcess>,
    asker: Node,
}

impl Voters {
    async fn start(count: usize) -> Self {
        let cluster = Cluster::new();
        let addrs: Vec<SocketAddr> = (0..count).map(|_| free_addr()).collect();
        let options: Vec<Options> = (0..count)
            .map(|number| Options {
                listen: Some(addrs[number]),
                seeds: addrs.iter().take(number.min(1)).copied().collect(),
                role: "server",
                ..Options::default()
            })
            .collect();
        let mut nodes = Vec::new();
        for (number, options) in options.iter().enumerate() {
            nodes.push(cluster.process(&format!("voter {number}"), options.clone()).await);
        }
        let asker = cluster.here(Options::join(addrs[0])).await;
        let voters = Voters { cluster, options, nodes, asker };
        voters.vote(&[0, 1, 2][..count]).await;
        voters
    }

    fn ledger(&self) -> Ledger {
        self.asker.ledger()
    }

    /// Waits until these of the nodes vote, all there and with a leader.
    async fn vote(&self, wanted: &[usize]) {
        let mut wanted: Vec<NodeId> = wanted.iter().map(|number| self.nodes[*number].id).collect();
        wanted.sort();
        until("the voters are as wanted", async || {
            self.ledger().status().is_some_and(|status| {
                status.voters == wanted && status.missing.is_empty() && status.leader.is_some()
            })
        })
        .await;
    }

    async fn leader(&self) -> usize {
        let leader = async || self.ledger().status().and_then(|status| status.leader);
        until("there is a leader", async || leader().await.is_some()).await;
        let leader = leader().await.unwrap();
        self.nodes.iter().position(|node| node.id == leader).unwrap()
    }

    async fn restart(&mut self, number: usize) {
        let options = self.options[number].clone();
        let again = self.cluster.process(&format!("voter {number} again"), options).await;
        assert_eq!(again.id, self.nodes[number].id);
        self.nodes[number] = again;
    }
}

/// Writes one key after another, and remembers which were acknowledged.
struct Writer {
    acknowledged: Arc<Mutex<Vec<u32>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Writer {
    fn start(ledger: Ledger) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
            async move {
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                for number in 0u32.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let key = format!("written/{number:06}");
                    match ledger.put(&key, number.to_string(), Expect::Absent, None).await {
                        Ok(_) => {
                            acknowledged.lock().unwrap().push(number);
                            longest = longest.max(last.elapsed());
                            last = Instant::now();
                        }
                        // LE-4: nobody else writes this key.
                        Err(error @ LedgerError::Conflict { .. }) => panic!("done twice: {error}"),
                        Err(_) => {}
                    }
                }
                longest
            }
        });
        Writer { acknowledged, stop, task }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// So many more are acknowledged.
    async fn goes_on(&self, more: usize) {
        let wanted = self.count() + more;
        until("writes are acknowledged", async || self.count() >= wanted).await;
    }

    /// Ends; gives what was acknowledged, and the longest time without an acknowledgement.
    async fn end(self) -> (Vec<u32>, Duration) {
        self.stop.store(true, SeqCst);
        let longest = soon(self.task).await.unwrap();
        (std::mem::take(&mut self.acknowledged.lock().unwrap()), longest)
    }
}

/// All that was acknowledged is there, and as it was written.
async fn is_all_there(ledger: &Ledger, acknowledged: &[u32]) {
    let written = soon(ledger.list("written/")).await.unwrap();
    for number in acknowledged {
        let key = format!("written/{number:06}");
        let found = written.iter().find(|(found, _)| *found == key);
        let (_, value) = found.unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
        assert_eq!(value.value, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le3_the_leader_is_killed_and_nothing_acknowledged_is_lost() {
    let mut voters = Voters::start(3).await;
    let writer = Writer::start(voters.ledger());
    let holder = Holder {
        node: voters.asker.id(),
        incarnation: voters.asker.incarnation(),
        text: "test".to_owned(),
    };
    let lease = soon(voters.ledger().acquire("kept", holder)).await.unwrap();
    let held = voters.ledger().hold(lease);
    for round in 0..2 {
        writer.goes_on(20).await;
        let leader = voters.leader().await;
        voters.nodes[leader].process.kill();
        voters.nodes[leader].process.wait(LONG).await.unwrap();
        writer.goes_on(20).await;
        let status = voters.ledger().status().unwrap();
        if status.missing.len() == 1 {
            let text = "3 voters, 1 of them missing: the loss of one more stops the ledger";
            assert_eq!(status.to_string(), text, "round {round}");
        }
        voters.restart(leader).await;
        voters.vote(&[0, 1, 2]).await;
    }
    let (acknowledged, longest) = writer.end().await;
    is_all_there(&voters.ledger(), &acknowledged).await;
    println!("{} writes, the longest gap {longest:?}", acknowledged.len());
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert!(held.is_held(), "a lease was lost with the leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn le3_all_are_killed_at_once_and_nothing_acknowledged_is_lost() {
    let mut voters = Voters::start(3).await;
    let writer = Writer::start(voters.ledger());
    for _ in 0..2 {
        writer.goes_on(50).await;
        for node in &voters.nodes {
            node.process.kill();
        }
        for number in 0..3 {
            voters.nodes[number].process.wait(LONG).await.unwrap();
        }
        // The founder has no seed to ask: the others call on it.
        for number in [1, 2, 0] {
            let process = voters.cluster.launch("again", voters.options[number].clone()).await;
            voters.nodes[number].process = process;
        }
        voters.vote(&[0, 1, 2]).await;
        writer.goes_on(20).await;
    }
    let (acknowledged, _) = writer.end().await;
    is_all_there(&voters.ledger(), &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_it_stops_and_says_so() {
    let mut voters = Voters::start(3).await;
    soon(voters.ledger().put("before", "1", Expect::Any, None)).await.unwrap();
    voters.nodes[1].process.kill();
    voters.nodes[2].process.kill();
    until("both are known as down", async || {
        voters.ledger().status().is_some_and(|status| status.missing.len() == 2)
    })
    .await;
    let status = voters.ledger().status().unwrap();
    assert_eq!(status.tolerance(), None);
    let patience = Duration::from_secs(2);
    let ledger = voters.ledger().within(patience);
    let error = soon(ledger.put("during", "1", Expect::Any, None)).await.unwrap_err();
    assert!(matches!(error, LedgerError::NoLeader { may_be_done: true, .. }), "{error}");
    let error = soon(ledger.get("before")).await.unwrap_err();
    assert!(matches!(error, LedgerError::NoLeader { may_be_done: false, .. }), "{error}");
    voters.restart(1).await;
    let value = soon(voters.ledger().within(LONG).get("before")).await.unwrap().unwrap();
    assert_eq!(&value.value[..], b"1");
    soon(voters.ledger().put("after", "1", Expect::Any, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_is_gone_for_good_is_replaced_and_does_not_disturb_when_it_comes_back() {
    let mut voters = Voters::start(3).await;
    let options = Options {
        listen: Some(free_addr()),
        seeds: vec![voters.nodes[0].addr],
        role: "server",
        ..Options::default()
    };
    voters.nodes.push(voters.cluster.process("fourth", options.clone()).await);
    voters.options.push(options);
    let writer = Writer::start(voters.ledger());
    writer.goes_on(20).await;
    let began = Instant::now();
    voters.nodes[2].process.kill();
    voters.vote(&[0, 1, 3]).await;
    let took = began.elapsed();
    println!("replaced after {took:?}");
    assert!(took > Duration::from_secs(10), "it might have come back: {took:?}");
    let term = voters.ledger().status().unwrap().term;

    // What it knows is old. It learns that it is no voter, and nobody else notices anything.
    voters.restart(2).await;
    sees_up(&voters.asker, 5).await;
    let dir = voters.cluster.state().join("nodes");
    let store = dir.join(format!("127.0.0.1_{}", voters.nodes[2].addr.port())).join("ledger");
    until("it has removed its store", async || !store.join("voter.redb").exists()).await;
    writer.goes_on(20).await;
    voters.vote(&[0, 1, 3]).await;
    assert_eq!(voters.ledger().status().unwrap().term, term, "there was another election");

    // A fifth server makes five of it again, the one that came back among them.
    let options = Options { listen: Some(free_addr()), ..voters.options[3].clone() };
    voters.nodes.push(voters.cluster.process("fifth", options).await);
    voters.vote(&[0, 1, 2, 3, 4]).await;
    let (acknowledged, _) = writer.end().await;
    is_all_there(&voters.ledger(), &acknowledged).await;
    assert_eq!(voters.ledger().status().unwrap().to_string(), "5 voters: two may be lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_comes_back_as_another_one() {
    let mut voters = Voters::start(3).await;
    let writer = Writer::start(voters.ledger());
    writer.goes_on(20).await;
    voters.nodes[1].process.kill();
    voters.nodes[1].process.wait(LONG).await.unwrap();
    let dir = voters.cluster.state().join("nodes");
    let store = dir.join(format!("127.0.0.1_{}", voters.nodes[1].addr.port())).join("ledger");
    std::fs::remove_dir_all(&store).unwrap();
    voters.restart(1).await;
    until("it has a store again", async || store.join("voter.redb").exists()).await;
    voters.vote(&[0, 1, 2]).await;
    writer.goes_on(20).await;
    // It counts as a full voter: with it, another one may be lost.
    voters.nodes[2].process.kill();
    writer.goes_on(20).await;
    let (acknowledged, _) = writer.end().await;
    is_all_there(&voters.ledger(), &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_alone_works_without_tolerance_and_says_so() {
    let mut voters = Voters::start(1).await;
    let status = voters.ledger().status().unwrap();
    assert_eq!(status.to_string(), "1 voter: its loss stops the ledger");
    let writer = Writer::start(voters.ledger());
    for _ in 0..3 {
        writer.goes_on(30).await;
        voters.nodes[0].process.kill();
        voters.nodes[0].process.wait(LONG).await.unwrap();
        voters.restart(0).await;
    }
    writer.goes_on(30).await;
    let (acknowledged, _) = writer.end().await;
    is_all_there(&voters.ledger(), &acknowledged).await;
}
