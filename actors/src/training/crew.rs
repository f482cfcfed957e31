//! The workers of a job, kept up.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use footlight_cluster::{Node, Placement};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Error, Result, System,
    compute::DeviceChoice,
    fence,
    supervision::{Backoff, ChildEvent, ChildSpec, OneForOne, Restart, Supervisor},
};
use futures::future::join_all;
use tokio::sync::{mpsc, watch};

use super::{
    event::JobEvent,
    job::JobSpec,
    log::Log,
    parts::{Placed, nodes_for},
    residuals::holders,
    seats::{Place, Seats},
    shards::Shards,
    worker::{AskDevice, UseLoader, UseShards, Worker, WorkerSpec},
};
use crate::{
    checkpoint::Checkpoints,
    data::{DataLoader, loader::WorkerLost},
};

/// A worker has so long to answer what needs no work.
const ANSWER: Duration = Duration::from_secs(2);
/// More ends of each worker than this within [`RESTARTS_WITHIN`], and something is wrong with the
/// job and not with a machine. The limit of all is this times the workers: one lost node may take
/// several with it.
const RESTARTS: u32 = 10;
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);
/// A worker that can't be started so often in a row won't be later: an unknown model, no such
/// device. With the back-off this takes about a second.
const START_TRIES: u32 = 5;

/// The workers of a job.
pub(super) struct Crew {
    /// What happens to them, in order: to be handed to [`Crew::event`].
    pub(super) events: mpsc::UnboundedReceiver<ChildEvent>,
    spec: JobSpec,
    node: Node,
    system: System,
    seats: Arc<Seats>,
    /// The job's loader, for workers that are started later.
    loader: watch::Sender<ActorRef<DataLoader>>,
    shards: Shards,
    /// Those that are up: name and number.
    up: HashMap<ActorAddr, (String, u64)>,
    /// Those that were told to end, as they are to start on another node.
    moving: HashSet<ActorAddr>,
    /// How often in a row each could not be started.
    failed_starts: HashMap<String, u32>,
    /// Why one ended or could not be started, the last time.
    last_failure: String,
}

type Starting<'a> = Pin<Box<dyn Future<Output = Result<Supervisor>> + Send + 'a>>;

impl Crew {
    /// Starts the workers, each on a node of its own as long as there are some; a worker whose node
    /// is lost or leaves starts on the next one. The future gives the supervisor when all are up;
    /// events come before that.
    pub(super) fn start(
        job: &Placed,
        loader: ActorRef<DataLoader>,
        owner: ActorAddr,
    ) -> (Self, Starting<'_>) {
        let (loader, current) = watch::channel(loader);
        let (told, events) = mpsc::unbounded_channel();
        let restarts = RESTARTS.saturating_mul(job.spec.workers);
        let backoff = Backoff { first: Duration::from_millis(50), ..Backoff::default() };
        let supervision = OneForOne::new().at_most(restarts, RESTARTS_WITHIN).backoff(backoff);
        let seats = Arc::<Seats>::default();
        let workers =
            (0..job.spec.workers).map(|index| worker(job, &current, &seats, index, owner));
        let workers = workers.collect();
        let system = job.node.system();
        let crew = Crew {
            events,
            spec: job.spec.clone(),
            node: job.node.clone(),
            system: system.clone(),
            seats,
            loader,
            shards: job.weights.shards.clone(),
            up: HashMap::new(),
            moving: HashSet::new(),
            failed_starts: HashMap::new(),
            last_failure: String::new(),
        };
        (crew, Box::pin(Supervisor::start(system, supervision, workers, told)))
    }

    /// Takes note of an event.
    ///
    /// # Errors
    /// If the workers can't be kept up.
    pub(super) async fn event(&mut self, event: ChildEvent, log: &Log) -> Result<()> {
        match event {
            ChildEvent::Started { child, actor, starts } => {
                self.failed_starts.remove(&child);
                let index = child.rsplit('-').next().and_then(|index| index.parse().ok());
                let number = worker_number(&self.spec, index.unwrap_or(0), starts);
                self.up.insert(actor, (child.clone(), number));
                let up = ActorRef::<Worker>::at(actor, &self.system);
                // One that is gone already tells nothing; its end is the next event.
                let device = up.call_within(AskDevice, ANSWER).await;
                let device = device.map_or_else(|_| "?".to_owned(), |device| device.to_string());
                // There may be another loader since its start began, and other shards.
                self.tell_loader(actor).await;
                self.tell_shards(actor).await;
                log.tell(JobEvent::WorkerUp { worker: child, node: actor.node, starts, device });
                // Others may have to move as well.
                self.spread();
            }
            ChildEvent::Down { child, actor, down } => {
                if let Some((_, worker)) = self.up.remove(&actor) {
                    // The loader watches its workers too; this only tells it sooner.
                    let loader = self.loader.borrow().clone();
                    if let Err(error) = loader.call_within(WorkerLost { worker }, ANSWER).await {
                        tracing::debug!(%error, "the loader could not be told of a lost worker");
                    }
                }
                let why = match self.moving.remove(&actor) {
                    true => "it moves to a node that has fewer workers".to_owned(),
                    false => down.to_string(),
                };
                self.last_failure = format!("{child} {why}");
                log.tell(JobEvent::WorkerLost { worker: child, node: actor.node, why });
            }
            ChildEvent::StartFailed { child, why } => {
                tracing::warn!(worker = child, why, "a worker could not be started");
                self.last_failure = format!("{child} could not be started: {why}");
                let tries = self.failed_starts.entry(child.clone()).or_insert(0);
                *tries += 1;
                if *tries >= START_TRIES {
                    return Err(Error::other(format!("{child} can't be started: {why}")));
                }
            }
            ChildEvent::GaveUp { .. } => {
                let (last, within) = (&self.last_failure, RESTARTS_WITHIN.as_secs());
                return Err(Error::other(format!(
                    "the workers can't be kept up, they failed too often within {within} s; the \
                     last one: {last}"
                )));
            }
            _ => {}
        }
        Ok(())
    }

