//! How long it takes until the loss of a node is known to all others, with libtorch on every core.
//!
//! Five nodes, this process one of them, each of which trains a network all the time. One of the
//! others is killed, stands still, or is cut off; the time from then until the last of those that are
//! left has declared it down is one try. Then it comes back, and when all have one view, the next one
//! goes.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use footlight::{
    cluster::processes::ProcessSpec,
    prelude::*,
    runtime::{Incarnation, NodeId},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    load::threads_for,
    losses::{self, Told},
    node,
    support::{
        self, Cluster, NodeProcess,
        clock::monotonic,
        netns::{Host, Hosts, in_ci, may_do_without},
    },
};

const NODES: usize = 5;
/// A loss that is not seen after this time is not seen at all.
const NEVER: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Measure how fast the loss of a node is known to all others, with libtorch on every core.
#[derive(clap::Args)]
#[command(after_help = "\
Five nodes on this machine, each training a network all the time. In turn one is killed (SIGKILL),
stands still (SIGSTOP), or is cut off; a try takes from that moment until the last of the other four
has declared it down. The exit code says whether 99 % of the tries of each kind took no longer than
the limit. As root each node is a host of its own (a network namespace); else all are on loopback and
nobody is cut off, but with CI=true in the environment that is an error.

Examples:
  cargo xtask detect
  cargo xtask detect --tries 99 --computing 0 --limit 1.4 --json")]
pub(crate) struct Options {
    /// How many times a node is lost.
    #[arg(long, default_value_t = 30, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tries: u32,
    /// Threads that train in each node; 0 leaves the machine idle [default: as many as keep every
    /// core busy]
    #[arg(long, value_name = "NUMBER")]
    computing: Option<usize>,
    /// Fail if the 99th percentile is longer than so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.5)]
    limit: f64,
    /// Print the result on standard output as JSON, and nothing else there.
    #[arg(long)]
    json: bool,
}

/// Writes down whom this node declares down, and when.
pub(crate) fn note_losses(node: &Node, path: &Path) -> Result<()> {
    let mut file = support::append(path)?;
    let mut events = node.events();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let now = monotonic();
            match event {
                ClusterEvent::Down(lost) => {
                    let line = losses::line(lost.id, lost.incarnation, now);
                    file.write_all(line.as_bytes()).expect("the file can be written to");
                }
                ClusterEvent::Missed(count) => panic!("{count} events were missed"),
                _ => {}
            }
        }
    });
    Ok(())
}

/// Trains until what this gives is dropped.
#[cfg(feature = "torch")]
pub(crate) use crate::compute::Computing;

#[cfg(feature = "torch")]
pub(crate) async fn compute(threads: usize) -> Result<Computing> {
    Computing::start(threads).await
}

#[cfg(not(feature = "torch"))]
pub(crate) async fn compute(threads: usize) -> Result<()> {
    anyhow::ensure!(threads == 0, "built without libtorch: give --computing 0");
    Ok(())
}

/// A node that can be lost.
struct Standing {
    host: Option<Host>,
    addr: SocketAddr,
    losses: PathBuf,
    process: NodeProcess,
}

struct Run {
    cluster: Cluster,
    hosts: Option<Hosts>,
    here: Node,
    computing: usize,
}

/// How a node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Killed,
    Frozen,
    CutOff,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Killed => "killed",
            Kind::Frozen => "frozen",
            Kind::CutOff => "cut off",
        }
    }
}

impl Run {
    async fn start(&self, host: Option<Host>, addr: SocketAddr, number: usize) -> Standing {
        let losses = self.losses(number);
        let name = format!("node-{number}");
        let spec = match &host {
            Some(host) => host.this_binary(&name),
            None => ProcessSpec::this_binary(&name),
        };
        let spec = spec
            .args(["node", "--listen", &addr.to_string()])
            .args(["--seed", &self.here.addr().to_string()])
            .args(["--computing", &self.computing.to_string()])
            .args(["--state".into(), self.cluster.state().as_os_str().to_owned()])
            .args(["--losses".into(), losses.as_os_str().to_owned()])
            .forward_output();
        let process = NodeProcess::up(self.cluster.start(spec).await).await;
        Standing { host, addr, losses, process }
    }

    fn cut_off(&self, victim: &Standing) {
        if let (Some(hosts), Some(host)) = (&self.hosts, &victim.host) {
            let others = hosts.all().iter().filter(|other| other.addr() != host.addr());
            hosts.cut(std::slice::from_ref(host), &others.cloned().collect::<Vec<_>>());
        }
    }

    fn losses(&self, number: usize) -> PathBuf {
        self.cluster.state().join(format!("losses-{number}"))
    }
}

/// What a node has written down of one life of another one.
fn told(path: &Path, node: NodeId, life: Incarnation, moment: Duration) -> Result<Told> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    losses::told(&text, node, life, moment).with_context(|| path.display().to_string())
}

