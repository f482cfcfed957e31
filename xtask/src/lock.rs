//! One set-up at a time for each cache directory: two would unpack into the same folder.

use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::Path;

/// Holds the cache directory until it is dropped; the system lets go of it if the process dies.
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Waits for the cache directory.
pub(crate) fn take(cache: &Path) -> Result<Lock> {
    let path = cache.join("setup.lock");
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another set-up that is at work in {}", cache.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(Lock(file))
}
