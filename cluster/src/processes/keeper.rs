//! The thread that starts a process and lives as long as it: see the module above for why.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use tokio::sync::{Notify, oneshot};

use super::{
    EXIT_WITH_PARENT, ProcessSpec,
    process::{KEPT_OUTPUT, Output, Process, Shared, lock},
};

pub(super) fn command(spec: &ProcessSpec, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(&spec.args)
        .env(EXIT_WITH_PARENT, "1")
        .envs(spec.envs.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    #[cfg(target_os = "linux")]
    end_with_starter(&mut command);
    command
}

/// Has the kernel kill the child when the thread that starts it ends.
#[cfg(target_os = "linux")]
fn end_with_starter(command: &mut Command) {
    use std::os::unix::process::{CommandExt, parent_id};

    let parent = std::process::id();
    let hook = move || {
        // SAFETY: a system call that sets a number of the calling process.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that died before the call above gives no signal any more.
        if parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run. The hook makes two
    // system calls, allocates nothing (these errors are plain numbers) and takes no lock.
    unsafe { command.pre_exec(hook) };
}

/// The life of a process's own thread: starts it, waits for its end, reaps it.
pub(super) fn keep(
    mut command: Command,
    spec: ProcessSpec,
    tell: oneshot::Sender<Result<Process, io::Error>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(tell.send(Err(error))),
    };
    let shared = Arc::new(Shared {
        name: spec.name,
        pid: child.id(),
        exit: Mutex::new(None),
        exited: Condvar::new(),
        stdout: Mutex::default(),
        stderr: Mutex::default(),
        changed: Notify::new(),
    });
    if let Some(pipe) = child.stdout.take() {
        read_lines(pipe, shared.clone(), spec.forward, |shared| &shared.stdout);
    }
    if let Some(pipe) = child.stderr.take() {
        read_lines(pipe, shared.clone(), spec.forward, |shared| &shared.stderr);
    }
    if let Err(Ok(unwanted)) = tell.send(Ok(Process(shared.clone()))) {
        // Whoever wanted it has stopped waiting, so nobody would ever end it.
        unwanted.kill();
    }
    wait_for(child.id(), libc::WEXITED);
    let mut exit = lock(&shared.exit);
    *exit = Some(child.wait().map_err(|error| error.to_string()));
    drop(exit);
    shared.exited.notify_all();
    shared.changed.notify_waiters();
}

/// Blocks until a child has stopped or ended, as asked. Takes nothing away: the id stays taken.
pub(super) fn wait_for(pid: u32, what: libc::c_int) {
    loop {
        // SAFETY: zeroes are a valid value of this plain structure, which the call only writes to.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, what | libc::WNOWAIT)
        };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Reads a stream to its end on a thread of its own, in lines of at most [`KEPT_OUTPUT`] bytes.
fn read_lines(
    pipe: impl Read + AsFd + Send + 'static,
    shared: Arc<Shared>,
    forward: bool,
    output: fn(&Shared) -> &Mutex<Output>,
) {
    let close = shared.clone();
    let read = move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(KEPT_OUTPUT as u64 - 1).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if forward {
                tracing::info!(target: "footlight::process", process = shared.name, "{text}");
            }
            lock(output(&shared)).push(text.to_owned());
            shared.changed.notify_waiters();
        }
        lock(output(&shared)).closed = true;
        shared.changed.notify_waiters();
    };
    if let Err(error) = thread::Builder::new().name("output".to_owned()).spawn(read) {
        // The pipe is closed with the closure: the process gets an error when it writes.
        tracing::warn!(%error, process = close.name, "cannot read the output of the process");
        lock(output(&close)).closed = true;
    }
}
