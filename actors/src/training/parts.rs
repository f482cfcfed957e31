//! Finds or starts what a job consists of, but for its workers.

use std::time::Duration;

use footlight_cluster::{Member, Node, ledger::Expect};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Cause, Context, Error, NodeId, Result, compute::Device,
};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::{
    feed::load,
    job::JobSpec,
    keeper::{Cast, Configured, Group, Loss, Parts, Starts, meet, nodes_for_backups},
    saver::job_of,
    shards::Shards,
    trainer::Trainer,
    weights::Weights,
};
use crate::{
    checkpoint::{JobState, Store},
    data::{
        DataLoader, Dataset, Field, Split,
        loader::{self, Description},
    },
    model::ReplicaThread,
    owner::Adopt,
    parameters::{ParameterServer, layout::Layout, server::Initialise},
};

/// A shard has so long to take its new trainer's hand.
const ADOPT: Duration = Duration::from_secs(10);
/// After a connection broke.
const ADOPT_AGAIN: Duration = Duration::from_millis(100);
/// The trainer's node hears of others a moment later than whoever has seen them and submitted the job.
const BECOME_KNOWN: Duration = Duration::from_secs(3);

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
    /// As the ledger has them, in this version.
    pub(super) parts: Parts,
    pub(super) version: u64,
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

/// What a job began with: nothing, or a checkpoint.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Began {
    /// Steps that had been applied.
    pub(super) steps: u64,
    /// Of them, those that had been left out.
    pub(super) skipped: u64,
}

/// Reads the test data, finds or starts the parts of the job. What was started is dismissed if not
/// all comes together.
pub(super) async fn place(
    spec: JobSpec,
    node: &Node,
    context: &Context<Trainer>,
) -> Result<Placed> {
    let system = context.system();
    let test = loader::open(system, spec.data.clone(), Split::Test).await?;
    let evaluator =
        ReplicaThread::build(system, "trainer", &spec.model, spec.seed, Device::Cpu).await?;
    let servers = spec.servers as usize;
    let (layout, params) = evaluator
        .run(move |replica| Ok((replica.layout(servers)?, replica.flat_parameters()?)))
        .await?;
    let fits = async |part: &'static str, input: Field, target: Field| {
        evaluator.run(move |replica| replica.fits(part, &input, &target)).await
    };
    fits("test", test.input(), test.target()).await?;

    let key = format!("job-parts/{}", spec.name);
    let cast = Cast::new(node, key.clone());
    let found = node.ledger().get(&key).await?;
    let version = found.as_ref().map_or(0, |found| found.version);
    let found = found.and_then(|found| serde_json::from_slice::<Parts>(&found.value).ok());
    let placed = async {
        if let Some(parts) = found.filter(|parts| parts.submission == spec.submission) {
            *cast.groups() = parts.groups.clone();
            let (parts, version) = adopt(&cast, parts, version, context).await?;
            return Ok((None, parts, version));
        }
        let (loader, data) = load(&spec, node, context.me().addr(), 0).await?;
        fits("training", data.input.clone(), data.target.clone()).await?;
        let state = match restored(&spec, &layout, &data).await? {
            Some(state) => state,
            None => JobState::first(params),
        };
        let (total_steps, owner) = (data.steps, context.me().addr());
        let starts = Starts { spec: &spec, node, layout: &layout, total_steps, owner };
        start_shards(starts, context, &cast).await?;
        let shards = Shards::new(cast.primaries(), false);
        initialise(&Weights { layout: layout.clone(), shards }, &state).await?;
        if spec.replicas > 0
            && let Some((shard, why)) = configure(&cast).await?.into_iter().next()
        {
            return Err(Error::other(format!("the shard {shard} was lost at once: {why}")));
        }
        let parts = Parts {
            submission: spec.submission,
            groups: cast.groups().clone(),
            data,
            begun: system.env().wall_clock.now_unix_micros(),
            from: Began { steps: state.steps, skipped: state.steps.saturating_sub(state.taken) },
        };
        let value = serde_json::to_vec(&parts).map_err(|error| Error::other(error.to_string()))?;
        let version = node.ledger().put(&key, value, Expect::Any, None).await?;
        Ok::<_, Error>((Some(loader), parts, version))
    };
    match placed.await {
        Ok((loader, parts, version)) => Ok(Placed {
            weights: Weights { layout, shards: Shards::new(cast.primaries(), spec.replicas > 0) },
            version,
            spec,
            node: node.clone(),
            evaluator,
            test,
            loader,
            data: parts.data.clone(),
            parts,
            cast,
        }),
        Err(error) => {
            cast.dismiss().await;
            Err(error)
        }
    }
}

