//! Progress on long work: a bar where a person looks on, two lines in a log file.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fmt, fs};

/// Work whose size in bytes is known beforehand.
pub(crate) struct Progress {
    bar: ProgressBar,
    done: String,
    total: u64,
    begun: Instant,
}

impl Progress {
    /// Begins a piece of work on `what`, which reads like "downloading" meanwhile and "downloaded" in the end.
    pub(crate) fn begin(what: &str, meanwhile: &str, in_the_end: &str, total: u64) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        // The template is a constant: a mistake in it shows in the unit test below.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("━━╌"));
        }
        bar.set_prefix(format!("{what}: {meanwhile}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        if !stderr().is_terminal() {
            eprintln!("{what}: {meanwhile} {}", Bytes(total));
        }
        Self { bar, done: format!("{what}: {in_the_end}"), total, begun: Instant::now() }
    }

    /// Sets how much is done, from a size that is watched: it may overshoot, and shrink when a file is moved.
    pub(crate) fn at(&self, done: u64) {
        self.bar.set_position(done.min(self.total).max(self.bar.position()));
    }

    /// Adds to what is done.
    pub(crate) fn add(&self, done: u64) {
        self.bar.inc(done);
    }

    /// Ends the work well, and leaves one line behind.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
        eprintln!("{} {} in {}", self.done, Bytes(self.total), Seconds(self.begun.elapsed()));
    }
}

const TEMPLATE: &str = "{prefix} {bar:30.cyan/dim} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}";

/// Work whose size nobody knows beforehand.
pub(crate) struct Waiting {
    bar: ProgressBar,
    done: String,
    begun: Instant,
}

impl Waiting {
    /// Begins a piece of work on `what`, which reads like "installing ray".
    pub(crate) fn begin(what: &str, doing: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(WAITING) {
            bar.set_style(style);
        }
        let done = format!("{what}: {doing}");
        bar.set_prefix(done.clone());
        bar.enable_steady_tick(Duration::from_millis(100));
        if !stderr().is_terminal() {
            eprintln!("{done}");
        }
        Self { bar, done, begun: Instant::now() }
    }

    /// Ends the work well, and leaves one line behind.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
        eprintln!("{} took {}", self.done, Seconds(self.begun.elapsed()));
    }
}

/// Work in so many steps, each of them named.
pub(crate) struct Steps {
    bar: ProgressBar,
}

impl Steps {
    /// Begins so many steps of `what`.
    pub(crate) fn begin(what: &str, count: u64) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(STEPS) {
            bar.set_style(style.progress_chars("━━╌"));
        }
        bar.set_prefix(what.to_owned());
        // No ticks between the steps: what is measured has the machine to itself.
        Self { bar }
    }

    /// Names the step that begins.
    pub(crate) fn now(&self, step: String) {
        self.bar.set_message(step);
    }

    /// So many steps are over, or will not be taken.
    pub(crate) fn over(&self, count: u64) {
        self.bar.inc(count);
    }

    /// Says a line above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Ends with the last step.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
    }
}

const WAITING: &str = "{prefix} {spinner} {elapsed}";
const STEPS: &str = "{prefix} {bar:30.cyan/dim} {pos}/{len}  {msg}  {eta}";

/// A size for people.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", indicatif::DecimalBytes(self.0))
    }
}

/// A duration for people: tenths of seconds while those matter.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.as_secs();
        if whole < 60 {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        } else {
            write!(f, "{} min {:02} s", whole / 60, whole % 60)
        }
    }
}

/// Bytes in the files below a folder, for watching something grow. What vanishes meanwhile counts as nothing.
pub(crate) fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => folder_size(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Bytes in the largest file below a folder.
pub(crate) fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => largest_file(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [TEMPLATE, WAITING, STEPS] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn a_watched_size_may_overshoot_and_shrink() {
        let progress = Progress::begin("test", "working", "worked", 10);
        progress.at(7);
        assert_eq!(progress.bar.position(), 7);
        progress.at(3);
        assert_eq!(progress.bar.position(), 7);
        progress.at(12);
        assert_eq!(progress.bar.position(), 10);
    }

    #[test]
    fn a_growing_folder_is_measured_in_depth() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        assert_eq!(folder_size(folder.path()), 0);
        fs::write(folder.path().join("a"), [0; 5])?;
        fs::create_dir(folder.path().join("in"))?;
        fs::write(folder.path().join("in/b"), [0; 7])?;
        assert_eq!(folder_size(folder.path()), 12);
        assert_eq!(largest_file(folder.path()), 7);
        assert_eq!(folder_size(&folder.path().join("missing")), 0);
        Ok(())
    }
}
