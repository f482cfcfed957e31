//! One side of a measurement between two processes.
//!
//! ```text
//! footlight-bench PARTICIPANT WORK --rank 0 --addr HOST:PORT   prints `ready`, serves until stdin ends
//! footlight-bench PARTICIPANT WORK --rank 1 --addr HOST:PORT   measures, prints {"value": …}
//! ```
//!
//! Works of one process have rank 1 only. A participant that can't do a work says so and exits with
//! code 3. `cargo xtask peers` runs both sides, in turn with the peers.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, ValueEnum};
use footlight_benches::{Outcome, Work, footlight_side, local, raw, raw_memory};

/// The exit code of a participant that can't do a work.
const CANNOT: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Participant {
    /// This project.
    Footlight,
    /// The same work on bare quinn, and nothing else.
    RawQuinn,
    /// The same work with what is read from the other process's memory, and nothing else.
    RawMemory,
    /// The actor library underneath, in one process.
    Ractor,
}

#[derive(Debug, Parser)]
#[command(about = "One side of a measurement between two processes")]
struct Args {
    participant: Participant,
    work: Work,
    /// 0 serves, 1 measures.
    #[arg(long)]
    rank: u8,
    /// Where rank 0 listens.
    #[arg(long, default_value = "127.0.0.1:7411")]
    addr: SocketAddr,
}

fn run(args: &Args) -> anyhow::Result<Outcome> {
    match args.participant {
        Participant::Footlight if args.work == Work::LocalCall => local::footlight(),
        Participant::Footlight => footlight_side::run(args.work, args.rank, args.addr),
        Participant::RawQuinn => raw::run(args.work, args.rank, args.addr),
        Participant::RawMemory => raw_memory::run(args.work, args.rank, args.addr),
        Participant::Ractor if args.work == Work::LocalCall => local::ractor(),
        Participant::Ractor => Ok(Outcome::Cannot),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&args) {
        Ok(Outcome::Value(value)) => {
            println!("{}", serde_json::json!({ "value": value }));
            ExitCode::SUCCESS
        }
        Ok(Outcome::Served) => ExitCode::SUCCESS,
        Ok(Outcome::Cannot) => {
            eprintln!("{:?} does not do {:?}", args.participant, args.work);
            ExitCode::from(CANNOT)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
