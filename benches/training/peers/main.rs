//! Footlight's part in the works that need libtorch: what PyTorch does with `DistributedDataParallel` and `DataLoader`.
//!
//! ```text
//! footlight-training-bench footlight WORK --rank 1 --data DIR   measures, prints {"value": …}
//! footlight-training-bench node …                               a node of the cluster that is measured
//! ```
//!
//! It starts its other processes itself, so there is no rank 0. `cargo xtask peers` runs it in turn with the peers.

mod cluster;
mod load;
mod train;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use footlight::{cli, prelude::*};

/// As in the training example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Footlight's part in a measurement of training or of data loading.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a work and print its figure
    Footlight {
        work: Work,
        /// 1, as every process that measures
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=1))]
        rank: u8,
        /// As the peers have it; the nodes here take free ports
        #[arg(long, value_name = "HOST:PORT")]
        addr: Option<String>,
        /// Folder with the four IDX files of MNIST
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Slots of a batch, in `train_lenet`
        #[arg(long, value_name = "N", default_value_t = train::SLOTS)]
        slots: u32,
    },
    /// A node of the cluster that is measured
    Node(NodeArgs),
}

/// What is measured; docs/performance.md says what each is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Work {
    TrainLenet,
    LoadMnistProcesses,
    LoadMnistInProcess,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,openraft=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = async {
        let figures = match cli.command {
            Command::Node(args) => return Ok(cluster::serve(args).await?),
            Command::Footlight { work: Work::TrainLenet, data, slots, .. } => {
                train::lenet(data, slots).await?
            }
            Command::Footlight { work: Work::LoadMnistProcesses, data, .. } => {
                load::from_another_process(data).await?
            }
            Command::Footlight { work: Work::LoadMnistInProcess, data, .. } => {
                load::in_process(data).await?
            }
        };
        println!("{figures}");
        Ok::<_, anyhow::Error>(())
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}
