//! SHA-256 of what came from outside, against the value written down in this repository.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// What a file must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Length in bytes.
    pub(crate) size: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub(crate) sha256: &'static str,
}

/// Checks a file on disk; `tick` is called with the number of bytes read since the last call.
pub(crate) fn check_file(path: &Path, expected: Expected, tick: impl FnMut(u64)) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    copy_checked(file, &mut io::sink(), &name, expected, tick)
}

/// Copies `from` to `to` and fails if what went through is not `expected`. Reads at most one byte more than expected,
/// so that a wrong source cannot fill the disk.
pub(crate) fn copy_checked(
    from: impl Read,
    to: &mut impl Write,
    name: &str,
    expected: Expected,
    mut tick: impl FnMut(u64),
) -> Result<()> {
    let mut from = from.take(expected.size + 1);
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = from.read(&mut buffer).with_context(|| format!("cannot read {name}"))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read]).with_context(|| format!("cannot write {name}"))?;
        length += read as u64;
        tick(read as u64);
    }
    ensure!(
        length == expected.size,
        "{name} has {} bytes where {} were expected",
        if length > expected.size {
            format!("more than {}", expected.size)
        } else {
            length.to_string()
        },
        expected.size,
    );
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        found == expected.sha256,
        "wrong checksum: SHA-256 of {name} is {found} where {} was expected",
        expected.sha256,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: Expected = Expected {
        size: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    fn copy(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        copy_checked(bytes, &mut out, "file", ABC, |_| {}).map_err(|error| error.to_string())?;
        Ok(out)
    }

    #[test]
    fn the_expected_bytes_pass() {
        assert_eq!(copy(b"abc"), Ok(b"abc".to_vec()));
    }

    #[test]
    fn other_bytes_of_the_same_length_are_named_with_both_checksums() {
        let error = copy(b"abd").unwrap_err();
        assert!(error.starts_with("wrong checksum: SHA-256 of file is a52d159f"), "{error}");
        assert!(error.contains(ABC.sha256), "{error}");
    }

    #[test]
    fn a_truncated_and_an_endless_source_are_told_apart() {
        assert_eq!(copy(b"ab").unwrap_err(), "file has 2 bytes where 3 were expected");
        let endless = copy_checked(io::repeat(b'a'), &mut io::sink(), "file", ABC, |_| {});
        assert_eq!(
            endless.unwrap_err().to_string(),
            "file has more than 3 bytes where 3 were expected"
        );
    }
}
