//! Running other programs: quietly with a log and progress, or in the open with the terminal to themselves.

use crate::{libtorch, paths};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Has the kernel kill the program when this process ends, however it ends: nobody would wait for what it does. Only
/// Linux can do that. It goes by the thread that starts the program, and here that is the main thread.
pub(crate) fn ends_with_this(command: &mut Command) -> &mut Command {
    #[cfg(target_os = "linux")]
    {
        use std::io::Error;
        use std::os::unix::process::{CommandExt, parent_id};

        let parent = std::process::id();
        let hook = move || {
            // SAFETY: a system call that sets a number of the calling process.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                return Err(Error::last_os_error());
            }
            // A parent that died before the call above gives no signal any more.
            if parent_id() != parent {
                return Err(Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run. The hook makes two system calls,
        // allocates nothing (these errors are plain numbers) and takes no lock.
        unsafe { command.pre_exec(hook) };
    }
    command
}

/// Runs a program whose output matters only if it fails; `what` is its name in that case. The output goes to `log`,
/// not through pipes, so that nothing has to be read meanwhile; `tick` is called several times a second.
pub(crate) fn quietly(
    what: &str,
    command: &mut Command,
    log: &Path,
    mut tick: impl FnMut(),
) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = ends_with_this(command)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("lost `{what}`"))? {
            break status;
        }
        tick();
        thread::sleep(Duration::from_millis(50));
    };
    tick();
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        bail!("`{what}` failed: {}", gist(&said));
    }
    Ok(())
}

/// The line of a failed program's output that says most: pip and apt give the reason last and npm gives it first.
fn gist(output: &str) -> &str {
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    let begins = |line: &&str, with: &[&str]| with.iter().any(|word| line.starts_with(word));
    lines()
        .find(|line| begins(line, &["npm error", "npm ERR!"]))
        .or_else(|| lines().rfind(|line| begins(line, &["ERROR", "error", "E:", "curl:"])))
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
}

/// Cargo, in the root of the checkout, with the libtorch that [`libtorch::prepare`] has chosen.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::root());
    if libtorch::given().is_none() {
        // Cargo has put its configured LIBTORCH into this process's environment. There it would win over the
        // configuration that the set-up has just written.
        cargo.env_remove("LIBTORCH");
    }
    // So has it with the names of this package. Build scripts that watch them, as ring's does, would run again, and all
    // that stands on them be built again, whenever a build by this command follows one by hand.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Runs a program on this terminal and fails if it does.
pub(crate) fn openly(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    let what = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let status =
        ends_with_this(command).status().with_context(|| format!("cannot start `{what}`"))?;
    if !status.success() {
        bail!("`{what}` failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_taken_from_the_output() {
        let pip = "Collecting torch\nERROR: Could not find a version\nERROR: No matching distribution\n[notice] new pip\n";
        assert_eq!(gist(pip), "ERROR: No matching distribution");
        let npm = "npm error code ECONNREFUSED\nnpm error A complete log of this run can be found in: …\n";
        assert_eq!(gist(npm), "npm error code ECONNREFUSED");
        assert_eq!(gist("one\ntwo\n\n"), "two");
        assert_eq!(gist("\n"), "it said nothing");
    }

    #[test]
    fn a_failure_names_the_program_and_its_reason() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut ticks = 0;
        let mut command = Command::new("sh");
        command.args(["-c", "echo error: no luck; exit 3"]);
        let done = quietly("it", &mut command, &folder.path().join("log"), || ticks += 1);
        assert_eq!(done.unwrap_err().to_string(), "`it` failed: error: no luck");
        assert!(ticks > 0);
        Ok(())
    }
}
