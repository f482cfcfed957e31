//! The actor that holds a job together: places its parts, supervises its workers, evaluates, tells.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use footlight_cluster::{ClusterEvent, Member, MemberState, Node};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, Down, Error, Handler, HostTensor, Message, Result,
    Streamed, tensor::WireFormat,
};
use futures::{StreamExt, stream::FuturesOrdered};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::Instant};

use super::{
    crew::Crew,
    event::{JobEvent, TrainingReport},
    feed::Feed,
    job::JobSpec,
    keeper::{Cast, Keeper, Loss, Moved},
    log::Log,
    parts::{Placed, place},
    residuals::Stay,
    saver::{job_of, save},
    weights::{Version, Weights},
};
use crate::{
    checkpoint::{Checkpoints, Store},
    data::loader::Description,
    model::Evaluation,
};

/// After an error, the news that a part of the job is lost is waited for so long.
const ROOT_CAUSE: Duration = Duration::from_secs(2);
/// Holds one job together: the cluster runs exactly one, and starts it elsewhere when its node is
/// lost. It then finds the shards through the ledger and goes on where they are.
///
/// It keeps loader, workers and replicated shards up, wherever there is a node for them. It fails if
/// a shard is lost that has no backup: nobody else has what it held.
#[derive(Debug)]
pub struct Trainer {
    spec: JobSpec,
    log: Arc<Log>,
    weights: Weights,
    cast: Cast,
    /// Shards that have lost one of those who hold them.
    losses: mpsc::UnboundedSender<usize>,
}

/// The trainer watches one more actor that holds a shard. Sent by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WatchShard {
    pub(super) shard: ActorAddr,
}

impl Message for WatchShard {
    type Reply = ();
    const NAME: &'static str = "training.watch_shard";
}

impl Handler<WatchShard> for Trainer {
    async fn handle(&mut self, told: WatchShard, context: &Context<Self>) {
        context.watch_addr(told.shard);
    }
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

/// A worker tells that the job's data can't be used: a sample that can't be read, a label that is no class. The job fails.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnfitData {
    /// What is wrong with it.
    pub why: String,
}

impl Message for UnfitData {
    type Reply = ();
    const NAME: &'static str = "training.unfit_data";
}

/// A worker tells that nobody has the residual of a slot any more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ResidualIsLost {
    /// Which slot.
    pub slot: u32,
    /// The step that it was for.
    pub step: u64,
}

