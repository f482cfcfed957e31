//! A run of faults against five nodes, with a hundred supervised actors, singletons, and calls all
//! the time.
//!
//! A sixth member, in this process, is spared: it supervises, watches, and calls too. It stands with
//! the greater part of every cut.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use footlight::{
    cluster::processes::ProcessSpec,
    prelude::*,
    runtime::{NodeId, supervision::strategy::Backoff},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    beat::{self, Beat, BeatArgs, Heeded, Witness},
    calls::{self, Account},
    checks::{RECOVERY, Whole},
    faults::{Fault, Faults, Kind},
    node,
    recovery::Recovery,
    support::{
        self, Cluster, NodeProcess, Outcome, Tally, TallyArgs,
        netns::{Host, Hosts, in_ci, may_do_without},
    },
};

const NODES: usize = 5;
const CHILDREN: usize = 100;
const SINGLETONS: usize = 3;
/// Calls in a second, of the spared node and of each other.
const SPARED_CALLS: u32 = 50;
const NODE_CALLS: u32 = 10;

/// Kill, freeze and cut off nodes at random, and check that all is whole again each time.
#[derive(clap::Args)]
#[command(after_help = "\
Five nodes, a hundred supervised actors, three singletons, and calls all the time. As root each node
is a host of its own (a network namespace), and is cut off too; else all are on loopback, but with
CI=true in the environment that is an error.

Within 10 s after each fault has ended (a node that was killed is started then): one view of the members, every supervised actor alive exactly once,
every singleton running. Over the whole run: every singleton at most once at any time, every call
ended by its deadline with an answer or an error, none handled twice, and none that was said to be
not sent.

Examples:
  cargo xtask chaos --minutes 10
  cargo xtask chaos --minutes 0.5 --seed 42 --json")]
pub(crate) struct Options {
    /// How long.
    #[arg(long, default_value_t = 1.0, value_name = "MINUTES", value_parser = minutes)]
    minutes: f64,
    /// Of all that is drawn by chance [default: by the clock; it is printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Print the result on standard output as JSON, and nothing else there.
    #[arg(long)]
    json: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if minutes > 0.0 && minutes <= 1440.0 {
        Ok(minutes)
    } else {
        Err("from more than 0 to 1440 minutes".to_owned())
    }
}

/// One of the five.
struct Standing {
    host: Option<Host>,
    addr: SocketAddr,
    process: NodeProcess,
    /// The file with this life's calls.
    account: PathBuf,
}

struct Run {
    cluster: Cluster,
    hosts: Option<Hosts>,
    seeds: Vec<SocketAddr>,
    nodes: Vec<Standing>,
    /// Accounts of lives that are over.
    over: Vec<PathBuf>,
    lives: u32,
}

impl Run {
    /// A number for the next life of a node.
    fn next_life(&mut self) -> u32 {
        self.lives += 1;
        self.lives
    }

    async fn start(&self, host: Option<Host>, addr: SocketAddr, life: u32) -> Standing {
        let name = format!("node-{life}");
        let account = self.cluster.state().join(format!("{name}.calls"));
        let state = self.cluster.state();
        let spec = match &host {
            Some(host) => host.this_binary(&name),
            None => ProcessSpec::this_binary(&name),
        };
        let mut spec = spec
            .args(["node", "--role", "server", "--listen", &addr.to_string()])
            .args(["--state".into(), state.as_os_str().to_owned()])
            .args(["--life", &life.to_string(), "--calls", &NODE_CALLS.to_string()])
            .args(["--account".into(), account.as_os_str().to_owned()])
            .forward_output();
        for seed in &self.seeds {
            spec = spec.args(["--seed", &seed.to_string()]);
        }
        let process = NodeProcess::up(self.cluster.start(spec).await).await;
        Standing { host, addr, process, account }
    }

    fn sides(&self, few: &[usize]) -> (Vec<Host>, Vec<Host>) {
        let hosts = self.hosts.iter().flat_map(|hosts| hosts.all()).cloned().enumerate();
        let (few, many): (Vec<_>, Vec<_>) = hosts.partition(|(number, _)| few.contains(number));
        let plain = |hosts: Vec<(usize, Host)>| hosts.into_iter().map(|(_, host)| host).collect();
        (plain(few), plain(many))
    }

