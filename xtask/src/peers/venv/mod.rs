//! The Python environment of the peers, in the cache directory: each package with its pinned version, if it can be had.
//!
//! In `peers/` lies a virtual environment, and in it a file `have-NAME` for each package, written when all of it is there:
//! an interrupted set-up goes on with what is missing, and another version in the table below replaces the old one.

mod torch;

use crate::command;
use crate::progress::Waiting;
use crate::{libtorch, lock, paths, tools};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A peer's package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Package {
    Torch,
    Ray,
    Monarch,
}

impl Package {
    fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Ray => "ray",
            Self::Monarch => "monarch",
        }
    }

    /// What pip is asked for. To move to another version, change it here; torch's is that of libtorch.
    fn requirements(self) -> Vec<&'static str> {
        match self {
            Self::Torch => libtorch::requirements(),
            Self::Ray => vec!["ray==2.60.0", "numpy>=2,<3"],
            Self::Monarch => vec!["torchmonarch==0.7.0", "numpy>=2,<3"],
        }
    }
}

/// The environment.
#[derive(Debug)]
pub(crate) struct Venv {
    folder: PathBuf,
    missing: Vec<(Package, String)>,
}

impl Venv {
    /// Installs what is missing. A package that cannot be had is left out, with its reason.
    pub(crate) fn prepare(packages: &[Package]) -> Result<Self> {
        let cache = paths::cache()?;
        let mut venv = Self { folder: cache.join("peers"), missing: Vec::new() };
        if venv.starts() && packages.iter().all(|package| venv.has(*package)) {
            return Ok(venv);
        }
        let _lock = lock::take(&cache)?;
        if !venv.starts() {
            venv.make()?;
        }
        for package in packages {
            if venv.has(*package) {
                continue;
            }
            if let Err(error) = venv.install(*package) {
                eprintln!("peers: {} is left out: {error:#}", package.name());
                venv.missing.push((*package, format!("{error:#}")));
            }
        }
        Ok(venv)
    }

    /// Why a package is not there.
    pub(crate) fn lacks(&self, package: Package) -> Option<&str> {
        let missing = self.missing.iter().find(|(missing, _)| *missing == package);
        missing.map(|(_, why)| why.as_str())
    }

    /// Its Python, with one thread to compute with.
    pub(crate) fn python(&self) -> Command {
        let mut python = Command::new(self.folder.join("bin/python"));
        for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            python.env(variable, "1");
        }
        // The scripts' folder stays as it is in the checkout.
        python.env("PYTHONDONTWRITEBYTECODE", "1");
        python
    }

    /// Whether there is one whose Python has not been removed from the machine since.
    fn starts(&self) -> bool {
        let quiet = self.python().args(["-c", ""]).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    }

    fn make(&self) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        let mut python = Command::new(tools::python()?);
        python.args(["-m", "venv"]).arg(&self.folder);
        self.quietly("making a Python environment", "python3 -m venv", &mut python)
            .with_context(|| format!("if there is no venv here, {}", tools::VENV.remedy()))
    }

    fn has(&self, package: Package) -> bool {
        fs::read_to_string(self.marker(package)).is_ok_and(|found| found == wanted(package))
    }

    fn marker(&self, package: Package) -> PathBuf {
        self.folder.join(format!("have-{}", package.name()))
    }

    fn install(&self, package: Package) -> Result<()> {
        match package {
            Package::Torch => torch::install(self)?,
            Package::Ray | Package::Monarch => {
                self.pip(package.name(), &[], &package.requirements())?;
            }
        }
        let marker = self.marker(package);
        fs::write(&marker, wanted(package))
            .with_context(|| format!("cannot write {}", marker.display()))
    }

    fn pip(&self, name: &str, options: &[&str], requirements: &[&str]) -> Result<()> {
        let mut pip = self.python();
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"])
            .args(options)
            .args(requirements)
            .env("PIP_REQUIRE_VIRTUALENV", "0");
        self.quietly(&format!("installing {name}"), &format!("pip install {name}"), &mut pip)
    }

    fn quietly(&self, doing: &str, what: &str, command: &mut Command) -> Result<()> {
        let waiting = Waiting::begin("peers", doing);
        command::quietly(what, command, &log(&self.folder), || ())?;
        waiting.end();
        Ok(())
    }
}

/// Beside the environment, as this may not exist yet.
fn log(folder: &Path) -> PathBuf {
    folder.with_extension("log")
}

/// What a marker says.
fn wanted(package: Package) -> String {
    package.requirements().join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_there_when_its_marker_names_its_versions() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let venv = Venv { folder: folder.path().to_path_buf(), missing: Vec::new() };
        assert!(!venv.starts() && !venv.has(Package::Ray));
        fs::write(venv.marker(Package::Ray), "ray==1.0.0\n")?;
        assert!(!venv.has(Package::Ray));
        fs::write(venv.marker(Package::Ray), wanted(Package::Ray))?;
        assert!(venv.has(Package::Ray) && !venv.has(Package::Monarch));
        Ok(())
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        let missing = vec![(Package::Ray, "no such version".to_owned())];
        let venv = Venv { folder: PathBuf::new(), missing };
        assert_eq!(venv.lacks(Package::Ray), Some("no such version"));
        assert_eq!(venv.lacks(Package::Torch), None);
    }
}
