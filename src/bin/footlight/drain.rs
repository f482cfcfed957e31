//! `footlight drain` and `footlight leave`: send a node away in good order.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use footlight::{
    cluster::{AskStatus, Drain, Status},
    prelude::Member,
    runtime::NodeId,
};
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::{
    ask::{Target, seconds},
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

The node stops its actors at once and leaves. To let it finish what it has in hand, use `drain`.")]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    target: Target,
}

/// Drains a node, and waits until it has left.
pub(crate) async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let status = args.target.ask(AskStatus).await?;
    let victim = find(&status, &args.victim)?;
    let (id, node) = (victim.id, args.target.at(victim.address));
    let draining = node.ask(Drain { within: args.within.map(Duration::from_secs_f64) }).await?;
    let within = draining.within;
    eprintln!("node {id} drains: {} in hand, it leaves within {within:?}", draining.in_hand);
    if args.no_wait {
        return Ok(());
    }
    let deadline = Instant::now() + within + GOODBYE;
    let spinner = ProgressBar::new_spinner().with_message(format!("waiting for node {id}"));
    spinner.enable_steady_tick(LOOK_AGAIN);
    // The node that was asked may be the one that leaves: then its silence is the answer.
    let is_itself = status.node == id;
    loop {
        match args.target.ask(AskStatus).await {
            Ok(status) => {
                let there = status.members.iter().find(|member| member.id == id);
                if there.is_none_or(|member| member.state.is_gone()) {
                    break;
                }
            }
            Err(_) if is_itself => break,
            Err(error) => return Err(error),
        }
        ensure!(Instant::now() < deadline, "node {id} has not left {:?} after its time", GOODBYE);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    spinner.finish_and_clear();
    print(&format!("node {id} has left"))
}

/// Makes a node leave at once.
pub(crate) async fn leave(args: LeaveArgs) -> anyhow::Result<()> {
    args.target.ask(Drain { within: Some(Duration::ZERO) }).await?;
    print(&format!("the node at {} leaves", args.target.node))
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
