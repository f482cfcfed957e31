//! `cargo xtask fuzz`: a fuzzer against what reads a peer's bytes.

use crate::progress::Seconds;
use crate::{command, lock, paths, tools};
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The version of cargo-fuzz that is installed if there is none.
const VERSION: &str = "0.13.2";

/// Give the decoder of frames whatever a fuzzer thinks of, beginning with frames as nodes make them.
///
/// It needs no nightly toolchain. cargo-fuzz is installed into the cache directory if there is none on PATH. An input
/// that makes the decoder panic, hang or take much memory is left in fuzz/artifacts.
#[derive(Args)]
pub(crate) struct Options {
    /// How long it goes on.
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
}

/// Fuzzes for so long.
pub(crate) fn fuzz(seconds: u64) -> Result<()> {
    tools::check_compiler()?;
    let program = cargo_fuzz()?;
    let root = paths::root();
    // What it finds worth keeping stays out of the checkout, and is gone on from the next time.
    let found = root.join("target/fuzz/corpus");
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    command::openly(&mut run_of(&program, &root, &found, seconds))
}

fn run_of(program: &Path, root: &Path, found: &Path, seconds: u64) -> Command {
    let mut fuzz = Command::new(program);
    fuzz.current_dir(root)
        // A sanitizer would need a nightly toolchain, and what is run has no `unsafe` of its own.
        .args(["fuzz", "run", "--dev", "--sanitizer=none", "--target-dir=target/fuzz", "frame"])
        .arg(found)
        .arg("fuzz/corpus/frame")
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        // No frame of the fuzzer's is longer than some KiB: more than this is a length that was believed.
        .args(["-rss_limit_mb=512", "-timeout=10", "-print_final_stats=1"]);
    fuzz
}

/// The one on PATH, or that of an earlier run, or a new one.
fn cargo_fuzz() -> Result<PathBuf> {
    if let Some(own) = tools::Programs::here().find("cargo-fuzz") {
        return Ok(own);
    }
    let cache = paths::cache()?;
    let home = cache.join(format!("cargo-fuzz-{VERSION}"));
    let program = home.join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    let _lock = lock::take(&cache)?;
    // Another run may have done it while this one waited.
    if !program.is_file() {
        eprintln!("cargo-fuzz {VERSION}: installing into {}", home.display());
        let begun = Instant::now();
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let mut install = command::cargo();
        install
            // It only starts cargo: what optimising it takes is never won back.
            .args(["install", "cargo-fuzz", "--locked", "--debug", "--version", VERSION, "--root"])
            .arg(&home)
            .env("CARGO_PROFILE_DEV_DEBUG", "false");
        command::quietly("cargo install cargo-fuzz", &mut install, &home.join("log"), || ())?;
        eprintln!("cargo-fuzz {VERSION}: installed in {}", Seconds(begun.elapsed()));
    }
    Ok(program)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    fuzz(options.seconds)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::run_of;
    use std::path::Path;

    #[test]
    fn what_is_found_goes_to_the_first_folder_and_the_corpus_is_only_read() {
        let run = run_of("cargo-fuzz".as_ref(), Path::new("/here"), "/found".as_ref(), 20);
        let words: Vec<_> = run.get_args().map(|word| word.to_string_lossy()).collect();
        let line = words.join(" ");
        assert!(line.contains(" frame /found fuzz/corpus/frame -- -max_total_time=20 "), "{line}");
    }
}
