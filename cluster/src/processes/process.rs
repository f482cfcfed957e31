//! One process: what it says, how it ended, and the signals to it.

use std::{
    collections::VecDeque,
    fmt,
    process::ExitStatus,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{ProcessError, keeper::wait_for};

/// How much of a child's output is kept, in bytes, for each of its two streams.
pub(super) const KEPT_OUTPUT: usize = 64 * 1024;
/// How many of the last lines of the standard error output an error shows.
const SHOWN_LINES: usize = 20;

/// One process. Clones mean the same one; it outlives them all, but not its [`super::Processes`].
#[derive(Clone)]
pub struct Process(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) name: String,
    pub(super) pid: u32,
    /// How it ended. Its process id means it only as long as this is `None` and locked.
    pub(super) exit: Mutex<Option<Result<ExitStatus, String>>>,
    pub(super) exited: Condvar,
    pub(super) stdout: Mutex<Output>,
    pub(super) stderr: Mutex<Output>,
    pub(super) changed: Notify,
}

/// The last lines of a stream.
#[derive(Default)]
pub(super) struct Output {
    pub(super) lines: VecDeque<String>,
    pub(super) bytes: usize,
    /// How many of the first of `lines` `wait_line` has looked at.
    seen: usize,
    pub(super) closed: bool,
}

impl Output {
    pub(super) fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > KEPT_OUTPUT {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.len() + 1;
            self.seen = self.seen.saturating_sub(1);
        }
    }

    fn next_with(&mut self, prefix: &str) -> Option<String> {
        while let Some(line) = self.lines.get(self.seen) {
            self.seen += 1;
            if line.starts_with(prefix) {
                return Some(line.clone());
            }
        }
        None
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Whether it has not ended yet. A frozen process has not.
    pub fn is_running(&self) -> bool {
        lock(&self.0.exit).is_none()
    }

    /// Waits for a line of its standard output that starts with `prefix`, and returns the whole
    /// line. Each line is looked at once: a second call goes on after the last one.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] if the process ends first, with what it said last;
    /// [`ProcessError::Late`] after `within`.
    pub async fn wait_line(&self, prefix: &str, within: Duration) -> Result<String, ProcessError> {
        let expected = format!("the line \"{prefix}…\"");
        let found = self.until(within, |shared| {
            if let Some(line) = lock(&shared.stdout).next_with(prefix) {
                return Some(Ok(line));
            }
            // All that it has said is here only once both pipes are closed.
            let all_said = lock(&shared.stdout).closed && lock(&shared.stderr).closed;
            let ended = lock(&shared.exit).is_some();
            (all_said && ended).then(|| Err(self.unmet(&expected, within)))
        });
        found.await.unwrap_or_else(|| Err(self.unmet(&expected, within)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ProcessError::Late`] if it still runs after `within`; [`ProcessError::NoStatus`].
    pub async fn wait(&self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let exit = self.until(within, |shared| lock(&shared.exit).clone()).await;
        match exit {
            Some(Ok(status)) => Ok(status),
            Some(Err(why)) => Err(ProcessError::NoStatus { name: self.0.name.clone(), why }),
            None => Err(self.unmet("its end", within)),
        }
    }

    /// Ends it at once, as a crash would (SIGKILL), also if it is frozen. [`wait`](Self::wait) tells
    /// when it is gone.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Stops it where it stands (SIGSTOP): a hung node, whose connections stay open. When this
    /// returns, none of its threads runs any more.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        // The signal reaches one thread after the other.
        let exit = lock(&self.0.exit);
        if exit.is_none() {
            wait_for(self.0.pid, libc::WSTOPPED | libc::WEXITED);
        }
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// The last lines of its standard error output, at most 64 KiB.
    pub fn stderr(&self) -> Vec<String> {
        lock(&self.0.stderr).lines.iter().cloned().collect()
    }

    /// Does nothing to a process that has ended.
    fn signal(&self, signal: libc::c_int) {
        let exit = lock(&self.0.exit);
        if exit.is_none()
            && let Ok(pid) = libc::pid_t::try_from(self.0.pid)
        {
            // SAFETY: no memory is involved. The process can't have been reaped, as that happens
            // under the lock held here, so the id is still its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    pub(super) async fn until<T>(
        &self,
        within: Duration,
        mut ready: impl FnMut(&Shared) -> Option<T>,
    ) -> Option<T> {
        let waiting = async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                // From here on no change is missed, also not one between the look and the wait.
                changed.as_mut().enable();
                if let Some(value) = ready(&self.0) {
                    return value;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, waiting).await.ok()
    }

    fn unmet(&self, expected: &str, within: Duration) -> ProcessError {
        let stderr = self.stderr();
        let output = stderr[stderr.len().saturating_sub(SHOWN_LINES)..].join("\n");
        let (name, pid, expected) = (self.0.name.clone(), self.0.pid, expected.to_owned());
        match &*lock(&self.0.exit) {
            None => ProcessError::Late { name, pid, expected, within, output },
            Some(exit) => {
                let status = match exit {
                    Ok(status) => status.to_string(),
                    Err(why) => why.clone(),
                };
                ProcessError::Ended { name, status, expected, output }
            }
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({}, pid {})", self.0.name, self.0.pid)
    }
}
