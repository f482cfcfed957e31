//! Where checkpoints are kept.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, local::LocalFileSystem,
    path::Path as Key,
};
use sha2::{Digest, Sha256};

use super::{
    CheckpointError, JobState, Manifest,
    files::{self, longest},
    manifest::{FileOf, JobOf},
};
use crate::{
    parameters::layout::Layout,
    storage::{self, told},
};

const MANIFEST: &str = "manifest.json";
/// A manifest is smaller than this, whatever the model.
const LONGEST_MANIFEST: u64 = 1 << 20;
const FOLDER: &str = "step-";
/// Longer files are sent in parts: an object store takes some GB at once at most.
const PART: usize = 64 << 20;

/// The checkpoints of one job.
#[derive(Debug, Clone)]
pub struct Store {
    store: Arc<dyn ObjectStore>,
    /// The folder, if it is one.
    folder: Option<PathBuf>,
    at: String,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
}

type Result<T> = std::result::Result<T, CheckpointError>;

impl Store {
    /// A folder, which is made if it is not there; or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// If the folder can't be made; for another kind of address; if the environment does not say how to reach S3.
    pub async fn open(at: &Path) -> Result<Self> {
        let name = at.display().to_string();
        let wrong = |why: String| CheckpointError::Store { at: name.clone(), why };
        if let Some((scheme, _)) = storage::scheme(&name) {
            if scheme != "s3" {
                return Err(wrong("they go to a folder, or to s3://bucket/prefix".to_owned()));
            }
            let store = storage::open(&name).map_err(wrong)?;
            return Ok(Store { store, folder: None, at: name });
        }
        tokio::fs::create_dir_all(at).await.map_err(|error| wrong(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(at).map_err(|error| wrong(told(&error)))?;
        // The manifest must not be on the disk before what it tells of.
        let store = store.with_fsync(true).with_automatic_cleanup(true);
        Ok(Store { store: Arc::new(store), folder: Some(at.to_owned()), at: name })
    }

    fn wrong(&self, error: &object_store::Error) -> CheckpointError {
        CheckpointError::Store { at: self.at.clone(), why: told(error) }
    }

    /// What a checkpoint is called.
    pub(crate) fn name(&self, steps: u64) -> String {
        format!("{}/{}", self.at, folder(steps))
    }

    /// After how many steps there are checkpoints that were finished, in ascending order.
    ///
    /// # Errors
    /// If the place can't be read.
    pub async fn finished(&self) -> Result<Vec<u64>> {
        let all = self.all().await?;
        let finished = all.into_iter().filter(|(_, files)| files.iter().any(|f| f == MANIFEST));
        Ok(finished.map(|(steps, _)| steps).collect())
    }

    /// The files of each checkpoint, finished or not. What is not of a checkpoint is left alone.
    async fn all(&self) -> Result<BTreeMap<u64, Vec<String>>> {
        let mut all = BTreeMap::<u64, Vec<String>>::new();
        let mut objects = self.store.list(None);
        while let Some(object) = objects.try_next().await.map_err(|error| self.wrong(&error))? {
            let mut parts = object.location.parts();
            let (Some(of), Some(file), None) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            if let Some(steps) = steps_of(of.as_ref()) {
                all.entry(steps).or_default().push(file.as_ref().to_owned());
            }
        }
        Ok(all)
    }

    /// Writes a checkpoint, its manifest last. One that was begun before is written anew.
    ///
    /// # Errors
    /// If it can't be written. Then it is not there.
    pub(crate) async fn save(
        &self,
        layout: &Layout,
        of: &JobOf,
        state: JobState,
    ) -> Result<Written> {
        let steps = state.steps;
        let wrong = |why: String| CheckpointError::Store { at: self.at.clone(), why };
        let put = async |name: &str, bytes: Vec<u8>| {
            let put = self.put(&key(steps, name), bytes.into()).await;
            put.map_err(|error| self.wrong(&error))
        };
        let mut manifest = Manifest::of(of, &state);
        // One after another: of a large model all at once would take the memory twice.
        for (name, make) in files::of(state) {
            let layout = layout.clone();
            // Hashing takes its time.
            let made = tokio::task::spawn_blocking(move || {
                let bytes = make(&layout)?;
                let sha256 = sha256(&bytes);
                Ok::<_, String>((bytes, sha256))
            });
            let (bytes, sha256) =
                made.await.map_err(|error| wrong(error.to_string()))?.map_err(wrong)?;
            let of = FileOf { name: name.to_owned(), bytes: bytes.len() as u64, sha256 };
            put(name, bytes).await?;
            manifest.files.push(of);
        }
        let files: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        let manifest = manifest.written().map_err(|error| wrong(error.to_string()))?;
        let written = Written { bytes: files + manifest.len() as u64 };
        put(MANIFEST, manifest).await?;
        Ok(written)
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> object_store::Result<()> {
        if bytes.len() <= PART {
            self.store.put(key, PutPayload::from(bytes)).await?;
            return Ok(());
        }
        // What is not complete is not seen, here too.
        let upload = self.store.put_multipart(key).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        upload.put(bytes);
        upload.finish().await?;
        Ok(())
    }

    /// The state after so many steps, for a job with this layout.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`], [`CheckpointError::OtherJob`], or the place can't be read.
    pub(crate) async fn load(&self, steps: u64, layout: &Layout, of: &JobOf) -> Result<JobState> {
        let checkpoint = self.name(steps);
        let damaged =
            |why: String| CheckpointError::Damaged { checkpoint: checkpoint.clone(), why };
        let other = |why: String| CheckpointError::OtherJob { checkpoint: checkpoint.clone(), why };
        let bytes = self.get(steps, MANIFEST, LONGEST_MANIFEST).await?.map_err(damaged)?;
        let manifest = Manifest::read(&bytes).map_err(damaged)?;
        if manifest.steps != steps {
            let why =
                format!("it is in this folder, and says that it is of step {}", manifest.steps);
            return Err(damaged(why));
        }
        if let Some(why) = manifest.difference(of) {
            return Err(other(why));
        }
        let most = manifest.buffers.len().max(manifest.residuals.len()).max(1);
        let longest = longest(layout, most);
        let mut files = BTreeMap::new();
        for file in &manifest.files {
            if file.bytes > longest {
                let (name, bytes) = (&file.name, file.bytes);
                return Err(other(format!(
                    "{name} has {bytes} bytes, which are more than this model's parameters take"
                )));
            }
            let bytes = self.get(steps, &file.name, file.bytes).await?.map_err(damaged)?;
            let (found, told) = (bytes.len() as u64, file.bytes);
            if found != told {
                return Err(damaged(format!("{} has {found} bytes of {told}", file.name)));
            }
            files.insert(file.name.clone(), (bytes, file.sha256.clone()));
        }
        let layout = layout.clone();
        let read = tokio::task::spawn_blocking(move || {
            for (name, (bytes, told)) in &files {
                if sha256(bytes) != *told {
                    return Ok(Err(format!("the bytes of {name} are not those that were written")));
                }
            }
            let take = |name: &str| files.remove(name).map(|(bytes, _)| bytes);
            files::read(&layout, &manifest, take).map(Ok)
        });
        let read = read.await.map_err(|error| damaged(error.to_string()))?;
        read.map_err(other)?.map_err(damaged)
    }

    /// A file's bytes, or what is wrong with it: it is not there, or longer than it may be.
    async fn get(
        &self,
        steps: u64,
        name: &str,
        longest: u64,
    ) -> Result<std::result::Result<Vec<u8>, String>> {
        let found = match self.store.get(&key(steps, name)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return Ok(Err(format!("there is no {name}")));
            }
            Err(error) => return Err(self.wrong(&error)),
        };
        let bytes = found.meta.size;
        if bytes > longest {
            return Ok(Err(format!(
                "{name} has {bytes} bytes, and {longest} at most belong there"
            )));
        }
        let bytes = found.bytes().await.map_err(|error| self.wrong(&error))?;
        Ok(Ok(bytes.into()))
    }

    /// The newest state that is whole. `None` if no checkpoint was ever finished. Those that are damaged are told of
    /// in the log, and passed over.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`]; [`CheckpointError::NoneWhole`] if all are damaged; or the place can't be read.
    pub(crate) async fn newest(&self, layout: &Layout, of: &JobOf) -> Result<Option<JobState>> {
        let mut newest = None;
        for steps in self.finished().await?.into_iter().rev() {
            match self.load(steps, layout, of).await {
                Ok(state) => return Ok(Some(state)),
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::warn!(%error, "an older checkpoint is used");
                    newest.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match newest {
            None => Ok(None),
            Some(newest) => {
                let (at, newest) = (self.at.clone(), newest.to_string());
                Err(CheckpointError::NoneWhole { at, newest })
            }
        }
    }

    /// Those after so many steps were passed over, as they are damaged: they count as never finished from here on, so
    /// that they are written anew and that none that is whole goes in favour of one of them.
    ///
    /// # Errors
    /// If something can't be deleted.
    pub(crate) async fn discard_after(&self, steps: u64) -> Result<()> {
        for damaged in self.finished().await?.into_iter().filter(|there| *there > steps) {
            self.delete(&key(damaged, MANIFEST)).await?;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        match self.store.delete(key).await {
            // Somebody else has done so.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.wrong(&error)),
        }
    }

    /// Keeps the last `keep` that were finished, and what was begun after them; the rest goes, each one's manifest
    /// first.
    ///
    /// # Errors
    /// If something can't be deleted.
    pub(crate) async fn prune(&self, keep: usize) -> Result<()> {
        let finished = self.finished().await?;
        let kept = finished.len().saturating_sub(keep.max(1));
        let Some(&oldest) = finished.get(kept) else { return Ok(()) };
        let newest = finished.last().copied().unwrap_or(oldest);
        let is_over = |steps| steps < oldest || steps < newest && !finished.contains(&steps);
        for (steps, mut files) in self.all().await? {
            if !is_over(steps) {
                continue;
            }
            files.sort_by_key(|file| file != MANIFEST);
            for file in files {
                self.delete(&key(steps, &file)).await?;
            }
        }
        if let Some(folder) = &self.folder {
            sweep(folder, is_over).await.map_err(|error| CheckpointError::Store {
                at: self.at.clone(),
                why: error.to_string(),
            })?;
        }
        Ok(())
    }
}

/// Deletes what a writer that was killed left in the folders of checkpoints that are over: no file yet, so no object.
async fn sweep(at: &Path, is_over: impl Fn(u64) -> bool) -> std::io::Result<()> {
    let mut entries = tokio::fs::read_dir(at).await?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        if name.to_str().and_then(steps_of).is_some_and(&is_over) {
            match tokio::fs::remove_dir_all(entry.path()).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Zeros before it, so that names sort as numbers do.
fn folder(steps: u64) -> String {
    format!("{FOLDER}{steps:012}")
}

/// The steps of the checkpoint that is in such a folder.
fn steps_of(name: &str) -> Option<u64> {
    let steps = name.strip_prefix(FOLDER)?.parse().ok()?;
    (folder(steps) == name).then_some(steps)
}

fn key(steps: u64, file: &str) -> Key {
    Key::from_iter([folder(steps).as_str(), file])
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
