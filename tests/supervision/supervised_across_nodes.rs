//! A supervisor keeps its children up, on whatever nodes these are, and can be asked and changed from
//! any node.

use std::{path::Path, time::Duration};

use footlight::{
    cluster::supervise::{Child, ChildEvents, Supervisor},
    prelude::*,
    runtime::{ActorAddr, NodeId, supervision::Supervision},
};

use crate::support::*;

fn worker(seed: &Node) -> Options {
    Options { role: "worker", ..Options::join(seed.addr()) }
}

async fn next(events: &mut ChildEvents) -> ChildEvent {
    soon(events.next()).await.unwrap().expect("the supervisor has ended")
}

async fn started(events: &mut ChildEvents) -> ActorAddr {
    match next(events).await {
        ChildEvent::Started { actor, .. } => actor,
        other => panic!("{other:?}"),
    }
}

async fn down(events: &mut ChildEvents) -> (ActorAddr, Down) {
    match next(events).await {
        ChildEvent::Down { actor, down, .. } => (actor, down),
        other => panic!("{other:?}"),
    }
}

/// How many actors of a type live on all nodes that are up.
async fn alive<A: Actor>(asked: &Node) -> u64 {
    let mut count = 0;
    for member in asked.members().iter().filter(|member| member.is_up()) {
        let status = soon(asked.status_of(member.id)).await.unwrap();
        count +=
            status.actors.iter().find(|(name, _)| name == A::NAME).map_or(0, |(_, count)| *count);
    }
    count
}

