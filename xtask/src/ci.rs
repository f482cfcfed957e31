//! `cargo xtask ci`: what must hold before a change goes in.

use crate::demo::Build;
use crate::endurance::endurance;
use crate::fuzz::fuzz;
use crate::progress::Seconds;
use crate::test::{PROFILE, WHOLE, tests};
use crate::{command, dataset, demo, setup};
use anyhow::{Context, Result};
use clap::Args;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Run every check: format, Clippy, documentation, tests, 20 seconds of fuzzing, half a minute of chaos, and the
/// demo.
///
/// Does the set-up first if something is missing, and stops at the first step that fails.
#[derive(Args)]
pub(crate) struct Options {}

type Step = (&'static str, fn() -> Result<()>);

/// What is quick to fail comes first. All steps but the fuzzer share one profile, and so their builds.
const STEPS: &[Step] = &[
    ("set-up", || setup::prepare(None, dataset::Name::default(), None).map(drop)),
    ("format", || {
        cargo(&["fmt", "--all", "--check"])?;
        cargo(&["fmt", "--manifest-path=fuzz/Cargo.toml", "--check"])
    }),
    ("Clippy", || {
        let [packages, features] = WHOLE;
        cargo(&["clippy", packages, features, "--all-targets", PROFILE, "--", "-D", "warnings"])
    }),
    ("Clippy without libtorch", || {
        cargo(&[
            "clippy",
            "--package=footlight",
            "--no-default-features",
            "--lib",
            "--bins",
            // `hello` is what a newcomer builds first, and without libtorch.
            "--examples",
            PROFILE,
            "--",
            "-D",
            "warnings",
        ])
    }),
    ("documentation", || {
        let mut doc = command::cargo();
        doc.env("RUSTDOCFLAGS", "-D warnings");
        command::openly(doc.arg("doc").args(WHOLE).args(["--no-deps", PROFILE]))
    }),
    ("tests", || command::openly(&mut tests(&[]))),
    // What is refused without a feature is refused only there.
    ("tests without features", || {
        command::openly(&mut tests(&["--package=footlight-actors", "--lib"].map(str::to_owned)))
    }),
    ("20 s of fuzzing", || fuzz(20)),
    ("30 s of chaos", || {
        let options = ["--minutes", "0.5"].map(str::to_owned);
        command::openly(&mut endurance("chaos", &options))
    }),
    ("demo", || command::openly(&mut demo::prepare(&demo::Options::default(), Build::Tests)?)),
];

fn cargo(arguments: &[&str]) -> Result<()> {
    command::openly(command::cargo().args(arguments))
}

pub(crate) fn run(_: &Options) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut table = Vec::new();
    let mut outcome = Ok(ExitCode::SUCCESS);
    for (number, (name, step)) in STEPS.iter().enumerate() {
        eprintln!("\n[{}/{}] {name}", number + 1, STEPS.len());
        let begun = Instant::now();
        let done = step();
        table.push((*name, begun.elapsed(), if done.is_ok() { "ok" } else { "FAILED" }));
        if let Err(error) = done {
            outcome = Err(error).with_context(|| format!("step {name}"));
            break;
        }
    }
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    table.push(("together", begun.elapsed(), verdict));
    eprintln!("\n{}", render(&table));
    outcome
}

fn render(table: &[(&str, Duration, &str)]) -> String {
    let width = table.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
    let line = |(name, took, verdict): &(&str, Duration, &str)| {
        format!("{name:width$}  {:>10}  {verdict}\n", Seconds(*took).to_string())
    };
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let table = [
            ("format", Duration::from_millis(1230), "ok"),
            ("a longer one", Duration::from_secs(64), "FAILED"),
        ];
        assert_eq!(
            render(&table),
            "format             1.2 s  ok\na longer one  1 min 04 s  FAILED\n"
        );
    }
}
