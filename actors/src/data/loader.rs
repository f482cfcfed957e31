//! The actor that hands out the data.
//!
//! It owns the data set and the order of each epoch, and leases one slot at a time to whichever
//! worker asks. A lease is done when its step is committed at every shard, which workers report
//! with their next question: they can pull a version only when it is everywhere.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use footlight_runtime::{
    Actor, ActorAddr, Context, DeferredHandler, Down, Error, Handler, HostTensor, Message, ReplyTo,
    Result, tensor::DType,
};
use serde::{Deserialize, Serialize};

use super::{
    Dataset,
    idx::{IdxDataset, Split},
    leases::{Leases, Work},
    order::{Batches, order},
};

/// Which data a job trains on; read on the node where the loader runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DataSpec {
    /// A folder with MNIST's four IDX files, or another data set's under the same names.
    Idx {
        /// The folder.
        dir: PathBuf,
        /// Only the first so many training samples; all if `None`.
        limit: Option<u32>,
    },
}

impl DataSpec {
    /// A folder with the four IDX files of MNIST or of a set like it.
    pub fn idx(dir: impl Into<PathBuf>) -> Self {
        DataSpec::Idx { dir: dir.into(), limit: None }
    }

    /// Only the first `samples` training samples.
    #[must_use]
    pub fn limit(self, samples: u32) -> Self {
        match self {
            DataSpec::Idx { dir, .. } => DataSpec::Idx { dir, limit: Some(samples) },
        }
    }

    /// Reads a split; blocks on the file system.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn open(&self, split: Split) -> Result<Dataset> {
        let DataSpec::Idx { dir, limit } = self;
        let dataset = IdxDataset::open(dir, split).map_err(Error::other)?;
        match limit {
            Some(limit) if split == Split::Train && (*limit as usize) < dataset.len() => {
                let first: Vec<u32> = (0..*limit).collect();
                let (images, labels) = dataset.gather(&first).map_err(Error::other)?;
                let (rows, cols, classes) = (dataset.rows(), dataset.cols(), dataset.classes());
                Dataset::new(images, labels, (rows, cols), classes).map_err(Error::other)
            }
            _ => Ok(dataset),
        }
    }
}

/// What a loader is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoaderSpec {
    /// The data.
    pub data: DataSpec,
    /// Seed of the order.
    pub seed: u64,
    /// Samples of a batch.
    pub batch: u32,
    /// Slots that each batch is cut into.
    pub slots: u32,
    /// How often all samples are gone through.
    pub epochs: u64,
    /// Steps that every shard has applied already: slots are handed out from the next one on.
    pub committed: u64,
    /// The actor that the loader serves: it ends with it.
    pub owner: ActorAddr,
}

/// Reads a data set and leases its slots to workers.
pub struct DataLoader {
    data: Arc<Dataset>,
    seed: u64,
    batches: Batches,
    leases: Leases<u64>,
    /// The orders of the epochs that are being handed out.
    orders: BTreeMap<u64, Arc<Vec<u32>>>,
    /// Workers for which there was no work yet.
    waiting: VecDeque<(u64, ReplyTo<<NextWork as Message>::Reply>)>,
    owner: ActorAddr,
    /// The workers that are watched, by their actor.
    watched: HashMap<ActorAddr, u64>,
    /// Workers that are gone: a question of theirs that comes late must not take a lease along.
    lost: BTreeSet<u64>,
}

/// A worker asks for its next slot. Answered when there is one; `None` when all is done.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NextWork {
    /// Which worker; each start of one has a number of its own.
    pub worker: u64,
    /// How many steps the worker knows to be committed at every shard.
    pub committed: u64,
    /// The actor that asks: the loader watches it, so that no lease is lost with a worker of which
    /// its trainer knows nothing. `None` for one that somebody else watches.
    pub from: Option<ActorAddr>,
    /// The answer to the last question may be lost: whatever the worker was leased is free again.
    pub anew: bool,
}

impl Message for NextWork {
    type Reply = std::result::Result<Option<SlotWork>, String>;
    const NAME: &'static str = "data.next_work";
}

/// One slot's data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotWork {
    /// Which step of the job, from 0.
    pub step: u64,
    /// Which slot of the step.
    pub slot: u32,
    /// Samples of the step's whole batch.
    pub batch: u32,
    /// The slot's samples, `u8` `[n, rows, cols]`.
    pub images: HostTensor,
    /// Their labels, `u8` `[n]`.
    pub labels: HostTensor,
}

/// A worker is gone: what it held goes to others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct WorkerLost {
    /// Which worker.
    pub worker: u64,
}

impl Message for WorkerLost {
    /// How many slots it held.
    type Reply = u32;
    const NAME: &'static str = "data.worker_lost";
}

/// Asks what the data is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Describe;

impl Message for Describe {
    type Reply = Description;
    const NAME: &'static str = "data.describe";
}

/// What the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Training samples.
    pub samples: u32,
    /// Steps of one epoch: the last one may have a smaller batch.
    pub steps_per_epoch: u32,
    /// Steps of the whole job.
    pub steps: u64,
    /// Height and width of a sample.
    pub sample: (u32, u32),
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rows, cols) = self.sample;
        write!(f, "{} samples of {rows}×{cols}, {} steps", self.samples, self.steps)
    }
}

