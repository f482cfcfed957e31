//! Filling the folder.

use super::data::copy_first;
use crate::{command, libtorch};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What all files together may have, in bytes.
pub(super) const LIMIT: u64 = 60_000_000;
/// Samples, as many as the checks need: six steps of 2,048.
const TRAIN: u32 = 12_288;
const TEST: u32 = 1_024;
const PROGRAM: &str = "footlight-gpu";
const SCRIPT: &str = "run.sh";

/// Where the folder goes, if nothing of somebody else's is there.
pub(super) fn free(out: &Path) -> Result<PathBuf> {
    let out = std::path::absolute(out).context("no current directory")?;
    let Ok(entries) = fs::read_dir(&out) else {
        ensure!(!out.exists(), "--out {} is there and no folder", out.display());
        return Ok(out);
    };
    let ours = out.join(PROGRAM).is_file() && out.join(SCRIPT).is_file();
    ensure!(
        ours || entries.count() == 0,
        "--out {} has other files in it: name a folder that is empty or not there",
        out.display()
    );
    Ok(out)
}

/// Fills the folder, and returns how many bytes it has. It is made beside its place, and put there when it is whole.
pub(super) fn stage(program: &Path, data: &Path, out: &Path) -> Result<u64> {
    let mut name = out.file_name().context("--out names no folder")?.to_owned();
    name.push(".part");
    let part = out.with_file_name(name);
    remove(&part)?;
    fs::create_dir_all(part.join("data"))
        .with_context(|| format!("cannot make {}", part.display()))?;
    strip(program, &part.join(PROGRAM))?;
    for (split, wanted) in [("train", TRAIN), ("t10k", TEST)] {
        for kind in ["images-idx3-ubyte", "labels-idx1-ubyte"] {
            let name = format!("{split}-{kind}");
            copy_first(&data.join(&name), &part.join("data").join(&name), wanted)?;
        }
    }
    let script = part.join(SCRIPT);
    fs::write(&script, include_str!("run.sh").replace("@VERSION@", libtorch::VERSION))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", script.display()))?;
    let bytes = size(&part)?;
    if bytes >= LIMIT {
        remove(&part)?;
        let (is, may) = (bytes as f64 / 1e6, LIMIT as f64 / 1e6);
        bail!("the folder has {is:.1} MB, and should have less than {may:.0} MB");
    }
    remove(out)?;
    fs::rename(&part, out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(bytes)
}

/// A copy without symbols: a tenth of the size.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to).arg(program);
    let log = to.with_extension("log");
    let done = command::quietly("strip", &mut strip, &log, || ());
    let _ = fs::remove_file(log);
    done.context("strip is part of binutils, which comes with a C++ compiler")
}

/// Whether the program that was staged starts here.
pub(super) fn starts(out: &Path) -> Result<()> {
    let program = out.join(PROGRAM);
    let output = Command::new(&program).arg("--help").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let help = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && help.contains("--only"),
        "{} does not start: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// The bytes of all files below.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() { size(&entry.path())? } else { data.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