/// Takes over the shards of a job whose trainer is gone. Of those who hold one, some may have gone with it. Gives what
/// the ledger has now.
async fn adopt(
    cast: &Cast,
    mut parts: Parts,
    mut version: u64,
    context: &Context<Trainer>,
) -> Result<(Parts, u64)> {
    adopt_members(cast, context).await?;
    let is_replicated = parts.groups.iter().any(|group| group.view > 0);
    loop {
        if !is_replicated {
            return Ok((parts, version));
        }
        // All are told who their backups are, as the trainer before may have said otherwise and not have written it.
        cast.groups().iter_mut().for_each(|group| group.view += 1);
        parts.groups = cast.groups().clone();
        version = cast.write(&parts, version).await?;
        let lost = configure(cast).await?;
        if lost.is_empty() {
            return Ok((parts, version));
        }
        for (primary, why) in lost {
            is_survived(cast, primary, &why)?;
        }
    }
}

/// An actor that holds a shard went with the trainer before.
///
/// # Errors
/// It was the last.
fn is_survived(cast: &Cast, actor: ActorAddr, why: &str) -> Result<()> {
    match cast.lost(actor) {
        Loss::Fatal(shard) => Err(Error::other(format!(
            "shard {shard} of the parameter server was lost together with the trainer: {why}"
        ))),
        Loss::Survived(_) | Loss::Nothing => Ok(()),
    }
}

async fn adopt_members(cast: &Cast, context: &Context<Trainer>) -> Result<()> {
    let adopt = Adopt { owner: context.me().addr() };
    for member in cast.members() {
        context.watch(&member);
        let adopted = tokio::time::timeout(ADOPT, async {
            loop {
                match member.call_within(adopt, ADOPT).await {
                    // Perhaps only the connection.
                    Err(error)
                        if matches!(
                            error.cause(),
                            Cause::Unreachable(_) | Cause::CutOff { .. }
                        ) =>
                    {
                        tokio::time::sleep(ADOPT_AGAIN).await;
                    }
                    adopted => return adopted.map_err(|error| error.to_string()),
                }
            }
        });
        let adopted = adopted.await.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        if let Err(why) = adopted {
            is_survived(cast, member.addr(), &why)?;
        }
    }
    Ok(())
}

/// Starts the shards and their backups, as soon as there are enough nodes.
async fn start_shards(starts: Starts<'_>, context: &Context<Trainer>, cast: &Cast) -> Result<()> {
    let spec = starts.spec;
    let are_enough = |members: &[Member]| {
        nodes_for(members, spec.submitter, "server", ParameterServer::NAME)
            .is_ok_and(|nodes| nodes.len() > spec.replicas as usize)
    };
    // If there are not, what follows says so.
    let _ = starts.node.wait_for_members(BECOME_KNOWN, are_enough).await;
    let at = starts.nodes()?;
    if spec.replicas as usize >= at.len() {
        return Err(Error::other(format!(
            "{} replicas of each shard need {} nodes that host `{}`, and there are {}",
            spec.replicas,
            spec.replicas + 1,
            ParameterServer::NAME,
            at.len()
        )));
    }
    for (shard, on) in (0..spec.servers).zip(at.iter().cycle()) {
        let primary = starts.start(shard, *on).await?;
        context.watch(&primary);
        // Without backups nothing is said about views.
        let view = u64::from(spec.replicas > 0);
        cast.groups().push(Group { view, members: vec![primary.addr()] });
    }
    for replica in 0..spec.replicas {
        for shard in 0..spec.servers {
            let free = nodes_for_backups(&at, &cast.groups(), shard as usize);
            let on = free
                .first()
                .ok_or_else(|| Error::other(format!("backup {replica} has no node")))?;
            let backup = starts.start(shard, *on).await?;
            context.watch(&backup);
            cast.groups()[shard as usize].members.push(backup.addr());
        }
    }
    if spec.rule.is_global() {
        meet(&cast.primaries()).await?;
    }
    Ok(())
}

/// Tells each primary who its backups are. Gives the primaries that are lost.
async fn configure(cast: &Cast) -> Result<Vec<(ActorAddr, String)>> {
    let shards = cast.groups().len();
    let all = try_join_all((0..shards).map(|shard| cast.configure(shard, None))).await?;
    let lost = |configured| match configured {
        Configured::Lost(primary, why) => Some((primary, why)),
        Configured::Yes | Configured::WithoutAll => None,
    };
    Ok(all.into_iter().filter_map(lost).collect())
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
