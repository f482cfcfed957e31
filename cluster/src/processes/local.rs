//! A whole cluster on this machine, started by one command: each node in a process of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use footlight_runtime::{Error, NodeId, Result};

use super::{Process, ProcessSpec, Processes, exit_with_parent};
use crate::{Node, NodeArgs};

/// What a process prints once its node is up; then come the node's id, ` up at ` and its address.
const UP: &str = "node ";
const AT: &str = " up at ";

/// One of the processes that a [`LocalCluster`] consists of.
#[derive(Debug, Clone)]
pub struct LocalPart {
    name: String,
    role: String,
    envs: Vec<(String, String)>,
}

impl LocalPart {
    /// A node with this role, and with its name as the label `name`.
    pub fn new(name: impl Into<String>, role: impl Into<String>) -> Self {
        LocalPart { name: name.into(), role: role.into(), envs: Vec::new() }
    }

    /// So many nodes of one role: `worker-0`, `worker-1`, …
    pub fn several(role: &str, count: u32) -> impl Iterator<Item = Self> {
        (0..count).map(move |number| Self::new(format!("{role}-{number}"), role))
    }

    /// An environment variable of its process, besides those of this one.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }
}

/// A cluster of processes on loopback, ended when this is dropped, and this process's own node among them.
///
/// Each process is this binary, started as `node` with [`NodeArgs`]; it builds its node and calls [`serve`]. The keys
/// are made on the spot, in a folder that goes with the cluster.
///
/// ```no_run
/// # use std::time::Duration;
/// # use footlight_cluster::{Node, NodeArgs, processes::{LocalCluster, LocalPart}};
/// # async fn f() -> footlight_runtime::Result<()> {
/// let parts = [LocalPart::new("seed", "seed")].into_iter().chain(LocalPart::several("worker", 2));
/// let join = async |args: NodeArgs| Node::builder(args).start().await;
/// let cluster = LocalCluster::start(parts, Duration::from_secs(30), join).await?;
/// println!("{} nodes", cluster.node().members().len());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct LocalCluster {
    node: Node,
    processes: BTreeMap<String, (Process, NodeId)>,
    // In the order in which they are to end.
    _keeper: Processes,
    _keys: tempfile::TempDir,
}

impl LocalCluster {
    /// Starts a process for each part, the first of which is the seed of all others, and joins them with a node that
    /// `join` makes, of role `driver`. Returns when all see each other.
    ///
    /// # Errors
    /// A process that does not start, ends, or is not up `within` this time, with the end of its output; two parts of one
    /// name.
    pub async fn start(
        parts: impl IntoIterator<Item = LocalPart>,
        within: Duration,
        join: impl AsyncFnOnce(NodeArgs) -> Result<Node>,
    ) -> Result<Self> {
        let keys = tempfile::tempdir()
            .map_err(|error| Error::other(format!("no folder for the cluster's keys: {error}")))?;
        let keeper = Processes::new();
        let until = Instant::now() + within;
        let left = || until.saturating_duration_since(Instant::now());
        let (mut seed, mut started, mut processes) = (None, Vec::new(), BTreeMap::new());
        let mut names = BTreeSet::new();
        for LocalPart { name, role, envs } in parts {
            if !names.insert(name.clone()) {
                return Err(Error::other(format!("two parts of the cluster are named {name}")));
            }
            let label = format!("name={name}");
            let args = ["node", "--listen", "127.0.0.1:0", "--role", &role, "--label", &label];
            let mut spec = ProcessSpec::this_binary(&name)
                .args(args)
                .args(seed.iter().flat_map(|seed: &String| ["--seed", seed]))
                .env("FOOTLIGHT_STATE", keys.path())
                .forward_output();
            for (name, value) in envs {
                spec = spec.env(name, value);
            }
            let process = keeper.start(spec).await.map_err(Error::other)?;
            if seed.is_some() {
                started.push((name, process));
                continue;
            }
            let (id, addr) = up(&process, left()).await?;
            seed = Some(addr);
            processes.insert(name, (process, id));
        }
        for (name, process) in started {
            let (id, _) = up(&process, left()).await?;
            processes.insert(name, (process, id));
        }
        let args = NodeArgs {
            listen: Some("127.0.0.1:0".to_owned()),
            seeds: seed.into_iter().collect(),
            state: Some(keys.path().to_owned()),
            roles: vec!["driver".to_owned()],
            ..NodeArgs::default()
        };
        let node = join(args).await?;
        let nodes = processes.len() + 1;
        node.wait_for_members(left(), |members| {
            members.iter().filter(|member| member.is_up()).count() == nodes
        })
        .await?;
        Ok(LocalCluster { node, processes, _keeper: keeper, _keys: keys })
    }

    /// This process's node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The processes and their nodes, by name.
    pub fn processes(&self) -> impl Iterator<Item = (&str, &Process, NodeId)> {
        self.processes.iter().map(|(name, (process, id))| (name.as_str(), process, *id))
    }

    /// The process of this name, and its node.
    pub fn process(&self, name: &str) -> Option<(&Process, NodeId)> {
        self.processes.get(name).map(|(process, id)| (process, *id))
    }

    /// Leaves the cluster and ends it.
    ///
    /// # Errors
    /// As [`Node::leave`].
    pub async fn leave(self) -> Result<()> {
        self.node.leave().await
    }
}

/// Waits until a process's node is up; gives its id and its address.
async fn up(process: &Process, within: Duration) -> Result<(NodeId, String)> {
    let line = process.wait_line(UP, within).await.map_err(Error::other)?;
    let told = line.strip_prefix(UP).and_then(|told| told.split_once(AT));
    let told = told.and_then(|(id, addr)| Some((id.parse().ok()?, addr.to_owned())));
    told.ok_or_else(|| {
        Error::other(format!("a node told neither its id nor its address, but: {line}"))
    })
}

/// What a process of a [`LocalCluster`] does: makes its node with `start`, tells that it is up, and serves until Ctrl-C,
/// SIGTERM, or the end of whoever started it.
///
/// # Errors
/// If the node does not start, or can't leave.
pub async fn serve(start: impl Future<Output = Result<Node>>) -> Result<()> {
    exit_with_parent().map_err(Error::other)?;
    let node = start.await?;
    let up = format!("{UP}{}{AT}{}", node.id(), node.addr());
    // Signals are caught before anybody is told.
    let ended = node.until_shutdown();
    println!("{up}");
    ended.await
}
