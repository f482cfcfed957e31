//! The actor that holds a job together: places its parts, supervises its workers, evaluates, tells.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use footlight_cluster::{Member, MemberState, Node, Placement};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, Down, Error, Handler, HostTensor, Message, NodeId, Result,
    Streamed,
    compute::Device,
    supervision::{Backoff, ChildEvent, OneForOne, Restart},
};
use futures::{StreamExt, future::try_join_all, stream::FuturesOrdered};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, time::Instant};

use super::{
    job::{JobEvent, JobSpec, TrainingReport},
    weights::{Version, Weights},
    worker::{AskDevice, Worker, WorkerSpec},
};
use crate::{
    data::{
        DataLoader, Dataset, LoaderSpec, Split,
        loader::{Describe, Description, WorkerLost},
    },
    model::{Evaluation, ReplicaThread},
    parameters::{
        ParameterServer, ShardSpec,
        server::{FollowSteps, Initialise},
    },
};

/// A worker that was just started has so long to tell where it computes.
const ASK_DEVICE: Duration = Duration::from_secs(2);
/// More ends of each worker than this within [`RESTARTS_WITHIN`], and something is wrong with the
/// job and not with a machine. The limit of all is this times the workers: one lost node may take
/// several with it.
const RESTARTS: u32 = 10;
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);

/// Holds one job together. It fails if a shard or the loader is lost: they hold what nobody else
/// has.
#[derive(Debug)]
pub struct Trainer {
    spec: JobSpec,
    log: Arc<Log>,
    weights: Arc<OnceLock<Weights>>,
}

/// Asks for a job's events, from the first on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct FollowJob;

impl Message for FollowJob {
    type Reply = Streamed<JobEvent>;
    const NAME: &'static str = "training.follow";
}

/// Asks what the job is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskJob;

impl Message for AskJob {
    type Reply = JobSpec;
    const NAME: &'static str = "training.job";
}

/// Asks where a job's parameters are; `None` before they are anywhere.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskWeights;

impl Message for AskWeights {
    type Reply = Option<Weights>;
    const NAME: &'static str = "training.weights";
}

/// All events of a job: whoever comes late reads from the start.
#[derive(Debug, Default)]
struct Log {
    events: Mutex<Vec<JobEvent>>,
    grown: Notify,
}

impl Log {
    fn tell(&self, event: JobEvent) {
        self.events.lock().unwrap_or_else(|poison| poison.into_inner()).push(event);
        self.grown.notify_waiters();
    }

    fn get(&self, index: usize) -> Option<JobEvent> {
        self.events.lock().unwrap_or_else(|poison| poison.into_inner()).get(index).cloned()
    }

    /// The event at a place, or `None` after waiting until there are more.
    async fn at(&self, index: usize) -> Option<JobEvent> {
        let grown = self.grown.notified();
        tokio::pin!(grown);
        // Registered before looking: an event between the two would be missed otherwise.
        grown.as_mut().enable();
        let found = self.get(index);
        if found.is_none() {
            grown.await;
        }
        found
    }

    fn follow(self: Arc<Self>) -> Streamed<JobEvent> {
        Streamed::from_stream(futures::stream::unfold((self, 0), |(log, index)| async move {
            loop {
                if let Some(event) = log.at(index).await {
                    return Some((event, (log, index + 1)));
                }
            }
        }))
    }
}

impl Actor for Trainer {
    type Args = JobSpec;
    const NAME: &'static str = "training.trainer";

    async fn start(spec: JobSpec, context: &Context<Self>) -> Result<Self> {
        let node = Node::of(context.system())
            .ok_or_else(|| Error::other("a trainer runs on a node of a cluster"))?;
        let log = Arc::new(Log::default());
        let weights = Arc::new(OnceLock::new());
        let job = place(spec.clone(), &node, context).await?;
        let _ = weights.set(job.weights.clone());
        let (told, me) = (log.clone(), context.me().addr());
        context.run(async move {
            match job.run(&told, me).await {
                Ok(report) => {
                    told.tell(JobEvent::Done(report));
                    Ok(())
                }
                Err(error) => {
                    told.tell(JobEvent::Failed(error.to_string()));
                    Err(error)
                }
            }
        });
        Ok(Trainer { spec, log, weights })
    }

    async fn down(&mut self, actor: ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
        let part = match self.weights.get() {
            Some(weights) if weights.shards.iter().any(|shard| shard.addr() == actor) => {
                "a shard of the parameter server"
            }
            _ => "the data loader",
        };
        let why = format!("{part} ended ({actor}): {down}");
        self.log.tell(JobEvent::Failed(why.clone()));
        Err(Error::other(why))
    }
}

impl Handler<FollowJob> for Trainer {
    async fn handle(&mut self, _: FollowJob, _: &Context<Self>) -> Streamed<JobEvent> {
        self.log.clone().follow()
    }
}

impl Handler<AskJob> for Trainer {
    async fn handle(&mut self, _: AskJob, _: &Context<Self>) -> JobSpec {
        self.spec.clone()
    }
}

