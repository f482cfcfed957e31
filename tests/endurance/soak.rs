//! Nodes that join and leave again and again, and what of them stays behind in those that stand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use footlight::{cluster::processes::ProcessSpec, prelude::*, runtime::NodeId};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    node,
    support::{self, Cluster, NodeProcess, Tally, TallyArgs, Work},
};

const STANDING: usize = 3;
/// Memory and tasks are read so often in a run.
const READINGS: u32 = 50;
/// This part of the run is for caches and pools to fill.
const WARM_UP: f64 = 0.3;
/// In the rest, what a node holds may grow by so much in 1000 rounds.
const MAX_MEMORY: f64 = 4.0 * 1024.0 * 1024.0;
const MAX_TASKS: f64 = 5.0;

/// Let nodes join and leave, and check that those that stand hold no more afterwards.
#[derive(clap::Args)]
#[command(after_help = "\
Three nodes stand, each in a process of its own. Another one joins, starts an actor on each and calls
it, and leaves: round after round, each time under a new id. After the first 30 % of the rounds the
standing nodes' memory may grow by at most 4 MiB, and their tasks by 5, in 1000 rounds.

Examples:
  cargo xtask soak
  cargo xtask soak --rounds 200 --json")]
pub(crate) struct Options {
    /// How many joins and leaves.
    #[arg(long, default_value_t = 1000, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(50..=1_000_000))]
    rounds: u32,
    /// Print the result on standard output as JSON, and nothing else there.
    #[arg(long)]
    json: bool,
}

/// What one node holds at one time.
#[derive(Clone, Copy)]
struct Reading {
    round: f64,
    bytes: f64,
    tasks: f64,
}

/// Whether all stayed level.
pub(crate) async fn run(options: Options) -> Result<bool> {
    let cluster = Cluster::new();
    let mut standing: Vec<NodeProcess> = Vec::new();
    for number in 0..STANDING {
        let seeds: Vec<_> = standing.iter().map(|node| node.addr.to_string()).collect();
        let name = format!("standing-{number}");
        let mut spec = ProcessSpec::this_binary(&name)
            .args(["node", "--role", "server", "--listen", "127.0.0.1:0"])
            .args(["--state".into(), cluster.state().as_os_str().to_owned()])
            .forward_output();
        for seed in seeds {
            spec = spec.args(["--seed", &seed]);
        }
        standing.push(NodeProcess::up(cluster.start(spec).await).await);
    }
    let seeds: Vec<_> = standing.iter().map(|node| node.addr).collect();
    let ids: Vec<NodeId> = standing.iter().map(|node| node.id).collect();

    let bar = ProgressBar::new(options.rounds.into());
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} rounds  {eta}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    let every = (options.rounds / READINGS).max(1);
    let mut readings = vec![Vec::new(); STANDING];
    let begun = Instant::now();
    for round in 1..=options.rounds {
        let args =
            node::args(cluster.state().to_owned(), ([127, 0, 0, 1], 0).into(), &seeds, "guest");
        let guest = node::builder(args, None).start().await.context("a guest can't join")?;
        support::sees_up(&guest, STANDING + 1).await;
        for id in &ids {
            let args = TallyArgs { name: String::new(), book: cluster.state().join("book") };
            let tally = guest.spawn::<Tally>(args).on(Placement::node(*id)).await?;
            let number = u64::from(round);
            anyhow::ensure!(tally.call(Work { number }).await? == number, "another answer");
            let watch = guest.watch(&tally);
            tally.stop();
            watch.await;
        }
        if round % every == 0 {
            for (id, readings) in ids.iter().zip(&mut readings) {
                let status = guest.status_of(*id).await?;
                let (round, tasks) = (f64::from(round), status.tasks as f64);
                let bytes = 1024.0 * support::memory::kept_for(status.pid).0 as f64;
                readings.push(Reading { round, bytes, tasks });
            }
        }
        guest.leave().await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report(&options, &readings, begun.elapsed()))
}

fn report(options: &Options, readings: &[Vec<Reading>], took: Duration) -> bool {
    let mut level = true;
    let mut nodes = Vec::new();
    for (number, readings) in readings.iter().enumerate() {
        let settled = &readings[(readings.len() as f64 * WARM_UP) as usize..];
        let memory = 1000.0 * slope(settled, |reading| reading.bytes);
        let tasks = 1000.0 * slope(settled, |reading| reading.tasks);
        let (Some(first), Some(last)) = (settled.first(), settled.last()) else { return false };
        let is_level = memory <= MAX_MEMORY && tasks <= MAX_TASKS;
        level &= is_level;
        let mib = |bytes: f64| bytes / (1024.0 * 1024.0);
        if !options.json {
            println!(
                "node {}: memory {:.1} → {:.1} MiB ({:+.2} MiB in 1000 rounds), tasks {} → {} \
                 ({:+.1} in 1000 rounds){}",
                number + 1,
                mib(first.bytes),
                mib(last.bytes),
                mib(memory),
                first.tasks,
                last.tasks,
                tasks,
                if is_level { "" } else { ": NOT LEVEL" },
            );
        }
        nodes.push(json!({
            "memory_first_bytes": first.bytes as u64,
            "memory_last_bytes": last.bytes as u64,
            "memory_bytes_per_1000_rounds": memory.round() as i64,
            "tasks_first": first.tasks as u64,
            "tasks_last": last.tasks as u64,
            "tasks_per_1000_rounds": tasks,
        }));
    }
    if options.json {
        let seconds = took.as_secs_f64();
        let result =
            json!({ "rounds": options.rounds, "seconds": seconds, "nodes": nodes, "level": level });
        println!("{result:#}");
    } else {
        println!(
            "{} rounds in {took:.0?}: {}",
            options.rounds,
            if level { "level" } else { "NOT LEVEL" }
        );
    }
    level
}

/// The growth in a round, by least squares.
fn slope(readings: &[Reading], of: impl Fn(&Reading) -> f64) -> f64 {
    let count = readings.len() as f64;
    let mean = |of: &dyn Fn(&Reading) -> f64| readings.iter().map(of).sum::<f64>() / count;
    let (round, value) = (mean(&|reading| reading.round), mean(&of));
    let both = |reading: &Reading| (reading.round - round) * (of(reading) - value);
    let square = |reading: &Reading| (reading.round - round).powi(2);
    let spread: f64 = readings.iter().map(square).sum();
    if spread == 0.0 { 0.0 } else { readings.iter().map(both).sum::<f64>() / spread }
}
