//! An actor of which the cluster runs exactly one: elsewhere when its node goes, whatever way it goes,
//! and never two that are heeded.

use std::time::{Duration, Instant};

use footlight::{
    cluster::singleton::{SingletonPolicy, SingletonRef, SingletonState},
    prelude::*,
    runtime::NodeId,
};

use crate::support::*;

/// When its node is lost, the singleton runs elsewhere after this time at the latest.
const MOVED: Duration = Duration::from_secs(5);

/// Three voters: this process, and two others on which the singleton may run.
struct Stage {
    _cluster: Cluster,
    seed: Node,
    witness: ActorRef<Probe>,
    servers: Vec<NodeProcess>,
}

impl Stage {
    async fn set() -> Self {
        let cluster = Cluster::new();
        let seed = cluster.here(Options { role: "server", ..Options::default() }).await;
        let witness = soon(seed.spawn::<Probe>(())).await.unwrap();
        let mut servers = Vec::new();
        for name in ["one", "two"] {
            let options = Options { role: "server", ..Options::join(seed.addr()) };
            servers.push(cluster.process(name, options).await);
        }
        sees_up(&seed, 3).await;
        until("there are three voters", async || {
            seed.members().iter().any(|m| m.ledger.as_ref().is_some_and(|l| l.voters.len() == 3))
        })
        .await;
        Stage { _cluster: cluster, seed, witness, servers }
    }

    /// Runs on one of the processes.
    async fn start(&self) -> SingletonRef<Solo> {
        let servers = self.servers.iter().map(|server| server.id);
        let args = SoloArgs { witness: Some(self.witness.clone()), ..SoloArgs::default() };
        let singleton = self.seed.singleton::<Solo>("solo", args).on(Placement::any_of(servers));
        soon(singleton.start()).await.unwrap()
    }

    fn process(&self, node: NodeId) -> &NodeProcess {
        self.servers.iter().find(|server| server.id == node).expect("a process of the stage")
    }

    /// Whose messages the witness has heeded: generations, each once, in the order of their coming.
    async fn heeded(&self) -> Vec<u64> {
        let mut notes = soon(self.witness.call(Notes {})).await.unwrap();
        notes.dedup();
        notes
    }

    /// Waits until the singleton answers from another node; says from where and when.
    async fn moved(&self, solo: &SingletonRef<Solo>, from: NodeId) -> (NodeId, u64, Instant) {
        soon(async {
            loop {
                match solo.call_within(Tell, Duration::from_secs(1)).await {
                    Ok((node, generation)) if node != from => {
                        return (node, generation, Instant::now());
                    }
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_whose_node_is_killed_runs_elsewhere_within_five_seconds() {
    let stage = Stage::set().await;
    let solo = stage.start().await;
    let (node, generation) = soon(solo.call(Tell)).await.unwrap();
    let killed = Instant::now();
    stage.process(node).process.kill();
    let (other, later, moved) = stage.moved(&solo, node).await;
    assert_ne!(other, node);
    assert!(later > generation);
    assert!(moved - killed <= MOVED, "it took {:?}", moved - killed);
    assert_eq!(stage.heeded().await, [generation, later]);
    assert_eq!(stage.seed.find::<Solo>().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_whose_node_stands_still_runs_elsewhere_and_what_the_old_one_says_is_refused() {
    let stage = Stage::set().await;
    let solo = stage.start().await;
    let (node, generation) = soon(solo.call(Tell)).await.unwrap();
    let frozen = Instant::now();
    stage.process(node).process.freeze();
    let (_, later, moved) = stage.moved(&solo, node).await;
    assert!(moved - frozen <= MOVED, "it took {:?}", moved - frozen);
    stage.process(node).process.thaw();
    // It comes back as a new life without the singleton.
    sees_up(&stage.seed, 3).await;
    until("one is left", async || stage.seed.find::<Solo>().await.len() == 1).await;
    assert_eq!(soon(solo.call(Tell)).await.unwrap().1, later);
    assert_eq!(stage.heeded().await, [generation, later], "never back to the old one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_hands_its_singleton_over() {
    let stage = Stage::set().await;
    let solo = stage.start().await;
    let (node, generation) = soon(solo.call(Tell)).await.unwrap();
    stage.process(node).process.terminate();
    let (_, later, _) = stage.moved(&solo, node).await;
    assert!(later > generation);
    assert!(soon(stage.process(node).process.wait(LONG)).await.unwrap().success());
    assert_eq!(stage.heeded().await, [generation, later]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_that_panics_is_started_again_and_one_that_is_ended_is_not() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let args = SoloArgs::default();
    let solo = soon(seed.singleton::<Solo>("solo", args.clone()).start()).await.unwrap();
    let first = soon(solo.actor(LONG)).await.unwrap();
    assert!(soon(solo.call(End { panics: true })).await.is_err());
    until("it runs again", async || {
        solo.actor(LONG).await.is_ok_and(|actor| actor.addr() != first.addr())
            && solo.call(Tell).await.is_ok()
    })
    .await;
    // The same once more is the same one; another of its name is refused.
    let same = soon(seed.singleton::<Solo>("solo", args).start()).await.unwrap();
    let (there, here) = (same.actor(LONG).await.unwrap(), solo.actor(LONG).await.unwrap());
    assert_eq!(there.addr(), here.addr());
    let other = SoloArgs { broken: true, ..SoloArgs::default() };
    let error = soon(seed.singleton::<Solo>("solo", other).start()).await.unwrap_err().to_string();
    assert!(error.contains("another singleton `solo`"), "{error}");

    soon(seed.end_singleton("solo")).await.unwrap();
    assert_eq!(seed.find_singleton("solo").await.unwrap(), SingletonState::Unknown);
    until("it has ended", async || seed.find::<Solo>().await.is_empty()).await;
    assert!(seed.singletons().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_that_runs_until_it_ends_is_over_then_and_says_why_it_cannot_start() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let once = |broken| {
        let args = SoloArgs { broken, ..SoloArgs::default() };
        seed.singleton::<Solo>("once", args).policy(SingletonPolicy::UntilItEnds).start()
    };
    let error = soon(once(true)).await.unwrap_err().to_string();
    assert!(error.contains("it is broken on purpose"), "{error}");
    for panics in [false, true] {
        let solo = soon(once(false)).await.unwrap();
        let ended = soon(solo.call(End { panics })).await;
        assert_eq!(ended.is_err(), panics);
        until("it is over", async || {
            seed.find_singleton("once").await.unwrap() == SingletonState::Unknown
        })
        .await;
    }
}
