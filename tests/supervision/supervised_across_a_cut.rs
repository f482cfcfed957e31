//! A supervisor and a child that can't reach each other, though both are members: the child stays, or
//! is moved, as its specification says, and never runs twice.

use std::time::Duration;

use footlight::{
    cluster::supervise::{Child, ChildEvents, Lost},
    prelude::*,
    runtime::NodeId,
};

use crate::support::{
    netns::{Host, Hosts},
    *,
};

/// A supervisor's node in this process, two workers, and a third node that reaches all, on four
/// hosts.
struct Scene {
    hosts: Hosts,
    cluster: Cluster,
    here: Node,
    workers: Vec<NodeProcess>,
    third: Node,
}

impl Scene {
    async fn new() -> Option<Self> {
        let hosts = Hosts::new(4)?;
        let cluster = Cluster::with_authority().await;
        let all = hosts.all();
        let third = cluster.here(Options::on(&all[3])).await;
        let join = |host: &Host| Options { seeds: vec![all[3].addr()], ..Options::on(host) };
        let here = cluster.here(join(&all[0])).await;
        let mut workers = Vec::new();
        for (host, name) in all[1..3].iter().zip(["one", "two"]) {
            let options = Options { role: "worker", ..join(host) };
            workers.push(cluster.process(name, options).await);
        }
        one_view(&third, 4, LONG).await;
        Some(Scene { hosts, cluster, here, workers, third })
    }

    /// Cuts the supervisor's node from a worker's.
    fn cut(&self, node: NodeId) {
        let host = 1 + self.workers.iter().position(|worker| worker.id == node).unwrap();
        let (here, there) = (&self.hosts.all()[..1], &self.hosts.all()[host..=host]);
        self.hosts.cut(here, there);
    }

    /// How many diaries a worker has, as the third node sees it.
    async fn diaries(&self, node: NodeId) -> u64 {
        let status = soon(self.third.status_of(node)).await.unwrap();
        status.actors.iter().find(|(name, _)| name == Diary::NAME).map_or(0, |(_, count)| *count)
    }

    fn child(&self, lost: Lost) -> Child {
        let book = self.cluster.state().join("book");
        let args = DiaryArgs { name: "child".into(), book, slow: Duration::from_millis(300) };
        let child = Child::of::<Diary>(&self.here, "child", &args).unwrap();
        child.on(Placement::role("worker")).lost_when(lost)
    }

    fn book(&self) -> Vec<Line> {
        read_diary(&self.cluster.state().join("book"))
    }

    fn other(&self, node: NodeId) -> NodeId {
        self.workers.iter().map(|worker| worker.id).find(|id| *id != node).unwrap()
    }
}

async fn next(events: &mut ChildEvents) -> ChildEvent {
    soon(events.next()).await.unwrap().expect("the supervisor has ended")
}

async fn reached_again(node: &Node) {
    until("they reach each other again", async || {
        node.members().iter().all(|member| member.unreachable.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_is_lost_when_out_of_reach_is_ended_over_there_and_started_elsewhere() {
    let Some(scene) = Scene::new().await else { return };
    let supervisor = scene.here.supervise(OneForOne::new()).with(scene.child(Lost::Unreachable));
    let supervisor = soon(supervisor.start()).await.unwrap();
    let mut events = soon(supervisor.events()).await.unwrap();
    let ChildEvent::Started { actor: first, .. } = next(&mut events).await else { panic!() };
    let second = scene.other(first.node);

    scene.cut(first.node);
    match next(&mut events).await {
        ChildEvent::Abandoned { child, actor, why } => {
            assert_eq!((child.as_str(), actor), ("child", first));
            let through = [second, scene.third.id()].map(|node| {
                format!("can't be reached from node {}: ended through node {node}", scene.here.id())
            });
            assert!(through.iter().any(|through| why.ends_with(through)), "{why}");
        }
        event => panic!("{event:?}"),
    }
    let ChildEvent::Started { actor, .. } = next(&mut events).await else { panic!() };
    assert_eq!(actor.node, second);
    let lines = |from: NodeId, to: NodeId| {
        [(true, from), (false, from), (true, to)]
            .map(|(begins, node)| (begins, "child".to_owned(), node))
    };
    assert_eq!(
        scene.book(),
        lines(first.node, second),
        "the first had ended when the second began"
    );

    scene.hosts.heal();
    reached_again(&scene.third).await;
    assert_eq!((scene.diaries(first.node).await, scene.diaries(second).await), (0, 1));
    assert_eq!(soon(supervisor.place("child")).await.unwrap(), Some(actor));
    soon(supervisor.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_is_not_stays_where_it_is_and_is_known_again_afterwards() {
    let Some(scene) = Scene::new().await else { return };
    let supervisor = scene.here.supervise(OneForOne::new()).with(scene.child(Lost::Down));
    let supervisor = soon(supervisor.start()).await.unwrap();
    let mut events = soon(supervisor.events()).await.unwrap();
    let ChildEvent::Started { actor: first, .. } = next(&mut events).await else { panic!() };
    scene.cut(first.node);
    until("the cut is seen", async || {
        let members = scene.here.members();
        let me = members.iter().find(|member| member.id == scene.here.id()).unwrap();
        me.unreachable == [first.node]
    })
    .await;
    scene.hosts.heal();
    reached_again(&scene.third).await;
    reached_again(&scene.here).await;
    let child = soon(supervisor.child::<Diary>("child")).await.unwrap();
    assert_eq!(child.addr(), first);
    assert_eq!(scene.book().len(), 1);
    // Its end is told again too.
    soon(child.call(Break("on purpose".into()))).await.unwrap_err();
    match next(&mut events).await {
        ChildEvent::Down { down: Down::Panicked(text), .. } => assert_eq!(text, "on purpose"),
        event => panic!("{event:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_whose_owner_is_out_of_reach_is_ended_by_its_own_node_if_it_is_to_be() {
    let Some(scene) = Scene::new().await else { return };
    let owner = soon(scene.here.spawn::<Probe>(())).await.unwrap();
    let there = Placement::node(scene.workers[0].id);
    let spawn = || scene.here.spawn::<Probe>(()).on(there.clone()).owned_by(&owner);
    let stays = soon(spawn()).await.unwrap();
    let ends = soon(spawn().out_of_reach(Duration::from_millis(500))).await.unwrap();
    let watch = scene.third.watch(&ends);
    scene.cut(scene.workers[0].id);
    assert_eq!(soon(watch).await, Down::Stopped);
    let stays = ActorRef::<Probe>::at(stays.addr(), scene.third.system());
    soon(stays.call(Where {})).await.expect("it was told nothing of the kind");
}
