//! Supervisors of supervisors, each on a node of its own: what one can't mend, the one above it mends
//! or passes on, and no child ever runs twice.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use footlight::{
    cluster::{
        singleton::SingletonState,
        supervise::{Child, ChildEvents, Supervisor},
    },
    prelude::*,
    runtime::supervision::Supervision,
};

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

struct Nodes {
    cluster: Cluster,
    seed: Node,
    others: Vec<NodeProcess>,
    book: PathBuf,
}

impl Nodes {
    async fn new(others: usize) -> Self {
        let cluster = Cluster::new();
        let seed = cluster.here(Options::default()).await;
        let mut nodes = Vec::new();
        for number in 0..others {
            let options = Options { role: "worker", ..Options::join(seed.addr()) };
            nodes.push(cluster.process(&format!("node-{number}"), options).await);
        }
        // The others start actors too: they must know each other.
        one_view(&seed, 1 + others, LONG).await;
        let book = cluster.state().join("book");
        Nodes { cluster, seed, others: nodes, book }
    }

    fn on(&self, number: usize) -> Placement {
        Placement::node(self.others[number].id)
    }

    fn diary(&self, name: &str, slow: Duration) -> DiaryArgs {
        DiaryArgs { name: name.into(), book: self.book.clone(), slow }
    }

    /// How many actors of a type live on all nodes.
    async fn alive(&self, kind: &str) -> u64 {
        let mut count = 0;
        for member in self.seed.members().iter().filter(|member| member.is_up()) {
            let status = soon(self.seed.status_of(member.id)).await.unwrap();
            count += status.actors.iter().find(|(name, _)| name == kind).map_or(0, |(_, n)| *n);
        }
        count
    }
}

fn at_most(restarts: u32) -> Supervision {
    OneForOne::new().at_most(restarts, MINUTE)
}

async fn fall(supervisor: &SupervisorRef, child: &str, text: &str) {
    let child = soon(supervisor.child::<Diary>(child)).await.unwrap();
    soon(child.call(Break(text.into()))).await.unwrap_err();
}

