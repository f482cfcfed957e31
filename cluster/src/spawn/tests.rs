//! Requests whose answer is lost, between two nodes in one process.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use footlight_runtime::{Actor, ActorRef, Context, Error, Result};
use tokio::sync::Semaphore;

use crate::{Node, NodeArgs, Placement};

const LONG: Duration = Duration::from_secs(30);

/// Lets starts end, and counts them.
struct Gate {
    open: Semaphore,
    begun: AtomicUsize,
}

/// Its start takes until the gate opens.
struct Slow;

impl Actor for Slow {
    type Args = String;
    const NAME: &'static str = "test.slow";
    async fn start(_: String, context: &Context<Self>) -> Result<Self> {
        let gate = context.system().extension::<Gate>().ok_or(Error::other("no gate"))?;
        gate.begun.fetch_add(1, SeqCst);
        gate.open.acquire().await.map_err(|error| Error::other(error.to_string()))?.forget();
        Ok(Slow)
    }
}

async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let watch = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, watch).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

struct Pair {
    asks: Node,
    hosts: Node,
    gate: Arc<Gate>,
}

impl Pair {
    async fn new(state: &Path) -> Self {
        let gate = Arc::new(Gate { open: Semaphore::new(0), begun: AtomicUsize::new(0) });
        let args = |seeds| NodeArgs {
            listen: Some("127.0.0.1:0".to_owned()),
            state: Some(state.to_owned()),
            seeds,
            ..NodeArgs::default()
        };
        let hosts = Node::builder(args(Vec::new())).register::<Slow>(|slow| slow);
        let hosts = hosts.extension(gate.clone()).start().await.unwrap();
        let seeds = vec![hosts.addr().to_string()];
        let asks = Node::builder(args(seeds)).register::<Slow>(|slow| slow);
        let asks = asks.start().await.unwrap();
        asks.wait_for_members(LONG, |members| members.iter().filter(|m| m.is_up()).count() == 2)
            .await
            .unwrap();
        Pair { asks, hosts, gate }
    }

    /// Begins to start an actor over there, and waits until its start has begun.
    async fn begin(&self) -> tokio::task::JoinHandle<Result<ActorRef<Slow>>> {
        let (asks, host) = (self.asks.clone(), self.hosts.id());
        let before = self.gate.begun.load(SeqCst);
        let asked = tokio::spawn(async move {
            asks.spawn::<Slow>("an argument".to_owned()).on(Placement::node(host)).await
        });
        until("the start", || self.gate.begun.load(SeqCst) > before).await;
        asked
    }

    fn alive(&self) -> usize {
        self.hosts.system().find(Slow::NAME).len()
    }

    async fn leave(self) {
        soon(self.asks.leave()).await.unwrap();
        soon(self.hosts.leave()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_whose_connection_breaks_while_it_starts_is_started_once_and_known() {
    let state = tempfile::tempdir().unwrap();
    let pair = Pair::new(state.path()).await;
    let asked = pair.begin().await;
    for _ in 0..3 {
        pair.asks.network().close_sessions("the test wants it");
        let hosts = pair.hosts.id();
        let connected = || pair.asks.network().peer(hosts).is_some_and(|p| p.session().is_some());
        until("the next connection", connected).await;
    }
    pair.gate.open.add_permits(10);
    let actor = soon(asked).await.unwrap().unwrap();
    assert_eq!(pair.hosts.system().find(Slow::NAME), [actor.addr()]);
    assert_eq!(pair.gate.begun.load(SeqCst), 1);
    pair.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_waits_for_leaves_no_actor() {
    let state = tempfile::tempdir().unwrap();
    let pair = Pair::new(state.path()).await;
    for breaks in [false, true] {
        let asked = pair.begin().await;
        assert_eq!(pair.alive(), 1, "it is known from the moment it starts");
        if breaks {
            pair.asks.network().close_sessions("the test wants it");
        }
        asked.abort();
        // The gate is closed: the start itself is called off.
        until("its end", || pair.alive() == 0).await;
    }
    pair.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_that_came_up_for_nobody_is_stopped() {
    let state = tempfile::tempdir().unwrap();
    let pair = Pair::new(state.path()).await;
    let asked = pair.begin().await;
    // Up, and the news of it can't arrive: then nobody wants to know.
    pair.asks.network().close_sessions("the test wants it");
    pair.gate.open.add_permits(1);
    asked.abort();
    let _ = asked.await;
    until("its end", || pair.alive() == 0).await;
    pair.leave().await;
}
