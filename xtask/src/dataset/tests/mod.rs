//! A small data set of our own goes through the same fetching and checking as the real ones.

mod address;
mod cache;
mod package;

use super::known::{DataFile, DataSet, Package};
use super::{missing, ready, source, store};
use crate::checksum::Expected;
use crate::testing::lacks;
use crate::testing::stand_in::stand_in;
use crate::tools::Programs;
use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::Path;

/// SHA-256 of "abc".
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

const fn abc(name: &'static str) -> DataFile {
    DataFile { name, expected: Expected { size: 3, sha256: ABC }, compressed: 23 }
}

fn packed(content: &[u8]) -> Result<Vec<u8>> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(content)?;
    Ok(gz.finish()?)
}

/// A set whose package no client has, at an address on this disk.
fn set(public: &Path, content: &str) -> Result<DataSet> {
    let files = [abc("a"), abc("b"), abc("c"), abc("d")];
    for file in &files {
        fs::write(public.join(format!("{}.gz", file.name)), packed(content.as_bytes())?)?;
    }
    let address: &str = format!("file://{}", public.display()).leak();
    let package = Package::Debian { name: "no-such-package", size: 1, folder: "none" };
    let files = Vec::from(files).leak();
    Ok(DataSet { name: "test", files, package, address: Some(address) })
}

/// Stands in for curl at addresses on this disk, and writes down what it is asked for.
const CURL: &str = r#"
here="${0%/*}"
while [ $# -gt 0 ]; do
    case "$1" in
        file://*) from="${1#file://}" ;;
        --output) to="$2" ;;
    esac
    shift
done
echo "${from##*/}" >> "$here/asked"
cp "$from" "$to" 2>/dev/null || { echo "curl: (37) Could not open ${from##*/}" >&2; exit 37; }
"#;

/// What a stand-in was asked for so far.
fn asked(programs: &Path) -> Vec<String> {
    let asked = fs::read_to_string(programs.join("asked")).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}
