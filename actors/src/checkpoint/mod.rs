//! Checkpoints: the whole state of a job in files, from which it goes on as if nothing had happened.
//!
//! Each is a folder of its own, or a prefix of an object store's keys:
//!
//! ```text
//! step-000000001200/
//!   model.safetensors       the parameters, by name and in their shapes
//!   optimizer.safetensors   what the optimiser remembers, `<parameter>.<buffer>`, in the same shapes
//!   residuals.safetensors   what int8 had rounded off, `<parameter>.slot<number>`, if that is fed back
//!   manifest.json           the rest, and size and SHA-256 of the others
//! ```
//!
//! The files are safetensors' (<https://huggingface.co/docs/safetensors>): `load_file` of its Python package reads
//! them.
//!
//! - **CK-1** The manifest is written last: a checkpoint without one was never finished, and is not used.
//! - **CK-2** Files that are not as the manifest says, by size or hash, are not used: an older checkpoint is.
//! - **CK-3** The state is that of one step, whole: who goes on from it gets the same bits as who was never stopped,
//!   with as many shards and workers as he likes.
//! - **CK-4** Old ones go only when a newer one is whole.

mod files;
mod manifest;
mod state;
mod store;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use manifest::{DataOf, FileOf, JobOf, Manifest};
pub use state::JobState;
pub use store::Store;

/// Where and how often a job's state is saved.
///
/// ```
/// # use footlight_actors::checkpoint::Checkpoints;
/// let often = Checkpoints::to("/shared/digits").every_steps(100).keep(5);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    at: PathBuf,
    every_steps: u64,
    keep: u32,
}

impl Checkpoints {
    /// Into this folder, or below `s3://bucket/prefix`, after every 1,000 steps and after the last one; the last 3 are
    /// kept.
    ///
    /// It is the job's trainer that writes, and it may move to another node: let all nodes share the folder. For S3 (with
    /// the feature `s3`) the environment of the nodes that host trainers says how to reach it, as for Amazon's own
    /// tools: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, and for another server of that kind
    /// `AWS_ENDPOINT_URL`, with `AWS_ALLOW_HTTP=true` where it has no TLS.
    pub fn to(at: impl AsRef<Path>) -> Self {
        Checkpoints { at: at.as_ref().to_owned(), every_steps: 1000, keep: 3 }
    }

    /// After so many steps each, and after the last one. At least 1.
    #[must_use]
    pub fn every_steps(mut self, steps: u64) -> Self {
        self.every_steps = steps;
        self
    }

    /// So many are kept. At least 1; with 2 or more there is another one if a file of the newest is damaged.
    #[must_use]
    pub fn keep(mut self, checkpoints: u32) -> Self {
        self.keep = checkpoints;
        self
    }

    /// Where they are.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// After each so many steps the state is saved.
    pub(crate) fn every(&self) -> u64 {
        self.every_steps
    }

    /// How many are kept.
    pub(crate) fn kept(&self) -> usize {
        self.keep as usize
    }

    /// The first step of at least `from` after which the state is saved, in a job of so many steps.
    pub(crate) fn due(&self, from: u64, steps: u64) -> Option<u64> {
        let every = self.every_steps.max(1);
        let next = from.max(1).checked_next_multiple_of(every).unwrap_or(steps);
        (from <= steps).then_some(next.min(steps))
    }

    /// # Errors
    /// What can't work.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        match (self.every_steps, self.keep) {
            (0, _) => Err("must be at least a step apart"),
            (_, 0) => Err("to keep must be at least 1"),
            _ if self.at.as_os_str().is_empty() => Err("need a folder"),
            _ => Ok(()),
        }
    }
}

/// What goes wrong with checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CheckpointError {
    /// The place can't be read or written.
    #[error("checkpoints in {at}: {why}")]
    Store {
        /// The folder.
        at: String,
        /// What the file system says.
        why: String,
    },
    /// A checkpoint is not whole.
    #[error("the checkpoint {checkpoint} is damaged: {why}")]
    Damaged {
        /// Which.
        checkpoint: String,
        /// What is wrong.
        why: String,
    },
    /// There are some, and none is whole.
    #[error("no checkpoint in {at} is whole; the newest: {newest}")]
    NoneWhole {
        /// The folder.
        at: String,
        /// What is wrong with the newest.
        newest: String,
    },
    /// It is whole, and not of this job.
    #[error("the checkpoint {checkpoint} is of another job: {why}")]
    OtherJob {
        /// Which.
        checkpoint: String,
        /// What differs.
        why: String,
    },
}

#[cfg(test)]
mod tests;
