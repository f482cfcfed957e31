//! The actor that holds a job together: places its parts, supervises its workers, evaluates, tells.

use std::{pin::pin, sync::Arc, time::Duration};

use footlight_cluster::{Member, MemberState, Node, Placement, ledger::Expect};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, CallError, Context, Down, Error, Handler, HostTensor, Message,
    NodeId, Result, Streamed, compute::Device,
};
use futures::{
    FutureExt, StreamExt,
    future::{join_all, try_join_all},
    stream::FuturesOrdered,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    crew::Crew,
    job::{JobEvent, JobSpec, TrainingReport},
    log::Log,
    weights::{Version, Weights},
};
use crate::{
    data::{
        DataLoader, Dataset, LoaderSpec, Split,
        loader::{Describe, Description},
    },
    model::{Evaluation, ReplicaThread},
    owner::{Adopt, Dismiss},
    parameters::{
        ParameterServer, ShardSpec,
        gate::Meet,
        layout::Layout,
        server::{FollowSteps, Initialise},
    },
};

/// After an error, the news that a part of the job is lost is waited for so long.
const ROOT_CAUSE: Duration = Duration::from_secs(2);
/// A part has so long to take its new trainer's hand.
const ADOPT: Duration = Duration::from_secs(10);
/// A part has so long to hear that it is dismissed.
const DISMISS: Duration = Duration::from_secs(2);

/// Holds one job together: the cluster runs exactly one, and starts it elsewhere when its node is
/// lost. It then finds shards and loader through the ledger and goes on where they are.
///
/// It fails if a shard or the loader is lost: they hold what nobody else has.
#[derive(Debug)]
pub struct Trainer {
    spec: JobSpec,
    log: Arc<Log>,
    weights: Weights,
    cast: Cast,
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

/// Asks where a job's parameters are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskWeights;

impl Message for AskWeights {
    type Reply = Weights;
    const NAME: &'static str = "training.weights";
}

/// Asks whether the job is done or has failed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskOver;

impl Message for AskOver {
    type Reply = bool;
    const NAME: &'static str = "training.over";
}

/// Lets the job's parts go; answered when they know.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DismissParts;

impl Message for DismissParts {
    type Reply = ();
    const NAME: &'static str = "training.dismiss";
}

impl Actor for Trainer {
    type Args = JobSpec;
    const NAME: &'static str = "training.trainer";

    async fn start(spec: JobSpec, context: &Context<Self>) -> Result<Self> {
        let node = Node::of(context.system())
            .ok_or_else(|| Error::other("a trainer runs on a node of a cluster"))?;
        let log = Arc::new(Log::default());
        let job = place(spec.clone(), &node, context).await?;
        let (weights, cast) = (job.weights.clone(), job.cast.clone());
        let (told, me, parts) = (log.clone(), context.me().addr(), cast.clone());
        context.run(async move {
            match job.run(&told, me).await {
                Ok(report) => told.tell(JobEvent::Done(report)),
                Err(error) => {
                    // If a part is lost, whatever needed it fails at about the same time: what tells
                    // of the loss itself is the better news.
                    let _ = tokio::time::timeout(ROOT_CAUSE, told.closed()).await;
                    told.fail(error.to_string());
                    parts.dismiss().await;
                    return Err(error);
                }
            }
            Ok(())
        });
        Ok(Trainer { spec, log, weights, cast })
    }

