//! An actor with an owner ends with it, wherever the two are and however the owner ends.

use footlight::prelude::*;

use crate::support::*;

async fn three_nodes(cluster: &Cluster) -> (Node, NodeProcess, NodeProcess) {
    let seed = cluster.here(Options::default()).await;
    let one = cluster.process("one", Options::join(seed.addr())).await;
    let two = cluster.process("two", Options::join(seed.addr())).await;
    sees_up(&seed, 3).await;
    (seed, one, two)
}

async fn probe_on(node: &Node, at: &NodeProcess) -> ActorRef<Probe> {
    soon(node.spawn::<Probe>(()).on(Placement::node(at.id)).wait(LONG)).await.unwrap()
}

async fn owned(node: &Node, at: &NodeProcess, owner: &ActorRef<Probe>) -> ActorRef<Probe> {
    // A busy machine makes a node a suspect, and nothing is placed there for a moment.
    let spawn = node.spawn::<Probe>(()).on(Placement::node(at.id)).owned_by(owner);
    soon(spawn.wait(LONG)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_when_the_owner_on_another_node_stops_panics_or_is_killed() {
    let cluster = Cluster::new();
    let (seed, one, two) = three_nodes(&cluster).await;
    let bystander = probe_on(&seed, &two).await;
    for end in ["stop", "panic", "kill"] {
        let owner = probe_on(&seed, &one).await;
        // One that the owner's node started, and one on the owner's own node.
        let there = owned(&seed, &two, &owner).await;
        let beside = owned(&seed, &one, &owner).await;
        let here = soon(seed.spawn::<Probe>(()).owned_by(&owner)).await.unwrap();
        let watches = [&there, &beside, &here].map(|probe| seed.watch(probe));
        match end {
            "stop" => owner.stop(),
            "kill" => owner.kill(),
            _ => drop(soon(owner.call(Boom { text: end.into() })).await.unwrap_err()),
        }
        for watch in watches {
            assert_eq!(soon(watch).await, Down::Stopped, "{end}");
        }
    }
    soon(bystander.call(Where {})).await.expect("it has no owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_when_the_owners_process_is_killed_or_stands_still() {
    for freeze in [false, true] {
        let cluster = Cluster::new();
        let (seed, one, two) = three_nodes(&cluster).await;
        let owner = probe_on(&seed, &one).await;
        let (there, here) =
            (owned(&seed, &two, &owner).await, seed.spawn::<Probe>(()).owned_by(&owner));
        let here = soon(here).await.unwrap();
        let watches = [&there, &here].map(|probe| seed.watch(probe));
        match freeze {
            true => one.process.freeze(),
            false => one.process.kill(),
        }
        for watch in watches {
            assert_eq!(soon(watch).await, Down::Stopped);
        }
        // An owner that is gone already has nothing.
        let late = owned(&seed, &two, &owner).await;
        assert_eq!(soon(seed.watch(&late)).await, Down::Stopped);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_stop_is_killed() {
    let cluster = Cluster::new();
    let (seed, one, two) = three_nodes(&cluster).await;
    let owner = probe_on(&seed, &one).await;
    let busy = owned(&seed, &two, &owner).await;
    let (watch, sibling) = (seed.watch(&busy), probe_on(&seed, &two).await);
    let blocking = tokio::spawn(async move { busy.call(Block {}).await });
    until("it is busy", async || soon(sibling.call(Blocked {})).await.unwrap()).await;
    owner.kill();
    assert_eq!(soon(watch).await, Down::Killed);
    let error = soon(blocking).await.unwrap().unwrap_err();
    assert_eq!(error.fate(), Fate::MayHaveRun);
}
