//! `cargo xtask consistency`: the modes of consistency side by side.

use crate::dataset::Name;
use crate::demo::target_directory;
use crate::{command, paths, setup};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Measure what a slow worker costs in each mode of consistency, and how soon each is accurate.
///
/// About half an hour. Writes report.json and consistency.png, and prints the table of docs/choosing.md. Does the set-up
/// first if something is missing. Leave the machine alone meanwhile.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the results go [default: target/consistency]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How often each is measured: the medians count.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    rounds: u64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let ready = setup::prepare(None, Name::Mnist, None)?;
    command::openly(command::cargo().args([
        "build",
        "--profile=bench",
        "--package=footlight-training-benches",
        "--bin=footlight-consistency",
    ]))?;
    let output = options.output.clone().unwrap_or_else(|| paths::root().join("target/consistency"));
    let mut program = Command::new(target_directory()?.join("release/footlight-consistency"));
    program.arg("compare").arg("--data").arg(&ready.data).arg("--output").arg(&output);
    program.args(["--rounds", &options.rounds.to_string()]);
    command::openly(&mut program)?;
    eprintln!("The plot is {}.", output.join("consistency.png").display());
    Ok(ExitCode::SUCCESS)
}
