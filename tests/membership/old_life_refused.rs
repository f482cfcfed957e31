//! What a life of a node still sends after it was declared down is refused, and it is told why.

use footlight::{
    cluster::{
        membership::{MemberId, Settings, Swim, SwimAction},
        trust::Role,
    },
    prelude::*,
    runtime::{Failure, Incarnation, NodeId, message::name_hash},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::stranger::*;
use crate::support::*;

/// What a member says that wants to join another one.
fn announcements(from: MemberId, to: MemberId) -> Vec<Vec<u8>> {
    let mut swim = Swim::new(from, Settings::lan(), &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
    swim.join(to);
    let packets = swim.take_actions().into_iter().filter_map(|action| match action {
        SwimAction::Send { data, .. } => Some(data.to_vec()),
        _ => None,
    });
    packets.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_life_that_was_declared_down_is_refused_and_says_so() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let mut events = seed.events();
    let probe = soon(seed.spawn::<Probe>(())).await.unwrap();

    // A node that joins, takes part in nothing more, and so is declared down while its connection
    // lives. It is played by hand: one of ours would have learned it before its next call.
    let me = NodeId(0x01d);
    let shown = Forge::of_cluster(cluster.state()).certificate(&names(me, Role::Worker));
    let stranger = Stranger::new([127, 0, 0, 9], Some(&shown), MEMBERS);
    let hello = Hello::of(me, stranger.addr(), Purpose::Member);
    let (mut held, answer) = stranger.greet(seed.addr(), &hello).await;
    assert!(matches!(answer, Answer::Welcome(_)), "{answer:?}");
    let note = |call, number| {
        let message = Header::Message {
            to: probe.addr().actor,
            incarnation: seed.incarnation(),
            key: name_hash(Note::NAME),
            fence: None,
            call,
            payload: Payload { body: 2, segments: Vec::new(), streams: Vec::new() },
        };
        (message, [number, 0])
    };
    let (message, body) = note(Some(1), 1);
    held.say(&message, &body).await;
    held.hear(|header| matches!(header, Header::Reply { call: 1, .. }).then_some(())).await;

    let life = MemberId::new(me, Incarnation(1), stranger.addr());
    let to = MemberId::new(seed.id(), seed.incarnation(), seed.addr());
    for packet in announcements(life, to) {
        held.say(&Header::Packet(packet), &[]).await;
    }
    event(&mut events, |event| matches!(event, ClusterEvent::Down(down) if down.id == me)).await;

    // A call and a cast, on the connection that still stands.
    for (call, number) in [(None, 2), (Some(2), 3)] {
        let (message, body) = note(call, number);
        held.say(&message, &body).await;
    }
    let refused = held
        .hear(|header| match header {
            Header::Failed { call: 2, failure } => Some(failure),
            Header::Reply { call: 2, .. } => panic!("it was answered"),
            _ => None,
        })
        .await;
    let why = format!("incarnation 1 of node {me} was declared down");
    assert_eq!(refused, Failure::not_sent(Cause::Refused(why)));
    assert_eq!(soon(probe.call(Notes {})).await.unwrap(), [1], "neither was handled");
}
