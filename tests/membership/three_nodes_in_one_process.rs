//! Several nodes live in one process and know nothing of each other but what goes over QUIC.

use footlight::runtime::{Cause, Failure};

use footlight::prelude::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_call_spawn_and_watch_across_and_a_leave_is_seen_at_once() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let one = cluster.here(Options::join(seed.addr())).await;
    let two = cluster.here(Options::join(seed.addr())).await;
    for node in [&seed, &one, &two] {
        sees_up(node, 3).await;
    }

    // Each spawns on each; the call runs where the actor is.
    for from in [&seed, &one, &two] {
        for to in [&seed, &one, &two] {
            let spawn = from.spawn::<Probe>(()).on(Placement::node(to.id()));
            let probe = soon(spawn).await.unwrap();
            assert_eq!(soon(probe.call(Where {})).await.unwrap().0, to.id());
        }
    }

    // A panic and its text come to the watcher on another node, and to the caller.
    let probe = one.spawn::<Probe>(()).on(Placement::node(two.id())).await.unwrap();
    let watch = seed.watch(&probe);
    let error = soon(probe.call(Boom { text: "on purpose".into() })).await.unwrap_err();
    assert_eq!(error.failure, Failure::may_have_run(Cause::Stopped));
    assert_eq!(soon(watch).await, Down::Panicked("on purpose".into()));
    let error = soon(probe.call(Where {})).await.unwrap_err();
    assert_eq!(error.failure, Failure::not_sent(Cause::NoSuchActor));

    // A leave: actors stop, watchers hear of that, members see it as left and not as down.
    let ended = probe;
    let probe = one.spawn::<Probe>(()).on(Placement::node(two.id())).await.unwrap();
    let watch = one.watch(&probe);
    // Watches are laid in order: once this one is answered, the one before it is laid.
    let how = soon(one.watch(&ended)).await;
    assert_eq!(how, Down::Panicked("on purpose".into()), "it ended before, and is told how");
    let (gone, mut events) = (two.id(), seed.events());
    soon(two.leave()).await.unwrap();
    assert_eq!(soon(watch).await, Down::NodeLeft(gone));
    let left =
        event(&mut events, |event| matches!(event, ClusterEvent::Left(_) | ClusterEvent::Down(_)))
            .await;
    assert!(matches!(&left, ClusterEvent::Left(member) if member.id == gone), "{left:?}");
    for node in [&seed, &one] {
        let state = async || node.members().iter().find(|m| m.id == gone).map(|m| m.state);
        until("the other sees it left", async || state().await == Some(MemberState::Left)).await;
    }
    let error = soon(probe.call(Where {})).await.unwrap_err();
    assert_eq!(error.failure, Failure::not_sent(Cause::NodeLost(gone)));
    assert_eq!(soon(one.watch(&probe)).await, Down::NodeLost(gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_last_handle_is_dropped_looks_like_a_crash() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    let probe = seed.spawn::<Probe>(()).on(Placement::node(other.id())).await.unwrap();
    let watch = seed.watch(&probe);
    let lost = other.id();
    drop(other);
    // Its actors are killed with it, and the news may still get out.
    let down = soon(watch).await;
    assert!(matches!(down, Down::Killed | Down::NodeLost(_)), "{down}");
    seed.wait_for_members(LONG, |members| {
        members.iter().any(|m| m.id == lost && m.state == MemberState::Down)
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_placement_that_no_node_fits_says_what_there_is() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
    let error = seed.spawn::<Probe>(()).on(Placement::role("worker")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no node for test.probe: asked for a node of role worker"), "{text}");
    assert!(text.contains(&format!("node {}: is not of role worker", seed.id())), "{text}");
}