    /// A node may have come that has fewer workers than others: one of theirs ends, and starts there. What it had in hand
    /// is computed again.
    pub(super) fn spread(&mut self) {
        let Ok(places) = places(&self.node, &self.spec) else { return };
        let Some(crowded) = self.seats.crowded(&places) else { return };
        let name = worker_name(crowded);
        let up = self.up.iter().find(|(_, (worker, _))| *worker == name).map(|(addr, _)| *addr);
        if let Some(worker) = up
            && self.moving.insert(worker)
        {
            ActorRef::<Worker>::at(worker, &self.system).stop();
        }
    }

    /// From here on the workers get their slots from this loader.
    pub(super) async fn use_loader(&mut self, loader: ActorRef<DataLoader>) {
        self.loader.send_replace(loader);
        join_all(self.up.keys().map(|worker| self.tell_loader(*worker))).await;
    }

    /// From here on the workers look for the shards where they are now.
    pub(super) async fn use_shards(&self) {
        join_all(self.up.keys().map(|worker| self.tell_shards(*worker))).await;
    }

    async fn tell_shards(&self, worker: ActorAddr) {
        if !self.shards.are_replicated() {
            return;
        }
        let told = UseShards { shards: self.shards.now() };
        let worker = ActorRef::<Worker>::at(worker, &self.system);
        // As with a loader.
        if let Err(error) = worker.call_within(told, ANSWER).await {
            tracing::debug!(%error, "a worker could not be told of the shards");
        }
    }

    async fn tell_loader(&self, worker: ActorAddr) {
        let told = UseLoader { loader: self.loader.borrow().clone() };
        let worker = ActorRef::<Worker>::at(worker, &self.system);
        // One that is gone needs none, and one that can't be reached ends when it has waited long
        // enough for a loader.
        if let Err(error) = worker.call_within(told, ANSWER).await {
            tracing::debug!(%error, "a worker could not be told of the loader");
        }
    }
}

fn worker_name(index: u32) -> String {
    format!("worker-{index}")
}

/// The nodes that may have workers of a job.
fn places(node: &Node, spec: &JobSpec) -> Result<Vec<Place>> {
    let members = node.members();
    let nodes = nodes_for(&members, spec.submitter, "worker", Worker::NAME)?;
    let machine = |node| members.iter().find(|member| member.id == node).map(|m| m.address.ip());
    Ok(nodes.into_iter().map(|node| Place { node, machine: machine(node) }).collect())
}

fn worker(
    job: &Placed,
    loader: &watch::Receiver<ActorRef<DataLoader>>,
    seats: &Arc<Seats>,
    index: u32,
    owner: ActorAddr,
) -> ChildSpec {
    let (spec, weights, loader, node, seats) =
        (job.spec.clone(), job.weights.clone(), loader.clone(), job.node.clone(), seats.clone());
    // A worker ends by itself only with its node, and then there is work of its left.
    ChildSpec::new(worker_name(index), Restart::Permanent, move |attempt| {
        let mut args = WorkerSpec {
            worker: worker_number(&spec, index, attempt.number),
            job: spec.id(),
            model: spec.model.clone(),
            seed: spec.seed,
            consistency: spec.consistency,
            wire: spec.wire,
            precision: spec.precision,
            parts: spec.parts,
            saved_every: spec.checkpoints.as_ref().map(Checkpoints::every),
            holders: holders(&node),
            device: device(&spec.devices, index),
            nth: 0,
            loader: loader.borrow().clone(),
            weights: weights.clone(),
            owner,
        };
        let (node, spec, seats) = (node.clone(), spec.clone(), seats.clone());
        async move {
            // Looked up anew at each start: nodes come and go.
            let places = places(&node, &spec)?;
            let (order, nth) = seats.take(index, &places);
            args.nth = nth;
            let worker = node.spawn::<Worker>(args).on(Placement::any_of(order)).await?.addr();
            seats.is_at(index, worker.node, &places);
            Ok(worker)
        }
    })
}

fn device(devices: &[DeviceChoice], index: u32) -> DeviceChoice {
    let place = index as usize % devices.len().max(1);
    devices.get(place).copied().unwrap_or_default()
}

/// Each start of a worker has a number of its own, also under the trainers that follow.
fn worker_number(spec: &JobSpec, index: u32, starts: u32) -> u64 {
    let trainer = fence::held().map_or(0, |fence| fence.generation);
    (trainer << 32) + u64::from(starts) * u64::from(spec.workers) + u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_the_next_device_of_the_list() {
        let list = [DeviceChoice::Cpu, DeviceChoice::Cuda(1)];
        let dealt = [0, 1, 2, 3].map(|index| device(&list, index));
        assert_eq!(dealt, [list[0], list[1], list[0], list[1]]);
        assert_eq!(device(&list[..1], 5), DeviceChoice::Cpu);
    }
}