fn pick(nodes: &[NodeProcess; 2], node: NodeId) -> (&NodeProcess, &NodeProcess) {
    if nodes[0].id == node { (&nodes[0], &nodes[1]) } else { (&nodes[1], &nodes[0]) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_of_a_killed_node_is_started_on_another() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let nodes =
        [cluster.process("one", worker(&seed)).await, cluster.process("two", worker(&seed)).await];
    sees_up(&seed, 3).await;
    let supervisor = seed
        .supervise(OneForOne::new())
        .child::<Probe>("probe", (), Placement::role("worker"))
        .start();
    let supervisor = soon(supervisor).await.unwrap();
    let mut events = soon(supervisor.events()).await.unwrap();
    let first = started(&mut events).await;
    let (lost, other) = pick(&nodes, first.node);
    lost.process.kill();
    assert_eq!(down(&mut events).await, (first, Down::NodeLost(lost.id)));
    let second = started(&mut events).await;
    assert_eq!(second.node, other.id);
    let probe = soon(supervisor.child::<Probe>("probe")).await.unwrap();
    assert_eq!(probe.addr(), second);
    assert_eq!(soon(probe.call(Where {})).await.unwrap(), (other.id, other.process.pid()));

    // A panic over there is answered over there.
    soon(probe.call(Boom { text: "on purpose".into() })).await.unwrap_err();
    assert_eq!(down(&mut events).await.1, Down::Panicked("on purpose".into()));
    assert_eq!(started(&mut events).await.node, other.id);
    let info = soon(supervisor.children()).await.unwrap();
    assert_eq!(info[0].last.as_deref(), Some("panicked: on purpose"));

    // Without a node that fits it waits for one, however often it might be restarted.
    other.process.kill();
    assert_eq!(down(&mut events).await.1, Down::NodeLost(other.id));
    let error = soon(supervisor.child::<Probe>("probe")).await.unwrap_err();
    assert!(error.to_string().ends_with(&format!("is not up: node {} lost", other.id)), "{error}");
    let third = cluster.process("three", worker(&seed)).await;
    let last = started(&mut events).await;
    assert_eq!(last.node, third.id);
    // Stopping the supervisor stops the child over there.
    soon(supervisor.stop()).await.unwrap();
    assert_eq!(soon(seed.system().watch(last)).await, Down::Stopped);
    assert_eq!(down(&mut events).await, (last, Down::Stopped));
    assert_eq!(soon(events.next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_of_a_node_that_stood_still_and_returns_lives_once() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let nodes =
        [cluster.process("one", worker(&seed)).await, cluster.process("two", worker(&seed)).await];
    sees_up(&seed, 3).await;
    let supervisor = seed
        .supervise(OneForOne::new())
        .child::<Probe>("probe", (), Placement::role("worker"))
        .start();
    let supervisor = soon(supervisor).await.unwrap();
    let mut events = soon(supervisor.events()).await.unwrap();
    let first = started(&mut events).await;
    let (frozen, other) = pick(&nodes, first.node);
    frozen.process.freeze();
    assert_eq!(down(&mut events).await, (first, Down::NodeLost(frozen.id)));
    let second = started(&mut events).await;
    assert_eq!(second.node, other.id);
    frozen.process.thaw();
    seed.wait_for_members(LONG, |members| {
        let back = |member: &&Member| member.id == frozen.id && member.is_up();
        members.iter().find(back).is_some_and(|back| back.incarnation > frozen.incarnation)
    })
    .await
    .unwrap();
    until("the old one is gone", async || alive::<Probe>(&seed).await == 1).await;
    // The one that stays is the one that the supervisor knows.
    let probe = soon(supervisor.child::<Probe>("probe")).await.unwrap();
    assert_eq!(probe.addr(), second);
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, other.id);
    let lost = ActorRef::<Probe>::at(first, seed.system());
    let error = soon(lost.call(Where {})).await.unwrap_err();
    assert_eq!(*error.cause(), Cause::NodeLost(frozen.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_of_a_node_that_leaves_is_moved_and_that_counts_as_no_failure() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let nodes =
        [cluster.process("one", worker(&seed)).await, cluster.process("two", worker(&seed)).await];
    sees_up(&seed, 3).await;
    let supervisor = seed
        .supervise(OneForOne::new().at_most(0, Duration::from_secs(60)))
        .child::<Probe>("probe", (), Placement::role("worker"))
        .start();
    let supervisor = soon(supervisor).await.unwrap();
    let mut events = soon(supervisor.events()).await.unwrap();
    let first = started(&mut events).await;
    let (leaves, other) = pick(&nodes, first.node);
    leaves.process.terminate();
    assert_eq!(down(&mut events).await, (first, Down::NodeLeft(leaves.id)));
    let second = started(&mut events).await;
    assert_eq!(second.node, other.id);
    let probe = soon(supervisor.child::<Probe>("probe")).await.unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, other.id);
}

fn diary(name: &str, book: &Path) -> DiaryArgs {
    DiaryArgs { name: name.into(), book: book.into(), slow: Duration::from_millis(100) }
}

/// Three children on three nodes of which the middle one breaks: what happens then, as the nodes
/// wrote it down.
async fn when_the_middle_one_breaks(supervision: Supervision) -> Vec<String> {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        nodes.push(cluster.process(name, worker(&seed)).await);
    }
    let book = cluster.state().join("book");
    let names = ["a", "b", "c"];
    let supervisor =
        nodes.iter().zip(names).fold(seed.supervise(supervision), |supervisor, (node, name)| {
            supervisor.child::<Diary>(name, diary(name, &book), Placement::node(node.id))
        });
    // The supervisor is on none of these nodes, nor where it is asked for.
    let fourth = cluster.process("four", Options::join(seed.addr())).await;
    one_view(&seed, 5, LONG).await;
    let supervisor = soon(supervisor.on(Placement::node(fourth.id)).start()).await.unwrap();
    assert_eq!(supervisor.actor().addr().node, fourth.id);
    let mut events = soon(supervisor.events()).await.unwrap();
    for node in &nodes {
        assert_eq!(started(&mut events).await.node, node.id);
    }
    let begun = read_diary(&book);
    let middle = soon(supervisor.child::<Diary>("b")).await.unwrap();
    soon(middle.call(Break("on purpose".into()))).await.unwrap_err();
    // The last one is up again.
    loop {
        if let ChildEvent::Started { child, .. } = next(&mut events).await
            && child == "c"
        {
            break;
        }
    }
    let lines = read_diary(&book).split_off(begun.len());
    soon(supervisor.stop()).await.unwrap();
    let stopped: Vec<_> =
        read_diary(&book).split_off(begun.len() + lines.len()).into_iter().map(|l| l.1).collect();
    assert_eq!(stopped, ["c", "b", "a"]);
    lines
        .into_iter()
        .map(|(begins, name, _)| format!("{}{name}", if begins { '+' } else { '-' }))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_for_all_stops_last_first_and_starts_first_first_across_nodes() {
    let lines = when_the_middle_one_breaks(OneForAll::new()).await;
    assert_eq!(lines[0], "-b");
    let mut ended = lines[1..3].to_vec();
    ended.sort();
    assert_eq!(ended, ["-a", "-c"]);
    assert_eq!(lines[3..], ["+a", "+b", "+c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_for_one_leaves_those_before_alone_across_nodes() {
    let lines = when_the_middle_one_breaks(RestForOne::new()).await;
    assert_eq!(lines, ["-b", "-c", "+b", "+c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_added_and_taken_away_from_any_node() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", worker(&seed)).await;
    let other = cluster.here(Options::join(seed.addr())).await;
    one_view(&seed, 3, LONG).await;
    let supervisor = seed.supervise(OneForOne::new()).on(Placement::role("worker")).start();
    let supervisor = soon(supervisor).await.unwrap();
    assert_eq!(supervisor.actor().addr().node, node.id);
    let seen = ActorRef::<Supervisor>::at(supervisor.actor().addr(), other.system());
    let seen = SupervisorRef::from(seen);
    let probe = |name: &str| Child::of::<Probe>(&other, name, &()).unwrap();

    let beside = soon(seen.add_child(probe("beside"))).await.unwrap();
    assert_eq!(beside.node, node.id, "here is where the supervisor is");
    let away = probe("away").on(Placement::node(seed.id())).restart(Restart::Transient);
    let away = soon(seen.add_child(away)).await.unwrap();
    assert_eq!(away.node, seed.id());
    let mut events = soon(seen.events()).await.unwrap();
    assert_eq!([started(&mut events).await, started(&mut events).await], [beside, away]);
    let children = soon(supervisor.children()).await.unwrap();
    let children: Vec<_> =
        children.iter().map(|c| (&c.name[..], &c.kind[..], c.actor.unwrap())).collect();
    assert_eq!(children, [("beside", Probe::NAME, beside), ("away", Probe::NAME, away)]);

    let error = soon(seen.add_child(probe("away"))).await.unwrap_err();
    assert!(error.to_string().contains("two children are called `away`"), "{error}");
    let nowhere = probe("nowhere").on(Placement::role("gpu"));
    let error = soon(seen.add_child(nowhere)).await.unwrap_err().to_string();
    assert!(error.starts_with("the child `nowhere` was not added: "), "{error}");
    assert!(error.contains("is not of role gpu"), "{error}");
    assert!(matches!(next(&mut events).await, ChildEvent::StartFailed { .. }));
    let fails = Child::of::<Tool>(&other, "fails", &Begin::Fails("there is no data".into()));
    let error = soon(seen.add_child(fails.unwrap())).await.unwrap_err().to_string();
    assert!(error.ends_with("there is no data"), "{error}");
    assert!(matches!(next(&mut events).await, ChildEvent::StartFailed { .. }));

    let watch = other.system().watch(away);
    soon(seen.remove_child("away")).await.unwrap();
    assert_eq!(soon(watch).await, Down::Stopped);
    assert_eq!(down(&mut events).await, (away, Down::Stopped));
    let error = soon(seen.remove_child("away")).await.unwrap_err();
    assert!(error.to_string().contains("there is no child called `away`"), "{error}");
    assert_eq!(soon(seen.place("beside")).await.unwrap(), Some(beside));
    // It lives without children too, until it is stopped.
    soon(seen.remove_child("beside")).await.unwrap();
    assert_eq!(soon(seen.children()).await.unwrap(), []);
    soon(seen.stop()).await.unwrap();
    soon(supervisor.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_is_told_with_its_reason_and_nothing_of_it_stays() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let node = cluster.process("node", worker(&seed)).await;
    one_view(&seed, 2, LONG).await;
    let supervisor = seed
        .supervise(OneForOne::new().at_most(1, Duration::from_secs(60)))
        .child::<Probe>("probe", (), Placement::node(seed.id()))
        .child::<Tool>("tool", Begin::Fails("there is no data".into()), Placement::here())
        .on(Placement::node(node.id))
        .start();
    let error = soon(supervisor).await.unwrap_err().to_string();
    assert!(error.contains("gave up on `tool` (at most 1 restarts in 60s): "), "{error}");
    assert!(error.ends_with("test.tool could not start: there is no data"), "{error}");
    assert_eq!(alive::<Probe>(&seed).await, 0);
}
