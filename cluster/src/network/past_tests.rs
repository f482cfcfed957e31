//! What stays of a node that has gone, between two nodes in one process.

use std::path::Path;

use footlight_runtime::{ActorId, ActorRef, Cause, Down, error::Failure};

use super::*;
use crate::{
    Node, NodeActor, NodeArgs,
    node_actor::{AskStatus, NODE_ACTOR},
    transport::handshake::{Hello, Purpose, Refusal},
};

const LONG: Duration = Duration::from_secs(30);

async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let watch = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, watch).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

async fn start(state: &Path, seeds: Vec<String>) -> Node {
    let listen = Some("127.0.0.1:0".to_owned());
    let state = Some(state.to_owned());
    Node::builder(NodeArgs { listen, state, seeds, ..NodeArgs::default() }).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_that_has_gone_only_its_lives_are_kept_and_these_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let stays = start(state.path(), Vec::new()).await;
    let network = stays.network();
    let mut past = Vec::new();
    for _ in 0..3 {
        let goes = start(state.path(), vec![stays.addr().to_string()]).await;
        let there = NodeActor::of(goes.id(), goes.incarnation(), stays.system());
        soon(there.call(AskStatus)).await.unwrap();
        network.forget_idle();
        network.forget_idle();
        assert!(network.peer(goes.id()).is_some(), "what is connected is kept");
        past.push((there, network.peer(goes.id()).unwrap().addr().unwrap()));
        soon(goes.leave()).await.unwrap();
    }
    // Twice in a row nothing needs them.
    until("all are forgotten", || {
        network.forget_idle();
        network.peers.is_empty()
    })
    .await;
    for (there, addr) in past {
        let actor = there.addr();
        let lost = Failure::not_sent(Cause::NodeLost(actor.node));
        assert_eq!(soon(there.call(AskStatus)).await.unwrap_err().failure, lost);
        assert_eq!(there.try_cast(AskStatus).unwrap_err().failure, lost);
        assert_eq!(soon(there.watch()).await, Down::NodeLost(actor.node));
        there.kill();
        assert!(network.peer(actor.node).is_none(), "it is not made known again");

        // A process of an earlier life that was forgotten itself calls.
        let greeting = network.greeting();
        let before = Incarnation(actor.incarnation.0 - 1);
        let record = crate::transport::handshake::NodeRecord {
            node: actor.node,
            incarnation: before,
            addr,
            ..greeting
        };
        let hello = Hello { record, purpose: Purpose::Member, session: 1, knows: None };
        let refused = network.peer_or_new(actor.node).admit(&hello, network.node()).map(drop);
        assert!(matches!(refused, Err(Refusal::PastLife { .. })), "{refused:?}");
    }
    soon(stays.leave()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_nobody_has_told_of_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let stays = start(state.path(), Vec::new()).await;
    let network = stays.network();
    let actor = ActorAddr { node: NodeId(7), incarnation: Incarnation(1), actor: ActorId(16) };
    let nobody = ActorRef::<NodeActor>::at(actor, stays.system());
    assert_eq!(soon(nobody.watch()).await, Down::NodeLost(NodeId(7)));
    until("it is forgotten", || {
        network.forget_idle();
        network.peers.is_empty()
    })
    .await;
    assert!(!network.is_past(actor), "a life that it never had is not over");
    soon(stays.leave()).await.unwrap();
}

#[test]
fn the_latest_lives_are_known_and_no_more() {
    let past = Past::default();
    let life = |n: u64| Lives { latest: Incarnation(n), lost: Some(Incarnation(n)) };
    let actor =
        |n: u64| ActorAddr { node: NodeId(n), incarnation: Incarnation(n), actor: NODE_ACTOR };
    let most = MAX_PAST as u64;
    for n in 1..=2 * most {
        past.note(NodeId(n), life(n));
    }
    assert!(past.is_over(actor(2 * most)) && past.is_over(actor(most + 1)));
    assert!(!past.is_over(actor(most)));
    // One that came back and went again is the latest once more.
    assert_eq!(past.take(NodeId(most + 1)), life(most + 1));
    assert_eq!(past.take(NodeId(most + 1)), Lives::default());
    past.note(NodeId(most + 1), life(most + 1));
    past.note(NodeId(1), life(1));
    assert!(past.is_over(actor(most + 1)));
    let inner = past.lock();
    assert_eq!((inner.lives.len(), inner.order.len()), (MAX_PAST, MAX_PAST));
}
