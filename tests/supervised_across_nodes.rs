//! A supervisor starts the children of a lost node on another one.

mod support;

use footlight::{cluster::supervise::ChildEvents, prelude::*, runtime::ActorAddr};
use support::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}

async fn next(events: &mut ChildEvents) -> ChildEvent {
    soon(events.recv()).await.expect("the supervisor has ended")
}

async fn started(events: &mut ChildEvents) -> ActorAddr {
    match next(events).await {
        ChildEvent::Started { actor, .. } => actor,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_of_a_killed_node_is_started_on_another() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let worker = || Options { role: "worker", ..Options::join(seed.addr()) };
    let nodes = [cluster.process("one", worker()).await, cluster.process("two", worker()).await];
    sees_up(&seed, 3).await;
    let (supervisor, mut events) = soon(
        seed.supervise(OneForOne::new())
            .child::<Probe>("probe", (), Placement::role("worker"))
            .start(),
    )
    .await
    .unwrap();
    let first = started(&mut events).await;
    let (lost, other) =
        if nodes[0].id == first.node { (&nodes[0], &nodes[1]) } else { (&nodes[1], &nodes[0]) };
    lost.process.kill();
    match next(&mut events).await {
        ChildEvent::Down { child, actor, down } => {
            assert_eq!((child.as_str(), actor), ("probe", first));
            assert_eq!(down, Down::NodeLost(lost.id));
        }
        event => panic!("{event:?}"),
    }
    let second = started(&mut events).await;
    assert_eq!(second.node, other.id);
    assert_eq!(supervisor.place("probe"), Some(second));
    let probe = ActorRef::<Probe>::at(second, seed.system());
    assert_eq!(soon(probe.call(Where {})).await.unwrap(), (other.id, other.process.pid()));

    // A panic over there is answered over there.
    soon(probe.call(Boom { text: "on purpose".into() })).await.unwrap_err();
    let down = next(&mut events).await;
    assert!(
        matches!(&down, ChildEvent::Down { down: Down::Panicked(text), .. } if text == "on purpose"),
        "{down:?}"
    );
    assert_eq!(started(&mut events).await.node, other.id);
    // Stopping the supervisor stops the child over there.
    let last = supervisor.place("probe").unwrap();
    soon(supervisor.stop()).await;
    assert_eq!(soon(seed.system().watch(last)).await, Down::Stopped);
}