    /// Lets a fault befall its nodes and ends it; gives the moment of that. A node that was killed is
    /// started again then: its start is part of the recovery.
    async fn befall(&mut self, fault: &Fault) -> Instant {
        let (few, many) = self.sides(&fault.nodes);
        match (fault.kind, &self.hosts) {
            (Kind::Kill, _) => {
                for number in &fault.nodes {
                    self.nodes[*number].process.process.kill();
                }
            }
            (Kind::Freeze, _) => {
                for number in &fault.nodes {
                    self.nodes[*number].process.process.freeze();
                }
            }
            (Kind::Cut, Some(hosts)) => hosts.cut(&few, &many),
            (Kind::Mute, Some(hosts)) => hosts.cut_one_way(&few, &many),
            (Kind::Deaf, Some(hosts)) => hosts.cut_one_way(&many, &few),
            (Kind::Cut | Kind::Mute | Kind::Deaf, None) => {}
        }
        tokio::time::sleep(fault.lasts).await;
        let lives: Vec<_> = fault.nodes.iter().map(|_| self.next_life()).collect();
        let healed = Instant::now();
        match (fault.kind, &self.hosts) {
            (Kind::Kill, _) => {
                let again = fault.nodes.iter().zip(lives).map(async |(number, life)| {
                    let before = &self.nodes[*number];
                    self.start(before.host.clone(), before.addr, life).await
                });
                let again = futures::future::join_all(again).await;
                for (number, again) in fault.nodes.iter().zip(again) {
                    let before = std::mem::replace(&mut self.nodes[*number], again);
                    self.over.push(before.account);
                }
            }
            (Kind::Freeze, _) => {
                for number in &fault.nodes {
                    self.nodes[*number].process.process.thaw();
                }
            }
            (_, Some(hosts)) => hosts.heal(),
            (_, None) => {}
        }
        healed
    }
}

/// Starts the supervised actors, spread over the five.
async fn supervise(here: &Node, ids: &[NodeId], book: PathBuf) -> Result<SupervisorRef> {
    let quick = Backoff {
        first: Duration::from_millis(50),
        max: Duration::from_millis(500),
        ..Backoff::default()
    };
    let often = OneForOne::new().at_most(1_000_000, Duration::from_secs(60)).backoff(quick);
    let supervisor = (0..CHILDREN).fold(here.supervise(often), |supervisor, number| {
        let args = TallyArgs { name: child(number), book: book.clone() };
        supervisor.child::<Tally>(child(number), args, Placement::any_of(ids.to_vec()).spread())
    });
    Ok(supervisor.start().await?)
}

