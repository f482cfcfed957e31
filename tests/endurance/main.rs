//! What takes longer than a test may: `cargo xtask chaos`, `cargo xtask detect`, `cargo xtask soak`.
//!
//! * `chaos`: a run of faults, with `faults` that are drawn from a seed and `checks` after each, which
//!   must hold within a time from the heal (`recovery`).
//! * `detect`: how fast the loss of a node is known to all others, with libtorch on every core (`load`),
//!   by what each has written down (`losses`).
//! * `soak`: joins and leaves, and what of them stays behind.
//! * `node`: a node in a process of its own. It calls others all the time, and `calls` keeps account;
//!   or it computes, and writes down whom it saw lost.
//! * `beat`: a singleton that leaves a trace, and what must hold of all traces.

mod beat;
mod calls;
mod chaos;
mod checks;
#[cfg(feature = "torch")]
mod compute;
mod detect;
mod faults;
mod load;
mod losses;
mod node;
mod recovery;
mod soak;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "endurance", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Command {
    Chaos(chaos::Options),
    Detect(detect::Options),
    Soak(soak::Options),
    #[command(hide = true)]
    Node(node::Options),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Node(_) = command
        && let Err(error) = footlight::cluster::processes::exit_with_parent()
    {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let done = runtime.block_on(async {
        match command {
            Command::Chaos(options) => chaos::run(options).await,
            Command::Detect(options) => detect::run(options).await,
            Command::Soak(options) => soak::run(options).await,
            Command::Node(options) => node::run(options).await.map(|()| true),
        }
    });
    runtime.shutdown_background();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
