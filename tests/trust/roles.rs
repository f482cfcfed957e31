//! What the role of a certificate does not allow is refused where it arrives, before it is decoded; the
//! answer says which role that is and which it takes (TR-5).

use std::{path::Path, time::Duration};

use footlight::{
    cluster::{AskStatus, enroll::CreateToken, trust::Role},
    prelude::*,
    runtime::{ActorId, Cause, NodeId, message::name_hash, remote::End},
};

use crate::stranger::*;
use crate::support::*;

const NODE: ActorId = ActorId(1);
const LEDGER: ActorId = ActorId(2);
const NAMES: ActorId = ActorId(3);
const GROUPS: ActorId = ActorId(4);

/// Who is at the other end: the role of its certificate, and as what it has greeted.
const STANDINGS: [(Role, Purpose); 5] = [
    (Role::Observer, Purpose::Observer),
    (Role::Worker, Purpose::Member),
    (Role::Server, Purpose::Member),
    (Role::Admin, Purpose::Member),
    // Whoever came only to ask gives orders, if its role may, and does nothing else.
    (Role::Admin, Purpose::Observer),
];

/// Which of them may send a message: y or n for each.
fn table(probe: ActorId) -> Vec<(&'static str, ActorId, &'static str)> {
    vec![
        ("cluster.status", NODE, "yyyyy"),
        ("cluster.find_actors", NODE, "yyyyy"),
        ("cluster.ask_actors", NODE, "yyyyy"),
        ("test.Echo", probe, "nyyyn"),
        ("test.no_such_message", probe, "nyyyn"),
        ("ledger.request", LEDGER, "nyyyn"),
        ("ledger.watch", LEDGER, "nyyyn"),
        ("names.name", NAMES, "nyyyn"),
        ("groups.join", GROUPS, "nyyyn"),
        ("cluster.spawn", NODE, "nnyyn"),
        ("cluster.abandon", NODE, "nnyyn"),
        ("cluster.link", NODE, "nnyyn"),
        ("ledger.append", LEDGER, "nnyyn"),
        ("ledger.vote", LEDGER, "nnyyn"),
        ("ledger.snapshot", LEDGER, "nnyyn"),
        ("ledger.invite", LEDGER, "nnyyn"),
        ("ledger.guarded", LEDGER, "nnyyn"),
        ("ledger.watch_guarded", LEDGER, "nnyyn"),
        ("cluster.create_token", NODE, "nnnyy"),
        ("cluster.list_tokens", NODE, "nnnyy"),
        ("cluster.revoke_token", NODE, "nnnyy"),
        ("cluster.revoke_node", NODE, "nnnyy"),
        ("cluster.drain", NODE, "nnnyy"),
        // What nobody has thought of takes the most.
        ("cluster.no_such_message", NODE, "nnnyy"),
        ("ledger.no_such_message", LEDGER, "nnnyy"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_send_what_the_table_says_and_no_byte_of_the_rest_is_decoded() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let here = cluster.here(Options::join(seed.addr)).await;
    let probe = soon(here.spawn::<Probe>(()).on(Placement::node(seed.id))).await.unwrap();
    let forge = Forge::of_cluster(cluster.state());
    for (column, (role, purpose)) in STANDINGS.into_iter().enumerate() {
        let node = NodeId(0x100 + column as u64);
        let shown = forge.certificate(&names(node, role));
        let stranger = Stranger::new([127, 0, 0, 9], Some(&shown), MEMBERS);
        let hello = Hello::of(node, stranger.addr(), purpose);
        let (mut held, answer) = stranger.greet(seed.addr, &hello).await;
        let Answer::Welcome(there) = answer else { panic!("{answer:?}") };
        for (number, (name, to, who)) in table(probe.addr().actor).into_iter().enumerate() {
            // Nothing that any message could be: who may send it hears of that, and nobody does any
            // harm by it.
            let body = [0xff; 3];
            let call = 1_000 + number as u64;
            let payload = Payload { body: 3, segments: Vec::new(), streams: Vec::new() };
            let (incarnation, key) = (there.incarnation, name_hash(name));
            let message =
                Header::Message { to, incarnation, key, fence: None, call: Some(call), payload };
            held.say(&message, &body).await;
            let denied = held
                .hear(|header| match header {
                    Header::Reply { call: answered, .. } if answered == call => Some(None),
                    Header::Failed { call: answered, failure } if answered == call => {
                        let Cause::Refused(why) = failure.cause else { return Some(None) };
                        Some(why.contains("has no right to").then_some(why))
                    }
                    _ => None,
                })
                .await;
            let may = who.as_bytes()[column] == b'y';
            assert_eq!(denied.is_none(), may, "{name} by {role}, {purpose:?}: {denied:?}");
            if let Some(why) = denied {
                let says_who = why.contains(&format!("`{role}`")) || why.contains("only observes");
                assert!(says_who && why.contains("that takes a"), "{why}");
            }
        }
        held.connection.close(0u32.into(), b"");
    }
    // All that harmed nobody.
    let text = "still here".to_owned();
    assert_eq!(soon(probe.call(Echo { text: text.clone() })).await.unwrap(), text);
    sees_up(&here, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_watch_and_only_servers_and_admins_end_actors_elsewhere() {
    let cluster = Cluster::new();
    let seed = cluster.process("seed", Options::default()).await;
    let here = cluster.here(Options::join(seed.addr)).await;
    let forge = Forge::of_cluster(cluster.state());
    for (column, (role, purpose)) in STANDINGS.into_iter().enumerate() {
        let probe = soon(here.spawn::<Probe>(()).on(Placement::node(seed.id))).await.unwrap();
        let node = NodeId(0x200 + column as u64);
        let shown = forge.certificate(&names(node, role));
        let stranger = Stranger::new([127, 0, 0, 9], Some(&shown), MEMBERS);
        let hello = Hello::of(node, stranger.addr(), purpose);
        let (mut held, answer) = stranger.greet(seed.addr, &hello).await;
        assert!(matches!(answer, Answer::Welcome(_)), "{answer:?}");
        let actor = probe.addr();
        held.say(&Header::Watch { id: 1, actor }, &[]).await;
        let told = |header| match header {
            Header::Down { id: 1, down } => Some(down),
            _ => None,
        };
        let is_member = matches!(purpose, Purpose::Member);
        if !is_member {
            let down = held.hear(told).await;
            assert!(matches!(&down, Down::Refused(why) if why.contains("watch")), "{down:?}");
        }
        held.say(&Header::End { actor, how: End::Kill }, &[]).await;
        if is_member && role != Role::Worker {
            assert_eq!(held.hear(told).await, Down::Killed, "{role}");
            continue;
        }
        // Behind it, on the same stream, comes a question: when that is answered, the order has been
        // heard, and the actor is there.
        held.is_heard(actor.incarnation).await;
        let text = role.to_string();
        assert_eq!(soon(probe.call(Echo { text: text.clone() })).await.unwrap(), text);
    }
    until("the log says that actors were not ended, and why", async || {
        let log = seed.process.stderr().join("\n");
        log.contains("an actor was not ended")
            && log.contains("the role `worker` has no right to end actors on other nodes")
    })
    .await;
}

/// A node that is let in by a token of this role.
async fn by_token(cluster: &Cluster, seed: &Node, dir: &Path, role: Role) -> Node {
    let token = soon(seed.create_token(role, Duration::from_secs(3_600))).await.unwrap();
    let options = Options {
        state: Some(dir.join(role.name())),
        token: Some(token.to_string()),
        ..Options::join(seed.addr())
    };
    cluster.here(options).await
}

/// How it ends: in an answer, or in a refusal. On a busy machine a connection may break just then, or
/// a node be suspect: that says nothing of rights.
async fn settled<T, E: std::fmt::Display>(
    mut ask: impl AsyncFnMut() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    soon(async {
        loop {
            match ask().await.map_err(|error| error.to_string()) {
                Err(error) if !error.contains("has no right to") => println!("again: {error}"),
                settled => return settled,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_joined_by_tokens_are_told_what_they_may_not() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let target = cluster.process("target", Options::join(seed.addr())).await;
    let dir = tempfile::tempdir().unwrap();
    let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(target.id))).await.unwrap();
    let order = || CreateToken { role: Role::Worker, ttl: Duration::from_secs(60) };
    let (asker, observed) =
        cluster.builder(Options::default()).observe(&target.addr.to_string()).await.unwrap();
    soon(asker.leave()).await.unwrap();
    let hello = || Echo { text: "hello".to_owned() };
    for (role, spawns, orders) in
        [(Role::Worker, false, false), (Role::Server, true, false), (Role::Admin, true, true)]
    {
        let node = by_token(&cluster, &seed, dir.path(), role).await;
        sees_up(&node, 3).await;
        let probe = ActorRef::<Probe>::at(probe.addr(), node.system());
        assert_eq!(settled(async || probe.call(hello()).await).await.unwrap(), "hello");
        let spawned = async || node.spawn::<Probe>(()).on(Placement::node(target.id)).await;
        match settled(spawned).await {
            Ok(_) => assert!(spawns, "{role} has spawned"),
            Err(error) => {
                assert!(!spawns && error.contains("no right to spawn on other nodes"), "{error}");
                assert!(error.contains("`worker`") && error.contains("server or admin"), "{error}");
            }
        }
        match settled(async || observed.actor(&node).call(order()).await).await {
            Ok(token) => assert!(orders && token.unwrap().starts_with("FL1-worker-")),
            Err(error) => {
                assert!(!orders && error.contains(&format!("`{role}`")), "{error}");
                assert!(error.contains("that takes a certificate of role admin"), "{error}");
            }
        }
        soon(node.leave()).await.unwrap();
    }

    // An observer is no member, whatever it is told to be.
    let token = soon(seed.create_token(Role::Observer, Duration::from_secs(3_600))).await.unwrap();
    let options = || Options {
        state: Some(dir.path().join("observer")),
        token: Some(token.to_string()),
        ..Options::join(target.addr)
    };
    let error = soon(cluster.builder(options()).start()).await.unwrap_err().to_string();
    assert!(error.contains("`observer`") && error.contains("worker, server or admin"), "{error}");
    // The token was not used up by that: it lets in one who asks.
    let addr = target.addr.to_string();
    let asker = cluster.builder(options()).observe(&addr);
    let (asker, observed) = soon(asker).await.unwrap();
    assert_eq!(soon(observed.actor(&asker).call(AskStatus)).await.unwrap().node, target.id);
    let refused = |error: String| {
        assert!(error.contains("`observer` has no right to"), "{error}");
        assert!(error.contains("that takes a certificate of role"), "{error}");
    };
    let probe = ActorRef::<Probe>::at(probe.addr(), asker.system());
    refused(settled(async || probe.call(hello()).await).await.unwrap_err());
    // A cast has no answer, and yet its sender is told.
    let note = || Note { number: 1, tensor: None };
    refused(settled(async || probe.cast(note()).await).await.unwrap_err());
    refused(settled(async || observed.actor(&asker).call(order()).await).await.unwrap_err());
    soon(asker.leave()).await.unwrap();
}