impl Message for ResidualIsLost {
    type Reply = ();
    const NAME: &'static str = "training.residual_is_lost";
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
        let (told, me, parts) = (log.clone(), context.me(), cast.clone());
        let (losses, lost) = mpsc::unbounded_channel();
        let (moved, moves) = mpsc::unbounded_channel();
        let keeper = job.keeper(me.clone(), log.clone());
        context.run(async move {
            let outcome = tokio::select! {
                outcome = job.run(&told, me.addr(), moves) => outcome,
                // It ends otherwise only with the trainer.
                Err(error) = keeper.keep(lost, moved) => Err(error),
            };
            match outcome {
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
        Ok(Trainer { spec, log, weights, cast, losses })
    }

    async fn down(&mut self, actor: ActorAddr, down: Down, _: &Context<Self>) -> Result<()> {
        // Nothing else is watched.
        let index = match self.cast.lost(actor) {
            Loss::Nothing => return Ok(()),
            Loss::Survived(index) => {
                let (shard, node, why) = (index as u32, actor.node, down.to_string());
                self.log.tell(JobEvent::ShardLost { shard, node, why });
                let _ = self.losses.send(index);
                return Ok(());
            }
            Loss::Fatal(index) => index,
        };
        let why = format!("shard {index} of the parameter server ended ({actor}): {down}");
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

impl Handler<UnfitData> for Trainer {
    async fn handle(&mut self, unfit: UnfitData, context: &Context<Self>) {
        self.log.fail(unfit.why);
        self.cast.dismiss().await;
        context.stop();
    }
}

impl Handler<ResidualIsLost> for Trainer {
    async fn handle(&mut self, lost: ResidualIsLost, _: &Context<Self>) {
        let ResidualIsLost { slot, step } = lost;
        self.log.tell(JobEvent::ResidualLost { slot, step });
    }
}

impl Handler<DismissParts> for Trainer {
    async fn handle(&mut self, _: DismissParts, _: &Context<Self>) {
        // On purpose: who follows is told by the end of the events.
        self.log.close();
        self.cast.dismiss().await;
    }
}

impl Placed {
    fn keeper(&self, me: ActorRef<Trainer>, log: Arc<Log>) -> Keeper {
        Keeper {
            cast: self.cast.clone(),
            spec: self.spec.clone(),
            layout: self.weights.layout.clone(),
            shards: self.weights.shards.clone(),
            me,
            parts: self.parts.clone(),
            version: self.version,
            log,
            waiting: Default::default(),
        }
    }

    async fn run(
        mut self,
        log: &Log,
        me: ActorAddr,
        mut moves: mpsc::UnboundedReceiver<Moved>,
    ) -> Result<TrainingReport> {
        let Description { steps, steps_per_epoch, samples, .. } = self.data;
        let first = self.loader.take();
        let is_first = first.is_some();
        let mut feed = Feed::start(&self, first, me).await?;
        log.tell(JobEvent::Started {
            steps,
            steps_per_epoch,
            samples,
            servers: self.weights.shards.now().iter().map(|shard| shard.addr().node).collect(),
            loader: feed.loader.addr().node,
        });
        let mut done = pin!(self.weights.steps(0));
        // More than none if this trainer has taken the job over, or goes on from a checkpoint.
        let applied = self.weights.applied().await?;
        let (mut seen, mut skipped_steps) = (self.parts.from.steps, self.parts.from.skipped);
        let mut trained = self.samples_after(seen);
        if seen > 0 {
            log.tell(JobEvent::FromCheckpoint { steps: seen, samples: trained });
        }
        let stay = self.bring_residuals(applied, is_first, log).await?;
        let mut saving = pin!(save(&self, log, applied, stay.as_ref()));
        let mut caring = pin!(async {
            match &stay {
                Some(stay) => stay.are_cared_for(|| self.cast.nodes()).await,
                None => std::future::pending().await,
            }
        });
        let mut saved = false;
        // Asked for now, so that each is answered with exactly the version of its epoch's end.
        let per_epoch = u64::from(steps_per_epoch);
        let mut evaluations: FuturesOrdered<_> = (1..=self.spec.epochs)
            .filter(|epoch| epoch * per_epoch >= applied)
            .map(|epoch| {
                let weights = self.weights.clone();
                async move { weights.pull(epoch * per_epoch).await }
            })
            .collect();
        let mut unevaluated = evaluations.len();
        let mut pulled = VecDeque::new();
        self.are_asked(&mut evaluations, &mut pulled).await?;
        let now = self.node.system().env().wall_clock.now_unix_micros();
        let ago = now.saturating_sub(self.parts.begun);
        let begun = Instant::now();
        let begun = begun.checked_sub(Duration::from_micros(ago)).unwrap_or(begun);
        let mut nodes = self.node.events();
        let (mut crew, mut starting) = Crew::start(&self, feed.loader.clone(), me);
        let mut supervisor = None;
        let mut elapsed = Duration::ZERO;
        let mut last: Option<(Evaluation, Version)> = None;
        // While one is under way, all else goes on.
        let mut evaluating = None;
        while seen < steps || unevaluated > 0 || !saved {
            if evaluating.is_none()
                && let Some(version) = pulled.pop_front()
            {
                evaluating = Some(Box::pin(self.evaluate(version?)));
            }
            tokio::select! {
                biased;
                Some(told) = moves.recv() => {
                    self.are_asked(&mut evaluations, &mut pulled).await?;
                    crew.use_shards().await;
                    let _ = told.send(());
                }
                Some(event) = feed.events.recv() => {
                    if feed.event(event, log)? {
                        crew.use_loader(feed.loader.clone()).await;
                    }
                }
                Some(event) = crew.events.recv() => crew.event(event, log).await?,
                Some(event) = nodes.next() => {
                    if matches!(event, ClusterEvent::Up(_) | ClusterEvent::Missed(_)) {
                        crew.spread();
                    }
                }
                started = &mut starting, if supervisor.is_none() => supervisor = Some(started?),
                Some(step) = done.next(), if seen < steps => {
                    let step = step?;
                    seen = step.step + 1;
                    skipped_steps += u64::from(step.skipped);
                    trained = self.samples_after(seen);
                    elapsed = begun.elapsed();
                    if let Some(stay) = &stay {
                        // One shard tells of a step; another may still wait for slots of it.
                        stay.applied(seen.saturating_sub(1));
                    }
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
                () = &mut caring => {}
                ended = &mut saving, if !saved => {
                    ended?;
                    saved = true;
                }
                Some(version) = evaluations.next(), if pulled.is_empty() => pulled.push_back(version),
                evaluated = async { evaluating.as_mut().expect("there is one").await },
                    if evaluating.is_some() =>
                {
                    evaluating = None;
                    unevaluated -= 1;
                    let (evaluation, version): (Evaluation, Version) = evaluated?;
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
        if let Some(stay) = &stay {
            stay.are_wanted(false).await;
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

    /// The residuals of a job that goes on from a checkpoint, on this node and another one: workers find them there. Needed until the
    /// checkpoint's next step is applied, also by a trainer that has taken over; such a one goes on without them if it
    /// can't read them, as workers tell what is missing.
    async fn bring_residuals(
        &self,
        applied: u64,
        is_first: bool,
        log: &Log,
    ) -> Result<Option<Stay>> {
        if !self.spec.feeds_back() {
            return Ok(None);
        }
        let every = self.spec.checkpoints.as_ref().map(Checkpoints::every);
        let (system, id, layout) = (self.node.system(), self.spec.id(), &self.weights.layout);
        let stay = Stay::new(system, &id, every, &self.weights, Vec::new()).await?;
        stay.bring_keepers(self.cast.nodes()).await;
        let Some(checkpoints) = &self.spec.checkpoints else { return Ok(Some(stay)) };
        if applied == 0 || applied != self.parts.from.steps {
            return Ok(Some(stay));
        }
        let load = async || {
            let store = Store::open(checkpoints.at()).await?;
            store.load(applied, layout, &job_of(&self.spec, &self.data)).await
        };
        let saved = match load().await {
            Ok(state) => state.residuals,
            Err(error) if is_first => return Err(Error::other(error)),
            Err(error) => {
                tracing::warn!(%error, "the residuals of the checkpoint can't be read");
                return Ok(Some(stay));
            }
        };
        // A job whose gradients were not rounded has left none.
        let none = HostTensor::from_vec(vec![0.0f32; layout.len()], &[layout.len()])?;
        let none = none.encoded(WireFormat::Int8);
        for slot in 0..self.spec.slots {
            if !saved.is_empty() && !saved.contains_key(&slot) {
                log.tell(JobEvent::ResidualLost { slot, step: applied });
            }
            stay.put(applied, slot, saved.get(&slot).unwrap_or(&none).clone()).await;
        }
        Ok(Some(stay))
    }

    /// Samples trained on, over all epochs: the last batch of an epoch may be smaller.
    fn samples_after(&self, steps: u64) -> u64 {
        let Description { samples, steps_per_epoch, .. } = self.data;
        let (samples, per_epoch) = (u64::from(samples), u64::from(steps_per_epoch).max(1));
        let rest = (steps % per_epoch) * u64::from(self.spec.batch);
        steps / per_epoch * samples + rest.min(samples)
    }

    async fn evaluate(&self, version: Version) -> Result<(Evaluation, Version)> {
        version.clone().load(&self.evaluator).await?;
        let test = self.test.clone();
        let evaluation = self.evaluator.run(move |replica| replica.evaluate(&test)).await?;
        Ok((evaluation, version))
    }

    /// Waits until all pulls are at their shards, before any worker makes a version that they would miss: after them
    /// comes a question that is answered at once. A pull that has its answer sooner, as the trainer or a primary before
    /// was lost at that version, keeps it.
    async fn are_asked(
        &self,
        pulls: &mut FuturesOrdered<impl Future<Output = Result<Version>>>,
        pulled: &mut VecDeque<Result<Version>>,
    ) -> Result<()> {
        let mut applied = pin!(self.weights.applied());
        loop {
            tokio::select! {
                biased;
                Some(version) = pulls.next() => pulled.push_back(version),
                applied = &mut applied => return applied.map(drop),
            }
        }
    }
}

fn is_live(member: &Member) -> bool {
    matches!(member.state, MemberState::Up | MemberState::Joining)
}
