//! A machine of the test's own for `xtask`: its programs, its cache, its checkout.
#![allow(dead_code, reason = "each test uses a part of it")]

#[path = "../../src/testing/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A machine that has only the programs that it is given.
pub(crate) struct Machine(tempfile::TempDir);

impl Machine {
    /// Without any program.
    pub(crate) fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for below in ["bin", "checkout/.cargo", "checkout/xtask", "home"] {
            fs::create_dir_all(folder.path().join(below)).unwrap();
        }
        Self(folder)
    }

    /// With a C++ compiler.
    pub(crate) fn new() -> Self {
        let machine = Self::bare();
        machine.has("c++", "exit 0");
        machine
    }

    /// Gives it a program: a shell script.
    pub(crate) fn has(&self, name: &str, script: &str) -> PathBuf {
        stand_in::stand_in(&self.path("bin"), name, script)
    }

    /// Gives it a program of the real machine.
    pub(crate) fn borrows(&self, name: &str) {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|folder| folder.join(name));
        let found = found.into_iter().find(|file| file.is_file());
        let found = found.unwrap_or_else(|| panic!("there is no {name} here"));
        std::os::unix::fs::symlink(found, self.path("bin").join(name)).unwrap();
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// Writes a file, and returns its path.
    pub(crate) fn write(&self, below: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A folder that looks like a libtorch of that version.
    pub(crate) fn libtorch(&self, version: &str) -> PathBuf {
        let prefix = std::env::consts::DLL_PREFIX;
        let suffix = std::env::consts::DLL_SUFFIX;
        self.write(&format!("libtorch/lib/{prefix}torch_cpu{suffix}"), "");
        self.write("libtorch/build-version", version);
        self.path("libtorch")
    }

    /// A folder with the four files of a data set, as far as names go.
    pub(crate) fn data(&self) -> PathBuf {
        for name in ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"] {
            self.write(&format!("data/{name}"), "");
            self.write(&format!("data/{}", name.replace("images-idx3", "labels-idx1")), "");
        }
        self.path("data")
    }

    /// `cargo xtask …` on this machine, as cargo would start it.
    pub(crate) fn xtask(&self, arguments: &[&str]) -> Command {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask
            .args(arguments)
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("FOOTLIGHT_CACHE", self.path("cache"))
            // Its checkout is elsewhere, too: a set-up writes there.
            .env("CARGO_MANIFEST_DIR", self.path("checkout/xtask"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        xtask
    }
}

/// Runs it; it must end with a failure and one line that tells why, the last one. Returns that line.
#[track_caller]
pub(crate) fn refusal(xtask: &mut Command) -> String {
    let (code, said) = failure(xtask);
    assert_eq!(code, Some(1), "{said}");
    let errors = said.lines().filter(|line| line.contains("error:")).count();
    let last = said.lines().last().unwrap_or_default();
    assert!(errors == 1 && last.starts_with("error: "), "{said}");
    last.to_owned()
}

/// Runs it; it must end with a failure. Returns its code and what it said.
#[track_caller]
pub(crate) fn failure(xtask: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = xtask.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{said}");
    assert!(stdout.is_empty(), "{:?}", String::from_utf8_lossy(&stdout));
    assert!(!said.contains("panicked") && !said.contains("stack backtrace"), "{said}");
    (status.code(), said)
}

/// Whether a process is there; one that has ended and waits to be reaped is not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let stat = stat.unwrap_or_default();
    // The state stands behind the name, which may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}
