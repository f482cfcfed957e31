//! The options that every program with a node has.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// The port that a node listens on if nothing else is said.
pub const DEFAULT_PORT: u16 = 7400;

/// How a node is started, as command-line options: flatten it into a program's own arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeArgs {
    /// Address to listen on [default: 127.0.0.1:7400 for a seed, else 127.0.0.1 and a free port]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address of a node of the cluster to join; give several to try each. Without, this node is a
    /// seed: others join it
    #[arg(long = "seed", value_name = "HOST:PORT")]
    pub seeds: Vec<String>,
    /// Directory with the cluster's keys [default: FOOTLIGHT_STATE, or the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// What this node is for, for placement: server, worker, …; may be given several times
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// A label for placement; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE, for example zone=a".to_owned()),
    }
}

impl NodeArgs {
    /// A seed on an address.
    pub fn seed_at(listen: SocketAddr) -> Self {
        NodeArgs { listen: Some(listen.to_string()), ..Self::default() }
    }

    /// A node on a free loopback port that joins the cluster of `seed`.
    pub fn joining(seed: SocketAddr) -> Self {
        NodeArgs { seeds: vec![seed.to_string()], ..Self::default() }
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}