impl Actor for DataLoader {
    type Args = LoaderSpec;
    const NAME: &'static str = "data.loader";

    async fn start(spec: LoaderSpec, context: &Context<Self>) -> Result<Self> {
        let LoaderSpec { data, seed, batch, slots, epochs, committed, owner } = spec;
        let data = tokio::task::spawn_blocking(move || data.open(Split::Train))
            .await
            .map_err(|error| Error::other(error.to_string()))??;
        let samples = u32::try_from(data.len())
            .map_err(|_| Error::other(format!("{} samples are too many", data.len())))?;
        let batches = Batches::new(samples, batch, slots).map_err(Error::other)?;
        let steps = batches.steps_per_epoch();
        let mut leases = Leases::new(epochs, steps, slots).map_err(Error::other)?;
        if let Some(step) = committed.checked_sub(1) {
            leases.committed(step).map_err(Error::other)?;
        }
        context.watch_addr(owner);
        Ok(DataLoader {
            data: Arc::new(data),
            seed,
            batches,
            leases,
            orders: BTreeMap::new(),
            waiting: VecDeque::new(),
            owner,
            watched: HashMap::new(),
            lost: BTreeSet::new(),
        })
    }

    async fn down(&mut self, actor: ActorAddr, _: Down, context: &Context<Self>) -> Result<()> {
        if self.owner == actor {
            context.stop();
        } else if let Some(worker) = self.watched.remove(&actor) {
            self.lose(worker);
        }
        Ok(())
    }
}

impl DeferredHandler<NextWork> for DataLoader {
    async fn handle(
        &mut self,
        ask: NextWork,
        reply: ReplyTo<<NextWork as Message>::Reply>,
        context: &Context<Self>,
    ) {
        if let Some(from) = ask.from
            && self.watched.insert(from, ask.worker).is_none()
        {
            context.watch_addr(from);
        }
        if self.lost.contains(&ask.worker) {
            return reply.send(Err(format!("worker {} was given up", ask.worker)));
        }
        if ask.anew {
            self.free(ask.worker);
        }
        // The last committed step stands for all before it.
        if let Some(step) = ask.committed.checked_sub(1)
            && let Err(error) = self.leases.committed(step)
        {
            return reply.send(Err(error.to_string()));
        }
        let epoch = self.batches.epoch(self.leases.committed_steps());
        self.orders.retain(|known, _| *known >= epoch);
        self.waiting.push_back((ask.worker, reply));
        self.serve();
    }
}

impl Handler<WorkerLost> for DataLoader {
    async fn handle(&mut self, lost: WorkerLost, _: &Context<Self>) -> u32 {
        self.lose(lost.worker)
    }
}

impl Handler<Describe> for DataLoader {
    async fn handle(&mut self, _: Describe, _: &Context<Self>) -> Description {
        Description {
            samples: self.batches.samples(),
            steps_per_epoch: self.batches.steps_per_epoch(),
            steps: self.leases.steps(),
            sample: (self.data.rows() as u32, self.data.cols() as u32),
        }
    }
}

impl DataLoader {
    /// A worker is gone; says how many slots it held.
    fn lose(&mut self, lost: u64) -> u32 {
        self.lost.insert(lost);
        let returned = self.free(lost);
        self.serve();
        returned
    }

    /// What a worker was leased goes to those who ask next; says how many slots that were.
    fn free(&mut self, of: u64) -> u32 {
        self.waiting.retain(|(worker, _)| *worker != of);
        self.leases.worker_lost(&of) as u32
    }

    /// Gives those who wait what there is, in the order in which they asked.
    fn serve(&mut self) {
        while let Some((worker, reply)) = self.waiting.pop_front() {
            if self.leases.is_done() {
                reply.send(Ok(None));
                continue;
            }
            if !reply.is_awaited() {
                continue;
            }
            match self.leases.ask(worker) {
                Some(work) => reply.send(self.gather(work).map(Some)),
                None => {
                    self.waiting.push_front((worker, reply));
                    return;
                }
            }
        }
    }

    fn gather(&mut self, work: Work) -> std::result::Result<SlotWork, String> {
        let (step, slot) = (work.step, work.slot);
        let epoch = self.batches.epoch(step);
        let (seed, samples) = (self.seed, self.batches.samples());
        let order =
            self.orders.entry(epoch).or_insert_with(|| Arc::new(order(seed, epoch, samples)));
        let range = self.batches.slot_range(step, slot);
        let indices = range.and_then(|range| order.get(range));
        let indices = indices.ok_or_else(|| format!("there is no slot {slot} of step {step}"))?;
        let (images, labels) = self.data.gather(indices).map_err(|error| error.to_string())?;
        let shape = [labels.len(), self.data.rows(), self.data.cols()];
        let tensor = |bytes: Vec<u8>, shape: &[usize]| {
            HostTensor::from_bytes(DType::U8, shape, bytes.into())
                .map_err(|error| error.to_string())
        };
        Ok(SlotWork {
            step,
            slot,
            batch: self.batches.len(step) as u32,
            labels: tensor(labels, &shape[..1])?,
            images: tensor(images, &shape)?,
        })
    }
}

impl std::fmt::Debug for DataLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataLoader")
            .field("committed", &self.leases.committed_steps())
            .field("of", &self.leases.steps())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
