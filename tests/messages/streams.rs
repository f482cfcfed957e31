//! A reply may be a stream: in order, at the reader's pace, and with an end whatever happens.

use footlight::{
    prelude::*,
    runtime::{Failure, stream::STREAM_WINDOW},
};
use futures::StreamExt;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_items_come_in_order_and_the_reader_sets_the_pace() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let mut numbers = soon(probe.call(Count { to: 10_000 })).await.unwrap();
    for number in 0..10 {
        assert_eq!(soon(numbers.next()).await, Some(Ok(number)));
    }
    // While nobody reads, the producer stops at the window (and what its own channel holds).
    let most = 10 + STREAM_WINDOW as u64 + 3;
    until("the window is full", async || {
        soon(probe.call(Produced {})).await.unwrap().0 >= STREAM_WINDOW as u64
    })
    .await;
    for _ in 0..100 {
        let (sent, _) = soon(probe.call(Produced {})).await.unwrap();
        assert!(sent <= most, "{sent} items were taken from the producer");
    }
    let rest = soon(collect(numbers)).await.unwrap();
    assert_eq!(rest, (10..10_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_dropped_by_its_reader_stops_its_producer() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let node = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(node.spawn::<Probe>(()).on(Placement::seed())).await.unwrap();
    let ended = async || soon(probe.call(Produced {})).await.unwrap().1;
    let numbers = soon(probe.call(Count { to: u64::MAX })).await.unwrap();
    let some: Vec<_> = soon(numbers.take(100).collect::<Vec<_>>()).await;
    assert_eq!(some.len(), 100);
    until("the producer of numbers ends", ended).await;
    // One that has nothing to send learns of it too.
    drop(soon(probe.call(Silence {})).await.unwrap());
    until("the silent producer ends", ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_the_middle_of_a_stream_ends_it_with_an_error() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    let mut numbers = soon(probe.call(Count { to: u64::MAX })).await.unwrap();
    assert_eq!(soon(numbers.next()).await, Some(Ok(0)));
    let mut errors = numbers.filter_map(async |item| item.err()).boxed();
    let mut silence = soon(probe.call(Silence {})).await.unwrap();
    node.process.kill();
    let lost = Failure::may_have_run(Cause::NodeLost(node.id));
    assert_eq!(soon(errors.next()).await, Some(lost.clone()));
    assert_eq!(soon(silence.next()).await, Some(Err(lost)));
    assert_eq!(soon(silence.next()).await, None);
}
