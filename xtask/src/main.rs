//! The developer's commands of this checkout, run as `cargo xtask …`.
//!
//! `setup` brings what a build needs into the user's cache directory; `demo`, `test`, `chaos`, `detect`, `soak` and `ci` do that
//! first and then run cargo; `fuzz` needs nothing of it, and `peers` measures Footlight side by side with others;
//! `consistency` measures the modes of training against each other; `gpu` makes a folder to take to a machine with a GPU. Everything said here goes to standard error, so that the demo's `--json` has standard output to itself.

mod checksum;
mod ci;
mod command;
mod consistency;
mod dataset;
mod demo;
mod endurance;
mod fuzz;
mod gpu;
mod libtorch;
mod lock;
mod options;
mod paths;
mod peers;
mod progress;
mod setup;
mod test;
#[cfg(test)]
mod testing;
mod tools;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Set-up, demo, tests, endurance runs and CI of Footlight.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Options),
    Demo(demo::Options),
    Test(test::Options),
    Chaos(endurance::Chaos),
    Detect(endurance::Detect),
    Soak(endurance::Soak),
    Fuzz(fuzz::Options),
    Peers(peers::Options),
    Consistency(consistency::Options),
    Gpu(gpu::Options),
    Ci(ci::Options),
}

fn main() -> ExitCode {
    let done = match options::parse::<Cli>().command {
        Command::Setup(options) => setup::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Chaos(options) => endurance::chaos(&options),
        Command::Detect(options) => endurance::detect(&options),
        Command::Soak(options) => endurance::soak(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Peers(options) => peers::run(&options),
        Command::Consistency(options) => consistency::run(&options),
        Command::Gpu(options) => gpu::run(&options),
        Command::Ci(options) => ci::run(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