/// Starts the supervisor again when it was lost, until told to stop it: where one hears the other and
/// is not heard, this node may be declared down, and the supervisor with it.
async fn keep(
    mut supervisor: SupervisorRef,
    start: impl AsyncFn() -> Result<SupervisorRef>,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(supervisor.stop().await?),
            ended = supervisor.ended() => eprintln!("the supervisor has ended: {ended:?}"),
        }
        supervisor = loop {
            match start().await {
                Ok(again) => break again,
                Err(error) if stop.is_cancelled() => return Err(error),
                Err(error) => eprintln!("the supervisor could not be started again: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
    }
}

fn child(number: usize) -> String {
    format!("tally-{number}")
}

fn singleton(number: usize) -> String {
    format!("beat-{number}")
}

/// What was seen in a run.
#[derive(Default)]
struct Seen {
    faults: BTreeMap<String, usize>,
    recoveries: Vec<Duration>,
    /// How often something was whole and then, in the pause before the next fault, not.
    relapses: usize,
    breaches: Vec<String>,
}

/// Whether all held.
pub(crate) async fn run(options: Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_micros() as u64 % 1_000_000_000
    });
    let hosts = match Hosts::available() {
        Ok(()) => Hosts::new(NODES as u8 + 1),
        Err(why) => {
            let why = may_do_without(&why, in_ci()).map_err(anyhow::Error::msg)?;
            eprintln!("{why}; all nodes are on loopback, nobody is cut off");
            None
        }
    };
    eprintln!(
        "seed {seed}: {NODES} nodes{}, and one that is spared and supervises",
        if hosts.is_some() { " on hosts of their own" } else { "" }
    );
    let cluster = Cluster::with_authority().await;
    let place = |number: usize| hosts.as_ref().map(|hosts| hosts.all()[number].clone());
    let addr = |host: &Option<Host>| host.as_ref().map_or_else(support::free_addr, Host::addr);
    let places: Vec<_> = (0..NODES).map(place).map(|host| (addr(&host), host)).collect();
    let spared = place(NODES);
    let seeds: Vec<_> = places.iter().map(|(addr, _)| *addr).collect();
    let mut run = Run { cluster, hosts, seeds, nodes: Vec::new(), over: Vec::new(), lives: 0 };
    for (addr, host) in places {
        let life = run.next_life();
        let started = run.start(host, addr, life).await;
        run.nodes.push(started);
    }
    let state = run.cluster.state().to_owned();
    let args = node::args(state.clone(), addr(&spared), &run.seeds, "spared");
    let sockets = spared.as_ref().map(Host::sockets);
    let here = node::builder(args, sockets).start().await?;
    let ids: Vec<_> = run.nodes.iter().map(|node| node.process.id).collect();
    support::one_view(&here, NODES + 1, support::LONG).await;

    let (book, trace, account) = (state.join("book"), state.join("trace"), state.join("calls"));
    let supervisor = supervise(&here, &ids, book.clone()).await?;
    let stop_supervisor = CancellationToken::new();
    let keeper = tokio::spawn({
        let (here, ids, book, stop) =
            (here.clone(), ids.clone(), book.clone(), stop_supervisor.clone());
        keep(supervisor, async move || supervise(&here, &ids, book.clone()).await, stop)
    });
    let witness = here.spawn::<Witness>(()).await?;
    for number in 0..SINGLETONS {
        let name = singleton(number);
        let args = BeatArgs { name: name.clone(), trace: trace.clone(), witness: witness.clone() };
        let anywhere = Placement::any_of(ids.clone());
        here.singleton::<Beat>(name, args).on(anywhere).start().await.context("a singleton")?;
    }
    let whole = Whole {
        members: NODES + 1,
        children: (0..CHILDREN).map(child).collect(),
        singletons: (0..SINGLETONS).map(singleton).collect(),
    };
    let look = async || whole.look(&here).await;
    if let Err(seen) = Recovery::since(Instant::now(), support::LONG).wait(&look).await {
        bail!("the cluster did not get whole before the first fault: {seen}");
    }
    let stop = CancellationToken::new();
    let caller = calls::call(here.clone(), 0, SPARED_CALLS, account.clone(), stop.clone());
    let caller = tokio::spawn(caller);

    let mut seen = Seen::default();
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    faults(&mut run, &here, &whole, Faults::new(seed, NODES, spared.is_some()), time, &mut seen)
        .await;

    stop.cancel();
    caller.await.context("the caller has panicked")?.context("the caller")?;
    // Where one hears the other and is not heard, this node may have been declared down, and the
    // witness with it: then the traces alone tell.
    let heeded = witness.call(Heeded).await;
    if let Err(error) = &heeded {
        eprintln!("the singletons' witness did not live through it: {error}");
    }
    for (name, generations) in heeded.as_ref().into_iter().flatten() {
        if !generations.is_sorted_by(|one, next| one < next) {
            let breach = format!("{name}: an older generation was heeded: {generations:?}");
            seen.breaches.push(breach);
        }
    }
    stop_supervisor.cancel();
    keeper.await.context("the supervisor's keeper has panicked")??;
    for number in 0..SINGLETONS {
        here.end_singleton(&singleton(number)).await?;
    }
    let traces = beat::read_traces(&trace)?;
    seen.breaches.extend(traces.breaches.iter().cloned());
    let mut all = Account::default();
    all.read(&account, true)?;
    for node in &run.nodes {
        run.over.push(node.account.clone());
    }
    for account in &run.over {
        all.read(account, false)?;
    }
    seen.breaches.append(&mut all.breaches);
    seen.breaches.extend(support::breaches(&all.calls, &support::read_book(&book)?));
    here.leave().await?;

    let mut outcomes = BTreeMap::<String, usize>::new();
    for outcome in all.calls.values() {
        let name = match outcome {
            Outcome::Answered => "answered".to_owned(),
            Outcome::NotSent(why) => format!("not sent: {why}"),
            Outcome::MayHaveRun(why) => format!("may have run: {why}"),
        };
        *outcomes.entry(name).or_default() += 1;
    }
    seen.recoveries.sort();
    let slowest = seen.recoveries.last().copied().unwrap_or_default();
    let median = seen.recoveries.get(seen.recoveries.len() / 2).copied().unwrap_or_default();
    if options.json {
        let result = json!({
            "seed": seed,
            "minutes": options.minutes,
            "cuts": spared.is_some(),
            "faults": seen.faults,
            "recoveries": {
                "count": seen.recoveries.len(),
                "median_ms": median.as_millis() as u64,
                "slowest_ms": slowest.as_millis() as u64,
                "relapses": seen.relapses,
            },
            "calls": outcomes,
            "unfinished_calls_of_killed_callers": all.unfinished,
            "singletons": {
                "instances": traces.generations,
                "longest_gap_ms": traces.longest_gap.as_millis() as u64,
                "beats_after_a_standstill": traces.posthumous,
            },
            "breaches": seen.breaches,
        });
        println!("{result:#}");
    } else {
        println!("seed              {seed}");
        let faults = seen.faults.iter().map(|(kind, count)| format!("{count} {kind}"));
        println!("faults            {}", faults.collect::<Vec<_>>().join(", "));
        let relapses = seen.relapses;
        println!(
            "recovery          median {median:.1?}, slowest {slowest:.1?}, {relapses} relapses"
        );
        for (outcome, count) in &outcomes {
            println!("calls             {count:>8} {outcome}");
        }
        println!("calls             {:>8} begun by a node that was killed then", all.unfinished);
        println!(
            "singletons        {} instances of {SINGLETONS}, longest gap {:.1?}, {} beats after a \
             standstill",
            traces.generations, traces.longest_gap, traces.posthumous
        );
        println!("breaches          {}", seen.breaches.len());
    }
    for breach in &seen.breaches {
        eprintln!("BREACH: {breach}");
    }
    Ok(seen.breaches.is_empty())
}

