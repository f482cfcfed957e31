//! Finds or starts what a job consists of, but for its workers.

use std::time::Duration;

use footlight_cluster::{Member, Node, Placement, ledger::Expect};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, Error, NodeId, Result, compute::Device,
};
use futures::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};

use super::{feed::load, job::JobSpec, saver::job_of, trainer::Trainer, weights::Weights};
use crate::{
    checkpoint::{JobState, Store},
    data::{DataLoader, Dataset, Split, loader::Description},
    model::ReplicaThread,
    owner::{Adopt, Dismiss},
    parameters::{ParameterServer, ShardSpec, gate::Meet, layout::Layout, server::Initialise},
};

/// A shard has so long to take its new trainer's hand.
const ADOPT: Duration = Duration::from_secs(10);
/// A shard has so long to hear that it is dismissed.
const DISMISS: Duration = Duration::from_secs(2);

/// A job whose shards are in their places.
pub(super) struct Placed {
    pub(super) spec: JobSpec,
    pub(super) node: Node,
    pub(super) evaluator: ReplicaThread,
    pub(super) test: Dataset,
    pub(super) weights: Weights,
    /// The loader that was started to learn what the data is; none for a job that is taken over.
    pub(super) loader: Option<ActorRef<DataLoader>>,
    pub(super) data: Description,
    pub(super) cast: Cast,
    /// When the job began, in microseconds since 1970.
    pub(super) begun: u64,
    pub(super) from: Began,
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

/// What the ledger keeps of a job for the next trainer.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    /// Of which job of this name.
    submission: u64,
    shards: Vec<ActorAddr>,
    /// What the job's first loader found.
    data: Description,
    /// When the first slot was handed out, in microseconds since 1970.
    begun: u64,
    /// What it began with.
    from: Began,
}

/// What a job began with: nothing, or a checkpoint.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Began {
    /// Steps that had been applied.
    pub(super) steps: u64,
    /// Of them, those that had been left out.
    pub(super) skipped: u64,
}

/// The shards of a job that its trainer has found or started: they outlive it.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    node: Node,
    /// The ledger's key of where they are.
    key: String,
    shards: Vec<ActorRef<ParameterServer>>,
}

impl Cast {
    /// The job is over: its shards end. One that can't be told ends when nobody adopts it.
    pub(super) async fn dismiss(&self) {
        if let Err(error) = self.node.ledger().delete(&self.key, Expect::Any).await {
            tracing::debug!(%error, "an ended job stays in the ledger");
        }
        join_all(self.shards.iter().map(|shard| shard.call_within(Dismiss, DISMISS))).await;
    }
}

/// Reads the test data, finds or starts the parts of the job. What was started is dismissed if not
/// all comes together.
pub(super) async fn place(
    spec: JobSpec,
    node: &Node,
    context: &Context<Trainer>,
) -> Result<Placed> {
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
    let mut cast = Cast { node: node.clone(), key: key.clone(), shards: Vec::new() };
    let found = node.ledger().get(&key).await?;
    let found = found.and_then(|found| serde_json::from_slice::<Parts>(&found.value).ok());
    let placed = async {
        if let Some(parts) = found.filter(|parts| parts.submission == spec.submission) {
            cast.shards = parts.shards.iter().map(|addr| ActorRef::at(*addr, system)).collect();
            adopt(&cast, context).await?;
            return Ok((None, parts));
        }
        let (loader, data) = load(&spec, node, context.me().addr(), 0).await?;
        fits("training", data.sample.0 as usize, data.sample.1 as usize)?;
        let state = match restored(&spec, &layout, &data).await? {
            Some(state) => state,
            None => JobState::first(params),
        };
        start_shards(&spec, node, &layout, data.steps, context, &mut cast.shards).await?;
        let weights = Weights { layout: layout.clone(), shards: cast.shards.clone() };
        initialise(&weights, &state).await?;
        let parts = Parts {
            submission: spec.submission,
            shards: cast.shards.iter().map(ActorRef::addr).collect(),
            data,
            begun: system.env().wall_clock.now_unix_micros(),
            from: Began { steps: state.steps, skipped: state.steps.saturating_sub(state.taken) },
        };
        let value = serde_json::to_vec(&parts).map_err(|error| Error::other(error.to_string()))?;
        node.ledger().put(&key, value, Expect::Any, None).await?;
        Ok::<_, Error>((Some(loader), parts))
    };
    match placed.await {
        Ok((loader, Parts { data, begun, from, .. })) => Ok(Placed {
            weights: Weights { layout, shards: cast.shards.clone() },
            spec,
            node: node.clone(),
            evaluator,
            test,
            loader,
            data,
            cast,
            begun,
            from,
        }),
        Err(error) => {
            cast.dismiss().await;
            Err(error)
        }
    }
}

/// Takes over the shards of a job whose trainer is gone.
async fn adopt(cast: &Cast, context: &Context<Trainer>) -> Result<()> {
    let adopt = Adopt { owner: context.me().addr() };
    for (index, shard) in cast.shards.iter().enumerate() {
        context.watch(shard);
        shard.call_within(adopt, ADOPT).await.map_err(|error| {
            Error::other(format!(
                "shard {index} of the parameter server was lost together with the trainer: {error}"
            ))
        })?;
    }
    Ok(())
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

/// The state that a job goes on from, if it is to and there is one.
async fn restored(spec: &JobSpec, layout: &Layout, data: &Description) -> Result<Option<JobState>> {
    let Some(checkpoints) = &spec.checkpoints else { return Ok(None) };
    let store = Store::open(checkpoints.at()).await.map_err(Error::other)?;
    if !spec.resume {
        let there = store.finished().await.map_err(Error::other)?;
        let Some(newest) = there.last() else { return Ok(None) };
        return Err(Error::other(format!(
            "there are checkpoints already, the newest is {}: resume the job, or choose another folder",
            store.name(*newest)
        )));
    }
    let found = store.newest(layout, &job_of(spec, data)).await.map_err(Error::other)?;
    let Some(state) = found else { return Ok(None) };
    let name = store.name(state.steps);
    state.fits(&name, &spec.optimizer).map_err(Error::other)?;
    if state.steps > data.steps {
        let (has, steps) = (state.steps, data.steps);
        return Err(Error::other(format!(
            "the checkpoint {name} has {has} steps, and the whole job {steps}: let it have more epochs"
        )));
    }
    store.discard_after(state.steps).await.map_err(Error::other)?;
    tracing::info!(checkpoint = name, "the job goes on from its checkpoint");
    Ok(Some(state))
}

/// Gives all chunks what they begin with.
async fn initialise(weights: &Weights, state: &JobState) -> Result<()> {
    let first = (0..weights.layout.chunks()).map(|chunk| async move {
        let message =
            Initialise { chunk: chunk as u32, state: state.chunk(&weights.layout, chunk)? };
        weights.shard(chunk)?.call(message).await?.map_err(Error::other)
    });
    try_join_all(first).await?;
    Ok(())
}
