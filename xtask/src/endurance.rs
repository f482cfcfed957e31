//! `cargo xtask chaos`, `cargo xtask detect` and `cargo xtask soak`: what takes longer than a test may.
//!
//! All are one program, `tests/endurance`, which cargo builds and starts like a test. It judges its options itself.

use crate::test::{PROFILE, WHOLE};
use crate::{command, dataset, setup};
use anyhow::{Result, anyhow};
use clap::Args;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Kill, freeze and cut off nodes at random, and check that all is whole again each time.
///
/// Does the set-up first if something is missing. `cargo xtask chaos --help` shows the options.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Chaos {
    #[command(flatten)]
    options: Options,
}

/// Measure how fast the loss of a node is known to all others, with libtorch on every core.
///
/// Does the set-up first if something is missing. `cargo xtask detect --help` shows the options.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Detect {
    #[command(flatten)]
    options: Options,
}

/// Let nodes join and leave, and check that those that stand hold no more afterwards.
///
/// Does the set-up first if something is missing. `cargo xtask soak --help` shows the options.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Soak {
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// Options for the program, as in `--minutes 10 --seed 42 --json` or `--rounds 200`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// One of them as a command.
pub(crate) fn endurance(which: &str, options: &[String]) -> Command {
    let mut cargo = command::cargo();
    // What is measured is measured as users run it.
    let profile = if which == "detect" { "--profile=release" } else { PROFILE };
    // The features of the whole workspace, as in the tests: without that, what is shared would be compiled anew.
    cargo.args(["test", "--quiet", profile]).args(WHOLE).args(["--test=endurance", "--", which]);
    cargo.args(options);
    cargo
}

fn run(which: &str, options: &Options) -> Result<ExitCode> {
    setup::prepare(None, dataset::Name::default(), None)?;
    let error = endurance(which, &options.options).exec();
    Err(anyhow!(error).context("cannot start cargo"))
}

pub(crate) fn chaos(chaos: &Chaos) -> Result<ExitCode> {
    run("chaos", &chaos.options)
}

pub(crate) fn detect(detect: &Detect) -> Result<ExitCode> {
    run("detect", &detect.options)
}

pub(crate) fn soak(soak: &Soak) -> Result<ExitCode> {
    run("soak", &soak.options)
}

#[cfg(test)]
mod tests {
    use super::endurance;

    #[test]
    fn options_are_handed_on_behind_the_name() {
        let command = endurance("chaos", &["--minutes".to_owned(), "10".to_owned()]);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words.join(" "),
            "test --quiet --profile=dev --workspace --features=footlight/tokenizers --test=endurance -- chaos --minutes 10"
        );
    }
}