/// Whether 99 % were within the limit.
pub(crate) async fn run(options: Options) -> Result<bool> {
    let hosts = match Hosts::available() {
        Ok(()) => Hosts::new(NODES as u8),
        Err(why) => {
            let why = may_do_without(&why, in_ci()).map_err(anyhow::Error::msg)?;
            eprintln!("{why}; all nodes are on loopback, nobody is cut off");
            None
        }
    };
    let mut kinds = vec![Kind::Killed, Kind::Frozen];
    kinds.extend(hosts.as_ref().map(|_| Kind::CutOff));
    let computing = options.computing.unwrap_or_else(|| threads_for(NODES));
    let cluster = Cluster::with_authority().await;
    let place = |number: usize| hosts.as_ref().map(|hosts| hosts.all()[number].clone());
    let addr = |host: &Option<Host>| host.as_ref().map_or_else(support::free_addr, Host::addr);
    let own = place(0);
    let seed = node::args(cluster.state().to_owned(), addr(&own), &[], "");
    let here = node::builder(seed, own.as_ref().map(Host::sockets)).start().await?;
    let places: Vec<_> = (1..NODES).map(place).map(|host| (addr(&host), host)).collect();
    let run = Run { cluster, hosts, here, computing };
    note_losses(&run.here, &run.losses(0))?;
    let _computing = compute(computing).await?;
    let mut standing = Vec::new();
    for (number, (addr, host)) in places.into_iter().enumerate() {
        standing.push(run.start(host, addr, number + 1).await);
    }

    let bar = ProgressBar::new(options.tries.into());
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} tries  {eta}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    let mut took = BTreeMap::<Kind, Vec<Duration>>::new();
    for number in 0..options.tries as usize {
        let view = support::one_view(&run.here, NODES, support::LONG).await;
        let (index, kind) = ((number / kinds.len()) % standing.len(), kinds[number % kinds.len()]);
        let victim = &standing[index];
        let id = victim.process.id;
        let life = view.iter().find(|(node, ..)| *node == id).map(|(_, life, _)| *life);
        let life = life.context("a node is no member")?;
        let begun = monotonic();
        match kind {
            Kind::Killed => victim.process.process.kill(),
            Kind::Frozen => victim.process.process.freeze(),
            Kind::CutOff => run.cut_off(victim),
        }
        let mut last = Duration::ZERO;
        let others = standing.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.map(|(_, other)| other.losses.clone()).chain([run.losses(0)]);
        for other in others {
            let at = loop {
                let told = told(&other, id, life, begun)?;
                if let Some(at) = told.since {
                    break at;
                }
                if monotonic() - begun > NEVER {
                    let (kind, other) = (kind.name(), other.display());
                    let before = told.before.map_or(String::new(), |at| {
                        format!(" (it had done so {:.1?} before that)", begun - at)
                    });
                    bail!(
                        "{id} was {kind}, and {NEVER:?} later {other} does not say that it is \
                         down{before}"
                    );
                }
                tokio::time::sleep(LOOK).await;
            };
            last = last.max(at - begun);
        }
        took.entry(kind).or_default().push(last);
        match kind {
            Kind::Killed => {
                victim.process.process.wait(support::LONG).await?;
                let host = victim.host.clone();
                standing[index] = run.start(host, victim.addr, index + 1).await;
            }
            Kind::Frozen => victim.process.process.thaw(),
            Kind::CutOff => run.hosts.iter().for_each(Hosts::heal),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report(&options, computing, took))
}

fn report(options: &Options, computing: usize, took: BTreeMap<Kind, Vec<Duration>>) -> bool {
    let all: Vec<Duration> = took.values().flatten().copied().collect();
    let groups = took.into_iter().map(|(kind, times)| (kind.name(), times));
    let groups = groups.chain([("all", all)]);
    let mut result = serde_json::Map::new();
    let mut worst = Duration::ZERO;
    for (kind, mut times) in groups {
        times.sort_unstable();
        // By nearest rank: of up to 100 tries the longest is the 99th percentile.
        let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).max(1) - 1];
        let (median, p99) = (at(0.5), at(0.99));
        worst = worst.max(p99);
        if !options.json {
            println!(
                "{kind:<7} {:>4} tries: from {:.2} s, median {:.2} s, 99 % within {:.2} s",
                times.len(),
                times[0].as_secs_f64(),
                median.as_secs_f64(),
                p99.as_secs_f64(),
            );
        }
        let millis = |time: Duration| time.as_millis() as u64;
        result.insert(
            kind.to_owned(),
            json!({
                "tries": times.len(),
                "min_ms": millis(times[0]),
                "median_ms": millis(median),
                "p99_ms": millis(p99),
            }),
        );
    }
    if options.json {
        let told = json!({
            "nodes": NODES,
            "computing": computing,
            "limit_ms": (options.limit * 1000.0) as u64,
            "detected": result,
        });
        println!("{told:#}");
    }
    let holds = worst.as_secs_f64() <= options.limit;
    if !holds {
        let (worst, limit) = (worst.as_secs_f64(), options.limit);
        eprintln!("99 % within {worst:.2} s: longer than the limit of {limit:.2} s");
    }
    holds
}
