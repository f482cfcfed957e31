//! What the tests across nodes share: a cluster of nodes, some of them in processes of their own,
//! and an actor that does what it is told.
//!
//! A process is the test's own binary, started again for the one test that plays the node: each
//! test program that wants processes has
//!
//! ```ignore
//! #[test]
//! #[ignore = "run by the other tests in processes of its own"]
//! fn node_process() {
//!     support::play_node();
//! }
//! ```
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod clock;
mod diary;
pub(crate) mod lossy;
pub(crate) mod memory;
pub(crate) mod netns;
mod probe;
mod solo;
mod tally;
mod tool;

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use footlight::{
    cluster::{
        Events, NodeBuilder, Status,
        processes::{Process, ProcessSpec, Processes, exit_with_parent},
        trust::parse_lifetime,
    },
    prelude::*,
    runtime::{Incarnation, NodeId},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

pub(crate) use diary::*;
use netns::Host;
pub(crate) use probe::*;
pub(crate) use solo::*;
pub(crate) use tally::*;
pub(crate) use tool::*;

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
    /// On which host; else on this one's loopback.
    pub(crate) host: Option<Host>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) role: &'static str,
    /// Speaks as another version of the protocol.
    pub(crate) version: Option<u16>,
    /// Knows `Shaped` in another shape.
    pub(crate) other_shape: bool,
    pub(crate) join_timeout: Option<Duration>,
    /// More options, as on a command line: `--label zone=a --gpus 2`.
    pub(crate) flags: &'static str,
    /// A state directory of its own, not the cluster's: a machine of its own, as far as trust goes.
    pub(crate) state: Option<PathBuf>,
    /// A join token.
    pub(crate) token: Option<String>,
    /// How long certificates that it issues are valid.
    pub(crate) life: Option<Duration>,
}

impl Options {
    /// Joins a node.
    pub(crate) fn join(seed: SocketAddr) -> Self {
        Options { seeds: vec![seed], ..Self::default() }
    }

    /// On a host.
    pub(crate) fn on(host: &Host) -> Self {
        Options { host: Some(host.clone()), listen: Some(host.addr()), ..Self::default() }
    }
}

impl Cluster {
    pub(crate) fn new() -> Self {
        log("error,openraft=off");
        Cluster { processes: Processes::new(), state: tempfile::tempdir().unwrap() }
    }

    /// A cluster whose nodes may face a network: its authority is there before them.
    pub(crate) async fn with_authority() -> Self {
        let cluster = Cluster::new();
        cluster.here(Options::default()).await.leave().await.unwrap();
        cluster
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
            state: Some(options.state.unwrap_or_else(|| self.state().to_owned())),
            token: options.token.map(|token| token.parse().unwrap()),
            certificate_life: options.life,
            roles: Some(options.role.to_owned())
                .filter(|role| !role.is_empty())
                .into_iter()
                .collect(),
            ..flags(options.flags)
        };
        let mut builder = Node::builder(args)
            .with(register)
            .with(register_solo)
            .with(register_tool)
            .with(register_tally)
            .with(register_diary);
        if let Some(host) = &options.host {
            builder = builder.sockets(host.sockets());
        }
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
        let mut spec = options
            .host
            .as_ref()
            .map_or_else(|| ProcessSpec::this_binary(name), |host| host.this_binary(name))
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .env("TEST_STATE", options.state.as_deref().unwrap_or(self.state()))
            .env("TEST_TOKEN", options.token.unwrap_or_default())
            .env("TEST_SEEDS", seeds.join(","))
            .env("TEST_ROLE", options.role)
            .env("TEST_FLAGS", options.flags)
            // What is freed goes back to the system at once, for whoever looks at what is resident:
            // else the C library keeps for later what was once as large as this (mallopt(3)).
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
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
        if let Some(life) = options.life {
            spec = spec.env("TEST_LIFE", format!("{}s", life.as_secs()));
        }
        self.start(spec).await
    }

    /// A process of another kind, which ends with this cluster.
    pub(crate) async fn start(&self, spec: ProcessSpec) -> Process {
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

fn flags(line: &str) -> NodeArgs {
    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        node: NodeArgs,
    }
    let words = std::iter::once("test").chain(line.split_whitespace());
    <Program as clap::Parser>::parse_from(words).node
}

/// The life of a process that plays a node: see the module.
pub(crate) fn play_node() {
    play_node_with(async |_, _| {});
}

