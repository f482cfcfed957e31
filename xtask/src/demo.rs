//! `cargo xtask demo`: set-up, build, and then the job itself in this process's place.

use crate::dataset::Name;
use crate::setup::{self, FlavourOptions};
use crate::test::{PROFILE, WHOLE};
use crate::{command, paths};
use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Train on a cluster of real processes, lose one, finish, and serve the model.
///
/// Does the set-up first if something is missing. Results go to target/demo.
#[derive(Args, Default)]
pub(crate) struct Options {
    #[command(flatten)]
    flavour: FlavourOptions,
    /// The data set to train on.
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    dataset: Name,
    /// A folder with the four IDX files of that data set, instead of the cache.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    job: JobOptions,
    /// More options for the job, after `--`.
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<String>,
}

/// Options that the job understands and judges: they are handed on as they are.
#[derive(Args, Default)]
struct JobOptions {
    /// Passes over the training images.
    #[arg(long, value_name = "N")]
    epochs: Option<String>,
    /// Worker processes.
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Parameter-server processes.
    #[arg(long, value_name = "N")]
    servers: Option<String>,
    /// Images in a step.
    #[arg(long, value_name = "N")]
    batch: Option<String>,
    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// auto, cpu or cuda:N; of a list as in cpu,cuda:1 each worker has the next one.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Let every process live.
    #[arg(long)]
    no_kill: bool,
    /// Print the report on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
}

impl JobOptions {
    fn arguments(&self) -> Vec<String> {
        let valued = [
            ("--epochs", &self.epochs),
            ("--workers", &self.workers),
            ("--servers", &self.servers),
            ("--batch", &self.batch),
            ("--seed", &self.seed),
            ("--device", &self.device),
        ];
        let valued = valued
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        let flags = [("--no-kill", self.no_kill), ("--json", self.json)];
        valued
            .chain(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned()))
            .collect()
    }
}

/// Which build of the job runs.
#[derive(Clone, Copy)]
pub(crate) enum Build {
    Release,
    /// The tests' own, which is there already where tests were run.
    Tests,
}

impl Build {
    /// Its profile, the packages to choose the features for, and the folder where cargo puts it.
    fn names(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Build::Release => ("--profile=release", &["--package=footlight"], "release"),
            Build::Tests => (PROFILE, &WHOLE, "debug"),
        }
    }
}

/// Does everything that comes before the job, and returns the job, ready to be started.
pub(crate) fn prepare(options: &Options, build: Build) -> Result<Command> {
    ensure!(
        options.dataset.is_of_images(),
        "the demo is trained on images; for the texts: cargo run --release --example language_model"
    );
    let own = options
        .data
        .as_deref()
        .map(std::path::absolute)
        .transpose()
        .context("no current directory")?;
    let wish = options.flavour.wish();
    let ready = setup::prepare(wish, options.dataset, own)?;
    let (profile, packages, folder) = build.names();
    let mut cargo = command::cargo();
    cargo.args(["build", profile, "--example=image_classification"]).args(packages);
    command::openly(&mut cargo)?;
    let program = target_directory()?.join(folder).join("examples/image_classification");
    Ok(job(options, &program, &ready.data))
}

fn job(options: &Options, program: &Path, data: &Path) -> Command {
    let mut job = Command::new(program);
    job.current_dir(paths::root())
        .arg("--data")
        .arg(data)
        // The accuracy that is asked for depends on it.
        .args(["--dataset", options.dataset.as_str(), "--output", "target/demo"])
        .args(options.job.arguments())
        .args(&options.more);
    job
}

pub(crate) fn target_directory() -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["metadata", "--no-deps", "--format-version=1"]);
    let asked =
        command::ends_with_this(&mut cargo).output().context("cannot start `cargo metadata`")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&asked.stdout).context("`cargo metadata` did not answer in JSON")?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("`cargo metadata` names no target directory")?;
    Ok(Path::new(folder).to_path_buf())
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut job = prepare(options, Build::Release)?;
    // Replaced, not waited for: a signal meant for the job reaches the job, whatever sends it.
    let error = job.exec();
    Err(anyhow!(error).context(format!("cannot start {}", job.get_program().display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn arguments(line: &str) -> Result<Vec<String>, clap::Error> {
        let options = Cli::try_parse_from(line.split_whitespace())?.options;
        Ok(options.job.arguments().into_iter().chain(options.more).collect())
    }

    #[test]
    fn options_of_the_job_are_handed_on() -> Result<(), clap::Error> {
        assert_eq!(arguments("demo")?, [""; 0]);
        assert_eq!(
            arguments("demo --json --dataset fashion-mnist --epochs 3 --no-kill -- --new -x")?,
            ["--epochs=3", "--no-kill", "--json", "--new", "-x"],
        );
        Ok(())
    }

    #[test]
    fn the_job_is_told_which_data_set_it_gets() -> Result<()> {
        for (line, name) in
            [("demo", "mnist"), ("demo --dataset fashion-mnist --epochs=1", "fashion-mnist")]
        {
            let options = Cli::try_parse_from(line.split_whitespace())?.options;
            let job = job(&options, Path::new("program"), Path::new("/data"));
            let words: Vec<_> = job.get_args().map(|word| word.to_string_lossy()).collect();
            let begins = format!("--data /data --dataset {name} --output target/demo");
            assert!(words.join(" ").starts_with(&begins), "{words:?}");
            assert!(!words.iter().any(|word| word.starts_with("--target")), "{words:?}");
        }
        Ok(())
    }

    #[test]
    fn a_mistyped_option_is_refused_before_anything_is_done() {
        assert!(arguments("demo --epoch 3").is_err());
        assert!(arguments("demo --cuda --cpu").is_err());
    }
}