/// Waits until a child is up as another actor than this one.
async fn up_again(
    supervisor: &SupervisorRef,
    child: &str,
    before: &ActorRef<Diary>,
) -> ActorRef<Diary> {
    soon(async {
        loop {
            match supervisor.child::<Diary>(child).await {
                Ok(now) if now != *before => return now,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

async fn next(events: &mut ChildEvents) -> ChildEvent {
    soon(events.next()).await.unwrap().expect("the supervisor has ended")
}

/// Who has begun and not ended, if nobody ever began a second time before the first had ended.
fn never_twice(book: &Path) -> Vec<String> {
    let mut running = BTreeMap::<String, bool>::new();
    let lines = read_diary(book);
    for (begins, name, _) in &lines {
        let before = running.insert(name.clone(), *begins).unwrap_or(false);
        assert_ne!(before, *begins, "{name}: {lines:?}");
    }
    running.into_iter().filter(|(_, runs)| *runs).map(|(name, _)| name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_level_can_mend_ends_the_topmost_which_tells_the_chain() {
    let nodes = Nodes::new(3).await;
    let seed = &nodes.seed;
    let inner = seed
        .supervise(at_most(1))
        .child::<Diary>("leaf", nodes.diary("leaf", Duration::ZERO), nodes.on(2))
        .child::<Diary>("sibling", nodes.diary("sibling", Duration::ZERO), nodes.on(0));
    let middle = seed.supervise(at_most(0)).supervisor("inner", inner, nodes.on(1));
    let top = seed.supervise(at_most(0)).supervisor("middle", middle, nodes.on(0));
    let top = soon(top.start()).await.unwrap();
    let middle = soon(top.supervisor("middle")).await.unwrap();
    let inner = soon(middle.supervisor("inner")).await.unwrap();
    assert_eq!(inner.actor().addr().node, nodes.others[1].id);
    let mut watch = seed.watch(top.actor());

    let leaf = soon(inner.child::<Diary>("leaf")).await.unwrap();
    fall(&inner, "leaf", "once").await;
    up_again(&inner, "leaf", &leaf).await;
    assert!(futures::poll!(&mut watch).is_pending(), "the inner one mends that");
    fall(&inner, "leaf", "twice").await;

    let chain = "gave up on `middle` (at most 0 restarts in 60s): failed: \
                 gave up on `inner` (at most 0 restarts in 60s): failed: \
                 gave up on `leaf` (at most 1 restarts in 60s): panicked: twice";
    assert_eq!(soon(watch).await, Down::Failed(chain.into()));
    assert_eq!(soon(top.ended()).await.unwrap_err().to_string(), chain);
    // All below ended before it.
    assert_eq!(nodes.alive(Supervisor::NAME).await, 0);
    assert_eq!(nodes.alive(Diary::NAME).await, 0);
    assert!(never_twice(&nodes.book).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_gave_up_is_started_again_with_all_its_children() {
    let nodes = Nodes::new(3).await;
    let seed = &nodes.seed;
    let slow = Duration::from_millis(300);
    let inner = seed
        .supervise(at_most(0))
        .child::<Diary>("a", nodes.diary("a", slow), nodes.on(1))
        .child::<Diary>("b", nodes.diary("b", slow), nodes.on(2));
    let top = seed.supervise(at_most(3)).supervisor("inner", inner, nodes.on(0));
    let top = soon(top.start()).await.unwrap();
    let mut events = soon(top.events()).await.unwrap();
    assert!(matches!(next(&mut events).await, ChildEvent::Started { .. }));
    let inner = soon(top.supervisor("inner")).await.unwrap();
    fall(&inner, "a", "on purpose").await;
    match next(&mut events).await {
        ChildEvent::Down { child, actor, down: Down::Failed(why) } => {
            assert_eq!((child.as_str(), actor), ("inner", inner.actor().addr()));
            assert_eq!(why, "gave up on `a` (at most 0 restarts in 60s): panicked: on purpose");
        }
        event => panic!("{event:?}"),
    }
    assert!(matches!(next(&mut events).await, ChildEvent::Started { .. }));
    assert_eq!(never_twice(&nodes.book), ["a", "b"]);
    assert_eq!(read_diary(&nodes.book).len(), 6, "each began twice and ended once");
    assert_eq!((nodes.alive(Supervisor::NAME).await, nodes.alive(Diary::NAME).await), (2, 2));
    let again = soon(top.supervisor("inner")).await.unwrap();
    assert_ne!(again, inner);
    soon(top.stop()).await.unwrap();
    assert!(never_twice(&nodes.book).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_node_of_a_supervisor_is_lost_it_moves_and_each_child_runs_once() {
    for freeze in [false, true] {
        let nodes = Nodes::new(4).await;
        let (seed, slow) = (&nodes.seed, Duration::from_millis(1500));
        let inner = seed
            .supervise(OneForOne::new())
            .child::<Diary>("a", nodes.diary("a", slow), nodes.on(2))
            .child::<Diary>("b", nodes.diary("b", slow), nodes.on(3));
        let places = Placement::any_of([nodes.others[0].id, nodes.others[1].id]);
        let top = seed.supervise(OneForOne::new()).supervisor("inner", inner, places);
        let top = soon(top.start()).await.unwrap();
        let before = soon(top.supervisor("inner")).await.unwrap();
        assert_eq!(before.actor().addr().node, nodes.others[0].id);
        let a = soon(before.child::<Diary>("a")).await.unwrap();
        let watch = seed.watch(&a);
        match freeze {
            true => nodes.others[0].process.freeze(),
            false => nodes.others[0].process.kill(),
        }
        assert_eq!(soon(watch).await, Down::Stopped, "its node lives: it ends with its owner");
        let mut events = soon(top.events()).await.unwrap();
        let started = loop {
            match next(&mut events).await {
                ChildEvent::Started { actor, .. } if actor != before.actor().addr() => break actor,
                _ => {}
            }
        };
        assert_eq!(started.node, nodes.others[1].id);
        // None of them was started before the one before it had ended, though that takes a while.
        assert_eq!(never_twice(&nodes.book), ["a", "b"]);
        assert_eq!(read_diary(&nodes.book).len(), 6);
        if freeze {
            nodes.others[0].process.thaw();
            sees_up(seed, 5).await;
            let mut seen = 0;
            until("what stood still is gone", async || {
                let count = nodes.alive(Supervisor::NAME).await;
                if std::mem::replace(&mut seen, count) != count {
                    println!("{count} supervisors; of the topmost: {:?}", top.children().await);
                }
                count == 2
            })
            .await;
        }
        assert_eq!(nodes.alive(Diary::NAME).await, 2);
    }
}

/// What SU-3 gives up: there the two overlap, until the old one has had its time to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_for_fifteen_seconds_is_not_waited_for() {
    const PATIENCE: Duration = Duration::from_secs(15);
    let nodes = Nodes::new(3).await;
    let seed = &nodes.seed;
    // It stops for longer than anybody waits, and may: so its node does not say that it has ended.
    let args = nodes.diary("a", 2 * PATIENCE);
    let slow = Child::of::<Diary>(seed, "a", &args).unwrap();
    let slow = slow.on(nodes.on(2)).stop_within(PATIENCE + Duration::from_secs(5));
    let inner = seed.supervise(OneForOne::new()).with(slow);
    let places = Placement::any_of([nodes.others[0].id, nodes.others[1].id]);
    let top = seed.supervise(OneForOne::new()).supervisor("inner", inner, places);
    let top = soon(top.start()).await.unwrap();
    let before = soon(top.supervisor("inner")).await.unwrap();
    let a = soon(before.child::<Diary>("a")).await.unwrap();
    let (watch, lost) = (seed.watch(&a), seed.watch(before.actor()));
    let begun = || read_diary(&nodes.book).len();
    assert_eq!(begun(), 1);

    nodes.others[0].process.kill();
    soon(lost).await;
    let known = Instant::now();
    until("the next one begins", async || begun() == 2).await;
    let waited = known.elapsed();
    assert!((PATIENCE..2 * PATIENCE).contains(&waited), "{waited:?}");
    // The old one has not ended by then. It is killed when its time to stop is over.
    assert_eq!(nodes.alive(Diary::NAME).await, 2);
    assert_eq!(soon(watch).await, Down::Killed);
    assert_eq!((nodes.alive(Diary::NAME).await, begun()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_is_killed_takes_its_children_along_and_is_started_again() {
    let nodes = Nodes::new(3).await;
    let (seed, slow) = (&nodes.seed, Duration::from_millis(500));
    let inner = seed
        .supervise(OneForOne::new())
        .child::<Diary>("a", nodes.diary("a", slow), nodes.on(1))
        .child::<Diary>("b", nodes.diary("b", slow), nodes.on(2));
    let top = seed.supervise(OneForOne::new()).supervisor("inner", inner, nodes.on(0));
    let top = soon(top.start()).await.unwrap();
    let inner = soon(top.supervisor("inner")).await.unwrap();
    let a = soon(inner.child::<Diary>("a")).await.unwrap();
    inner.actor().kill();
    assert_eq!(soon(seed.watch(inner.actor())).await, Down::Killed);
    let again = soon(async {
        loop {
            match top.supervisor("inner").await {
                Ok(again) if again != inner => return again,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    assert_ne!(soon(again.child::<Diary>("a")).await.unwrap(), a);
    assert_eq!(never_twice(&nodes.book), ["a", "b"]);
    assert_eq!(read_diary(&nodes.book).len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_topmost_is_lost_with_its_node_all_below_it_end() {
    let nodes = Nodes::new(4).await;
    let seed = &nodes.seed;
    let inner = seed
        .supervise(OneForOne::new())
        .child::<Diary>("a", nodes.diary("a", Duration::ZERO), nodes.on(2))
        .child::<Diary>("b", nodes.diary("b", Duration::ZERO), nodes.on(3));
    let top = seed
        .supervise(OneForOne::new())
        .supervisor("inner", inner, nodes.on(1))
        .child::<Diary>("c", nodes.diary("c", Duration::ZERO), Placement::node(seed.id()))
        .on(nodes.on(0));
    let top = soon(top.start()).await.unwrap();
    assert_eq!(nodes.alive(Diary::NAME).await, 3);
    nodes.others[0].process.kill();
    let error = soon(top.ended()).await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("node {} lost", nodes.others[0].id)), "{error}");
    until("all below it end", async || {
        (nodes.alive(Supervisor::NAME).await, nodes.alive(Diary::NAME).await) == (0, 0)
    })
    .await;
    assert!(never_twice(&nodes.book).is_empty(), "they were stopped, not killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_starts_from_the_first_on_and_stops_from_the_last_on() {
    let nodes = Nodes::new(3).await;
    let (seed, slow) = (&nodes.seed, Duration::from_millis(100));
    let diary = |name: &str| nodes.diary(name, slow);
    let inner = seed
        .supervise(RestForOne::new())
        .child::<Diary>("b", diary("b"), nodes.on(1))
        .child::<Diary>("c", diary("c"), nodes.on(2));
    let top = seed
        .supervise(RestForOne::new())
        .child::<Diary>("a", diary("a"), nodes.on(2))
        .supervisor("inner", inner, nodes.on(0))
        .child::<Diary>("d", diary("d"), nodes.on(1));
    let top = soon(top.start()).await.unwrap();
    soon(top.stop()).await.unwrap();
    let lines = read_diary(&nodes.book);
    let lines: Vec<_> = lines.iter().map(|(begins, name, _)| (*begins, &name[..])).collect();
    let all = ["a", "b", "c", "d"];
    let begun = all.map(|name| (true, name));
    let mut ended = all.map(|name| (false, name));
    ended.reverse();
    assert_eq!(lines, [begun, ended].concat());
    drop(nodes.cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_that_wait_for_a_node_do_not_make_those_above_give_up() {
    let mut nodes = Nodes::new(2).await;
    let seed = nodes.seed.clone();
    let leaf = nodes.diary("leaf", Duration::ZERO);
    let inner = seed.supervise(at_most(0)).child::<Diary>("leaf", leaf, Placement::role("worker"));
    // Both supervisors give up at the second failure: to be without a node is none.
    let top = seed.supervise(at_most(1)).supervisor("inner", inner, Placement::role("worker"));
    let top = soon(top.start()).await.unwrap();
    for node in nodes.others.drain(..) {
        node.process.terminate();
        assert!(soon(node.process.wait(LONG)).await.unwrap().success());
    }
    sees_up(&seed, 1).await;
    let error = soon(top.supervisor("inner")).await.unwrap_err().to_string();
    assert!(error.starts_with("the child `inner` is not up: stopped, since node "), "{error}");
    let options = Options { role: "worker", ..Options::join(seed.addr()) };
    let later = nodes.cluster.process("later", options).await;
    let leaf = soon(async {
        loop {
            if let Ok(inner) = top.supervisor("inner").await
                && let Ok(leaf) = inner.child::<Diary>("leaf").await
            {
                return leaf;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(leaf.addr().node, later.id);
    assert_eq!(never_twice(&nodes.book), ["leaf"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_whose_top_is_a_singleton_moves_when_its_node_is_lost() {
    let nodes = Nodes::new(3).await;
    let seed = &nodes.seed;
    let spec = seed
        .supervise(OneForOne::new())
        .child::<Diary>("a", nodes.diary("a", Duration::ZERO), nodes.on(2))
        .child::<Diary>("b", nodes.diary("b", Duration::ZERO), Placement::here())
        .spec()
        .unwrap();
    let places = Placement::any_of([nodes.others[0].id, nodes.others[1].id]);
    soon(seed.singleton::<Supervisor>("tree", spec).on(places).start()).await.unwrap();
    let place = async || match soon(seed.find_singleton("tree")).await.unwrap() {
        SingletonState::Running { actor, .. } => Some(actor),
        _ => None,
    };
    let first = place().await.unwrap();
    let top = SupervisorRef::from(ActorRef::<Supervisor>::at(first, seed.system()));
    let b = soon(top.child::<Diary>("b")).await.unwrap();
    assert_eq!(b.addr().node, first.node, "here is where the supervisor is");
    nodes.others.iter().find(|node| node.id == first.node).unwrap().process.kill();
    until("it runs elsewhere", async || place().await.is_some_and(|now| now.node != first.node))
        .await;
    until("each child runs once", async || {
        (nodes.alive(Supervisor::NAME).await, nodes.alive(Diary::NAME).await) == (1, 2)
    })
    .await;
    let top = ActorRef::<Supervisor>::at(place().await.unwrap(), seed.system());
    let top = SupervisorRef::from(top);
    for child in ["a", "b"] {
        soon(top.child::<Diary>(child)).await.unwrap();
    }
    soon(seed.end_singleton("tree")).await.unwrap();
    assert_eq!(nodes.alive(Diary::NAME).await, 0);
}
