//! A node has only so many watches of others; whoever asks for more loses its connection, and with it
//! all that it had.

use footlight::{
    cluster::trust::Role,
    prelude::*,
    runtime::{ActorAddr, ActorId, NodeId},
};

use crate::stranger::*;
use crate::support::*;

/// Watches of all others on the actors of one node.
const MOST: u64 = 1 << 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lays_more_watches_than_a_node_keeps_loses_its_connection_and_them() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    let probe = soon(seed.spawn::<Probe>(())).await.unwrap();
    let me = NodeId(0x3a7c4);
    let shown = Forge::of_cluster(cluster.state()).certificate(&names(me, Role::Worker));
    let stranger = Stranger::new([127, 0, 0, 9], Some(&shown), MEMBERS);
    for session in 1..=2 {
        let hello = Hello { session, ..Hello::of(me, stranger.addr(), Purpose::Member) };
        let (mut held, answer) = stranger.greet(seed.addr(), &hello).await;
        let Answer::Welcome(there) = answer else { panic!("{answer:?}") };
        let watch = |id| Header::Watch { id, actor: probe.addr() };
        for id in 0..MOST {
            held.say(&watch(id), &[]).await;
        }
        held.is_heard(there.incarnation).await;
        held.say(&watch(MOST), &[]).await;
        let ended = soon(held.connection.closed()).await.to_string();
        assert!(ended.contains("more than 65536 watches"), "{ended}");
    }
    // Others watch as before.
    let probe = ActorRef::<Probe>::at(probe.addr(), other.system());
    let watch = other.watch(&probe);
    let away =
        ActorRef::<Probe>::at(ActorAddr { actor: ActorId(9_999), ..probe.addr() }, other.system());
    assert_eq!(soon(other.watch(&away)).await, Down::NoSuchActor);
    probe.stop();
    assert_eq!(soon(watch).await, Down::Stopped);
}
