//! The disk of a voter: log, vote and snapshot in one embedded database (redb).
//!
//! ```text
//! <state directory>/nodes/<address>/ledger/     mode 0700
//!     voter.redb                                what a voter promised
//! ```
//!
//! Each write is one transaction, and is on the disk (fsync) before it is told to be done. All
//! happens on a thread of the store's own, in the order in which it was asked for: the control
//! thread never waits for a disk. A node that has no fixed port keeps nothing on disk, since it can
//! never come back as itself; its store is in memory and ends with it.

use std::{
    fs::DirBuilder,
    io,
    ops::{Bound, RangeBounds},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use openraft::storage::LogFlushed;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    backends::InMemoryBackend,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    LedgerId,
    types::{LogEntry, LogId, SnapshotMeta, Types, Vote, VoterId},
};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshot");

/// How this program writes the database. One of another format is refused, not guessed at.
const FORMAT: u32 = 1;
const FILE: &str = "voter.redb";
/// What redb keeps of the file in memory, in bytes.
const CACHE: usize = 4 * 1024 * 1024;
/// Entries of one answer to a reader: so many bytes, or one entry if it alone has more.
pub(super) const BATCH: usize = 1024 * 1024;

/// The disk refused, or what is on it can't be understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum StoreError {
    /// The directory or the file can't be had.
    #[error(
        "the ledger's store {} can't be opened: {why}. If the disk is well and other voters are \
         there, delete it: this node votes again as a new one", path.display()
    )]
    Open {
        /// Where.
        path: PathBuf,
        /// What the system or the database said.
        why: String,
    },
    /// Others can read it.
    #[error(
        "the ledger's directory {} has mode {mode:03o}, so other users can read what the cluster \
         keeps secret: chmod go= {}", path.display(), path.display()
    )]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another version of this program wrote it.
    #[error("the ledger's store {} has format {found}, this program knows {FORMAT}", path.display())]
    Format {
        /// Where.
        path: PathBuf,
        /// The format that it says it has.
        found: u32,
    },
    /// A read or write failed.
    #[error("the ledger's store failed: {0}")]
    Failed(String),
    /// The store has ended.
    #[error("the ledger's store has ended")]
    Ended,
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}

/// Whose store this is; written when it is made and never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deed {
    /// The ledger.
    pub ledger: LedgerId,
    /// When it was founded, in microseconds since 1970.
    pub founded: u64,
    /// The voter.
    pub me: VoterId,
    /// It founded the ledger; others were invited and wait to hear from it.
    pub founder: bool,
}

type Job = Box<dyn FnOnce(&Database) + Send>;

/// A voter's disk. Clones share it; it is closed when the last one is dropped.
#[derive(Clone)]
pub(super) struct Store {
    jobs: mpsc::Sender<Job>,
    deed: Deed,
}

/// Told when the store's thread has ended and the file is closed.
pub(super) type Closed = oneshot::Receiver<()>;

