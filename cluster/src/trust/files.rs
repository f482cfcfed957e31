//! The few file operations of the state directory: whole or not at all, and never without limit.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::TrustError;

/// Nothing that is kept in a state directory is nearly as long as this, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Makes a directory and what is missing above it, for this user only.
pub(super) fn make_private_dir(path: &Path) -> Result<(), TrustError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(TrustError::io("make", path))
}

/// Reads a text file, or `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, TrustError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrustError::io("open", path)(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(TrustError::io("read", path))?;
    Ok(Some(text))
}

/// Replaces a file: after a crash at any moment it has either the old content or the new.
///
/// The caller holds the lock of the directory, so the temporary name can't collide.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), TrustError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // What a crashed process left would keep its own mode: begin with no file.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrustError::io("remove", temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)
        .map_err(TrustError::io("make", temporary))?;
    file.write_all(content).map_err(TrustError::io("write", temporary))?;
    file.sync_all().map_err(TrustError::io("write", temporary))?;
    fs::rename(temporary, path).map_err(TrustError::io("replace", path))?;
    if let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(TrustError::io("sync", dir))?;
    }
    Ok(())
}

/// Takes the lock of a file, which is made if it is missing; `None` if another holds it all the time.
///
/// The lock ends when the file is closed, also by a crash.
pub(super) fn lock(path: &Path, patience: Duration) -> Result<Option<File>, TrustError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(TrustError::io("open", path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(TrustError::io("lock", path)(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return Ok(None),
            // `File::lock` would wait for ever behind a process that is stopped.
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
