//! One side of a measurement as a process: with all that it starts it ends when its time is over, or when it is dropped.

use crate::command;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Seldom enough to take nothing from what is measured.
const LOOK: Duration = Duration::from_millis(50);

/// A running side.
pub(crate) struct Side {
    child: Child,
    lines: Receiver<String>,
    ended: Option<ExitStatus>,
}

impl Side {
    /// Starts a side. What it prints is kept here, what it complains about goes to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command::ends_with_this(&mut command)
            // Held open as long as the harness lives: its end tells a side that nobody waits for it any more.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (tell, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // Read on even if nobody listens: a full pipe would hold the side back.
                    let _ = tell.send(line);
                }
            });
        }
        Ok(Self { child, lines, ended: None })
    }

    /// Waits for a line; `false` if the side ended without it, or the time is over.
    pub(crate) fn says(&mut self, line: &str, within: Duration) -> bool {
        let until = Instant::now() + within;
        loop {
            if self.lines.try_iter().any(|said| said.trim() == line) {
                return true;
            }
            if self.ended().is_some() || Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap_or(None);
        }
        self.ended
    }

    /// Waits for its end; `None` if the time is over.
    pub(crate) fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        while self.ended().is_none() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        self.ended
    }

    /// What it printed and nobody has taken yet.
    pub(crate) fn said(&self) -> Vec<String> {
        // The reader ends when all who could write have; a process that is left behind must not hold this up.
        std::iter::from_fn(|| self.lines.recv_timeout(Duration::from_secs(1)).ok()).collect()
    }

    /// Lets it end by itself, and ends it if it does not.
    pub(crate) fn end(mut self, within: Duration) {
        drop(self.child.stdin.take());
        self.wait(within);
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        // Its group, as it may have started others. The shell has this built in; not every machine has it as a program.
        let group = self.child.id().to_string();
        let killed = Command::new("sh").args(["-c", "kill -KILL \"-$0\"", &group]).status();
        if !killed.is_ok_and(|status| status.success()) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Result<Side> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Side::start(command, &folder.join("log"))
    }

    #[test]
    fn a_side_is_up_when_it_says_so_and_ends_with_its_input() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut side = shell("echo starting; echo ready; cat; echo bye", folder.path())?;
        assert!(side.says("ready", Duration::from_secs(20)));
        assert!(side.wait(Duration::from_millis(100)).is_none());
        let begun = Instant::now();
        side.end(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(10));
        Ok(())
    }

    #[test]
    fn a_side_that_ends_early_is_not_waited_for() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut side = shell("echo no luck >&2; exit 3", folder.path())?;
        assert!(!side.says("ready", Duration::from_secs(20)));
        assert_eq!(side.ended().and_then(|status| status.code()), Some(3));
        assert_eq!(std::fs::read_to_string(folder.path().join("log"))?, "no luck\n");
        Ok(())
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_it_started_ends_with_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut side = shell("sleep 60 & echo $!; wait", folder.path())?;
        let child = side.lines.recv_timeout(Duration::from_secs(20))?;
        assert!(side.wait(Duration::from_millis(100)).is_none());
        drop(side);
        let until = Instant::now() + Duration::from_secs(10);
        // A killed process that nobody has waited for is still listed, as a zombie.
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        let alive = || state().is_ok_and(|line| !line.contains(") Z "));
        while alive() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        assert!(!alive(), "{child} lives on");
        Ok(())
    }
}
