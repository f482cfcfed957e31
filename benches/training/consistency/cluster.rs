//! A cluster of processes on this machine.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use footlight::{
    actors::{self, model::Models},
    cluster::processes::{Process, ProcessSpec, Processes, exit_with_parent},
    prelude::*,
};

use crate::model::{WAIT, Waiting};

/// What all nodes may take to find each other.
const UP: Duration = Duration::from_secs(60);

/// Processes with a node each, and this process's own node among them; all end when this is dropped.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    _processes: Processes,
    _keys: tempfile::TempDir,
}

impl Cluster {
    /// A seed, a loader, two servers, and a worker for each of these times that it waits in a slot.
    pub(crate) async fn start(waits: &[Duration]) -> Result<Self> {
        let keys = tempfile::tempdir().context("no folder for the cluster's keys")?;
        let processes = Processes::new();
        let start = async |role: &str, number: usize, wait: Duration, seed: Option<&str>| {
            let spec = ProcessSpec::this_binary(format!("{role}-{number}"))
                .args(["node", "--listen", "127.0.0.1:0", "--role", role])
                .args(seed.iter().flat_map(|seed| ["--seed", seed]))
                .env("FOOTLIGHT_STATE", keys.path())
                .env(WAIT, wait.as_micros().to_string())
                .forward_output();
            Ok::<Process, anyhow::Error>(processes.start(spec).await?)
        };
        let first = start("seed", 0, Duration::ZERO, None).await?;
        let up = async |process: &Process| -> Result<String> {
            let line = process.wait_line("up at ", UP).await?;
            Ok(line.trim_start_matches("up at ").to_owned())
        };
        let seed = up(&first).await?;
        let mut others = Vec::new();
        for (number, role) in ["loader", "server", "server"].into_iter().enumerate() {
            others.push(start(role, number, Duration::ZERO, Some(&seed)).await?);
        }
        for (number, wait) in waits.iter().enumerate() {
            others.push(start("worker", number, *wait, Some(&seed)).await?);
        }
        for process in &others {
            up(process).await?;
        }
        let node = driver(&seed, keys.path()).await?;
        let nodes = others.len() + 2;
        let all = |members: &[Member]| members.iter().filter(|one| one.is_up()).count() == nodes;
        node.wait_for_members(UP, all).await?;
        Ok(Cluster { node, _processes: processes, _keys: keys })
    }
}

async fn driver(seed: &str, keys: &Path) -> Result<Node> {
    let args = NodeArgs {
        listen: Some("127.0.0.1:0".to_owned()),
        seeds: vec![seed.to_owned()],
        state: Some(keys.to_owned()),
        roles: vec!["driver".to_owned()],
        ..NodeArgs::default()
    };
    Ok(builder(args)?.join_timeout(UP).start().await?)
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

fn builder(args: NodeArgs) -> Result<NodeBuilder> {
    let mut models = Models::new();
    models.register::<Waiting>()?;
    Ok(Node::builder(args).with(actors::cast(models)))
}
