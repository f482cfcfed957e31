//! Shows how far a job is: a bar where there is a terminal, plain lines where there is none.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Without a terminal a line is written when an epoch is over, and otherwise no more often than this.
pub const LINE_EVERY: Duration = Duration::from_secs(5);

/// The speed shown is that of the last few seconds.
const WINDOW: Duration = Duration::from_secs(5);

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tick {
    /// Steps that are done, of the whole job.
    pub steps: u64,
    /// The mean training loss of the last steps.
    pub loss: f32,
    /// Samples that were trained on, in all epochs so far.
    pub samples: u64,
    /// Nodes that are alive.
    pub live_nodes: usize,
    /// Nodes that belong to the job.
    pub nodes: usize,
}

/// The progress of one job on standard error.
#[derive(Debug)]
pub struct Progress {
    epochs: u64,
    steps_per_epoch: u64,
    bar: Option<ProgressBar>,
    start: Instant,
    speed: Speed,
    lines: Lines,
}

impl Progress {
    /// Begins to show a job of `epochs × steps_per_epoch` steps. If standard error is a terminal there is a bar,
    /// else plain lines.
    pub fn new(epochs: u64, steps_per_epoch: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(epochs.saturating_mul(steps_per_epoch));
            let style = ProgressStyle::with_template(
                "{bar:24.cyan/blue} {percent:>3} %  {msg}  {eta} left",
            );
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            epochs,
            steps_per_epoch: steps_per_epoch.max(1),
            bar,
            start: Instant::now(),
            speed: Speed::default(),
            lines: Lines::default(),
        }
    }

    /// Shows where the job is now. It may be called after every step: it writes no more than is worth reading.
    pub fn update(&mut self, tick: &Tick) {
        let now = self.start.elapsed();
        let speed = self.speed.at(now, tick.samples);
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.text(tick, speed));
                bar.set_position(tick.steps);
            }
            None => {
                if self.lines.due(now, tick.steps / self.steps_per_epoch) {
                    eprintln!("{}", self.text(tick, speed));
                }
            }
        }
    }

    /// Tells what happened, in a line that stays.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn text(&self, tick: &Tick, speed: f64) -> String {
        let epoch = (tick.steps / self.steps_per_epoch + 1).min(self.epochs);
        format!(
            "epoch {epoch}/{}  step {}  loss {:.4}  {} samples/s  {}/{} nodes",
            self.epochs,
            HumanCount(tick.steps),
            tick.loss,
            HumanCount(speed as u64),
            tick.live_nodes,
            tick.nodes,
        )
    }
}

impl Drop for Progress {
    /// Takes the bar away, so that what is written next stands on a clean line.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Samples a second over the last [`WINDOW`].
#[derive(Debug, Default)]
struct Speed {
    /// Times and counts, at most some fifty.
    seen: VecDeque<(Duration, u64)>,
}

impl Speed {
    fn at(&mut self, now: Duration, samples: u64) -> f64 {
        let newest = self.seen.back().map(|(time, _)| *time);
        if newest.is_none_or(|newest| now >= newest + WINDOW / 50) {
            self.seen.push_back((now, samples));
        }
        while self.seen.len() > 2 && self.seen.front().is_some_and(|(time, _)| *time + WINDOW < now)
        {
            self.seen.pop_front();
        }
        match self.seen.front() {
            Some((time, before)) if now > *time => {
                samples.saturating_sub(*before) as f64 / (now - *time).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

/// Decides which updates are worth a line.
#[derive(Debug, Default)]
struct Lines {
    last: Option<(Duration, u64)>,
}

impl Lines {
    fn due(&mut self, now: Duration, epochs_done: u64) -> bool {
        let due =
            self.last.is_none_or(|(time, epochs)| epochs_done > epochs || now >= time + LINE_EVERY);
        if due {
            self.last = Some((now, epochs_done));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_line_is_due_at_first_at_the_end_of_an_epoch_and_after_a_while() {
        let mut lines = Lines::default();
        let due: Vec<bool> = [(0, 0), (1, 0), (2, 1), (3, 1), (6, 1), (7, 1), (12, 1), (12, 2)]
            .map(|(second, epochs)| lines.due(SECOND * second, epochs))
            .into();
        assert_eq!(due, [true, false, true, false, false, true, true, true]);
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let mut speed = Speed::default();
        assert_eq!(speed.at(SECOND, 0), 0.0);
        assert_eq!(speed.at(SECOND * 2, 1000), 1000.0);
        for second in 3..20 {
            speed.at(SECOND * second, 1000);
        }
        assert_eq!(speed.at(SECOND * 20, 1000), 0.0);
        assert_eq!(speed.at(SECOND * 20, 0), 0.0);
    }

    #[test]
    fn what_the_speed_remembers_does_not_grow() {
        let mut speed = Speed::default();
        for millisecond in 0..100_000 {
            speed.at(Duration::from_millis(millisecond), millisecond * 7);
        }
        assert!(speed.seen.len() < 60, "{}", speed.seen.len());
        assert!((speed.at(Duration::from_secs(100), 700_000) - 7000.0).abs() < 1.0);
    }

    #[test]
    fn the_text_tells_epoch_step_loss_speed_and_nodes() {
        let progress = Progress::new(6, 469);
        let tick = Tick { steps: 1234, loss: 0.02134, samples: 157_952, live_nodes: 5, nodes: 6 };
        assert_eq!(
            progress.text(&tick, 9554.3),
            "epoch 3/6  step 1,234  loss 0.0213  9,554 samples/s  5/6 nodes"
        );
        let end = Tick { steps: 6 * 469, ..tick };
        assert!(progress.text(&end, 0.0).starts_with("epoch 6/6"));
    }
}
