//! What an actor asks for is reserved for it until it ends, and two do not get the same.

use std::pin::pin;

use footlight::{
    cluster::{Gpu, Needs, Resources},
    prelude::*,
    runtime::{NodeId, remote::End as How},
};

use crate::support::*;

/// A seed without anything, and a worker with two GPUs, as told by option.
async fn with_two_gpus(cluster: &Cluster) -> (Node, NodeProcess) {
    let seed = cluster.here(Options { flags: "--cpus 4 --gpus 0", ..Options::default() }).await;
    let flags = "--cpus 2 --gpus 2 --resource licence=1";
    let worker = cluster.process("gpus", Options { flags, ..Options::join(seed.addr()) }).await;
    sees_up(&seed, 2).await;
    (seed, worker)
}

async fn start(node: &Node, needs: Needs) -> Result<ActorRef<Tool>> {
    soon(node.spawn::<Tool>(Begin::Ready).on(Placement::anywhere()).needs(needs)).await
}

async fn gpus_of(tool: &ActorRef<Tool>) -> Vec<(u32, u16)> {
    soon(tool.call(AskGot {})).await.unwrap().1
}

/// Waits until a node's news of itself says so.
async fn free_gpus(seen_by: &Node, of: &NodeProcess, count: usize) {
    let told = |members: &[Member]| {
        members.iter().any(|member| member.id == of.id && member.free.gpus.len() == count)
    };
    seen_by.wait_for_members(LONG, told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_actors_that_ask_for_one_gpu_each_get_one_of_their_own() {
    let cluster = Cluster::new();
    let (seed, worker) = with_two_gpus(&cluster).await;
    let there = seed.members().into_iter().find(|member| member.id == worker.id).unwrap();
    assert_eq!((there.resources.cpus, there.resources.gpus.len()), (2, 2));
    let both = tokio::join!(start(&seed, Needs::gpus(1)), start(&seed, Needs::gpus(1)));
    let (one, two) = (both.0.unwrap(), both.1.unwrap());
    let mut got = [gpus_of(&one).await, gpus_of(&two).await].concat();
    got.sort();
    assert_eq!(got, [(0, 1000), (1, 1000)]);
    free_gpus(&seed, &worker, 0).await;

    let error = start(&seed, Needs::gpus(1)).await.unwrap_err().to_string();
    assert!(error.contains("asked for any node with 1 GPU"), "{error}");
    let full = format!("node {}: does not fit: asked 1 GPU; free 2 CPUs, 0 GPUs", worker.id);
    assert!(error.contains(&full), "{error}");
    let none = format!("node {}: never fits: asked 1 GPU, it has 4 CPUs, 0 GPUs", seed.id());
    assert!(error.contains(&none), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_is_shared_by_those_who_say_so_and_by_nobody_else() {
    let cluster = Cluster::new();
    let (seed, _worker) = with_two_gpus(&cluster).await;
    let quarter = || Needs::gpus(1).shared(0.25);
    let mut sharing = Vec::new();
    for _ in 0..4 {
        sharing.push(start(&seed, quarter()).await.unwrap());
    }
    for tool in &sharing {
        assert_eq!(gpus_of(tool).await, [(0, 250)]);
    }
    let whole = start(&seed, Needs::gpus(1)).await.unwrap();
    assert_eq!(gpus_of(&whole).await, [(1, 1000)]);
    start(&seed, quarter()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_actor_had_is_free_as_soon_as_its_end_is_known_however_it_ended() {
    let cluster = Cluster::new();
    let (seed, worker) = with_two_gpus(&cluster).await;
    for round in 0..4 {
        let needs = || Needs::gpus(2).with_cpus(2).with("licence", 1);
        let tool = start(&seed, needs()).await.unwrap();
        let watch = tool.watch();
        match round {
            0 => tool.stop(),
            1 => tool.kill(),
            2 => drop(soon(tool.call(Fall { why: "on purpose".into() })).await),
            _ => seed.system().end(tool.addr(), How::Kill),
        }
        soon(watch).await;
        // At once: no news has to come first.
        let again = start(&seed, needs()).await.unwrap();
        again.stop();
        soon(again.watch()).await;
    }
    for fails in [Begin::Fails("no data".into()), Begin::Panics] {
        let spawn = seed.spawn::<Tool>(fails).on(Placement::node(worker.id)).needs(Needs::gpus(2));
        soon(spawn).await.unwrap_err();
    }
    start(&seed, Needs::gpus(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_what_another_gives_back() {
    let cluster = Cluster::new();
    let (seed, worker) = with_two_gpus(&cluster).await;
    let first = start(&seed, Needs::gpus(2)).await.unwrap();
    free_gpus(&seed, &worker, 0).await;
    let waits = seed.spawn::<Tool>(Begin::Ready).on(Placement::anywhere()).needs(Needs::gpus(1));
    let (sent, mut waits) = (seed.counts().messages_sent, pin!(soon(waits.wait(LONG))));
    // It asks the node, is refused, waits, and asks again: nobody else here sends anything.
    until("it has waited", async || {
        assert!(futures::poll!(&mut waits).is_pending());
        seed.counts().messages_sent >= sent + 2
    })
    .await;
    first.stop();
    assert_eq!(gpus_of(&waits.await.unwrap()).await, [(0, 1000)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reserved_on_a_node_is_reserved_for_those_of_the_node_too() {
    let cluster = Cluster::new();
    let has = Resources::cpus(1).gpu(Gpu::new(0, "one", 8 << 30));
    let seed = cluster.builder(Options::default()).resources(has).start().await.unwrap();
    let here = || seed.spawn::<Tool>(Begin::Ready).needs(Needs::gpus(1));
    let tool = soon(here()).await.unwrap();
    assert_eq!(gpus_of(&tool).await, [(0, 1000)]);
    let error = soon(here()).await.unwrap_err().to_string();
    assert!(error.contains("does not fit: asked 1 GPU; free 1 CPU, 0 GPUs"), "{error}");
    tool.kill();
    soon(tool.watch()).await;
    let large = seed.spawn::<Tool>(Begin::Ready).needs(Needs::gpus(1).with_gpu_memory(9 << 30));
    let error = soon(large).await.unwrap_err().to_string();
    assert!(error.contains("never fits: asked 1 GPU with at least 9.0 GiB"), "{error}");
    soon(here()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_ask_at_once_as_many_are_started_as_fit() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options { flags: "--gpus 0", ..Options::default() }).await;
    let has = |flags| Options { flags, ..Options::join(seed.addr()) };
    let one = cluster.process("one", has("--gpus 3")).await;
    let two = cluster.process("two", has("--gpus 2")).await;
    sees_up(&seed, 3).await;
    let all = (0..12).map(|_| start(&seed, Needs::gpus(1)));
    let started: Vec<_> =
        futures::future::join_all(all).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(started.len(), 5);
    let mut got = Vec::new();
    for tool in &started {
        let (node, gpus) = soon(tool.call(AskGot {})).await.unwrap();
        got.push((node == two.id, gpus[0].0));
    }
    got.sort();
    assert_eq!(got, [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1)]);
    assert!(started.iter().all(|tool| [one.id, two.id].contains(&tool.addr().node)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_has_what_it_needs_as_long_as_it_runs_and_runs_where_that_is_left() {
    let cluster = Cluster::new();
    let flags = "--cpus 4 --gpus 0 --resource licence=1";
    let seed = cluster.here(Options { role: "server", flags, ..Options::default() }).await;
    let options = Options { flags, ..Options::join(seed.addr()) };
    let other = cluster.process("other", options).await;
    sees_up(&seed, 2).await;
    let licence = || Needs::none().with("licence", 1);
    let free = async |node: NodeId, count: u64| {
        let told = |members: &[Member]| {
            let is = |member: &Member| member.free.custom.get("licence") == Some(&count);
            members.iter().any(|member| member.id == node && is(member))
        };
        seed.wait_for_members(LONG, told).await.unwrap();
    };
    // This node has none left: the other one has its turn.
    let here = soon(seed.spawn::<Tool>(Begin::Ready).needs(licence())).await.unwrap();
    let only = seed.singleton::<Tool>("only", Begin::Ready).needs(licence());
    let only = soon(only.start()).await.unwrap();
    let first = soon(only.actor(LONG)).await.unwrap();
    assert_eq!(first.addr().node, other.id);
    free(other.id, 0).await;
    let error = start(&seed, licence()).await.unwrap_err().to_string();
    assert!(error.contains("does not fit: asked"), "{error}");

    // A second one waits until a node has what it needs.
    let waits = seed.clone();
    let waits = tokio::spawn(async move {
        waits.singleton::<Tool>("waits", Begin::Ready).needs(licence()).start().await.unwrap()
    });
    until("it is wanted", async || seed.singletons().await.unwrap().len() == 2).await;
    here.stop();
    let waits = soon(waits).await.unwrap();
    assert_eq!(soon(waits.actor(LONG)).await.unwrap().addr().node, seed.id());
    free(seed.id(), 0).await;

    // What it had is free when it has ended.
    soon(seed.end_singleton("only")).await.unwrap();
    free(other.id, 1).await;
    soon(seed.end_singleton("waits")).await.unwrap();
    free(seed.id(), 1).await;
}
