//! What a job tells while it runs, and in the end.

use std::time::Duration;

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

/// What happens to a job, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JobEvent {
    /// All parts are placed; the first step begins.
    Started {
        /// Steps of the whole job.
        steps: u64,
        /// Steps of one epoch.
        steps_per_epoch: u32,
        /// Training samples.
        samples: u32,
        /// Where each shard is.
        servers: Vec<NodeId>,
        /// Where the data loader is.
        loader: NodeId,
    },
    /// A worker is up.
    WorkerUp {
        /// Its name, kept over its starts.
        worker: String,
        /// Where it is.
        node: NodeId,
        /// How often it had been started before.
        starts: u32,
        /// Where it computes: `cpu`, `cuda:0`, …
        device: String,
    },
    /// A worker is gone, or moves to another node; what it had not finished goes to the others or to its successor.
    WorkerLost {
        /// Its name.
        worker: String,
        /// Where it was.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// The data loader is gone; another one goes on where it was.
    LoaderLost {
        /// Where it was.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// One of those who hold a shard of the parameters is gone, or can't be reached from where it must be; others have all
    /// that it had.
    ShardLost {
        /// Which shard.
        shard: u32,
        /// Where it was.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// A backup has taken the place of a shard's primary.
    ShardUp {
        /// Which shard.
        shard: u32,
        /// Where it is.
        node: NodeId,
    },
    /// A shard has another backup.
    BackupUp {
        /// Which shard.
        shard: u32,
        /// Where it is.
        node: NodeId,
    },
    /// A data loader has taken the place of one that is gone.
    LoaderUp {
        /// Where it is.
        node: NodeId,
    },
    /// A step was applied.
    Step {
        /// Steps applied so far.
        steps: u64,
        /// Samples trained on so far, over all epochs.
        samples: u64,
        /// The mean loss of the step's batch.
        loss: f32,
        /// The norm of its gradient before it was clipped, where the job has that known.
        norm: Option<f64>,
        /// It was left out, as its gradient was not finite.
        skipped: bool,
        /// Members of the cluster that are up.
        live_nodes: u32,
        /// Members that the cluster has had.
        nodes: u32,
    },
    /// An epoch's parameters were evaluated on the test samples.
    Evaluated {
        /// Steps applied.
        steps: u64,
        /// Share of the test samples' classes (of a language model: of their tokens) that were told rightly: 0 to 1. `None`
        /// for a model that tells numbers.
        accuracy: Option<f64>,
        /// Their mean loss.
        loss: f64,
    },
    /// The job goes on from a checkpoint.
    FromCheckpoint {
        /// Steps that it has.
        steps: u64,
        /// Samples that they trained on.
        samples: u64,
    },
    /// The job's state was saved.
    Saved {
        /// Steps that it has.
        steps: u64,
        /// The length of its files together.
        bytes: u64,
        /// How long it took to write them; the job went on meanwhile.
        took: Duration,
    },
    /// The job's state could not be saved. The job goes on.
    NotSaved {
        /// Steps that it would have had.
        steps: u64,
        /// Why.
        why: String,
    },
    /// What int8 had rounded off a slot's gradient was lost with both nodes that had it: the slot goes on without.
    ResidualLost {
        /// Which slot.
        slot: u32,
        /// The step, from 0, for which there is none.
        step: u64,
    },
    /// The trainer's node was lost, and another one has taken the job over.
    Resumed {
        /// Where the trainer is now.
        trainer: NodeId,
    },
    /// The job is done. Its parameters stay at the shards until the job is [closed](super::RunningJob::close).
    Done(TrainingReport),
    /// The job can't go on.
    Failed(String),
}

/// A finished job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Share of the test samples' classes (of a language model: of their tokens) that were told rightly: 0 to 1. `None`
    /// for a model that tells numbers.
    pub test_accuracy: Option<f64>,
    /// Their mean loss.
    pub test_loss: f64,
    /// Steps applied.
    pub steps: u64,
    /// Of them, those that were left out, as their gradient was not finite.
    pub skipped_steps: u64,
    /// Samples trained on, over all epochs, also before the job was resumed.
    pub samples: u64,
    /// From the first slot handed out to the last step applied; of a resumed job, since it was.
    pub elapsed: Duration,
    /// SHA-256 of the final parameters' bytes (`f32`, little-endian, sorted by name), in hex.
    pub parameters_sha256: String,
}
