//! A local cluster of operating-system processes: for demos, examples and tests.
//!
//! ```no_run
//! # async fn f() -> Result<(), footlight_cluster::processes::ProcessError> {
//! use std::time::Duration;
//! use footlight_cluster::processes::{ProcessSpec, Processes};
//!
//! let processes = Processes::new();
//! let node = processes.start(ProcessSpec::this_binary("node-1").args(["node"])).await?;
//! let line = node.wait_line("listening on ", Duration::from_secs(10)).await?;
//! node.kill();                    // a crash; `freeze` is a hang, `terminate` asks politely
//! # Ok(()) }                      // the end of `processes` ends and reaps them all
//! ```
//!
//! [`LocalCluster`] starts a whole cluster so, a node in each process.
//!
//! **No process stays behind**, by three nets, each for what the one before can't catch:
//! - The end of [`Processes`] kills its processes and waits until they are gone.
//! - A parent that dies without running any destructor (SIGKILL) leaves a closed pipe: each child
//!   calls [`exit_with_parent`] first of all, whose thread sees that and ends the process at once,
//!   however busy its other threads are.
//! - A child that is stopped (SIGSTOP) can see nothing. On Linux the kernel kills it when the
//!   *thread* that started it ends (`PR_SET_PDEATHSIG`). Set from whatever thread calls `start`,
//!   that would kill children as soon as an async runtime retires a worker; so each child is
//!   started by a thread of its own, which does nothing but wait for the child's end. On other
//!   systems a stopped child stays until somebody continues it, and ends then.

mod keeper;
mod local;
mod process;

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Read},
    os::fd::AsFd,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

pub use local::{LocalCluster, LocalPart, serve};
pub use process::Process;
use process::lock;

/// Tells a process that its standard input is the parent's life line.
const EXIT_WITH_PARENT: &str = "FOOTLIGHT_EXIT_WITH_PARENT";
/// The exit code of a process whose parent is gone.
pub const PARENT_GONE: i32 = 113;
/// How long the end of [`Processes`] waits for the kernel to take a killed process away.
const REAP_PATIENCE: Duration = Duration::from_secs(10);

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start process {name} ({program}): {source}", program = program.display())]
    Start {
        /// Its name.
        name: String,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended while something was expected of it.
    #[error("process {name} ended ({status}) before {expected}; the end of its output:\n{output}")]
    Ended {
        /// Its name.
        name: String,
        /// How it ended.
        status: String,
        /// What was expected.
        expected: String,
        /// The last lines of its standard error output.
        output: String,
    },
    /// It did not do in time what was expected of it.
    #[error(
        "process {name} (pid {pid}) did not reach {expected} within {within:?}; the end of its output:\n{output}"
    )]
    Late {
        /// Its name.
        name: String,
        /// Its process id.
        pid: u32,
        /// What was expected.
        expected: String,
        /// How long was waited.
        within: Duration,
        /// The last lines of its standard error output.
        output: String,
    },
    /// Somebody else took its exit status (SIGCHLD is ignored, or another thread waits for all).
    #[error("process {name} is gone, but its exit status was lost: {why}")]
    NoStatus {
        /// Its name.
        name: String,
        /// What the system said.
        why: String,
    },
}

/// What to start.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    name: String,
    program: Option<PathBuf>,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    forward: bool,
}

impl ProcessSpec {
    /// The binary that runs now, under a name that errors and log lines show.
    pub fn this_binary(name: impl Into<String>) -> Self {
        let (args, envs) = (Vec::new(), Vec::new());
        Self { name: name.into(), program: None, args, envs, forward: false }
    }

    /// Another program. It has to call [`exit_with_parent`] too, or to end when its input does.
    pub fn program(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self { program: Some(program.into()), ..Self::this_binary(name) }
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// An environment variable, besides those of this process.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Also shows the process's output lines as `tracing` events (level info, with its name).
    #[must_use]
    pub fn forward_output(mut self) -> Self {
        self.forward = true;
        self
    }
}

/// Processes that end when this does.
#[derive(Debug, Default)]
pub struct Processes {
    started: Mutex<Vec<Process>>,
}

impl Processes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a process. Its standard input is a pipe that nothing is written to; its two outputs
    /// are read all the time, so it never waits for a reader.
    ///
    /// # Errors
    /// [`ProcessError::Start`] if the program is not there or the system has no room for more.
    pub async fn start(&self, spec: ProcessSpec) -> Result<Process, ProcessError> {
        let name = spec.name.clone();
        let failed = |program: &PathBuf, source| ProcessError::Start {
            name: name.clone(),
            program: program.clone(),
            source,
        };
        let program = match &spec.program {
            Some(program) => program.clone(),
            None => env::current_exe().map_err(|error| failed(&PathBuf::new(), error))?,
        };
        let (tell, told) = oneshot::channel();
        let command = keeper::command(&spec, &program);
        thread::Builder::new()
            .name(format!("keeper-{}", spec.name))
            .spawn(move || keeper::keep(command, spec, tell))
            .map_err(|error| failed(&program, error))?;
        let process = told
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that starts it ended")))
            .map_err(|error| failed(&program, error))?;
        let mut started = lock(&self.started);
        started.retain(|process| lock(&process.0.exit).is_none());
        started.push(process.clone());
        Ok(process)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let started = std::mem::take(&mut *lock(&self.started));
        for process in &started {
            // Ends a stopped process too.
            process.kill();
        }
        let deadline = Instant::now() + REAP_PATIENCE;
        for process in &started {
            let mut exit = lock(&process.0.exit);
            while exit.is_none() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    tracing::warn!(process = process.name(), pid = process.pid(), "still there");
                    break;
                }
                let waited = process.0.exited.wait_timeout(exit, left);
                exit = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Ends this process as soon as the parent that started it through [`Processes`] is gone.
///
/// To be called first of all in `main`. Does nothing (and returns `false`) in a process that was
/// started otherwise. The process ends with code [`PARENT_GONE`] and without running destructors:
/// with other threads in the midst of libtorch these would crash or hang.
///
/// # Errors
/// If the system has no room for another thread.
pub fn exit_with_parent() -> io::Result<bool> {
    if env::var_os(EXIT_WITH_PARENT).is_none() {
        return Ok(false);
    }
    // Not `io::stdin()`: its lock would be held for ever.
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let watch = move || {
        let mut life_line = fs::File::from(stdin);
        let mut buffer = [0; 256];
        loop {
            match life_line.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // SAFETY: ends the process; nothing runs after it, and that is the point.
        unsafe { libc::_exit(PARENT_GONE) }
    };
    thread::Builder::new().name("exit-with-parent".to_owned()).spawn(watch)?;
    Ok(true)
}

#[cfg(test)]
#[path = "processes/tests.rs"]
mod tests;
