//! A cluster of processes on this machine, as the training example starts it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use footlight::{
    actors::{
        self,
        model::{LeNet5, Models},
    },
    cluster::processes::{ProcessSpec, Processes, exit_with_parent},
    prelude::*,
};

/// What all nodes may take to find each other.
const UP: Duration = Duration::from_secs(60);

/// Processes with a node each, and this process's own node among them; all end when this is dropped.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    _processes: Processes,
    _keys: tempfile::TempDir,
}

impl Cluster {
    /// Starts a process for each role. The first node is the seed of the others.
    pub(crate) async fn start(roles: &[&str]) -> Result<Self> {
        let keys = tempfile::tempdir().context("no folder for the cluster's keys")?;
        let processes = Processes::new();
        let mut seed: Option<String> = None;
        let mut others = Vec::new();
        for (number, role) in roles.iter().enumerate() {
            let args = ["node", "--listen", "127.0.0.1:0", "--role", role];
            let spec = ProcessSpec::this_binary(format!("{role}-{number}"))
                .args(args)
                .args(seed.iter().flat_map(|seed| ["--seed", seed]))
                .env("FOOTLIGHT_STATE", keys.path())
                .forward_output();
            let process = processes.start(spec).await?;
            if seed.is_none() {
                let line = process.wait_line("up at ", UP).await?;
                seed = Some(line.trim_start_matches("up at ").to_owned());
            } else {
                others.push(process);
            }
        }
        for process in others {
            process.wait_line("up at ", UP).await?;
        }
        let args = NodeArgs {
            listen: Some("127.0.0.1:0".to_owned()),
            seeds: seed.into_iter().collect(),
            state: Some(keys.path().to_owned()),
            roles: vec!["driver".to_owned()],
            ..NodeArgs::default()
        };
        let node = builder(args)?.join_timeout(UP).start().await?;
        let nodes = roles.len() + 1;
        let all = |members: &[Member]| members.iter().filter(|one| one.is_up()).count() == nodes;
        node.wait_for_members(UP, all).await?;
        Ok(Cluster { node, _processes: processes, _keys: keys })
    }
}

/// One of those processes.
pub(crate) async fn serve(args: NodeArgs) -> Result<()> {
    exit_with_parent()?;
    let node = builder(args)?.join_timeout(UP).start().await?;
    let up = format!("up at {}", node.addr());
    // Signals are caught before anybody is told.
    let ended = node.until_shutdown();
    println!("{up}");
    Ok(ended.await?)
}

/// A node with the whole cast.
pub(crate) fn builder(args: NodeArgs) -> Result<NodeBuilder> {
    let mut models = Models::new();
    models.register::<LeNet5>()?;
    Ok(Node::builder(args).with(actors::cast(models)))
}
