//! The `footlight` command: runs a node, or asks one how its cluster is.

mod actors;
mod ask;
mod ca;
mod drain;
mod node;
mod print;
mod revoke;
mod status;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use footlight::cli;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  footlight node                                       a seed on 127.0.0.1:7400
  footlight node --seed 127.0.0.1:7400                 another node, on a free port
  footlight node --seed 127.0.0.1:7400 --role worker --label zone=a
  footlight status --node 127.0.0.1:7400               the members as a table
  footlight status --node 127.0.0.1:7400 --json        the same for programs
  footlight actors --node 127.0.0.1:7400               which actors run where
  footlight drain 4200661ce99b5a62 --node 127.0.0.1:7400
                                                       let one finish what it does, and leave
  footlight leave --node 127.0.0.1:7401                make the node there leave at once
  footlight ca create --state DIR                      for a cluster that other machines reach
  footlight token create --node 10.0.0.1:7400 --state DIR --role worker --ttl 1h
                                                       lets a node of another machine join
  footlight revoke 4200661ce99b5a62 --node 10.0.0.1:7400 --state DIR
                                                       throws a node out for good

Logs go to the standard error output; RUST_LOG says which (default: warn).";

/// Footlight, an actor-based distributed runtime for machine learning
#[derive(Parser)]
#[command(name = "footlight", version, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until SIGINT (Ctrl-C) or SIGTERM
    Node(node::Args),
    /// Ask a node how it and its cluster are
    Status(status::Args),
    /// List the actors of the cluster, or of one node
    Actors(actors::Args),
    /// Let a node finish what it has in hand, and leave
    Drain(drain::DrainArgs),
    /// Make a node leave at once
    Leave(drain::LeaveArgs),
    /// Make, list and revoke the tokens that let nodes join
    Token(token::Args),
    /// Throw a node out for good
    Revoke(revoke::Args),
    /// Make the certificate authority of a new cluster
    Ca(ca::Args),
}

fn main() -> ExitCode {
    let args: Args = cli::parse();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,openraft=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    if matches!(command, Command::Node(_)) {
        // First of all: whoever started this node through `Processes` may be gone already.
        footlight::cluster::processes::exit_with_parent()?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Node(args) => node::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Actors(args) => actors::run(args).await,
            Command::Drain(args) => drain::drain(args).await,
            Command::Leave(args) => drain::leave(args).await,
            Command::Token(args) => token::run(args).await,
            Command::Revoke(args) => revoke::run(args).await,
            Command::Ca(args) => ca::run(args),
        }
    });
    // The node has ended by now; nothing that still blocks is worth waiting for.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_stands_in_another_s_way() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