/// The same, with something that the process does besides as soon as the node is up. It is told when
/// the node has left, and waited for.
pub(crate) fn play_node_with(does: impl AsyncFnOnce(Node, CancellationToken)) {
    let Ok(state) = env::var("TEST_STATE") else { return };
    assert!(exit_with_parent().unwrap());
    let given = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
    let seeds = given("TEST_SEEDS").unwrap_or_default();
    let args = NodeArgs {
        listen: Some(given("TEST_LISTEN").unwrap_or("127.0.0.1:0".to_owned())),
        seeds: seeds.split(',').filter(|seed| !seed.is_empty()).map(str::to_owned).collect(),
        state: Some(state.into()),
        roles: given("TEST_ROLE").into_iter().collect(),
        token: given("TEST_TOKEN").map(|token| token.parse().unwrap()),
        certificate_life: given("TEST_LIFE").map(|life| parse_lifetime(&life).unwrap()),
        ..flags(&given("TEST_FLAGS").unwrap_or_default())
    };
    log("info,openraft=off");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut builder = Node::builder(args)
            .with(register)
            .with(register_solo)
            .with(register_tool)
            .with(register_tally)
            .with(register_diary)
            .join_timeout(LONG);
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
        let mut shutdown = pin!(node.clone().until_shutdown());
        // Signals are caught from the first poll on: a test may send one as soon as it reads this.
        assert!(futures::poll!(&mut shutdown).is_pending());
        println!("{line}");
        let left = CancellationToken::new();
        let leaves = async {
            shutdown.await.unwrap();
            left.cancel();
        };
        tokio::join!(leaves, does(node, left.clone()));
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
    events: &mut Events,
    mut wanted: impl FnMut(&ClusterEvent) -> bool,
) -> ClusterEvent {
    soon(async {
        loop {
            let event = events.next().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

/// The members, in which lives, and how they are; by id.
pub(crate) type View = Vec<(NodeId, Incarnation, MemberState)>;

/// Waits until all nodes that one sees up have one view of the members, so many of them up.
pub(crate) async fn one_view(asked: &Node, count: usize, within: Duration) -> View {
    let mut seen = String::new();
    let agreed = tokio::time::timeout(within, async {
        loop {
            match view_of_all(asked, count).await {
                Ok(view) => return view,
                Err(views) => seen = views,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    agreed
        .await
        .unwrap_or_else(|_| panic!("no one view with {count} up within {within:?}, but: {seen}"))
}

/// The one view that all nodes have that one sees up, so many; else what each sees.
pub(crate) async fn view_of_all(asked: &Node, count: usize) -> Result<View, String> {
    let members = asked.members();
    let up = members.iter().filter(|member| member.is_up());
    let all = up.map(async |member| (member.id, asked.status_of(member.id).await));
    let all = futures::future::join_all(all).await;
    let view = view(&members);
    let same = |status: &Result<Status>| {
        status.as_ref().is_ok_and(|status| self::view(&status.members) == view)
    };
    if all.len() == count && all.iter().all(|(_, status)| same(status)) {
        return Ok(view);
    }
    let mut seen = format!("\n{} sees {view:?}", asked.id());
    for (node, status) in &all {
        match status {
            Ok(status) => seen += &format!("\n{node} sees {:?}", self::view(&status.members)),
            Err(error) => seen += &format!("\n{node} does not say: {error}"),
        }
    }
    Err(seen)
}

fn view(members: &[Member]) -> View {
    let mut view: View =
        members.iter().map(|member| (member.id, member.incarnation, member.state)).collect();
    view.sort_by_key(|(node, ..)| *node);
    view
}

/// Waits until all of the nodes see these voters, all there.
pub(crate) async fn see_voters(nodes: &[&Node], wanted: &[NodeId]) {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    until(&format!("the voters are {wanted:?}"), async || {
        nodes.iter().all(|node| {
            node.ledger().status().is_some_and(|status| {
                status.voters == wanted && status.missing.is_empty() && status.leader.is_some()
            })
        })
    })
    .await;
}

/// Waits until a node has declared so many others down.
pub(crate) async fn sees_down(node: &Node, count: usize) {
    let is_down = |member: &&Member| member.state == MemberState::Down;
    node.wait_for_members(LONG, |members| members.iter().filter(is_down).count() == count)
        .await
        .unwrap();
}
