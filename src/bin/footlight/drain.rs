//! `footlight drain` and `footlight leave`: send a node away in good order.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use footlight::{
    cluster::{AskStatus, Drain, Status},
    prelude::Member,
    runtime::NodeId,
};
use indicatif::ProgressBar;
use tokio::time::{Instant, timeout_at};

use super::{
    ask::{Line, Target, seconds},
    print::print,
};

/// After its own time is over, a node stops its actors and says goodbye: so long is waited for that.
const GOODBYE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The options of `footlight drain`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight drain 4200661ce99b5a62 --node 127.0.0.1:7400
  footlight drain 10.0.0.7:7400 --node 10.0.0.1:7400 --within 120
  footlight drain 10.0.0.7:7400 --node 10.0.0.1:7400 --no-wait

The node takes nothing new, finishes what its actors have in hand, and leaves. What is supervised
starts elsewhere.")]
pub(crate) struct DrainArgs {
    /// The node to drain: its id, or its address
    #[arg(value_name = "NODE")]
    victim: String,
    #[command(flatten)]
    target: Target,
    /// How long it may finish what it has in hand [default: what the node was started with]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    within: Option<f64>,
    /// Return when it has begun
    #[arg(long)]
    no_wait: bool,
}

/// The options of `footlight leave`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight leave --node 127.0.0.1:7401
  footlight leave --node 127.0.0.1:7401 --no-wait

The node that is asked stops its actors at once and leaves; the command waits until it has. To let it
finish what it has in hand, use `drain`.")]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    target: Target,
    /// Return when it has begun
    #[arg(long)]
    no_wait: bool,
}

/// Drains a node, and waits until it has left.
pub(crate) async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let status = args.target.ask(AskStatus).await?;
    let victim = find(&status, &args.victim)?;
    let id = victim.id;
    let (line, pid) = call(&args.target.at(victim.address)).await?;
    ensure!(line.node() == id, "node {} is there now, not node {id}", line.node());
    let draining = line.ask(Drain { within: args.within.map(Duration::from_secs_f64) }).await?;
    let within = draining.within;
    eprintln!("node {id} drains: {} in hand, it leaves within {within:?}", draining.in_hand);
    if args.no_wait {
        return line.close().await;
    }
    let deadline = Instant::now() + within + GOODBYE;
    wait_until_gone(&line, pid, deadline).await?;
    line.close().await?;
    if status.node != id {
        wait_until_seen(&args.target, id, deadline).await?;
    }
    print(&format!("node {id} has left"))
}

/// Makes a node leave at once, and waits until it has.
pub(crate) async fn leave(args: LeaveArgs) -> anyhow::Result<()> {
    let (line, pid) = call(&args.target).await?;
    line.ask(Drain { within: Some(Duration::ZERO) }).await?;
    let id = line.node();
    if args.no_wait {
        line.close().await?;
        return print(&format!("node {id} leaves"));
    }
    wait_until_gone(&line, pid, Instant::now() + GOODBYE).await?;
    line.close().await?;
    print(&format!("node {id} has left"))
}

/// Connects with a node that is to leave; gives its process too.
async fn call(target: &Target) -> anyhow::Result<(Line, u32)> {
    let line = target.connect().await?;
    let pid = line.ask(AskStatus).await?.pid;
    Ok((line, pid))
}

/// Waits until the node that is asked knows it: whoever asks it next finds it so.
async fn wait_until_seen(target: &Target, id: NodeId, deadline: Instant) -> anyhow::Result<()> {
    loop {
        let status = target.ask(AskStatus).await?;
        let there = status.members.iter().find(|member| member.id == id);
        if there.is_none_or(|member| member.state.is_gone()) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "node {} has not heard that {id} has left", status.node);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn wait_until_gone(line: &Line, pid: u32, deadline: Instant) -> anyhow::Result<()> {
    let id = line.node();
    let spinner = ProgressBar::new_spinner().with_message(format!("waiting for node {id}"));
    spinner.enable_steady_tick(LOOK_AGAIN);
    let gone = timeout_at(deadline, line.gone()).await;
    spinner.finish_and_clear();
    match gone {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => bail!(
            "the connection with node {id} broke while it was leaving ({why}): `footlight status` \
             at another node shows what has become of it"
        ),
        Err(_) => bail!(
            "node {id} has not left in its time: end its process on its machine with `kill -9 {pid}`"
        ),
    }
}

/// The member that is meant.
fn find<'a>(status: &'a Status, named: &str) -> anyhow::Result<&'a Member> {
    let found = match (named.parse::<NodeId>(), named.parse()) {
        (_, Ok(address)) => status.members.iter().rfind(|member| member.address == address),
        (Ok(id), _) => status.members.iter().find(|member| member.id == id),
        _ => bail!("`{named}` is no node: give the 16 digits of its id, or HOST:PORT"),
    };
    let found = found.with_context(|| {
        format!("node {named} is not known to node {}: see `footlight status`", status.node)
    })?;
    ensure!(!found.state.is_gone(), "node {named} is gone already ({})", found.state);
    Ok(found)
}
