//! A small data set of our own goes through the same fetching and checking as the real ones.

use super::known::{DataFile, DataSet, Package};
use super::{missing, source, store};
use crate::checksum::Expected;
use crate::tools;
use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// SHA-256 of "abc".
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

const fn abc(name: &'static str) -> DataFile {
    DataFile { name, expected: Expected { size: 3, sha256: ABC }, compressed: 23 }
}

/// A set whose package no client has, at an address on this disk.
fn set(folder: &Path, content: &str) -> Result<DataSet> {
    let files = [abc("a"), abc("b"), abc("c"), abc("d")];
    for file in &files {
        let mut gz = GzEncoder::new(
            File::create(folder.join(format!("{}.gz", file.name)))?,
            Compression::default(),
        );
        gz.write_all(content.as_bytes())?;
        gz.finish()?;
    }
    let address = format!("file://{}", folder.display()).leak();
    let package = Package::Debian { name: "no-such-package", size: 1, folder: "none" };
    Ok(DataSet { name: "test", files, package, address })
}

fn no_curl() -> bool {
    let none = tools::find("curl".as_ref()).is_none();
    if none {
        eprintln!("skipped: no curl here");
    }
    none
}

/// As `fetch` does when the package client has failed.
fn fetch_by_address(set: &DataSet, folder: &Path) -> Result<()> {
    let partial = folder.join("partial");
    fs::create_dir_all(&partial)?;
    let files = source::from_address(set, &missing(set, folder), set.address, &partial)?;
    store(set, &files, folder)
}

#[test]
fn a_truncated_file_is_fetched_again_and_no_other() -> Result<()> {
    if no_curl() {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    assert_eq!(missing(&set, cache.path()).len(), 4);
    fetch_by_address(&set, cache.path())?;
    assert!(missing(&set, cache.path()).is_empty());

    fs::write(cache.path().join("b"), "ab")?;
    let names: Vec<_> = missing(&set, cache.path()).iter().map(|file| file.name).collect();
    assert_eq!(names, ["b"]);
    for other in ["a", "c", "d"] {
        fs::remove_file(public.path().join(format!("{other}.gz")))?;
    }
    fetch_by_address(&set, cache.path())?;
    assert_eq!(fs::read_to_string(cache.path().join("b"))?, "abc");
    Ok(())
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_no_file() -> Result<()> {
    if no_curl() {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let error =
        fetch_by_address(&set(public.path(), "abd")?, cache.path()).unwrap_err().to_string();
    assert!(error.starts_with("wrong checksum: SHA-256 of a is "), "{error}");
    assert!(!cache.path().join("a").exists());
    Ok(())
}

#[test]
fn what_is_not_there_is_an_error_with_its_reason() -> Result<()> {
    if no_curl() {
        return Ok(());
    }
    let (public, cache) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let set = set(public.path(), "abc")?;
    fs::remove_file(public.path().join("d.gz"))?;
    let error = fetch_by_address(&set, cache.path()).unwrap_err().to_string();
    assert!(error.contains("d.gz"), "{error}");
    assert_eq!(missing(&set, cache.path()).len(), 4);
    Ok(())
}