impl Store {
    /// Opens the store of a directory, if there is one; blocks on the disk.
    pub(super) fn open(dir: &Path) -> Result<Option<(Store, Closed)>, StoreError> {
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|error| open_error(&path, &error))? {
            return Ok(None);
        }
        check_mode(dir)?;
        let database = guarded(&path, || builder().open(&path))?;
        let deed = {
            let read = |name: &str| read_meta(&database, name);
            let format: Option<u32> = read("format").map_err(|error| open_error(&path, &error))?;
            match format {
                Some(FORMAT) => {}
                // Its making was cut off: it promised nothing yet.
                None => return Ok(None),
                Some(found) => return Err(StoreError::Format { path, found }),
            }
            let deed = read_meta::<Deed>(&database, "deed");
            deed.map_err(|error| open_error(&path, &error))?
        };
        let Some(deed) = deed else {
            return Err(open_error(&path, &"it does not say whose it is"));
        };
        Ok(Some(Self::run(database, deed)?))
    }

    /// Makes the store of a voter, in a directory or, without one, in memory; blocks on the disk.
    ///
    /// What a store before it left in the directory is gone afterwards.
    pub(super) fn create(dir: Option<&Path>, deed: Deed) -> Result<(Store, Closed), StoreError> {
        let path = dir.map(|dir| dir.join(FILE)).unwrap_or_default();
        let database = match dir {
            None => guarded(&path, || builder().create_with_backend(InMemoryBackend::new()))?,
            Some(dir) => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.map_err(|error| open_error(dir, &error))?;
                check_mode(dir)?;
                remove_file(&path)?;
                let database = guarded(&path, || builder().create(&path))?;
                // The name of the file, too, must be on the disk.
                let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
                synced.map_err(|error| open_error(dir, &error))?;
                database
            }
        };
        write(&database, |transaction| {
            let mut meta = transaction.open_table(META).map_err(failed)?;
            meta.insert("format", encode(&FORMAT)?.as_slice()).map_err(failed)?;
            meta.insert("deed", encode(&deed)?.as_slice()).map_err(failed)?;
            transaction.open_table(LOG).map_err(failed)?;
            transaction.open_table(SNAPSHOT).map_err(failed)?;
            Ok(())
        })?;
        Self::run(database, deed)
    }

    /// Removes the store of a directory: a voter that is none any more. It must be closed.
    pub(super) fn remove(dir: &Path) -> Result<(), StoreError> {
        remove_file(&dir.join(FILE))
    }

    fn run(database: Database, deed: Deed) -> Result<(Store, Closed), StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (end, closed) = oneshot::channel();
        let thread = move || {
            for job in queue {
                job(&database);
            }
            drop(database);
            let _ = end.send(());
        };
        thread::Builder::new()
            .name("footlight-ledger".to_owned())
            .spawn(thread)
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok((Store { jobs, deed }, closed))
    }

    /// Whose store this is.
    pub(super) fn deed(&self) -> Deed {
        self.deed
    }

    /// Does something on the store's thread, after all that was asked for before.
    async fn on_thread<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |database| drop(done.send(job(database))));
        self.jobs.send(job).map_err(|_| StoreError::Ended)?;
        result.await.map_err(|_| StoreError::Ended)?
    }

    /// The last entry that was purged, and the last one that is there.
    pub(super) async fn ends(&self) -> Result<(Option<LogId>, Option<LogId>), StoreError> {
        self.on_thread(|database| {
            let purged = read_meta::<LogId>(database, "purged")?;
            let read = database.begin_read().map_err(failed)?;
            let log = read.open_table(LOG).map_err(failed)?;
            let last = match log.last().map_err(failed)? {
                Some((_, bytes)) => Some(decode::<LogEntry>(bytes.value())?.log_id),
                None => purged,
            };
            Ok((purged, last))
        })
        .await
    }

    pub(super) async fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.on_thread(|database| read_meta(database, "vote")).await
    }

    pub(super) async fn save_vote(&self, vote: Vote) -> Result<(), StoreError> {
        self.on_thread(move |database| {
            write(database, |transaction| {
                let mut meta = transaction.open_table(META).map_err(failed)?;
                meta.insert("vote", encode(&vote)?.as_slice()).map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    /// Appends entries; tells `flushed` when they are on the disk.
    pub(super) fn append(
        &self,
        entries: Vec<LogEntry>,
        flushed: LogFlushed<Types>,
    ) -> Result<(), StoreError> {
        let job: Job = Box::new(move |database| {
            let written = write(database, |transaction| {
                let mut log = transaction.open_table(LOG).map_err(failed)?;
                for entry in &entries {
                    log.insert(entry.log_id.index, encode(entry)?.as_slice()).map_err(failed)?;
                }
                Ok(())
            });
            flushed.log_io_completed(written.map_err(io::Error::from));
        });
        self.jobs.send(job).map_err(|_| StoreError::Ended)
    }

    /// Entries of a range, in order: at most so many bytes of them, but at least one.
    pub(super) async fn entries(
        &self,
        range: impl RangeBounds<u64>,
        most: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.on_thread(move |database| {
            let read = database.begin_read().map_err(failed)?;
            let log = read.open_table(LOG).map_err(failed)?;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for found in log.range::<u64>(range).map_err(failed)? {
                let (_, entry) = found.map_err(failed)?;
                bytes += entry.value().len();
                if bytes > most && !entries.is_empty() {
                    break;
                }
                entries.push(decode(entry.value())?);
            }
            Ok(entries)
        })
        .await
    }

    /// Removes the entries from `index` on.
    pub(super) async fn truncate(&self, index: u64) -> Result<(), StoreError> {
        self.on_thread(move |database| {
            write(database, |transaction| {
                let mut log = transaction.open_table(LOG).map_err(failed)?;
                log.retain_in(index.., |_, _| false).map_err(failed)
            })
        })
        .await
    }

    /// Removes the entries up to and with `last`.
    pub(super) async fn purge(&self, last: LogId) -> Result<(), StoreError> {
        self.on_thread(move |database| {
            write(database, |transaction| {
                let mut meta = transaction.open_table(META).map_err(failed)?;
                meta.insert("purged", encode(&last)?.as_slice()).map_err(failed)?;
                let mut log = transaction.open_table(LOG).map_err(failed)?;
                let through = (Bound::Unbounded, Bound::Included(last.index));
                log.retain_in::<u64, _>(through, |_, _| false).map_err(failed)
            })
        })
        .await
    }

    pub(super) async fn save_snapshot(
        &self,
        meta: SnapshotMeta,
        data: bytes::Bytes,
    ) -> Result<(), StoreError> {
        self.on_thread(move |database| {
            write(database, |transaction| {
                let mut snapshot = transaction.open_table(SNAPSHOT).map_err(failed)?;
                snapshot.insert("meta", encode(&meta)?.as_slice()).map_err(failed)?;
                snapshot.insert("data", data.as_ref()).map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
        self.on_thread(|database| {
            let read = database.begin_read().map_err(failed)?;
            let snapshot = read.open_table(SNAPSHOT).map_err(failed)?;
            if snapshot.is_empty().map_err(failed)? {
                return Ok(None);
            }
            let part = |name: &str| snapshot.get(name).map_err(failed);
            match (part("meta")?, part("data")?) {
                (Some(meta), Some(data)) => {
                    Ok(Some((decode(meta.value())?, data.value().to_vec())))
                }
                _ => Err(StoreError::Failed("a snapshot has lost a part".to_owned())),
            }
        })
        .await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("deed", &self.deed).finish_non_exhaustive()
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    // What another program has changed in the file is found here, and not later in the middle.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// Opens a database; a file that makes redb panic is an error like another.
fn guarded(
    path: &Path,
    open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
) -> Result<Database, StoreError> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| open_error(path, &error)),
        Err(_) => Err(open_error(path, &"it is damaged")),
    }
}

fn open_error(path: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Open { path: path.to_owned(), why: why.to_string() }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

fn check_mode(dir: &Path) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(dir).map_err(|error| open_error(dir, &error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(StoreError::Exposed { path: dir.to_owned(), mode })
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(open_error(path, &error)),
        _ => Ok(()),
    }
}

/// One transaction, on the disk when this returns: redb's default durability is `Immediate`, an
/// fsync before the commit is told to be done.
fn write(
    database: &Database,
    change: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    change(&transaction)?;
    transaction.commit().map_err(failed)
}

fn read_meta<T: DeserializeOwned>(
    database: &Database,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let read = database.begin_read().map_err(failed)?;
    let meta = match read.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let found = meta.get(name).map_err(failed)?;
    found.map(|bytes| decode(bytes.value())).transpose()
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(failed)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    let config = bincode::config::standard().with_limit::<{ super::MAX_SNAPSHOT }>();
    let (value, read) = bincode::serde::decode_from_slice(bytes, config).map_err(failed)?;
    if read != bytes.len() {
        return Err(failed("bytes are left over"));
    }
    Ok(value)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
