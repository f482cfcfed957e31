//! A slow actor holds back those who send to it, and nobody else; what waits is bounded.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use footlight::{prelude::*, runtime::remote::WINDOW};
use futures::future::join_all;
use support::{
    memory::{kept_for, most_kept_for},
    *,
};

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

/// Sends without waiting until it is refused; returns how many were accepted.
fn fill(probe: &ActorRef<Probe>) -> usize {
    for accepted in 0..=WINDOW {
        if let Err(error) = probe.try_cast(Note { number: 0, tensor: None }) {
            assert_eq!(error.cause(), &Cause::Overloaded, "{error}");
            assert_eq!(error.fate(), Fate::NotSent);
            return accepted;
        }
    }
    panic!("more than the window was accepted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_actor_holds_back_its_own_senders_only() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let other = cluster.here(Options::join(seed.addr)).await;
    let slow = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let quick = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let others_slow = ActorRef::<Probe>::at(slow.addr(), other.system());

    let block = tokio::spawn({
        let slow = slow.clone();
        async move { slow.call(Block {}).await }
    });
    until("the actor is blocked", async || soon(quick.call(Blocked {})).await.unwrap()).await;
    // The block itself is a message; its credit comes back once the actor has taken it.
    let mut mine = 0;
    until("the window is full", async || {
        mine += fill(&slow);
        mine == WINDOW
    })
    .await;
    // Another node has a window of its own, and other actors answer everybody.
    assert_eq!(fill(&others_slow), WINDOW);
    for _ in 0..100 {
        soon(quick.call(Where {})).await.unwrap();
        assert_eq!(fill(&slow) + fill(&others_slow), 0, "the bound stands");
    }
    // A cast waits for room instead.
    let mut waiting = Box::pin(slow.cast(Note { number: 0, tensor: None }));
    assert!(futures::poll!(&mut waiting).is_pending());

    soon(quick.call(Unblock {})).await.unwrap();
    soon(waiting).await.unwrap();
    soon(block).await.unwrap().unwrap();
    let notes = soon(slow.call(Notes {})).await.unwrap();
    assert_eq!(notes.len(), 2 * WINDOW + 1, "nothing that was accepted is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_waits_for_a_lost_node_is_told() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let slow = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    node.process.freeze();
    fill(&slow);
    let error = soon(slow.cast(Note { number: 0, tensor: None })).await.unwrap_err();
    assert_eq!(error.fate(), Fate::NotSent);
    assert_eq!(error.cause(), &Cause::NodeLost(node.id));
}

/// Tensors that many actors of one node are sent, though each has room for two of them, in bytes.
const LARGE: usize = 32 << 20;

async fn fill_with_tensors(flags: &'static str) {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { flags, ..Options::default() }).await;
    let node = cluster.process("node", Options { flags, ..Options::join(seed.addr()) }).await;
    sees_up(&seed, 2).await;
    let mut probes = Vec::new();
    for _ in 0..16 {
        probes.push(soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap());
    }
    let tensor = HostTensor::from_vec(vec![0u8; LARGE], &[LARGE]).unwrap();
    let note = |number| Note { number, tensor: Some(tensor.clone()) };
    // The way for tensors is there, whichever it is.
    soon(probes[0].call(note(0))).await.unwrap();
    node.process.freeze();
    let accepts = |probe: &ActorRef<Probe>| probe.try_cast(note(1)).is_ok();
    let accepted = probes.iter().chain(&probes).filter(|probe| accepts(probe)).count();
    // Eight make the bound, and of one or two the connection has taken what it may.
    assert!((8..=10).contains(&accepted), "{accepted} tensors were accepted");
    assert!(probes[15].try_cast(Note { number: 2, tensor: None }).is_ok(), "small ones have room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_actors_of_one_slow_node_do_not_fill_a_senders_memory() {
    fill_with_tensors("--same-host network").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_those_that_read_it() {
    fill_with_tensors("--same-host memory").await;
}

/// What a node keeps of answers for another one, in KiB: 256 MiB of tensors, and what is in hand.
const ANSWERS: u64 = (256 + 64) * 1024;

/// More than half a gigabyte of answers is asked for at once, and all comes; the node that gives them keeps no more than its bound,
/// and others are answered meanwhile.
async fn asks_for_much(flags: &'static str) {
    const TENSOR: usize = 4 << 20;
    let cluster = Cluster::new();
    let here = cluster.here(Options { flags, ..Options::default() }).await;
    let giver = cluster.process("giver", Options { flags, ..Options::join(here.addr()) }).await;
    let other = cluster.here(Options::join(here.addr())).await;
    sees_up(&here, 3).await;
    let on_giver = Placement::node(giver.id);
    let source = soon(here.spawn::<Probe>(()).on(on_giver.clone())).await.unwrap();
    let quick = soon(here.spawn::<Probe>(()).on(on_giver)).await.unwrap();
    let others_source = ActorRef::<Probe>::at(source.addr(), other.system());
    let before = kept_for(giver.process.pid()).0;
    let answered = Arc::new(AtomicUsize::new(0));
    let asked = (0..150).map(|_| {
        let (source, answered) = (source.clone(), answered.clone());
        async move {
            let tensor = source.call_within(Ones { bytes: TENSOR }, LONG).await.unwrap();
            assert_eq!(tensor.bytes().len(), TENSOR);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    });
    let asked = tokio::spawn(join_all(asked.collect::<Vec<_>>()));
    let (mut calls, mut slowest) = (0, Duration::ZERO);
    while !asked.is_finished() {
        let begun = Instant::now();
        // Of the same actor and another node, and of another actor and the same node.
        soon(others_source.call(Where {})).await.unwrap();
        soon(quick.call(Where {})).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        calls += 1;
    }
    soon(asked).await.unwrap();
    let grown = most_kept_for(giver.process.pid()) - before;
    println!("KiB more at most: {grown}; {calls} calls, the slowest {slowest:?}");
    assert_eq!(answered.load(Ordering::Relaxed), 150);
    assert!(grown <= ANSWERS, "KiB more: {grown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_a_slow_reader_fill_no_memory_and_hold_back_nobody_else() {
    asks_for_much("--same-host network").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_answers_that_are_read_from_memory() {
    asks_for_much("--same-host memory").await;
}

/// What a sender and a reader may keep of the tensors between them, in KiB: 64 MiB that the reader's
/// node has for one actor, as much on its way, and one tensor more.
const BETWEEN: u64 = (64 + 64 + 4) * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_to_a_slow_reader_fills_no_memory_and_holds_back_nobody_else() {
    goes_to_a_slow_reader(1_000_000_000, "--same-host network").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_that_is_read_from_memory() {
    goes_to_a_slow_reader(1_000_000_000, "--same-host memory").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and a half"]
async fn nor_do_ten() {
    goes_to_a_slow_reader(10_000_000_000, "--same-host network").await;
}

async fn goes_to_a_slow_reader(bytes: u64, flags: &'static str) {
    const TENSOR: usize = 4 << 20;
    let tensors = bytes.div_ceil(TENSOR as u64);
    let cluster = Cluster::new();
    let here = cluster.here(Options::default()).await;
    let options = || Options { flags, ..Options::join(here.addr()) };
    let sender = cluster.process("sender", options()).await;
    let reader = cluster.process("reader", options()).await;
    sees_up(&here, 3).await;
    let on = async |node: &NodeProcess| {
        soon(here.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap()
    };
    let (source, slow, quick) = (on(&sender).await, on(&reader).await, on(&reader).await);
    let pids = [sender.process.pid(), reader.process.pid()];
    let before = pids.map(|pid| kept_for(pid).0);

    let pour = Pour { to: slow.clone(), tensors, bytes: TENSOR, millis: 20 };
    let poured = tokio::spawn(async move { source.call_within(pour, 10 * LONG).await });
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    while !poured.is_finished() {
        // From the sender's node, and from this one.
        let also = on(&sender).await;
        let asked = Instant::now();
        soon(also.call(Relay { to: quick.clone() })).await.unwrap().unwrap();
        soon(quick.call(Where {})).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        answered += 1;
    }
    poured.await.unwrap().unwrap();
    let mut notes = Vec::new();
    until("all are read", async || {
        notes = slow.call_within(Notes {}, LONG).await.unwrap();
        notes.len() as u64 == tensors
    })
    .await;
    assert!(notes.into_iter().eq(0..tensors), "in order and whole");
    let grown: Vec<u64> =
        pids.iter().zip(before).map(|(pid, before)| most_kept_for(*pid) - before).collect();
    println!("KiB more at most: {grown:?}; {answered} calls, the slowest {slowest:?}");
    assert!(grown.iter().all(|grown| *grown <= BETWEEN), "KiB more: {grown:?}");
    // The reader takes far longer than this for what waits.
    assert!(answered > 0 && slowest < Duration::from_secs(1), "{slowest:?}");
}
