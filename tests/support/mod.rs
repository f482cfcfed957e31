//! What the tests across nodes share: a cluster of nodes, some of them in processes of their own,
//! and an actor that does what it is told.
//!
//! A process is the test's own binary, started again for the one test that plays the node: each
//! test file that wants processes has
//!
//! ```ignore
//! #[test]
//! #[ignore = "run by the other tests in processes of its own"]
//! fn node_process() {
//!     support::play_node();
//! }
//! ```
#![allow(dead_code, reason = "each test uses a part of it")]

mod probe;

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    pin::pin,
    time::Duration,
};

use footlight::{
    cluster::{
        NodeBuilder,
        processes::{Process, ProcessSpec, Processes, exit_with_parent},
    },
    prelude::*,
    runtime::{Incarnation, NodeId},
};
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

pub(crate) use probe::*;

/// How long a test waits for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Waits for something that must come, and not for ever.
pub(crate) async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

/// Looks again and again until something is so: for what has no event.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let watch = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, watch).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

/// A loopback address with a port that is free now.
pub(crate) fn free_addr() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Says what the nodes log, RUST_LOG says which of it; tests show it when they fail.
fn log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // A second test of the process finds it set.
    let _ = log.with_writer(std::io::stderr).try_init();
}

/// Nodes that share a state directory. Their processes end with it.
pub(crate) struct Cluster {
    processes: Processes,
    state: TempDir,
}

/// How a node is started.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) role: &'static str,
    /// Speaks as another version of the protocol.
    pub(crate) version: Option<u16>,
    /// Knows `Shaped` in another shape.
    pub(crate) other_shape: bool,
    pub(crate) join_timeout: Option<Duration>,
}

impl Options {
    /// Joins a node.
    pub(crate) fn join(seed: SocketAddr) -> Self {
        Options { seeds: vec![seed], ..Self::default() }
    }
}

impl Cluster {
    pub(crate) fn new() -> Self {
        log("error");
        Cluster { processes: Processes::new(), state: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// A node in this process.
    pub(crate) async fn here(&self, options: Options) -> Node {
        self.builder(options).start().await.unwrap()
    }

    /// A node in this process, to be started.
    pub(crate) fn builder(&self, options: Options) -> NodeBuilder {
        let listen = options.listen.map_or("127.0.0.1:0".to_owned(), |addr| addr.to_string());
        let args = NodeArgs {
            listen: Some(listen),
            seeds: options.seeds.iter().map(SocketAddr::to_string).collect(),
            state: Some(self.state().to_owned()),
            roles: Some(options.role.to_owned())
                .filter(|role| !role.is_empty())
                .into_iter()
                .collect(),
            ..NodeArgs::default()
        };
        let mut builder = Node::builder(args).with(register);
        if options.other_shape {
            builder = builder.with(register_other_shape);
        }
        if let Some(version) = options.version {
            builder = builder.protocol_version(version);
        }
        builder.join_timeout(options.join_timeout.unwrap_or(LONG))
    }

    /// A process that will become a node; it need not be up yet.
    pub(crate) async fn launch(&self, name: &str, options: Options) -> Process {
        let seeds: Vec<String> = options.seeds.iter().map(SocketAddr::to_string).collect();
        let mut spec = ProcessSpec::this_binary(name)
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .env("TEST_STATE", self.state())
            .env("TEST_SEEDS", seeds.join(","))
            .env("TEST_ROLE", options.role)
            .forward_output();
        if let Some(listen) = options.listen {
            spec = spec.env("TEST_LISTEN", listen.to_string());
        }
        if let Some(version) = options.version {
            spec = spec.env("TEST_VERSION", version.to_string());
        }
        if options.other_shape {
            spec = spec.env("TEST_OTHER_SHAPE", "1");
        }
        self.processes.start(spec).await.unwrap()
    }

    /// A node in a process of its own.
    pub(crate) async fn process(&self, name: &str, options: Options) -> NodeProcess {
        NodeProcess::up(self.launch(name, options).await).await
    }
}

/// A node in a process of its own, that is up.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    pub(crate) process: Process,
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addr: SocketAddr,
}

impl NodeProcess {
    pub(crate) async fn up(process: Process) -> Self {
        let line = process.wait_line("up ", LONG).await.unwrap();
        let [_, id, incarnation, addr] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        NodeProcess {
            process,
            id: id.parse().unwrap(),
            incarnation: Incarnation(incarnation.parse().unwrap()),
            addr: addr.parse().unwrap(),
        }
    }
}

/// The life of a process that plays a node: see the module.
pub(crate) fn play_node() {
    let Ok(state) = env::var("TEST_STATE") else { return };
    assert!(exit_with_parent().unwrap());
    let given = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
    let seeds = given("TEST_SEEDS").unwrap_or_default();
    let args = NodeArgs {
        listen: Some(given("TEST_LISTEN").unwrap_or("127.0.0.1:0".to_owned())),
        seeds: seeds.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned).collect(),
        state: Some(state.into()),
        roles: given("TEST_ROLE").into_iter().collect(),
        ..NodeArgs::default()
    };
    log("info");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut builder = Node::builder(args).with(register).join_timeout(LONG);
        if let Some(version) = given("TEST_VERSION") {
            builder = builder.protocol_version(version.parse().unwrap());
        }
        if given("TEST_OTHER_SHAPE").is_some() {
            builder = builder.with(register_other_shape);
        }
        let node = match builder.start().await {
            Ok(node) => node,
            Err(error) => {
                println!("\nfailed {error}");
                return;
            }
        };
        // The harness has begun a line.
        let line = format!("\nup {} {} {}", node.id(), node.incarnation().0, node.addr());
        let mut shutdown = pin!(node.until_shutdown());
        // Signals are caught from the first poll on: a test may send one as soon as it reads this.
        assert!(futures::poll!(&mut shutdown).is_pending());
        println!("{line}");
        shutdown.await.unwrap();
    });
    println!("left");
}

/// Waits until a node sees so many members up.
pub(crate) async fn sees_up(node: &Node, count: usize) {
    node.wait_for_members(LONG, |members| members.iter().filter(|m| m.is_up()).count() == count)
        .await
        .unwrap();
}

/// The next event that is wanted.
pub(crate) async fn event(
    events: &mut tokio::sync::broadcast::Receiver<ClusterEvent>,
    wanted: impl Fn(&ClusterEvent) -> bool,
) -> ClusterEvent {
    soon(async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}