    async fn down(&mut self, actor: ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
        let shard = self.weights.shards.iter().position(|shard| shard.addr() == actor);
        let part = match shard {
            Some(index) => format!("shard {index} of the parameter server"),
            None => "the data loader".to_owned(),
        };
        let why = format!("{part} ended ({actor}): {down}");
        self.log.fail(why.clone());
        self.cast.dismiss().await;
        Err(Error::other(why))
    }
}

impl Drop for Trainer {
    /// However it ended: who follows the job is not left waiting.
    fn drop(&mut self) {
        self.log.close();
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

impl Handler<AskOver> for Trainer {
    async fn handle(&mut self, _: AskOver, _: &Context<Self>) -> bool {
        self.log.is_over()
    }
}

impl Handler<AskWeights> for Trainer {
    async fn handle(&mut self, _: AskWeights, _: &Context<Self>) -> Weights {
        self.weights.clone()
    }
}

impl Handler<DismissParts> for Trainer {
    async fn handle(&mut self, _: DismissParts, _: &Context<Self>) {
        // On purpose: who follows is told by the end of the events.
        self.log.close();
        self.cast.dismiss().await;
    }
}

/// A job whose shards and loader are in their places.
pub(super) struct Placed {
    pub(super) spec: JobSpec,
    pub(super) node: Node,
    evaluator: ReplicaThread,
    test: Dataset,
    pub(super) weights: Weights,
    pub(super) loader: ActorRef<DataLoader>,
    data: Description,
    cast: Cast,
    /// When the job began, in microseconds since 1970.
    begun: u64,
}

/// The nodes for a part of the job: those of its role; if none has it, all that host its type but
/// the one that submitted the job, which may leave before the job's end; if there is no other, that
/// one. In the order of their label `name`, then of their ids.
pub(super) fn nodes_for(
    members: &[Member],
    submitter: NodeId,
    role: &str,
    actor: &str,
) -> Result<Vec<NodeId>> {
    let mut hosts: Vec<&Member> = members
        .iter()
        .filter(|member| member.is_up() && member.actors.iter().any(|hosted| hosted == actor))
        .collect();
    hosts.sort_by_key(|member| (member.labels.get("name"), member.id));
    let those = |wanted: &dyn Fn(&Member) -> bool| -> Vec<NodeId> {
        hosts.iter().filter(|member| wanted(member)).map(|member| member.id).collect()
    };
    let choices = [
        those(&|member| member.roles.iter().any(|has| has == role)),
        those(&|member| member.id != submitter),
        those(&|_| true),
    ];
    let nodes = choices.into_iter().find(|nodes| !nodes.is_empty()).unwrap_or_default();
    if nodes.is_empty() {
        return Err(Error::other(format!(
            "no node that is up hosts `{actor}`: register the cast (`footlight::actors::cast`) on \
             the nodes that are to train"
        )));
    }
    Ok(nodes)
}

/// Where the parts of a job are, as the ledger keeps it for the next trainer.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    /// Of which job of this name.
    submission: u64,
    loader: ActorAddr,
    shards: Vec<ActorAddr>,
    /// When the first slot was handed out, in microseconds since 1970.
    begun: u64,
}

/// The parts of a job that its trainer has found or started.
#[derive(Clone, Debug)]
struct Cast {
    node: Node,
    /// The ledger's key of where the parts are.
    key: String,
    loader: Option<ActorRef<DataLoader>>,
    shards: Vec<ActorRef<ParameterServer>>,
}

impl Cast {
    /// The job is over: its parts end. One that can't be told ends when nobody adopts it.
    async fn dismiss(&self) {
        if let Err(error) = self.node.ledger().delete(&self.key, Expect::Any).await {
            tracing::debug!(%error, "an ended job stays in the ledger");
        }
        let loader = self.loader.iter().map(|loader| loader.call_within(Dismiss, DISMISS).boxed());
        let shards = self.shards.iter().map(|shard| shard.call_within(Dismiss, DISMISS).boxed());
        join_all(loader.chain(shards)).await;
    }
}

/// Reads the test data, finds or starts the parts of the job. What was started is dismissed if not
/// all comes together.
async fn place(spec: JobSpec, node: &Node, context: &Context<Trainer>) -> Result<Placed> {
    let system = context.system();
    let data = spec.data.clone();
    let test = tokio::task::spawn_blocking(move || data.open(Split::Test))
        .await
        .map_err(|error| Error::other(error.to_string()))??;
    let evaluator =
        ReplicaThread::build(system, "trainer", &spec.model, spec.seed, Device::Cpu).await?;
    let servers = spec.servers as usize;
    let (layout, params, input) = evaluator
        .run(move |replica| {
            let input = replica.input_shape();
            Ok((replica.layout(servers)?, replica.flat_parameters()?, input))
        })
        .await?;
    let fits = |part: &str, rows: usize, cols: usize| {
        if input.iter().product::<usize>() == rows * cols {
            return Ok(());
        }
        let model = &spec.model.name;
        Err(Error::other(format!(
            "the {part} samples are {rows}×{cols}, and the model `{model}` takes {input:?}"
        )))
    };
    fits("test", test.rows(), test.cols())?;

    let key = format!("job-parts/{}", spec.name);
    let mut cast = Cast { node: node.clone(), key: key.clone(), loader: None, shards: Vec::new() };
    let found = node.ledger().get(&key).await?;
    let found = found.and_then(|found| serde_json::from_slice::<Parts>(&found.value).ok());
    let placed = async {
        if let Some(parts) = found.filter(|parts| parts.submission == spec.submission) {
            let loader = ActorRef::at(parts.loader, system);
            cast.loader = Some(loader.clone());
            cast.shards = parts.shards.iter().map(|addr| ActorRef::at(*addr, system)).collect();
            adopt(&cast, context).await?;
            let data = loader.call(Describe).await?;
            let weights = Weights { layout, shards: cast.shards.clone() };
            return Ok((weights, loader, data, parts.begun));
        }
        let loader = start_loader(&spec, node, context).await?;
        cast.loader = Some(loader.clone());
        let data = loader.call(Describe).await?;
        fits("training", data.sample.0 as usize, data.sample.1 as usize)?;
        start_shards(&spec, node, &layout, data.steps, context, &mut cast.shards).await?;
        let weights = Weights { layout, shards: cast.shards.clone() };
        initialise(&weights, &params).await?;
        let parts = Parts {
            submission: spec.submission,
            loader: loader.addr(),
            shards: cast.shards.iter().map(ActorRef::addr).collect(),
            begun: system.env().wall_clock.now_unix_micros(),
        };
        let value = serde_json::to_vec(&parts).map_err(|error| Error::other(error.to_string()))?;
        node.ledger().put(&key, value, Expect::Any, None).await?;
        Ok::<_, Error>((weights, loader, data, parts.begun))
    };
    match placed.await {
        Ok((weights, loader, data, begun)) => Ok(Placed {
            spec,
            node: node.clone(),
            evaluator,
            test,
            weights,
            loader,
            data,
            cast,
            begun,
        }),
        Err(error) => {
            cast.dismiss().await;
            Err(error)
        }
    }
}

/// Takes over the parts of a job whose trainer is gone.
async fn adopt(cast: &Cast, context: &Context<Trainer>) -> Result<()> {
    let adopt = Adopt { owner: context.me().addr() };
    let lost = |part: String, error: CallError| {
        Error::other(format!("{part} was lost together with the trainer: {error}"))
    };
    for (index, shard) in cast.shards.iter().enumerate() {
        context.watch(shard);
        let adopted = shard.call_within(adopt, ADOPT).await;
        adopted.map_err(|error| lost(format!("shard {index} of the parameter server"), error))?;
    }
    if let Some(loader) = &cast.loader {
        context.watch(loader);
        let adopted = loader.call_within(adopt, ADOPT).await;
        adopted.map_err(|error| lost("the data loader".to_owned(), error))?;
    }
    Ok(())
}

async fn start_loader(
    spec: &JobSpec,
    node: &Node,
    context: &Context<Trainer>,
) -> Result<ActorRef<DataLoader>> {
    let at = nodes_for(&node.members(), spec.submitter, "loader", DataLoader::NAME)?;
    let loader_spec = LoaderSpec {
        data: spec.data.clone(),
        seed: spec.seed,
        batch: spec.batch,
        slots: spec.slots,
        epochs: spec.epochs,
        owner: context.me().addr(),
    };
    let loader = node.spawn::<DataLoader>(loader_spec).on(Placement::any_of(at)).await?;
    context.watch(&loader);
    Ok(loader)
}

async fn start_shards(
    spec: &JobSpec,
    node: &Node,
    layout: &Layout,
    total_steps: u64,
    context: &Context<Trainer>,
    shards: &mut Vec<ActorRef<ParameterServer>>,
) -> Result<()> {
    let at = nodes_for(&node.members(), spec.submitter, "server", ParameterServer::NAME)?;
    for (shard, on) in (0..spec.servers).zip(at.iter().cycle()) {
        let shard = ShardSpec {
            layout: layout.clone(),
            shard,
            optimizer: spec.optimizer,
            rule: spec.rule,
            total_steps,
            slots: spec.slots,
            owner: context.me().addr(),
        };
        let shard = node.spawn::<ParameterServer>(shard).on(Placement::node(*on)).await?;
        context.watch(&shard);
        shards.push(shard);
    }
    if spec.rule.is_global() {
        let met = shards.iter().map(|shard| shard.call(Meet { shards: shards.clone() }));
        for met in try_join_all(met).await? {
            met.map_err(Error::other)?;
        }
    }
    Ok(())
}

/// Gives all chunks their first parameters.
async fn initialise(weights: &Weights, params: &[f32]) -> Result<()> {
    let first = (0..weights.layout.chunks()).map(|chunk| async move {
        let range = weights.layout.chunk(chunk);
        let part = range.and_then(|range| params.get(range)).unwrap_or_default();
        let params = HostTensor::from_vec(part.to_vec(), &[part.len()])?;
        let message = Initialise { chunk: chunk as u32, params };
        weights.shard(chunk)?.call(message).await?.map_err(Error::other)
    });
    try_join_all(first).await?;
    Ok(())
}

impl Placed {
    async fn run(self, log: &Log, me: ActorAddr) -> Result<TrainingReport> {
        let Description { steps, steps_per_epoch, samples, .. } = self.data;
        log.tell(JobEvent::Started {
            steps,
            steps_per_epoch,
            samples,
            servers: self.weights.shards.iter().map(|shard| shard.addr().node).collect(),
            loader: self.loader.addr().node,
        });
        let first = self.weights.shard(0)?;
        let mut done = first.call(FollowSteps { from: 0 }).await?;
        // More than none if this trainer has taken the job over.
        let applied = self.weights.applied().await?;
        // Asked for now, so that each is answered with exactly the version of its epoch's end.
        let per_epoch = u64::from(steps_per_epoch);
        let evaluations: FuturesOrdered<_> = (1..=self.spec.epochs)
            .filter(|epoch| epoch * per_epoch >= applied)
            .map(|epoch| {
                let weights = self.weights.clone();
                async move { weights.pull(epoch * per_epoch).await }
            })
            .collect();
        let mut unevaluated = evaluations.len();
        let mut evaluations = pin!(evaluations.peekable());
        // First all pulls above, then a question that is answered at once: when it is, they are at
        // their shards, and no worker is there yet to make a version that they would miss. A pull
        // that has its answer sooner, as the trainer before was lost at that version, keeps it.
        tokio::select! {
            biased;
            _ = evaluations.as_mut().peek() => {}
            applied = self.weights.applied() => drop(applied?),
        }
        let ago = self.node.system().env().wall_clock.now_unix_micros().saturating_sub(self.begun);
        let begun = Instant::now();
        let begun = begun.checked_sub(Duration::from_micros(ago)).unwrap_or(begun);
        let (mut crew, mut starting) = Crew::start(&self, me);
        let mut supervisor = None;
        let (mut trained, mut skipped_steps) = (0, 0);
        let mut elapsed = Duration::ZERO;
        let mut last: Option<(Evaluation, Version)> = None;
        let mut seen = 0;
        while seen < steps || unevaluated > 0 {
            tokio::select! {
                biased;
                Some(event) = crew.events.recv() => crew.event(event, log).await?,
                started = &mut starting, if supervisor.is_none() => supervisor = Some(started?),
                step = done.next(), if seen < steps => {
                    let Some(Ok(step)) = step else {
                        // The connection broke: the shard remembers what came since.
                        done = first.call(FollowSteps { from: seen }).await?;
                        continue;
                    };
                    seen = step.step + 1;
                    skipped_steps += u64::from(step.skipped);
                    trained = self.samples_after(seen);
                    elapsed = begun.elapsed();
                    let members = self.node.members();
                    log.tell(JobEvent::Step {
                        steps: seen,
                        samples: trained,
                        loss: step.loss_sum / step.samples.max(1) as f32,
                        norm: step.norm,
                        skipped: step.skipped,
                        live_nodes: members.iter().filter(|member| is_live(member)).count() as u32,
                        nodes: members.len() as u32,
                    });
                }
                Some(version) = evaluations.next() => {
                    unevaluated -= 1;
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
        // A worker may still be on its way, for whom nothing is left: it ends with the supervisor.
        if let Some(supervisor) = supervisor {
            supervisor.stop().await;
        }
        let (evaluation, version) =
            last.ok_or_else(|| Error::other("a job of no epochs has no result"))?;
        let mut hash = Sha256::new();
        version.flat()?.iter().for_each(|value| hash.update(value.to_le_bytes()));
        Ok(TrainingReport {
            test_accuracy: evaluation.accuracy(),
            test_loss: evaluation.loss,
            steps,
            skipped_steps,
            samples: trained,
            elapsed,
            parameters_sha256: format!("{:x}", hash.finalize()),
        })
    }

    /// Samples trained on, over all epochs: the last batch of an epoch may be smaller.
    fn samples_after(&self, steps: u64) -> u64 {
        let Description { samples, steps_per_epoch, .. } = self.data;
        let (samples, per_epoch) = (u64::from(samples), u64::from(steps_per_epoch).max(1));
        let rest = (steps % per_epoch) * u64::from(self.spec.batch);
        steps / per_epoch * samples + rest.min(samples)
    }

    async fn evaluate(&self, version: &Version) -> Result<Evaluation> {
        version.clone().load(&self.evaluator).await?;
        let test = self.test.clone();
        self.evaluator.run(move |replica| replica.evaluate(&test)).await
    }
}

fn is_live(member: &Member) -> bool {
    matches!(member.state, MemberState::Up | MemberState::Joining)
}