impl Handler<AskWeights> for Trainer {
    async fn handle(&mut self, _: AskWeights, _: &Context<Self>) -> Option<Weights> {
        self.weights.get().cloned()
    }
}

/// A job whose shards and loader are in their places.
struct Placed {
    spec: JobSpec,
    node: Node,
    evaluator: Arc<ReplicaThread>,
    test: Dataset,
    weights: Weights,
    loader: ActorRef<DataLoader>,
    data: Description,
}

/// The nodes for a part of the job: those of its role, or all that host its type if none has it.
/// In an order of its own for each part, so that parts spread.
fn nodes_for(members: &[Member], role: &str, actor: &str) -> Result<Vec<NodeId>> {
    let hosts = || {
        members
            .iter()
            .filter(|member| member.is_up() && member.actors.iter().any(|hosted| hosted == actor))
    };
    let mut nodes: Vec<NodeId> = hosts()
        .filter(|member| member.roles.iter().any(|has| has == role))
        .map(|member| member.id)
        .collect();
    if nodes.is_empty() {
        nodes = hosts().map(|member| member.id).collect();
    }
    if nodes.is_empty() {
        return Err(Error::other(format!(
            "no node that is up hosts `{actor}`: register the cast (`footlight::actors::cast`) on \
             the nodes that are to train"
        )));
    }
    nodes.sort();
    Ok(nodes)
}

async fn place(spec: JobSpec, node: &Node, context: &Context<Trainer>) -> Result<Placed> {
    let system = context.system();
    let owner = context.me().addr();
    let data = spec.data.clone();
    let test = tokio::task::spawn_blocking(move || data.open(Split::Test))
        .await
        .map_err(|error| Error::other(error.to_string()))??;
    let evaluator =
        ReplicaThread::build(system, "trainer", &spec.model, spec.seed, Device::Cpu).await?;
    let servers = spec.servers as usize;
    let (layout, params) = evaluator
        .run(move |replica| Ok((replica.layout(servers)?, replica.flat_parameters()?)))
        .await?;

    let members = node.members();
    let at = nodes_for(&members, "loader", DataLoader::NAME)?;
    let loader_spec = LoaderSpec {
        data: spec.data.clone(),
        seed: spec.seed,
        batch: spec.batch,
        slots: spec.slots,
        epochs: spec.epochs,
        owner,
    };
    let loader = node.spawn::<DataLoader>(loader_spec).on(Placement::AnyOf(at)).await?;
    context.watch(&loader);
    let data = loader.call(Describe).await?;

    let at = nodes_for(&members, "server", ParameterServer::NAME)?;
    let mut shards = Vec::new();
    for (shard, on) in (0..spec.servers).zip(at.iter().cycle()) {
        let shard = ShardSpec {
            layout: layout.clone(),
            shard,
            optimizer: spec.optimizer,
            total_steps: data.steps,
            slots: spec.slots,
            owner,
        };
        let shard = node.spawn::<ParameterServer>(shard).on(Placement::node(*on)).await?;
        context.watch(&shard);
        shards.push(shard);
    }
    let weights = Weights { layout, shards };
    let first = (0..weights.layout.chunks()).map(|chunk| {
        let (weights, params) = (&weights, &params);
        async move {
            let range = weights.layout.chunk(chunk);
            let part = range.and_then(|range| params.get(range)).unwrap_or_default();
            let params = HostTensor::from_vec(part.to_vec(), &[part.len()])?;
            let message = Initialise { chunk: chunk as u32, params };
            weights.shard(chunk)?.call(message).await?.map_err(Error::other)
        }
    });
    try_join_all(first).await?;
    let evaluator = Arc::new(evaluator);
    Ok(Placed { spec, node: node.clone(), evaluator, test, weights, loader, data })
}

impl Placed {
    async fn run(self, log: &Log, me: ActorAddr) -> Result<TrainingReport> {
        let Description { steps, steps_per_epoch, samples } = self.data;
        log.tell(JobEvent::Started {
            steps,
            steps_per_epoch,
            samples,
            servers: self.weights.shards.iter().map(|shard| shard.addr().node).collect(),
            loader: self.loader.addr().node,
        });
        let first = self.weights.shard(0)?;
        let mut done = first.call(FollowSteps).await?;
        // Asked for now, so that each is answered with exactly the version of its epoch's end.
        let per_epoch = u64::from(steps_per_epoch);
        let mut evaluations: FuturesOrdered<_> = (1..=self.spec.epochs)
            .map(|epoch| {
                let weights = self.weights.clone();
                async move { weights.pull(epoch * per_epoch).await }
            })
            .collect();
        let begun = Instant::now();
        let (supervisor, mut children) = self.supervise(me).await?;
        let mut workers: HashMap<ActorAddr, (String, u64)> = HashMap::new();
        let mut trained = 0;
        let mut elapsed = Duration::ZERO;
        let mut last: Option<(Evaluation, Version)> = None;
        let mut seen = 0;
        while seen < steps || !evaluations.is_empty() {
            tokio::select! {
                biased;
                Some(event) = children.recv() => self.child(event, &mut workers, log).await?,
                Some(step) = done.next(), if seen < steps => {
                    let step = step.map_err(Error::other)?;
                    seen = step.step + 1;
                    trained += u64::from(step.samples);
                    elapsed = begun.elapsed();
                    let members = self.node.members();
                    log.tell(JobEvent::Step {
                        steps: seen,
                        samples: trained,
                        loss: step.loss_sum / step.samples.max(1) as f32,
                        live_nodes: members.iter().filter(|member| is_live(member)).count() as u32,
                        nodes: members.len() as u32,
                    });
                }
                Some(version) = evaluations.next() => {
                    let version = version?;
                    let evaluation = self.evaluate(&version).await?;
                    log.tell(JobEvent::Evaluated {
                        steps: version.number,
                        accuracy: evaluation.accuracy(),
                        loss: evaluation.loss,
                    });
                    last = Some((evaluation, version));
                }
            }
        }
        supervisor.stop().await;
        let (evaluation, version) =
            last.ok_or_else(|| Error::other("a job of no epochs has no result"))?;
        let mut hash = Sha256::new();
        version.flat()?.iter().for_each(|value| hash.update(value.to_le_bytes()));
        Ok(TrainingReport {
            test_accuracy: evaluation.accuracy(),
            test_loss: evaluation.loss,
            steps,
            samples: trained,
            elapsed,
            parameters_sha256: format!("{:x}", hash.finalize()),
        })
    }

