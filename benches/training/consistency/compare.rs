//! What is measured, and how it is told.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use footlight::actors::{
    consistency::Consistency,
    data::DataSpec,
    model::ModelSpec,
    parameters::optimizer::Adam,
    report::comparison::{Comparison, Line},
    schedule::Schedule,
    training::{JobEvent, TrainingJob},
};
use serde_json::json;

use crate::{cluster, model::Waiting};

const WORKERS: usize = 8;
/// One for each worker.
const SLOTS: u32 = WORKERS as u32;
const BATCH: u32 = 128;
/// Of MNIST's, so that an epoch is short and the accuracy is known often.
const SAMPLES: u32 = 12_000;
/// How far apart workers may be under bounded staleness.
const STALENESS: u32 = 3;
const RATE: f64 = 5e-3;
/// What each worker waits in a slot, as for a device: so long that what all of them compute besides, on few cores, is
/// little beside it.
const WAIT: Duration = Duration::from_millis(100);
/// In the first steps nothing counts: workers start.
const WARM_STEPS: u64 = 30;
/// The accuracy that is waited for.
const TARGET: f64 = 0.98;

const MODES: [Consistency; 3] = [
    Consistency::BulkSynchronous,
    Consistency::BoundedStaleness(STALENESS),
    Consistency::Asynchronous,
];

/// One job that was run.
struct Run {
    /// Samples a second, without the first steps.
    throughput: f64,
    /// Test accuracies, each with the seconds since the first step was handed out.
    accuracies: Vec<(f64, f64)>,
}

impl Run {
    /// When the accuracy was reached, and stayed.
    fn reached(&self) -> Option<f64> {
        let last_below = self.accuracies.iter().rposition(|(_, accuracy)| *accuracy < TARGET);
        self.accuracies.get(last_below.map_or(0, |at| at + 1)).map(|(at, _)| *at)
    }

    fn last_accuracy(&self) -> f64 {
        self.accuracies.last().map_or(0.0, |(_, accuracy)| *accuracy)
    }
}

/// All runs of one mode.
struct Runs {
    mode: Consistency,
    is_slowed: bool,
    runs: Vec<Run>,
}

