//! What Footlight promises of a GPU, checked on a machine that has one: `cargo xtask gpu` puts this program, some data and
//! a script into a folder that needs nothing there but libtorch.
//!
//! ```text
//! step.rs      one step on the device and on the processor      models.rs   what is trained
//! bits.rs      one job twice                                     report.rs   report.json and the table
//! overhead.rs  a job beside a plain loop of tch (plain.rs)       data.rs     some of the samples
//! ```
//!
//! Each check is a process of its own: settings of CUDA's libraries hold for a whole process.

mod bits;
mod data;
mod models;
mod overhead;
mod plain;
mod report;
mod step;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, ValueEnum};
use footlight::{
    cli,
    runtime::compute::{Device, DeviceChoice, libtorch_version},
};
use report::{Check, Report};

/// As in the training example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Checks what Footlight promises of a GPU, and writes report.json.
///
/// The exit code is 0 if every check is met, 1 if one is missed or could not be made.
#[derive(Parser)]
#[command(name = "footlight-gpu")]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// Make these checks only
    #[arg(long, value_name = "CHECK", value_enum, value_delimiter = ',')]
    only: Vec<Name>,
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "report.json")]
    report: PathBuf,
    /// Make this check in this process and print what came of it: what the program does with each
    #[arg(long, value_name = "CHECK", hide = true)]
    alone: Option<Name>,
}

#[derive(Args, Clone)]
struct Settings {
    /// Folder with MNIST's four IDX files, or the first images of each
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// cuda:N, or cpu where it is the program that is checked
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// The model whose training is timed in `overhead` [default: vit on a GPU, mlp on the processor]
    #[arg(long, value_enum, value_name = "MODEL")]
    model: Option<models::Timed>,
    /// Samples of a step in `overhead` [default: 2048 on a GPU, 1024 on the processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=65_536))]
    batch: Option<u32>,
    /// Steps of `overhead` that count; two more come before them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// How often `overhead` times the loop and the job, one after the other
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// A check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// One training step on the device agrees with the processor
    Step,
    /// Two runs of one job on the device end with the same bits
    Bits,
    /// What the runtime costs beside a plain loop of tch
    Overhead,
}

impl Name {
    fn as_str(self) -> &'static str {
        match self {
            Name::Step => "step",
            Name::Bits => "bits",
            Name::Overhead => "overhead",
        }
    }

    /// What CUDA's libraries read when they start. Speed is measured as users have it.
    fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // Without the tensor cores' shorter numbers, and with fixed memory for sums.
            Name::Step | Name::Bits => {
                &[("NVIDIA_TF32_OVERRIDE", "0"), ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")]
            }
            Name::Overhead => &[],
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,openraft=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match cli.alone {
        Some(check) => alone(check, cli.settings).await.map(|()| true),
        None => all(&cli),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => cli::fail(&error),
    }
}

/// Makes one check here, and prints it as a line of JSON.
async fn alone(check: Name, settings: Settings) -> Result<()> {
    let device = settings.device.resolve()?;
    let check = match check {
        Name::Step => {
            let made = tokio::task::spawn_blocking(move || step::check(&settings.data, device));
            made.await.context("the check panicked")??
        }
        Name::Bits => bits::check(&settings.data, device).await?,
        Name::Overhead => overhead::check(&settings, device).await?,
    };
    println!("{}", check.to_json());
    Ok(())
}

/// Makes the checks one after the other; whether all are met.
fn all(cli: &Cli) -> Result<bool> {
    let Settings { data, .. } = &cli.settings;
    ensure!(data.is_dir(), "--data {} is not a folder", data.display());
    // Not a check's business: all would fail the same way.
    let device = cli.settings.device.resolve()?;
    let mut report = Report { device: named(device), libtorch: libtorch_version(), checks: vec![] };
    eprintln!("{}", report.head());
    for check in Name::value_variants() {
        if cli.only.is_empty() || cli.only.contains(check) {
            eprintln!("{} …", check.as_str());
            let made = in_a_process(*check, &cli.settings);
            let made = made.unwrap_or_else(|error| Check::failed(*check, &format!("{error:#}")));
            report.checks.push(made);
            // At once: what was found stays, whatever becomes of the rest.
            report.write(&cli.report)?;
        }
    }
    print!("{}", report.table());
    eprintln!("the report is in {}", cli.report.display());
    Ok(report.is_met())
}

fn in_a_process(check: Name, settings: &Settings) -> Result<Check> {
    let mut program = Command::new(std::env::current_exe().context("where is this program?")?);
    program
        .args(["--alone", check.as_str()])
        .arg("--data")
        .arg(&settings.data)
        .args(["--device", &settings.device.to_string()])
        .args(["--steps", &settings.steps.to_string(), "--rounds", &settings.rounds.to_string()])
        .envs(check.environment().iter().copied())
        .stderr(Stdio::inherit());
    if let Some(batch) = settings.batch {
        program.args(["--batch", &batch.to_string()]);
    }
    if let Some(model) = settings.model {
        program.args(["--model", model.as_str()]);
    }
    let output = program.output().context("the check cannot be started")?;
    ensure!(output.status.success(), "its process ended with {}", output.status);
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    Check::from_json(last).with_context(|| format!("its process said {last:?}"))
}

/// The device with its model, where the driver tells.
fn named(device: Device) -> String {
    let Device::Cuda(index) = device else { return device.to_string() };
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=name", "--format=csv,noheader", "--id", &index.to_string()])
        .output();
    let name = asked.ok().filter(|said| said.status.success());
    let name = name.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    name.map_or_else(|| device.to_string(), |name| format!("{device} ({name})"))
}