/// One fault after the other, until the time is over or something does not get whole again.
async fn faults(
    run: &mut Run,
    here: &Node,
    whole: &Whole,
    mut faults: Faults,
    time: Duration,
    seen: &mut Seen,
) {
    let bar = ProgressBar::new(time.as_secs());
    if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} s  {msg}") {
        bar.set_style(style.progress_chars("━━╌"));
    }
    let begun = Instant::now();
    while begun.elapsed() < time {
        let fault = faults.draw();
        bar.set_position(begun.elapsed().as_secs());
        bar.set_message(fault.to_string());
        tracing::info!(%fault, "now");
        *seen.faults.entry(fault.kind.to_string()).or_default() += 1;
        let recovery = Recovery::since(run.befall(&fault).await, RECOVERY);
        match recovery.lasting(fault.pause, async || whole.look(here).await).await {
            Ok(recovered) => {
                let took = recovered.took;
                bar.suspend(|| {
                    eprintln!("{:>5.0?}: {fault}; whole after {took:.1?}", begun.elapsed());
                    if let Some(what) = &recovered.relapse {
                        eprintln!("       whole, and then for a moment not: {what}");
                    }
                });
                seen.relapses += usize::from(recovered.relapse.is_some());
                seen.recoveries.push(took);
            }
            Err(what) => {
                let at = begun.elapsed().as_secs();
                seen.breaches.push(format!("after {at} s, {fault}: not whole in time: {what}"));
                break;
            }
        }
    }
    bar.finish_and_clear();
}
