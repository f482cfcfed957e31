//! Whatever ends `xtask`, what it has started ends with it.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::*;

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(60);

/// Says its number, and then takes its time.
const SLOW: &str = "echo $$ > $HOME/pid; exec sleep 600";

#[track_caller]
fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: a system call without pointers. The process was started here, and its number is not free yet.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// A program under way and what it has started: ended with the test, however that goes.
struct Run {
    xtask: Child,
    started: Option<u32>,
}

impl Run {
    /// Starts it and waits until it has started what it waits for.
    fn start(machine: &Machine, xtask: &mut Command) -> Self {
        // Whoever runs the tests may ignore SIGINT, as a shell's jobs in the background do, and what they
        // start would, too.
        // SAFETY: a system call that may be made between fork and exec.
        unsafe {
            xtask.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut run = Self { xtask: xtask.stderr(Stdio::null()).spawn().unwrap(), started: None };
        let said = machine.path("home/pid");
        run.started = Some(wait_until("it starts the slow program", || number_in(&said)));
        run
    }

    /// Ends it by a signal, and waits until what it has started is gone, too.
    fn ends_by(mut self, number: i32) {
        let is_alive = || self.started.is_some_and(is_alive);
        assert!(is_alive());
        signal(self.xtask.id(), number);
        assert!(!self.xtask.wait().unwrap().success());
        wait_until("the slow program is gone", || (!is_alive()).then_some(()));
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.xtask.kill();
        let _ = self.xtask.wait();
        if let Some(started) = self.started.filter(|pid| is_alive(*pid)) {
            signal(started, libc::SIGKILL);
        }
    }
}

/// The number in a file, once all of it is there.
fn number_in(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()
}

#[test]
fn pip_ends_with_the_set_up_that_has_started_it() {
    for number in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
        let machine = Machine::new();
        machine.borrows("sleep");
        machine.has("python3", &format!("[ $3 = --version ] || {{ {SLOW}; }}"));
        Run::start(&machine, &mut machine.xtask(&["setup"])).ends_by(number);
    }
}

#[test]
fn cargo_ends_with_the_demo_that_has_started_it() {
    for number in [libc::SIGKILL, libc::SIGTERM] {
        let machine = Machine::new();
        machine.borrows("sleep");
        let (libtorch, data) = (machine.libtorch("2.11.0\n"), machine.data());
        let cargo = machine.has("cargo", SLOW);
        let mut xtask = machine.xtask(&["demo", "--data"]);
        xtask.arg(data).env("LIBTORCH", libtorch).env("CARGO", cargo);
        Run::start(&machine, &mut xtask).ends_by(number);
    }
}

#[test]
fn npm_ends_with_the_set_up_that_has_started_it() {
    let machine = Machine::new();
    machine.borrows("sleep");
    machine.has("npm", SLOW);
    let libtorch = machine.libtorch("2.11.0\n");
    Run::start(&machine, machine.xtask(&["setup"]).env("LIBTORCH", libtorch))
        .ends_by(libc::SIGKILL);
}
