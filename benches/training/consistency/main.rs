//! The modes of consistency side by side, with all workers alike and with one at half speed.
//!
//! ```text
//! footlight-consistency compare --data DIR --output DIR     measures, writes report.json and consistency.png
//! footlight-consistency node …                              a node of the cluster that is measured
//! ```
//!
//! LeNet-5 on MNIST, each worker in a process of its own. So that a machine of few cores can play several workers, each
//! waits a while in every slot, as for a device of its own; the slow one waits so long that it has half the speed, which is
//! measured too. `cargo xtask consistency` runs it.

mod cluster;
mod compare;
mod model;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use footlight::{cli, prelude::*};

/// As in the training example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The modes of consistency side by side.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure all modes, write a report and a plot, and print a table
    Compare {
        /// Folder with the four IDX files of MNIST
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Where report.json and consistency.png go
        #[arg(long, value_name = "DIR", default_value = "target/consistency")]
        output: PathBuf,
        /// How often each is measured: the medians count
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,
        /// How often the samples are gone through
        #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=100))]
        epochs: u64,
    },
    /// A node of the cluster that is measured
    Node(NodeArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,openraft=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = async {
        match cli.command {
            Command::Node(args) => Ok(cluster::serve(args).await?),
            Command::Compare { data, output, rounds, epochs } => {
                compare::all(&data, &output, rounds, epochs).await
            }
        }
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}
