//! The actor that holds a job together: places its parts, supervises its workers, evaluates, tells.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use footlight_cluster::{Member, MemberState, Node, Placement};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, Down, Error, Handler, HostTensor, Message, NodeId, Result,
    Streamed, compute::Device,
};
use futures::{StreamExt, future::try_join_all, stream::FuturesOrdered};
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
    parameters::{
        ParameterServer, ShardSpec,
        server::{FollowSteps, Initialise},
    },
};

/// After an error, the news that a part of the job is lost is waited for so long.
const ROOT_CAUSE: Duration = Duration::from_secs(2);

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
                Ok(report) => told.tell(JobEvent::Done(report)),
                Err(error) => {
                    // If a part is lost, whatever needed it fails at about the same time: what tells
                    // of the loss itself is the better news.
                    let _ = tokio::time::timeout(ROOT_CAUSE, told.closed()).await;
                    told.fail(error.to_string());
                    return Err(error);
                }
            }
            Ok(())
        });
        Ok(Trainer { spec, log, weights })
    }

    async fn down(&mut self, actor: ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
        let shards = self.weights.get().map(|weights| weights.shards.as_slice());
        let shard = shards.unwrap_or_default().iter().position(|shard| shard.addr() == actor);
        let part = match shard {
            Some(index) => format!("shard {index} of the parameter server"),
            None => "the data loader".to_owned(),
        };
        let why = format!("{part} ended ({actor}): {down}");
        self.log.fail(why.clone());
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

impl Handler<AskWeights> for Trainer {
    async fn handle(&mut self, _: AskWeights, _: &Context<Self>) -> Option<Weights> {
        self.weights.get().cloned()
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

    let members = node.members();
    let at = nodes_for(&members, spec.submitter, "loader", DataLoader::NAME)?;
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
    fits("training", data.sample.0 as usize, data.sample.1 as usize)?;

    let at = nodes_for(&members, spec.submitter, "server", ParameterServer::NAME)?;
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
    Ok(Placed { spec, node: node.clone(), evaluator, test, weights, loader, data })
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
        let mut done = first.call(FollowSteps).await?;
        // Asked for now, so that each is answered with exactly the version of its epoch's end.
        let per_epoch = u64::from(steps_per_epoch);
        let mut evaluations: FuturesOrdered<_> = (1..=self.spec.epochs)
            .map(|epoch| {
                let weights = self.weights.clone();
                async move { weights.pull(epoch * per_epoch).await }
            })
            .collect();
        // First all pulls above, then one that is answered: when it is, they are at their shards, and
        // no worker is there yet to make a version that they would miss.
        tokio::select! {
            biased;
            Some(version) = evaluations.next() => drop(version?),
            version = self.weights.pull(0) => drop(version?),
        }
        let begun = Instant::now();
        let (mut crew, mut starting) = Crew::start(&self, me);
        let mut supervisor = None;
        let mut trained = 0;
        let mut elapsed = Duration::ZERO;
        let mut last: Option<(Evaluation, Version)> = None;
        let mut seen = 0;
        while seen < steps || !evaluations.is_empty() {
            tokio::select! {
                biased;
                Some(event) = crew.events.recv() => crew.event(event, log).await?,
                started = &mut starting, if supervisor.is_none() => supervisor = Some(started?),
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
                else => return Err(Error::other("the first shard tells of no more steps")),
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
            samples: trained,
            elapsed,
            parameters_sha256: format!("{:x}", hash.finalize()),
        })
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
