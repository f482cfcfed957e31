//! `cargo xtask gpu`: a folder to take to a machine that has a GPU and a libtorch, and neither Rust nor this checkout.
//!
//! ```text
//! footlight-gpu   the checks: package footlight-training-benches, without symbols
//! data/           the first samples of MNIST
//! run.sh          finds libtorch, and starts the program
//! ```

mod data;
mod stage;

use crate::dataset::Name;
use crate::demo::target_directory;
use crate::{command, paths, setup};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Put into a folder what checks Footlight on a machine with a GPU.
///
/// There it needs Linux, a libtorch 2.11.0 with CUDA (PyTorch's has it) and a GPU, but no Rust: `sh run.sh` makes the
/// checks and writes report.json. See docs/gpu.md. Does the set-up first if something is missing.
#[derive(Args)]
pub(crate) struct Options {
    /// The folder; one that was made before is replaced [default: target/gpu]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // A folder that cannot be is told before anything is built.
    let out = options.out.clone().unwrap_or_else(|| paths::root().join("target/gpu"));
    let out = stage::free(&out)?;
    let ready = setup::prepare(None, Name::Mnist, None)?;
    let package = "--package=footlight-training-benches";
    command::openly(command::cargo().args([
        "build",
        // As what is measured elsewhere.
        "--profile=bench",
        package,
        "--bin=footlight-gpu",
    ]))?;
    let program = target_directory()?.join("release/footlight-gpu");
    let bytes = stage::stage(&program, &ready.data, &out)?;
    stage::starts(&out)?;
    let megabytes = bytes as f64 / 1e6;
    eprintln!(
        "{} is ready ({megabytes:.1} MB): take it to the machine and say `sh run.sh` there",
        out.display()
    );
    Ok(ExitCode::SUCCESS)
}
