//! `cargo xtask peers`: the same work done by Footlight and by others, side by side.
//!
//! ```text
//! works.rs     what is measured, who takes part, what has to be reached (limits.rs)
//! venv/        the others' packages          programs.rs  how each participant is started
//! round.rs     one participant's turn, its processes in side.rs, on two hosts in link.rs
//! report.rs    report.json                   table.rs     the same for people, in the documentation with page.rs
//! ```

mod limits;
mod link;
mod machine;
mod page;
mod programs;
mod report;
mod round;
mod side;
mod table;
mod venv;
mod works;

use crate::paths;
use crate::progress::Steps;
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;
use limits::{Values, median};
use link::Link;
use machine::Machine;
use programs::Programs;
use report::{Report, Row};
use round::Outcome;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;
use works::{Participant, Place, WORKS, Work};

/// Measure Footlight side by side with Ray, Monarch, PyTorch and bare quinn.
///
/// Installs what is missing of the peers in the cache directory first (1.5 GB), and libtorch and MNIST for the works that
/// train or load. Each work is done in rounds, by one
/// participant after the other in each; what counts are the medians. Figures go to target/peers/report.json and
/// docs/performance.md. The link of 2 Gbit/s needs root. Leave the machine alone meanwhile.
#[derive(Args)]
pub(crate) struct Options {
    /// Measure this work only; may be given several times. The other rows stay as they are.
    #[arg(long, value_name = "WORK", value_parser = PossibleValuesParser::new(WORKS.iter().map(|work| work.name)))]
    only: Vec<String>,
    /// Print the names of the works, and do nothing.
    #[arg(long)]
    list: bool,
    /// How often each participant does each work.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
}

impl Options {
    fn works(&self) -> Vec<&'static Work> {
        let wanted =
            |work: &&Work| self.only.is_empty() || self.only.iter().any(|name| name == work.name);
        WORKS.iter().filter(wanted).collect()
    }
}

/// After so many failures a participant is left out of the rest of a row: each may take minutes.
const FAILURES: u64 = 2;
/// Between two turns: processes that have just been ended still take their share of the machine.
const REST: Duration = Duration::from_millis(500);

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        WORKS.iter().for_each(|work| println!("{}", work.name));
        return Ok(ExitCode::SUCCESS);
    }
    let works = options.works();
    let programs = Programs::prepare(&works)?;
    let folder = paths::root().join("target/peers");
    let logs = folder.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let path = folder.join("report.json");
    let mut report = Report::read(&path);
    let turns: u64 = works.iter().map(|work| work.participants.len() as u64 * options.rounds).sum();
    let steps = Steps::begin("peers", turns);
    let measure =
        Measure { programs: &programs, logs: &logs, rounds: options.rounds, steps: &steps };
    for work in works {
        let row = measure.row(work)?;
        steps.say(&table::plain(&row));
        if !row.values.is_empty() {
            // At once: what was measured stays, whatever becomes of the rest.
            report.put(row);
            report.write(&path)?;
        }
    }
    steps.end();
    let page = paths::root().join("docs/performance.md");
    page::update(&page, &report)?;
    eprintln!("the figures are in {} and {}", path.display(), page.display());
    Ok(ExitCode::SUCCESS)
}

/// What all rows are measured with.
struct Measure<'a> {
    programs: &'a Programs,
    logs: &'a Path,
    rounds: u64,
    steps: &'a Steps,
}

/// What one participant has done so far.
#[derive(Default)]
struct Turns {
    samples: Vec<f64>,
    more: BTreeMap<String, Vec<f64>>,
    failures: u64,
    /// Why it takes no more turns.
    out: Option<String>,
}

impl Measure<'_> {
    fn row(&self, work: &'static Work) -> Result<Row> {
        let mut all: Vec<(Participant, Turns)> = work
            .participants
            .iter()
            .map(|who| (*who, Turns { out: self.programs.lacks(work, *who), ..Turns::default() }))
            .collect();
        let link = (work.place == Place::Link).then(Link::make).transpose();
        if let Err(error) = &link {
            all.iter_mut().for_each(|(_, turns)| turns.out = Some(format!("{error:#}")));
        }
        let link = link.unwrap_or_default();
        for round in 1..=self.rounds {
            for (who, turns) in &mut all {
                if turns.out.is_none() {
                    self.steps.now(format!("{}, round {round}: {}", work.name, who.name()));
                    turns.take(self.turn(work, *who, link.as_ref())?, self.rounds);
                    thread::sleep(REST);
                }
                self.steps.over(1);
            }
        }
        Ok(row(work, all))
    }

    fn turn(&self, work: &Work, who: Participant, link: Option<&Link>) -> Result<Outcome> {
        let ip = if link.is_some() { link::ip(0) } else { Ipv4Addr::LOCALHOST.into() };
        // On the hosts of a link every port is free.
        let addr = if link.is_some() { (ip, 7400).into() } else { round::free_address(ip)? };
        let side = |rank: u8| -> Command {
            let command = self.programs.command(who, work, rank, addr);
            match link {
                Some(link) => link.on(rank, &command),
                None => command,
            }
        };
        let by_itself = matches!(work.place, Place::OneProcess | Place::OwnProcesses);
        let alone = by_itself || who.starts_its_own();
        let name = format!("{}-{}", work.name, who.name());
        round::play((!alone).then(|| side(0)), side(1), self.logs, &name)
    }
}

impl Turns {
    fn take(&mut self, outcome: Outcome, rounds: u64) {
        match outcome {
            Outcome::Measured(figures) => {
                self.samples.push(figures.value);
                for (name, value) in figures.more {
                    self.more.entry(name).or_default().push(value);
                }
            }
            Outcome::Cannot(why) => self.out = Some(why),
            Outcome::Failed(why) => {
                self.failures += 1;
                if self.failures == FAILURES.min(rounds) {
                    self.out = Some(why);
                }
            }
        }
    }
}

fn row(work: &'static Work, all: Vec<(Participant, Turns)>) -> Row {
    let mut row = Row {
        work,
        values: Values::new(),
        samples: BTreeMap::new(),
        more: BTreeMap::new(),
        left_out: BTreeMap::new(),
        date: machine::today(),
        machine: Machine::here(),
    };
    for (who, turns) in all {
        let name = who.name().to_owned();
        // The figures of one that failed in between would not be of as many rounds as the others'.
        if let Some(why) = turns.out {
            row.left_out.insert(name, why);
        } else if let Some(value) = median(&turns.samples) {
            let more = turns.more.into_iter();
            let more: Values = more.filter_map(|(name, all)| Some((name, median(&all)?))).collect();
            row.values.insert(name.clone(), value);
            if !more.is_empty() {
                row.more.insert(name.clone(), more);
            }
            row.samples.insert(name, turns.samples);
        }
    }
    row
}
