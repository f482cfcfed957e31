//! How long it takes until the loss of a node is known to all others, with libtorch on every core.
//!
//! Five nodes, this process one of them, each of which trains a network all the time. One of the
//! others is killed, or stands still; the time from the signal until the last of those that are left
//! has declared it down is one try. Then it comes back, and when all have one view, the next one
//! goes.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use footlight::{
    cluster::processes::ProcessSpec,
    prelude::*,
    runtime::{Incarnation, NodeId},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    node,
    support::{self, Cluster, NodeProcess, clock::monotonic},
};

const NODES: usize = 5;
/// A loss that is not seen after this time is not seen at all.
const NEVER: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Measure how fast the loss of a node is known to all others, with libtorch on every core.
#[derive(clap::Args)]
#[command(after_help = "\
Five nodes on this machine, each training a network all the time. In turn one is killed (SIGKILL) or
stands still (SIGSTOP); a try takes from the signal until the last of the other four has declared it
down. With --limit the exit code says whether 99 % of the tries took no longer.

Examples:
  cargo xtask detect
  cargo xtask detect --tries 100 --computing 0 --json")]
pub(crate) struct Options {
    /// How many times a node is lost.
    #[arg(long, default_value_t = 30, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tries: u32,
    /// Threads that train in each node; 0 leaves the machine idle.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    computing: usize,
    /// Fail if the 99th percentile is longer than so many seconds.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<f64>,
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
            let now = monotonic().as_micros();
            match event {
                ClusterEvent::Down(lost) => {
                    let line = format!("{} {} {now}\n", lost.id, lost.incarnation.0);
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
    ensure!(threads == 0, "built without libtorch: give --computing 0");
    Ok(())
}

/// A node that can be lost.
struct Standing {
    addr: SocketAddr,
    losses: PathBuf,
    process: NodeProcess,
}

struct Run {
    cluster: Cluster,
    here: Node,
    computing: usize,
}

impl Run {
    async fn start(&self, addr: SocketAddr, number: usize) -> Standing {
        let losses = self.losses(number);
        let spec = ProcessSpec::this_binary(format!("node-{number}"))
            .args(["node", "--listen", &addr.to_string()])
            .args(["--seed", &self.here.addr().to_string()])
            .args(["--computing", &self.computing.to_string()])
            .args(["--state".into(), self.cluster.state().as_os_str().to_owned()])
            .args(["--losses".into(), losses.as_os_str().to_owned()])
            .forward_output();
        let process = NodeProcess::up(self.cluster.start(spec).await).await;
        Standing { addr, losses, process }
    }

    fn losses(&self, number: usize) -> PathBuf {
        self.cluster.state().join(format!("losses-{number}"))
    }
}

/// When a life of a node was declared down, as a file says; `None` while it has not been.
fn told(path: &Path, node: NodeId, life: Incarnation) -> Result<Option<Duration>> {
    let head = format!("{node} {} ", life.0);
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(&head));
    Ok(line.map(str::parse).transpose()?.map(Duration::from_micros))
}

/// Whether 99 % were within the limit.
pub(crate) async fn run(options: Options) -> Result<bool> {
    let cluster = Cluster::new();
    let seed = node::args(cluster.state().to_owned(), support::free_addr(), &[], "");
    let here = node::builder(seed, None).start().await?;
    let run = Run { cluster, here, computing: options.computing };
    note_losses(&run.here, &run.losses(0))?;
    let _computing = compute(options.computing).await?;
    let mut standing = Vec::new();
    for number in 1..NODES {
        standing.push(run.start(support::free_addr(), number).await);
    }

    let bar = ProgressBar::new(options.tries.into());
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} tries  {eta}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    let mut took = BTreeMap::<&str, Vec<Duration>>::new();
    for number in 0..options.tries as usize {
        let view = support::one_view(&run.here, NODES, support::LONG).await;
        let index = (number / 2) % standing.len();
        let victim = &standing[index];
        let id = victim.process.id;
        let life = view.iter().find(|(node, ..)| *node == id).map(|(_, life, _)| *life);
        let life = life.context("a node is no member")?;
        let kind = ["killed", "frozen"][number % 2];
        let begun = monotonic();
        match kind {
            "killed" => victim.process.process.kill(),
            _ => victim.process.process.freeze(),
        }
        let mut last = Duration::ZERO;
        let others = standing.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.map(|(_, other)| other.losses.clone()).chain([run.losses(0)]);
        for other in others {
            let at = loop {
                if let Some(at) = told(&other, id, life)? {
                    break at;
                }
                if monotonic() - begun > NEVER {
                    bail!("{id} was {kind}, and after {NEVER:?} {} tells nothing", other.display());
                }
                tokio::time::sleep(LOOK).await;
            };
            ensure!(at >= begun, "{id} was declared down before it was {kind}");
            last = last.max(at - begun);
        }
        took.entry(kind).or_default().push(last);
        match kind {
            "killed" => {
                victim.process.process.wait(support::LONG).await?;
                standing[index] = run.start(victim.addr, index + 1).await;
            }
            _ => victim.process.process.thaw(),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report(&options, took))
}

fn report(options: &Options, took: BTreeMap<&str, Vec<Duration>>) -> bool {
    let all: Vec<Duration> = took.values().flatten().copied().collect();
    let groups = took.into_iter().chain([("all", all)]);
    let mut result = serde_json::Map::new();
    let mut worst = Duration::ZERO;
    for (kind, mut times) in groups {
        times.sort_unstable();
        // By nearest rank: of up to 100 tries the longest is the 99th percentile.
        let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).max(1) - 1];
        let (median, p99) = (at(0.5), at(0.99));
        worst = p99;
        if !options.json {
            println!(
                "{kind:<6} {:>4} tries: from {:.2} s, median {:.2} s, 99 % within {:.2} s",
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
        let computing = options.computing;
        println!("{:#}", json!({ "nodes": NODES, "computing": computing, "detected": result }));
    }
    let holds = options.limit.is_none_or(|limit| worst.as_secs_f64() <= limit);
    if !holds {
        eprintln!("99 % took longer than the limit: {:.2} s", worst.as_secs_f64());
    }
    holds
}
