//! The actor that hands out the data.
//!
//! It owns the data set and the order of each epoch, and leases one slot at a time to whichever
//! worker asks; the slots that come next are prepared meanwhile ([`Prefetch`](super::Prefetch)). A lease is done when its step is committed at every shard, which workers report
//! with their next question: they can pull a version only when it is everywhere.

use std::collections::{BTreeSet, HashMap, VecDeque};

use footlight_runtime::{
    Actor, ActorAddr, Context, DeferredHandler, Down, Error, Handler, HostTensor, Message, ReplyTo,
    Result, System, env::Spawner,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{
    DataSpec, Dataset, Field, Sources, Split,
    leases::Leases,
    order::Batches,
    prepare::{Prepared, Preparer, Taken},
};
use crate::consistency::Consistency;

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
    /// How far apart workers may be: how many steps slots are handed out ahead.
    pub consistency: Consistency,
    /// Whether a slot goes to the worker that had it in the step before, where that can be.
    pub slots_stay: bool,
    /// After each so many steps everybody waits until all of them are applied, if at all.
    pub meeting_every: Option<u64>,
    /// The actor that the loader serves: it ends with it.
    pub owner: ActorAddr,
}

/// Reads a data set and leases its slots to workers.
pub struct DataLoader {
    preparer: Preparer,
    spawner: Spawner,
    batches: Batches,
    leases: Leases<u64>,
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

/// Why a worker gets no slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NoWork {
    /// It was told that this worker is gone, and others have its slots.
    #[error("worker {worker} was given up")]
    GivenUp {
        /// Which.
        worker: u64,
    },
    /// What the worker says of commits can't be.
    #[error("{0}")]
    OtherJob(String),
    /// A sample can't be read or is not as its source says: no other worker would get it.
    #[error("{0}")]
    Data(String),
}

impl Message for NextWork {
    type Reply = std::result::Result<Option<SlotWork>, NoWork>;
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
    /// The inputs of the slot's `n` samples, `[n, …]`.
    pub inputs: HostTensor,
    /// Their targets, `[n, …]`.
    pub targets: HostTensor,
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

/// A worker tells that every shard has applied steps, while it waits for a slot: where nobody waits for versions,
/// nobody learns of them otherwise.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct StepsApplied {
    /// How many steps.
    pub version: u64,
}

impl Message for StepsApplied {
    type Reply = std::result::Result<(), NoWork>;
    const NAME: &'static str = "data.steps_applied";
}

/// Asks what the data is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Describe;

impl Message for Describe {
    type Reply = Description;
    const NAME: &'static str = "data.describe";
}

/// What the data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Training samples.
    pub samples: u32,
    /// Steps of one epoch: the last one may have a smaller batch.
    pub steps_per_epoch: u32,
    /// Steps of the whole job.
    pub steps: u64,
    /// What each input is.
    pub input: Field,
    /// What each target is.
    pub target: Field,
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Description { samples, steps, input, target, .. } = self;
        write!(f, "{samples} samples of {input} with targets of {target}, {steps} steps")
    }
}

/// Opens a split with the sources that this node knows.
///
/// # Errors
/// What is wrong with the description or the files.
pub(crate) async fn open(system: &System, data: DataSpec, split: Split) -> Result<Dataset> {
    let sources = system.extension::<Sources>().unwrap_or_default();
    tokio::task::spawn_blocking(move || data.open_with(split, &sources))
        .await
        .map_err(|error| Error::other(format!("the data's source panicked: {error}")))?
        .map_err(Error::other)
}

impl Actor for DataLoader {
    type Args = LoaderSpec;
    const NAME: &'static str = "data.loader";

