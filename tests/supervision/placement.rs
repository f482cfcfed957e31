//! An actor starts where its placement says, and where none fits, the error says what there is.

use std::time::Duration;

use footlight::{cluster::NodeActor, prelude::*, runtime::NodeId};

use crate::support::*;

/// A seed and two workers, in two zones.
async fn three(cluster: &Cluster) -> [Node; 3] {
    let seed = cluster
        .here(Options { role: "server", flags: "--label zone=a", ..Options::default() })
        .await;
    let join = |flags| Options { role: "worker", flags, ..Options::join(seed.addr()) };
    let one = cluster.here(join("--label zone=a")).await;
    let two = cluster.here(join("--label zone=b")).await;
    for node in [&seed, &one, &two] {
        sees_up(node, 3).await;
    }
    [seed, one, two]
}

async fn start(node: &Node, placement: Placement) -> ActorRef<Tool> {
    soon(node.spawn::<Tool>(Begin::Ready).on(placement)).await.unwrap()
}

async fn count_on(nodes: &[Node], actors: &[ActorRef<Tool>]) -> Vec<usize> {
    let on = |node: &Node| actors.iter().filter(|actor| actor.addr().node == node.id()).count();
    nodes.iter().map(on).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spread_goes_to_all_nodes_alike_also_when_all_are_started_at_once() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    let seed = &nodes[0];
    let all = (0..9).map(|_| start(seed, Placement::anywhere().spread()));
    let all = futures::future::join_all(all).await;
    assert_eq!(count_on(&nodes, &all).await, [3, 3, 3]);

    // One that has ended no longer counts.
    let gone = all.iter().find(|actor| actor.addr().node == nodes[1].id()).unwrap();
    gone.stop();
    soon(gone.watch()).await;
    let next = start(seed, Placement::anywhere().spread()).await;
    assert_eq!(next.addr().node, nodes[1].id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spread_over_a_label_goes_to_its_values_alike_and_pack_to_one_node() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    let mut spread = Vec::new();
    for _ in 0..4 {
        spread.push(start(&nodes[0], Placement::anywhere().spread_over("zone")).await);
    }
    assert_eq!(count_on(&nodes, &spread).await, [1, 1, 2], "two in each zone");

    // From another node, which has placed nothing yet.
    let mut packed = Vec::new();
    for _ in 0..3 {
        packed.push(start(&nodes[1], Placement::role("worker").pack()).await);
    }
    assert!(packed.windows(2).all(|pair| pair[0].addr().node == pair[1].addr().node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_and_away_from_another_actor() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    let seed = &nodes[0];
    let first = start(seed, Placement::node(nodes[1].id())).await;
    let beside = start(seed, Placement::anywhere().beside(&first)).await;
    assert_eq!(beside.addr().node, nodes[1].id());
    let away = start(seed, Placement::role("worker").away_from(&first)).await;
    assert_eq!(away.addr().node, nodes[2].id());
    let nowhere = Placement::role("worker").away_from(&first).away_from(&away);
    let error = soon(seed.spawn::<Tool>(Begin::Ready).on(nowhere)).await.unwrap_err().to_string();
    let expected = format!("node {}: has the actor to be away from", nodes[1].id());
    assert!(error.contains(&expected), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_node_fits_the_error_says_what_was_asked_and_what_there_is() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    let placement = Placement::label("zone", "c");
    let error = soon(nodes[0].spawn::<Tool>(Begin::Ready).on(placement)).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("no node for test.tool: asked for a node labelled zone=c"), "{error}");
    for node in &nodes {
        let reason = format!("node {}: is not labelled zone=c", node.id());
        assert!(error.contains(&reason), "{error}");
    }
}

/// A type that nobody registered.
struct Unknown;
impl Actor for Unknown {
    type Args = ();
    const NAME: &'static str = "test.unknown";
    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Unknown)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_no_node_hosts_is_named_with_what_is_hosted() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    let error = soon(nodes[0].spawn::<Unknown>(()).on(Placement::anywhere())).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("no node that is up hosts `test.unknown`"), "{error}");
    let hosted = "builder of the nodes that are to; hosted are ";
    assert!(error.contains(hosted), "{error}");
    assert!(error.ends_with("test.probe, test.solo, test.tally, test.tool"), "{error}");
    // Where the type is known, it can be started all the same.
    soon(nodes[0].spawn::<Unknown>(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_the_node_that_joins_later() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let wanted = || seed.spawn::<Tool>(Begin::Ready).on(Placement::role("worker"));
    let error = soon(wanted().wait(Duration::from_millis(200))).await.unwrap_err().to_string();
    assert!(error.contains("is not of role worker"), "{error}");
    let late = async {
        let worker = Options { role: "worker", ..Options::join(seed.addr()) };
        cluster.process("late", worker).await
    };
    let (started, late) = tokio::join!(soon(wanted().wait(LONG)), late);
    assert_eq!(started.unwrap().addr().node, late.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_start_is_the_callers_and_no_other_node_is_tried() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    for placement in [Placement::here(), Placement::role("worker")] {
        let fails = Begin::Fails("there is no data".into());
        let fails = soon(nodes[0].spawn::<Tool>(fails).on(placement.clone())).await.unwrap_err();
        assert!(fails.to_string().contains("there is no data"), "{fails}");
        let panics = soon(nodes[0].spawn::<Tool>(Begin::Panics).on(placement)).await.unwrap_err();
        assert!(panics.to_string().contains("its start panics on purpose"), "{panics}");
    }
    let left: usize = nodes.iter().map(|node| node.system().find("test.tool").len()).sum();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_lost_is_passed_over() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let worker = || Options { role: "worker", ..Options::join(seed.addr()) };
    let one = cluster.process("one", worker()).await;
    let two = cluster.process("two", worker()).await;
    sees_up(&seed, 3).await;
    let (first, other): (NodeId, NodeId) = (one.id.min(two.id), one.id.max(two.id));
    assert_eq!(start(&seed, Placement::role("worker")).await.addr().node, first);
    let lost = if one.id == first { &one } else { &two };
    lost.process.kill();
    // At once, while it still counts as a member: its end is learnt on the way.
    assert_eq!(start(&seed, Placement::role("worker")).await.addr().node, other);
}

/// A node's own actors.
const OWN: [&str; 4] = ["cluster.node", "cluster.ledger", "cluster.names", "cluster.groups"];

/// Under the name of one of the node's own.
struct Intruder;
impl Actor for Intruder {
    type Args = ();
    const NAME: &'static str = NodeActor::NAME;
    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Intruder)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_s_own_actors_are_there_once_and_no_type_that_it_hosts() {
    let cluster = Cluster::new();
    let nodes = three(&cluster).await;
    for member in nodes[0].members() {
        assert!(member.actors.iter().any(|name| name == Probe::NAME));
        assert!(member.actors.iter().all(|name| !OWN.contains(&name.as_str())), "{member:?}");
    }
    let refused = |error: Error| {
        let error = error.to_string();
        let expected = "cluster.node could not start: it is one of the node's own actors: each \
                        node has one, and no more";
        assert_eq!(error, expected);
    };
    let here = nodes[0].spawn::<NodeActor>(());
    refused(soon(here).await.unwrap_err());
    let there = nodes[0].spawn::<NodeActor>(()).on(Placement::node(nodes[1].id()));
    refused(soon(there).await.unwrap_err());
    refused(soon(nodes[0].singleton::<NodeActor>("own", ()).start()).await.unwrap_err());

    let named = cluster.builder(Options::default()).register::<Intruder>(|intruder| intruder);
    let error = soon(named.start()).await.unwrap_err().to_string();
    let expected =
        "`cluster.node` is the name of one of the node's own actors: give your actor type another";
    assert_eq!(error, expected);
    refused(soon(nodes[0].spawn::<Intruder>(())).await.unwrap_err());
}