    /// Starts the workers, each on a node of its own as long as there are some; a worker whose node
    /// is lost starts on the next one.
    async fn supervise(
        &self,
        owner: ActorAddr,
    ) -> Result<(
        footlight_runtime::supervision::Supervisor,
        footlight_cluster::supervise::ChildEvents,
    )> {
        nodes_for(&self.node.members(), "worker", Worker::NAME)?;
        let restarts = RESTARTS.saturating_mul(self.spec.workers);
        let backoff = Backoff { first: Duration::from_millis(50), ..Backoff::default() };
        let mut supervisor = self
            .node
            .supervise(OneForOne::new().at_most(restarts, RESTARTS_WITHIN).backoff(backoff));
        for index in 0..self.spec.workers {
            let (spec, weights, loader, node) =
                (self.spec.clone(), self.weights.clone(), self.loader.clone(), self.node.clone());
            supervisor = supervisor.child_with::<Worker>(
                format!("worker-{index}"),
                Restart::Transient,
                move |starts| {
                    // Looked up anew at each start: nodes come and go.
                    let mut order =
                        nodes_for(&node.members(), "worker", Worker::NAME).unwrap_or_default();
                    let first = index as usize % order.len().max(1);
                    order.rotate_left(first);
                    let args = WorkerSpec {
                        worker: worker_number(&spec, index, starts),
                        model: spec.model.clone(),
                        seed: spec.seed,
                        device: spec.device,
                        loader: loader.clone(),
                        weights: weights.clone(),
                        owner,
                    };
                    (args, Placement::AnyOf(order))
                },
            );
        }
        supervisor.start().await
    }

    async fn child(
        &self,
        event: ChildEvent,
        workers: &mut HashMap<ActorAddr, (String, u64)>,
        log: &Log,
    ) -> Result<()> {
        match event {
            ChildEvent::Started { child, actor, starts } => {
                let index = child.rsplit('-').next().and_then(|index| index.parse().ok());
                let number = worker_number(&self.spec, index.unwrap_or(0), starts);
                workers.insert(actor, (child.clone(), number));
                let up = ActorRef::<Worker>::at(actor, self.node.system());
                // One that is gone already tells nothing; its end is the next event.
                let device = up.call_within(AskDevice, ASK_DEVICE).await;
                let device = device.map_or_else(|_| "?".to_owned(), |device| device.to_string());
                log.tell(JobEvent::WorkerUp { worker: child, node: actor.node, starts, device });
            }
            ChildEvent::Down { child, actor, down } => {
                if let Some((_, worker)) = workers.remove(&actor) {
                    // What it held goes to the others: also if it only stopped, having nothing.
                    self.loader.call(WorkerLost { worker }).await?;
                }
                if !down.is_normal() {
                    let why = down.to_string();
                    log.tell(JobEvent::WorkerLost { worker: child, node: actor.node, why });
                }
            }
            ChildEvent::StartFailed { child, why } => {
                tracing::warn!(worker = child, why, "a worker could not be started");
            }
            ChildEvent::GaveUp { why } => {
                return Err(Error::other(format!("the workers can't be kept up: {why}")));
            }
            _ => {}
        }
        Ok(())
    }

    async fn evaluate(&self, version: &Version) -> Result<Evaluation> {
        version.clone().load(&self.evaluator).await?;
        let test = self.test.clone();
        self.evaluator.run(move |replica| replica.evaluate(&test)).await
    }
}

/// Each start of a worker has a number of its own.
fn worker_number(spec: &JobSpec, index: u32, starts: u32) -> u64 {
    u64::from(starts) * u64::from(spec.workers) + u64::from(index)
}

fn is_live(member: &Member) -> bool {
    matches!(member.state, MemberState::Up | MemberState::Joining)
}