impl Runs {
    fn median(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn reached(&self) -> f64 {
        self.median(|run| run.reached().unwrap_or(f64::INFINITY))
    }

    fn name(&self) -> String {
        let speed = if self.is_slowed { "one at half speed" } else { "all alike" };
        format!("{}, {speed}", title(self.mode))
    }
}

fn title(mode: Consistency) -> String {
    match mode {
        Consistency::BulkSynchronous => "bulk synchronous".to_owned(),
        Consistency::BoundedStaleness(steps) => format!("staleness {steps}"),
        Consistency::Asynchronous => "asynchronous".to_owned(),
    }
}

pub(crate) async fn all(data: &Path, output: &Path, rounds: u32, epochs: u64) -> Result<()> {
    fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    let data = std::path::absolute(data)?;
    let slow_wait = half_speed(&data).await?;
    let mut measured: Vec<Runs> = [false, true]
        .into_iter()
        .flat_map(|is_slowed| MODES.map(|mode| Runs { mode, is_slowed, runs: Vec::new() }))
        .collect();
    let alike = [WAIT; WORKERS];
    let mut slowed = alike;
    slowed[WORKERS - 1] = slow_wait;
    for round in 1..=rounds {
        for runs in &mut measured {
            let waits = if runs.is_slowed { slowed } else { alike };
            let run = train(&data, &waits, runs.mode, SAMPLES, epochs).await?;
            eprintln!(
                "round {round} of {rounds}: {}: {:.0} samples/s, {:.2} % in the end",
                runs.name(),
                run.throughput,
                run.last_accuracy() * 100.0
            );
            runs.runs.push(run);
        }
    }
    write(&measured, output, slow_wait, epochs)?;
    print!("{}", table(&measured));
    Ok(())
}

/// How long a worker must wait in a slot to have half the speed of the others: measured, as it computes besides.
async fn half_speed(data: &Path) -> Result<Duration> {
    let speed = async |wait: Duration| {
        let run = train(data, &[wait], Consistency::BulkSynchronous, 4_480, 1).await?;
        Ok::<f64, anyhow::Error>(run.throughput)
    };
    let full = speed(WAIT).await?;
    let a_slot = f64::from(BATCH / SLOTS) / full;
    let wait = WAIT + Duration::from_secs_f64(a_slot);
    let half = speed(wait).await?;
    let ratio = half / full;
    eprintln!(
        "a worker alone: {full:.0} samples/s waiting {} ms in a slot, {half:.0} waiting {:.1} ms: {ratio:.2} of it",
        WAIT.as_millis(),
        wait.as_secs_f64() * 1e3,
    );
    ensure!((0.4..0.6).contains(&ratio), "that is not half the speed: is the machine busy?");
    Ok(wait)
}

async fn train(
    data: &Path,
    waits: &[Duration],
    mode: Consistency,
    samples: u32,
    epochs: u64,
) -> Result<Run> {
    let cluster = cluster::start(waits).await?;
    // The optimiser takes as many steps as there are slots.
    let rate = if mode.is_by_slot() { RATE / f64::from(SLOTS) } else { RATE };
    let job = TrainingJob::new(
        "consistency",
        ModelSpec::of::<Waiting>(),
        DataSpec::idx(data).limit(samples),
    )
    .optimizer(Adam::new(rate).schedule(Schedule::Cosine))
    .consistency(mode)
    .workers(waits.len() as u32)
    .slots(SLOTS)
    .batch(BATCH)
    .epochs(epochs)
    .seed(1);
    let mut running = job.submit(cluster.node()).await?;
    let begun = Instant::now();
    // By step: when it was applied, and how many samples were trained on by then.
    let mut steps_at: Vec<(f64, u64)> = vec![(0.0, 0)];
    let mut accuracies = Vec::new();
    running
        .follow(|event| match event {
            JobEvent::Step { samples, .. } => {
                steps_at.push((begun.elapsed().as_secs_f64(), *samples));
            }
            JobEvent::Evaluated { steps, accuracy: Some(accuracy), .. } => {
                accuracies.push((*steps, *accuracy));
            }
            _ => {}
        })
        .await?;
    running.close().await?;
    cluster.leave().await?;
    let (first, last) = (steps_at.get(WARM_STEPS as usize), steps_at.last());
    let (Some(first), Some(last)) = (first, last) else {
        anyhow::bail!("there were no more than {WARM_STEPS} steps: there is nothing to measure")
    };
    let throughput = (last.1 - first.1) as f64 / (last.0 - first.0);
    let time_of = |steps: u64| steps_at.get(steps as usize).map(|(at, _)| *at);
    let accuracies =
        accuracies.iter().filter_map(|(steps, share)| Some((time_of(*steps)?, *share)));
    Ok(Run { throughput, accuracies: accuracies.collect() })
}

/// The throughput of the same mode without the slow worker.
fn alike(measured: &[Runs], mode: Consistency) -> f64 {
    let all = measured.iter().find(|runs| runs.mode == mode && !runs.is_slowed);
    all.map_or(f64::NAN, |runs| runs.median(|run| run.throughput))
}

fn table(measured: &[Runs]) -> String {
    let mut table = format!(
        "| mode | workers | samples/s | of it lost to the slow one | seconds to {} % | accuracy in the end |\n\
         | --- | --- | --- | --- | --- | --- |\n",
        TARGET * 100.0
    );
    for runs in measured {
        let throughput = runs.median(|run| run.throughput);
        let lost = match runs.is_slowed {
            true => format!("{:.0} %", (1.0 - throughput / alike(measured, runs.mode)) * 100.0),
            false => "–".to_owned(),
        };
        let reached = runs.reached();
        let reached =
            if reached.is_finite() { format!("{reached:.1}") } else { "not reached".to_owned() };
        let accuracy = runs.median(Run::last_accuracy) * 100.0;
        let workers = if runs.is_slowed { "one at half speed" } else { "all alike" };
        let mode = title(runs.mode);
        table += &format!(
            "| {mode} | {workers} | {throughput:.0} | {lost} | {reached} | {accuracy:.2} % |\n"
        );
    }
    table
}

fn write(measured: &[Runs], output: &Path, slow_wait: Duration, epochs: u64) -> Result<()> {
    let rows: Vec<_> = measured
        .iter()
        .map(|runs| {
            let run = |run: &Run| {
                json!({
                    "samples_per_second": run.throughput,
                    "seconds_to_target": run.reached(),
                    "accuracies": run.accuracies,
                })
            };
            json!({
                "consistency": runs.mode.to_string(),
                "slow_worker": runs.is_slowed,
                "runs": runs.runs.iter().map(run).collect::<Vec<_>>(),
            })
        })
        .collect();
    let report = json!({
        "workers": WORKERS,
        "slots": SLOTS,
        "batch": BATCH,
        "samples": SAMPLES,
        "epochs": epochs,
        "target": TARGET,
        "milliseconds_waited_in_a_slot": WAIT.as_secs_f64() * 1e3,
        "milliseconds_waited_by_the_slow_worker": slow_wait.as_secs_f64() * 1e3,
        "rows": rows,
    });
    let path = output.join("report.json");
    fs::write(&path, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let line = |(number, runs): (usize, &Runs)| {
        let first = runs.runs.first().map(|run| run.accuracies.clone());
        Line {
            name: runs.name(),
            group: number % MODES.len(),
            dashed: runs.is_slowed,
            points: first.unwrap_or_default(),
        }
    };
    let comparison = Comparison {
        title: "Consistency: accuracy over time".into(),
        subtitle: format!(
            "LeNet-5 on {SAMPLES} samples of MNIST, {epochs} epochs, {WORKERS} workers; each waits {} ms in a slot, \
             the slow one so long that it has half the speed",
            WAIT.as_millis()
        ),
        lines: measured.iter().enumerate().map(line).collect(),
        target: Some(TARGET),
    };
    Ok(comparison.write_png(output.join("consistency.png"))?)
}