    async fn start(spec: LoaderSpec, context: &Context<Self>) -> Result<Self> {
        let LoaderSpec {
            data,
            seed,
            batch,
            slots,
            epochs,
            committed,
            consistency,
            slots_stay,
            meeting_every,
            owner,
        } = spec;
        let prefetch = data.prefetched();
        let data = open(context.system(), data, Split::Train).await?;
        let samples = u32::try_from(data.len())
            .map_err(|_| Error::other(format!("{} samples are too many", data.len())))?;
        let batches = Batches::new(samples, batch, slots).map_err(Error::other)?;
        let steps = batches.steps_per_epoch();
        let mut leases = Leases::new(epochs, steps, slots, consistency.ahead())
            .and_then(|leases| leases.slots_stay(slots_stay).meeting_every(meeting_every))
            .map_err(Error::other)?;
        if let Some(step) = committed.checked_sub(1) {
            leases.committed(step).map_err(Error::other)?;
        }
        context.watch_addr(owner);
        let mut loader = DataLoader {
            preparer: Preparer::new(data, seed, batches, prefetch, Handle::current()),
            spawner: context.system().env().spawner.clone(),
            batches,
            leases,
            waiting: VecDeque::new(),
            owner,
            watched: HashMap::new(),
            lost: BTreeSet::new(),
        };
        loader.serve();
        Ok(loader)
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
            return reply.send(Err(NoWork::GivenUp { worker: ask.worker }));
        }
        if ask.anew {
            self.waiting.retain(|(worker, _)| *worker != ask.worker);
            self.leases.give_back(&ask.worker);
        }
        if let Err(other) = self.committed(ask.committed) {
            return reply.send(Err(other));
        }
        self.waiting.push_back((ask.worker, reply));
        self.serve();
    }
}

impl Handler<WorkerLost> for DataLoader {
    async fn handle(&mut self, lost: WorkerLost, _: &Context<Self>) -> u32 {
        self.lose(lost.worker)
    }
}

impl Handler<StepsApplied> for DataLoader {
    async fn handle(
        &mut self,
        told: StepsApplied,
        _: &Context<Self>,
    ) -> std::result::Result<(), NoWork> {
        self.committed(told.version)?;
        self.serve();
        Ok(())
    }
}

impl Handler<Describe> for DataLoader {
    async fn handle(&mut self, _: Describe, _: &Context<Self>) -> Description {
        Description {
            samples: self.batches.samples(),
            steps_per_epoch: self.batches.steps_per_epoch(),
            steps: self.leases.steps(),
            input: self.preparer.data().input(),
            target: self.preparer.data().target(),
        }
    }
}

impl DataLoader {
    /// So many steps are committed.
    fn committed(&mut self, steps: u64) -> std::result::Result<(), NoWork> {
        // The last one stands for all before it.
        let Some(last) = steps.checked_sub(1) else { return Ok(()) };
        let told = self.leases.committed(last);
        told.map(drop).map_err(|error| NoWork::OtherJob(error.to_string()))
    }

    /// A worker is gone; says how many slots it held.
    fn lose(&mut self, lost: u64) -> u32 {
        self.lost.insert(lost);
        self.waiting.retain(|(worker, _)| *worker != lost);
        let returned = self.leases.worker_lost(&lost);
        self.serve();
        returned as u32
    }

    /// Gives those who wait what there is, in the order in which they asked, and has the next slots prepared.
    fn serve(&mut self) {
        while let Some((worker, reply)) = self.waiting.pop_front() {
            if self.leases.is_done() {
                reply.send(Ok(None));
                continue;
            }
            if !reply.is_awaited() {
                continue;
            }
            let Some(work) = self.leases.ask(worker) else {
                self.waiting.push_front((worker, reply));
                break;
            };
            match self.preparer.take(work) {
                Taken::Now(slot) => reply.send(answer(*slot)),
                Taken::Soon(slot) => drop(self.spawner.spawn(async move {
                    // Else another worker has been leased the slot meanwhile: this one was lost.
                    if let Ok(slot) = slot.await {
                        reply.send(answer(slot));
                    }
                })),
            }
        }
        self.preparer.want(self.leases.upcoming(), self.leases.committed_steps());
    }
}

fn answer(slot: Prepared) -> <NextWork as Message>::Reply {
    slot.map(Some).map_err(NoWork::Data)
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
