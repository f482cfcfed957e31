//! A node's note that its cluster has a ledger, though it does not vote itself: so that it founds no
//! second one when it is started again before the voters are.

use std::{io, path::Path};

use super::{LedgerId, store::StoreError};

const FILE: &str = "known";

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), why: error.to_string() }
}

/// The ledger that the note names; blocks on the disk. One that can't be read counts: of a ledger
/// too many, nothing is founded.
pub(super) fn read(dir: &Path) -> Result<Option<LedgerId>, StoreError> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(LedgerId(u64::from_str_radix(text.trim(), 16).unwrap_or(0)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&path, &error)),
    }
}

/// Writes the note; blocks on the disk.
pub(super) fn write(dir: &Path, ledger: LedgerId) -> Result<(), StoreError> {
    use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt};
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| failed(dir, &error))?;
    let path = dir.join(FILE);
    std::fs::write(&path, format!("{:016x}\n", ledger.0)).map_err(|error| failed(&path, &error))
}

/// Where the note lies, for people.
pub(super) fn path(dir: &Path) -> std::path::PathBuf {
    dir.join(FILE)
}
