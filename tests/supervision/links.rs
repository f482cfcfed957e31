//! Links across nodes: neither of two actors goes on without the other.

use footlight::prelude::*;

use crate::support::*;

async fn two_nodes(cluster: &Cluster) -> (Node, NodeProcess) {
    let seed = cluster.here(Options::default()).await;
    let other = cluster.process("other", Options::join(seed.addr())).await;
    sees_up(&seed, 2).await;
    (seed, other)
}

/// One actor here and one there.
async fn pair(here: &Node, there: &NodeProcess) -> [ActorRef<Tool>; 2] {
    let a = soon(here.spawn::<Tool>(Begin::Ready)).await.unwrap();
    let b = here.spawn::<Tool>(Begin::Ready).on(Placement::node(there.id));
    [a, soon(b).await.unwrap()]
}

async fn link(a: &ActorRef<Tool>, b: &ActorRef<Tool>, linked: bool) {
    soon(a.call(LinkTo { other: b.clone(), linked })).await.unwrap();
}

/// Waits until both know, or neither any more: the other node is told a moment later.
async fn known(pair: &[ActorRef<Tool>; 2], linked: bool) {
    for tool in pair {
        let count = usize::from(linked);
        until("the link", async || tool.call(Links {}).await.is_ok_and(|known| known == count))
            .await;
    }
}

async fn fall(tool: &ActorRef<Tool>) {
    soon(tool.call(Fall { why: "on purpose".into() })).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_panic_of_either_fails_the_other_on_its_node_and_names_it() {
    let cluster = Cluster::new();
    let (seed, other) = two_nodes(&cluster).await;
    for (links, falls) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let pair = pair(&seed, &other).await;
        link(&pair[links], &pair[1 - links], true).await;
        link(&pair[links], &pair[1 - links], true).await;
        known(&pair, true).await;
        let watch = seed.watch(&pair[1 - falls]);
        fall(&pair[falls]).await;
        let expected = format!("linked {} ended: panicked: on purpose", pair[falls].addr());
        assert_eq!(soon(watch).await, Down::Failed(expected), "{links} links, {falls} falls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_harms_nobody_and_a_link_can_be_taken_back() {
    let cluster = Cluster::new();
    let (seed, other) = two_nodes(&cluster).await;
    for stops in [0, 1] {
        let pair = pair(&seed, &other).await;
        link(&pair[0], &pair[1], true).await;
        known(&pair, true).await;
        pair[stops].stop();
        assert_eq!(soon(seed.watch(&pair[stops])).await, Down::Stopped);
        soon(pair[1 - stops].call(AskGot {})).await.expect("it lives");
    }
    for falls in [0, 1] {
        let pair = pair(&seed, &other).await;
        link(&pair[0], &pair[1], true).await;
        known(&pair, true).await;
        link(&pair[0], &pair[1], false).await;
        known(&pair, false).await;
        let watch = seed.watch(&pair[falls]);
        fall(&pair[falls]).await;
        soon(watch).await;
        soon(pair[1 - falls].call(AskGot {})).await.expect("it lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_others_node_is_its_end() {
    let cluster = Cluster::new();
    let (seed, other) = two_nodes(&cluster).await;
    let pair = pair(&seed, &other).await;
    let [here, there] = &pair;
    link(there, here, true).await;
    known(&pair, true).await;
    let watch = seed.watch(here);
    other.process.kill();
    let expected = format!("linked {} ended: node {} lost", there.addr(), other.id);
    assert_eq!(soon(watch).await, Down::Failed(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_ends_the_links_of_its_actors() {
    let cluster = Cluster::new();
    let (seed, other) = two_nodes(&cluster).await;
    let [here, there] = pair(&seed, &other).await;
    link(&here, &there, true).await;
    let watch = seed.watch(&here);
    other.process.terminate();
    let Down::Failed(why) = soon(watch).await else { panic!("it was linked") };
    assert!(why.starts_with(&format!("linked {} ended: ", there.addr())), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_one_that_fails_at_the_same_moment_is_not_missed() {
    let cluster = Cluster::new();
    let (seed, other) = two_nodes(&cluster).await;
    for _ in 0..20 {
        let [here, there] = pair(&seed, &other).await;
        let watch = seed.watch(&there);
        // The news of the link and the end of the one who made it cross.
        link(&here, &there, true).await;
        fall(&here).await;
        let expected = format!("linked {} ended: panicked: on purpose", here.addr());
        assert_eq!(soon(watch).await, Down::Failed(expected));
    }
}
