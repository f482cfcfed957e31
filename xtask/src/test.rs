//! `cargo xtask test`: every test of the workspace.

use crate::{command, dataset, setup};
use anyhow::Result;
use clap::Args;
use std::process::{Command, ExitCode};

/// The profile of everything that `test`, `chaos`, `soak` and `ci` build. Some thirty test programs take a quarter of the
/// time to build that they would take optimised, and libtorch computes in them as fast.
pub(crate) const PROFILE: &str = "--profile=dev";

/// All packages, with what is off unless asked for: whatever is checked is built once, and all of it is checked.
pub(crate) const WHOLE: [&str; 2] = ["--workspace", "--features=footlight/tokenizers"];

const NO_FAIL_FAST: &str = "--no-fail-fast";

/// Run every test: units, tests across processes, and the examples in the documentation. Not `chaos`, `detect` and `soak`.
///
/// Does the set-up first if something is missing. A test that fails does not keep the others from running.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments for `cargo test`, as in `cargo xtask test -p footlight-runtime -- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// The test run as a command.
pub(crate) fn tests(arguments: &[String]) -> Command {
    let mut cargo = command::cargo();
    cargo.args(["test", PROFILE]);
    let cargos = || arguments.iter().take_while(|argument| *argument != "--");
    // Without it, the first program with a failure hides those of all that come after it. Cargo takes it once.
    if !cargos().any(|argument| argument == NO_FAIL_FAST) {
        cargo.arg(NO_FAIL_FAST);
    }
    // A package that is named is meant alone.
    let named = |argument: &String| argument.starts_with("-p") || argument.starts_with("--package");
    if !cargos().any(named) {
        cargo.args(WHOLE);
    }
    cargo.args(arguments);
    cargo
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::prepare(None, dataset::Name::default(), None)?;
    command::openly(&mut tests(&options.arguments))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::tests;

    fn line(arguments: &[&str]) -> String {
        let arguments: Vec<String> =
            arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let command = tests(&arguments);
        command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_whole_workspace_unless_a_package_is_named() {
        assert_eq!(
            line(&[]),
            "test --profile=dev --no-fail-fast --workspace --features=footlight/tokenizers"
        );
        assert_eq!(line(&["-p", "xtask"]), "test --profile=dev --no-fail-fast -p xtask");
        assert_eq!(
            line(&["name", "--", "-p"]),
            "test --profile=dev --no-fail-fast --workspace --features=footlight/tokenizers name -- -p"
        );
    }

    #[test]
    fn one_failure_hides_no_other_and_cargo_is_told_so_once() {
        let words = |arguments: &[&str]| line(arguments).matches("--no-fail-fast").count();
        assert_eq!(words(&[]), 1);
        assert_eq!(words(&["--no-fail-fast"]), 1);
        assert_eq!(words(&["--", "--no-fail-fast"]), 2, "behind `--` it is the tests' own");
    }
}
