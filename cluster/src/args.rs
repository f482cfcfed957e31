//! The options that every program with a node has.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use crate::trust::{TokenSource, parse_lifetime};

use crate::{
    ledger::LedgerSettings,
    membership::Settings,
    resources::Told,
    transport::{endpoint::Congestion, same_host::SameHost},
};

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
    /// How long to look for a seed before giving up [default: commands named `node` look for ever,
    /// others 15]
    #[arg(long, value_name = "SECONDS", value_parser = patience)]
    pub join_timeout: Option<f64>,
    /// Directory with the cluster's keys [default: FOOTLIGHT_STATE, or the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Join token, or @FILE with one in it, to be let into a cluster from another machine;
    /// `footlight token create` makes one [env: FOOTLIGHT_TOKEN]
    #[arg(long, value_name = "TOKEN", env = "FOOTLIGHT_TOKEN", hide_env = true)]
    pub token: Option<TokenSource>,
    /// Certificates that this node issues are valid for so long [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse_lifetime)]
    pub certificate_life: Option<Duration>,
    /// What this node is for, for placement: server, worker, …; may be given several times
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// A label for placement; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// How fast failures are noticed and the ledger gets over them, the same on all nodes: `lan`,
    /// within 1.5 s where answers take at most 20 ms; `wan`, within some 7 s where they take up to
    /// 300 ms [default: lan]
    #[arg(long, value_name = "lan|wan", value_parser = preset)]
    pub network: Option<Preset>,
    /// How fast this node sends: `cubic` slows down when packets are lost and shares a path fairly;
    /// `bbr` sends as fast as a path delivers, for one that loses packets though it is not full
    /// [default: cubic]
    #[arg(long, value_name = "cubic|bbr", value_parser = congestion)]
    pub congestion: Option<Congestion>,
    /// Over how many connections large tensors go to one node, each with as much as one processor core can
    /// encrypt [default: one for every four cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub bulk_connections: Option<u32>,
    /// How large tensors reach another process of this host and user: `memory`, straight from one's memory
    /// where the kernel allows it; `network`, as to another host [default: memory]
    #[arg(long, value_name = "memory|network", value_parser = same_host)]
    pub same_host: Option<SameHost>,
    /// How long to finish what is in hand after SIGTERM or SIGINT; a second signal ends the node at
    /// once [default: 20]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub drain_timeout: Option<f64>,
    /// Processor cores that actors may reserve here [default: all that this process may use]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// GPUs that actors may reserve here [default: those that the NVIDIA driver shows]. Several nodes
    /// on one machine must be told what is whose
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// Something else that actors may reserve here, counted; may be given several times
    #[arg(long = "resource", value_name = "NAME=N", value_parser = resource)]
    pub resources: Vec<(String, u64)>,
}

/// Settings for what lies between the nodes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// One machine or one rack: [`Settings::lan`] and [`LedgerSettings::lan`].
    Lan,
    /// Several sites: [`Settings::wan`] and [`LedgerSettings::wan`].
    Wan,
}

impl Preset {
    pub(crate) fn membership(self) -> Settings {
        match self {
            Preset::Lan => Settings::lan(),
            Preset::Wan => Settings::wan(),
        }
    }

    pub(crate) fn ledger(self) -> LedgerSettings {
        match self {
            Preset::Lan => LedgerSettings::lan(),
            Preset::Wan => LedgerSettings::wan(),
        }
    }
}

fn preset(text: &str) -> Result<Preset, String> {
    match text {
        "lan" => Ok(Preset::Lan),
        "wan" => Ok(Preset::Wan),
        _ => Err("give lan or wan".to_owned()),
    }
}

fn congestion(text: &str) -> Result<Congestion, String> {
    match text {
        "cubic" => Ok(Congestion::Cubic),
        "bbr" => Ok(Congestion::Bbr),
        _ => Err("give cubic or bbr".to_owned()),
    }
}

fn same_host(text: &str) -> Result<SameHost, String> {
    match text {
        "memory" => Ok(SameHost::Memory),
        "network" => Ok(SameHost::Network),
        _ => Err("give memory or network".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0 to 86400".to_owned()),
    }
}

/// A time that is worth waiting.
fn patience(text: &str) -> Result<f64, String> {
    seconds(text)
        .ok()
        .filter(|seconds| *seconds > 0.0)
        .ok_or_else(|| "give seconds, more than 0 and at most 86400".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE, for example zone=a".to_owned()),
    }
}

fn resource(text: &str) -> Result<(String, u64), String> {
    let wrong = || "a resource is NAME=N, for example licence=2".to_owned();
    match text.split_once('=') {
        Some((name, count)) if !name.is_empty() => {
            Ok((name.to_owned(), count.parse().map_err(|_| wrong())?))
        }
        _ => Err(wrong()),
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

    pub(crate) fn bulk_connections(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.bulk_connections.map_or((cores / 4).clamp(1, 4), |count| count as usize)
    }

    pub(crate) fn told(&self) -> Told {
        let custom = self.resources.iter().cloned().collect();
        Told { cpus: self.cpus, gpus: self.gpus, custom }
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}
