//! The actor that computes gradients, slot by slot.

use std::{pin::pin, sync::Arc, time::Duration};

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Cause, Context, Down, Error, Handler, HostTensor, Message, NodeId,
    Result,
    compute::{Device, DeviceChoice},
    tensor::{BufferPool, DType, WireFormat, WireTensor},
};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{maybe_done, try_join, try_join_all},
    poll,
    stream::FuturesUnordered,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use super::{
    residuals::{Compensated, JobId, Stay, compensate},
    shards::{SUCCESSOR, Shards, is_loss},
    trainer::{ResidualIsLost, Trainer, UnfitData},
    weights::{VERSION_PATIENCE, Weights},
};
use crate::{
    consistency::Consistency,
    data::loader::{DataLoader, NextWork, NoWork, SlotWork, StepsApplied},
    model::{Draw, ModelSpec, PendingGradient, Precision, ReplicaThread},
    parameters::{
        ParameterServer,
        server::{PushGradient, SlotMetrics},
    },
};

/// After a connection broke, the loader is asked again so much later.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Computes slots until there are none left, and then waits to be stopped: so any end before that is
/// a loss, also that of a worker whose node leaves.
///
/// It holds nothing that would be lost with it: the data comes from the loader, the parameters from
/// the shards, a slot that it did not finish is leased to another, and what int8 rounds off lies on two nodes.
#[derive(Debug)]
pub struct Worker {
    device: Device,
    /// What was rounded off is wanted until the job is over, and not until there is nothing left to compute.
    _residuals: Option<Arc<Stay>>,
    loader: watch::Sender<ActorRef<DataLoader>>,
    shards: Shards,
}

/// Asks where a worker computes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskDevice;

impl Message for AskDevice {
    type Reply = Device;
    const NAME: &'static str = "training.device";
}

/// The job's shards are there now: slots that were pushed and not applied may be lost with one that is gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UseShards {
    /// In the layout's order.
    pub shards: Vec<ActorRef<ParameterServer>>,
}

impl Message for UseShards {
    type Reply = ();
    const NAME: &'static str = "training.use_shards";
}

/// The job has this loader now: the one before is gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UseLoader {
    /// Who hands out slots.
    pub loader: ActorRef<DataLoader>,
}

impl Message for UseLoader {
    type Reply = ();
    const NAME: &'static str = "training.use_loader";
}

/// What a worker is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Its number: each start of a worker has one of its own.
    pub worker: u64,
    /// The job.
    pub job: JobId,
    /// The model.
    pub model: ModelSpec,
    /// The job's seed.
    pub seed: u64,
    /// From how old parameters a gradient may come.
    pub consistency: Consistency,
    /// How gradients and parameters travel.
    pub wire: WireFormat,
    /// In which numbers to compute.
    pub precision: Precision,
    /// In how many parts the samples of a slot go through the model.
    pub parts: u32,
    /// After each so many steps the job's state is saved.
    pub saved_every: Option<u64>,
    /// The nodes that may hold what int8 has rounded off.
    pub holders: Vec<NodeId>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Which of the job's workers on its machine this one is, from 0.
    pub nth: u32,
    /// Who hands out slots.
    pub loader: ActorRef<DataLoader>,
    /// Where the parameters are.
    pub weights: Weights,
    /// The actor that the worker serves: it ends with it.
    pub owner: ActorAddr,
}

impl Actor for Worker {
    type Args = WorkerSpec;
    const NAME: &'static str = "training.worker";

    async fn start(spec: WorkerSpec, context: &Context<Self>) -> Result<Self> {
        let device = spec.device.resolve_nth(spec.nth as usize)?;
        let name = format!("worker-{}", spec.worker);
        let system = context.system();
        let replica = ReplicaThread::build(system, name, &spec.model, spec.seed, device).await?;
        let precision = spec.precision;
        replica.run(move |replica| replica.set_precision(precision)).await?;
        context.watch_addr(spec.owner);
        let me = context.me().addr();
        let pool = system.pool().clone();
        let (loader, loaders) = watch::channel(spec.loader.clone());
        let shards = spec.weights.shards.clone();
        let residuals = match spec.wire {
            WireFormat::Int8 => {
                let (every, peers) = (spec.saved_every, spec.holders.clone());
                let stay = Stay::new(system, &spec.job, every, &spec.weights, peers).await?;
                Some(Arc::new(stay))
            }
            _ => None,
        };
        let _residuals = residuals.clone();
        let work = Work { spec, me, replica, pool, loaders, residuals };
        context.run(async move { work.run().await });
        Ok(Worker { device, _residuals, loader, shards })
    }

    async fn down(&mut self, _: ActorAddr, _: Down, context: &Context<Self>) -> Result<()> {
        context.stop();
        Ok(())
    }
}

impl Handler<AskDevice> for Worker {
    async fn handle(&mut self, _: AskDevice, _: &Context<Self>) -> Device {
        self.device
    }
}

impl Handler<UseLoader> for Worker {
    async fn handle(&mut self, told: UseLoader, _: &Context<Self>) {
        self.loader.send_if_modified(|loader| {
            let is_news = loader.addr() != told.loader.addr();
            *loader = told.loader;
            is_news
        });
    }
}

impl Handler<UseShards> for Worker {
    async fn handle(&mut self, told: UseShards, _: &Context<Self>) {
        self.shards.move_to(told.shards);
    }
}

struct Work {
    spec: WorkerSpec,
    me: ActorAddr,
    replica: ReplicaThread,
    pool: BufferPool,
    loaders: watch::Receiver<ActorRef<DataLoader>>,
    /// What is rounded off gradients, if it is fed back.
    residuals: Option<Arc<Stay>>,
}

/// A slot that was begun, and is not pushed yet.
struct Begun {
    step: u64,
    slot: u32,
    pending: PendingGradient,
    /// What was rounded off the slot's step before.
    residual: Before,
}

/// The residual of a slot's step before.
enum Before {
    /// It is fed back to this step, or there was no step before.
    Is(Option<WireTensor>),
    /// Nobody has it.
    IsLost,
}

impl Work {
    /// Computes to the end, whatever shards move meanwhile.
    async fn run(&self) -> Result<()> {
        let mut moves = self.spec.weights.shards.moves();
        // How many steps are known to be applied everywhere.
        let mut committed = 0;
        // What was leased may be lost: the loader is to hand it out again.
        let mut anew = false;
        loop {
            // Where shards move, `compute` is dropped with the slot in hand, the question for the next one, all pushes.
            let outcome = tokio::select! {
                biased;
                _ = moves.changed() => None,
                outcome = self.compute(&mut committed, anew) => Some(outcome),
            };
            let lost = match outcome {
                None => None,
                Some(Err(Error::Call(error)))
                    if self.spec.weights.shards.are_replicated() && is_loss(error.cause()) =>
                {
                    Some(error)
                }
                Some(outcome) => return outcome,
            };
            if let Some(error) = lost
                && timeout(SUCCESSOR, moves.changed()).await.is_err()
            {
                return Err(error.into());
            }
            // Slots that a lost shard had been given and not applied are to be computed again, whoever has computed
            // them: what this worker was leased goes back. Parameters may have been set in part, and are pulled again.
            anew = true;
        }
    }

    /// Computes until there is nothing left. While a slot is computed, the next one's data travels, and the gradient of
    /// the one before goes to the shards.
    async fn compute(&self, committed: &mut u64, anew: bool) -> Result<()> {
        let consistency = self.spec.consistency;
        // The step that the replica's parameters were pulled for, and the steps that they have had at least.
        let mut pulled = None;
        let mut pushes = FuturesUnordered::new();
        let mut next = self.ask(*committed, anew).await?;
        while let Some(work) = next {
            let version = match pulled {
                Some((step, version)) if step == work.step && !consistency.is_by_slot() => version,
                // The step that is waited for may need the pushes.
                _ => beside(&mut pushes, self.pull(work.step)).await?,
            };
            pulled = Some((work.step, version));
            *committed = version.max(*committed);
            let mut asked = pin!(maybe_done(self.ask(*committed, false)));
            // The question goes out now. Its answer may need a push from here, so it is not waited for alone.
            let _ = poll!(&mut asked);
            // Otherwise the step was applied already: this slot had been pushed by another.
            if version <= work.step {
                let (step, slot) = (work.step, work.slot);
                let residual = self.residual_for(step, slot).map(Ok);
                let both = try_join(self.begin(work), residual);
                let (pending, residual) = beside(&mut pushes, both).await?;
                let begun = Begun { step, slot, pending, residual };
                // The gradient before the one before is out of the device's way.
                while pushes.len() > 1 {
                    pushes.try_next().await?;
                }
                pushes.push(self.push(begun));
            }
            beside(&mut pushes, asked.as_mut().map(Ok)).await?;
            next = asked.take_output().transpose()?.flatten();
        }
        while pushes.try_next().await?.is_some() {}
        Ok(())
    }

    /// Gives the replica parameters that a slot of this step may be computed from; says how many steps they have had.
    async fn pull(&self, step: u64) -> Result<u64> {
        let WorkerSpec { weights, consistency, wire, .. } = &self.spec;
        let pulled = match consistency.is_exact() {
            true => weights.pull_in(step, of_parameters(*wire)).await?,
            false => weights.pull_newest(consistency.oldest(step), of_parameters(*wire)).await?,
        };
        let version = pulled.number;
        pulled.load(&self.replica).await?;
        Ok(version)
    }

    /// Tells the loader of steps that are applied while its answer is waited for.
    async fn telling<T>(
        &self,
        loader: &ActorRef<DataLoader>,
        mut committed: u64,
        answer: impl Future<Output = T>,
    ) -> T {
        let mut answer = pin!(answer);
        loop {
            let applied = self.spec.weights.applied_at_least(committed + 1);
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                applied = applied => match applied {
                    Ok(version) => {
                        committed = version;
                        if let Err(error) = loader.call(StepsApplied { version }).await {
                            tracing::debug!(%error, "the loader was not told of steps");
                        }
                    }
                    // Whoever pulls or pushes next tells of it.
                    Err(_) => return answer.await,
                },
            }
        }
    }

    /// The next slot, from whichever loader the job has.
    async fn ask(&self, committed: u64, mut anew: bool) -> Result<Option<SlotWork>> {
        let mut loaders = self.loaders.clone();
        loop {
            let loader = loaders.borrow_and_update().clone();
            let ask = NextWork { worker: self.spec.worker, committed, from: Some(self.me), anew };
            let answer = loader.call_within(ask, VERSION_PATIENCE);
            // Who waits for versions tells of them with its questions. Where nobody does, somebody must.
            let answer = match self.spec.consistency.is_by_slot() {
                true => self.telling(&loader, committed, answer).await,
                false => answer.await,
            };
            let error = match answer {
                Ok(Err(NoWork::Data(why))) => return Err(self.unfit(why, &loader).await),
                Ok(answer) => return answer.map_err(Error::other),
                Err(error) => error,
            };
            match error.cause() {
                // Perhaps only the connection: then the same loader is asked again.
                Cause::Unreachable(_) => drop(timeout(ASK_AGAIN, loaders.changed()).await),
                cause if is_loss(cause) => {
                    if timeout(SUCCESSOR, loaders.changed()).await.is_err() {
                        return Err(Error::other(format!(
                            "the data loader is gone, and within {} s there was no other: {error}",
                            SUCCESSOR.as_secs()
                        )));
                    }
                }
                _ => return Err(error.into()),
            }
            anew = true;
        }
    }

    /// Tells the trainer that the data can't be used: to start this worker again would not help.
    async fn unfit(&self, why: String, loader: &ActorRef<DataLoader>) -> Error {
        let trainer = ActorRef::<Trainer>::at(self.spec.owner, loader.system());
        if let Err(error) = trainer.call(UnfitData { why: why.clone() }).await {
            tracing::debug!(%error, "the trainer could not be told that the data can't be used");
        }
        Error::other(why)
    }

    /// Has the device compute one slot. On the processor it is computed when this returns.
    async fn begin(&self, work: SlotWork) -> Result<PendingGradient> {
        let SlotWork { step, slot, batch, inputs, targets } = work;
        let (seed, parts) = (self.spec.seed, self.spec.parts as usize);
        let begun = self
            .replica
            .run(move |replica| {
                let draw = Draw { seed, step, slot, part: 0 };
                match replica.begin(&inputs, &targets, batch as usize, parts, draw) {
                    Err(error) if error.is_of_data() => Ok(Err(error.to_string())),
                    other => other.map(Ok),
                }
            })
            .await?;
        match begun {
            Ok(pending) => Ok(pending),
            Err(why) => {
                let loader = self.loaders.borrow().clone();
                Err(self.unfit(why, &loader).await)
            }
        }
    }

    /// Pushes a slot's gradient when it is there, all chunks at once.
    async fn push(&self, begun: Begun) -> Result<()> {
        let Begun { step, slot, pending, residual } = begun;
        let computed = self.replica.wait(pending).await?;
        let metrics = SlotMetrics {
            samples: computed.samples as u32,
            loss_sum: computed.loss_sum,
            correct: computed.correct as u32,
        };
        let weights = &self.spec.weights;
        let (got, expected) = (computed.gradient.len(), weights.layout.len());
        if got != expected {
            return Err(Error::other(format!(
                "the gradient has {got} floats, and the job's parameters have {expected}"
            )));
        }
        let chunks = match &self.residuals {
            None => self.encode(&computed.gradient)?,
            Some(residuals) => {
                let gradient = computed.gradient;
                let chunks = self.compensated(residuals, step, slot, gradient, residual).await?;
                // Otherwise somebody else has pushed this slot, and it is applied.
                let Some(chunks) = chunks else { return Ok(()) };
                chunks
            }
        };
        let pushes = (0..).zip(chunks).map(|(chunk, gradient)| async move {
            let metrics = (chunk == 0).then_some(metrics);
            let push = PushGradient { step, slot, chunk: chunk as u32, gradient, metrics };
            weights.shard(chunk)?.call(push).await?.map_err(Error::other)?;
            Ok::<_, Error>(())
        });
        try_join_all(pushes).await?;
        Ok(())
    }

    /// A gradient as it goes to the shards, by chunk.
    fn encode(&self, gradient: &HostTensor) -> Result<Vec<WireTensor>> {
        let layout = &self.spec.weights.layout;
        let chunks = (0..layout.chunks()).map(|chunk| {
            let range = layout.chunk(chunk).unwrap_or_default();
            let bytes = range.start * size_of::<f32>()..range.end * size_of::<f32>();
            // Not copied: the chunks share its memory.
            let part = gradient.bytes().slice(bytes);
            let part = HostTensor::from_bytes(DType::F32, &[range.len()], part)?;
            Ok(part.encoded_in(self.spec.wire, &self.pool))
        });
        chunks.collect()
    }

    /// What was rounded off the slot's step before, from wherever it is.
    async fn residual_for(&self, step: u64, slot: u32) -> Before {
        match &self.residuals {
            Some(residuals) if step > 0 => match residuals.find(step, slot).await {
                Some(residual) => {
                    // Until this step is applied, whoever it came from may be lost.
                    residuals.hold(step, slot, residual.clone());
                    Before::Is(Some(residual))
                }
                None => Before::IsLost,
            },
            _ => Before::Is(None),
        }
    }

    /// The same with what was rounded off the slot's step before; what is rounded off now is kept for the next. `None`
    /// for a step that is applied, whose residuals are gone.
    async fn compensated(
        &self,
        residuals: &Stay,
        step: u64,
        slot: u32,
        gradient: HostTensor,
        before: Before,
    ) -> Result<Option<Vec<WireTensor>>> {
        residuals.applied(step);
        let before = match before {
            Before::Is(before) => before,
            Before::IsLost if self.spec.weights.applied().await? > step => return Ok(None),
            Before::IsLost => {
                let loader = self.loaders.borrow().clone();
                let trainer = ActorRef::<Trainer>::at(self.spec.owner, loader.system());
                if let Err(error) = trainer.call(ResidualIsLost { slot, step }).await {
                    tracing::warn!(slot, step, %error, "a residual is lost, and the trainer was not told");
                }
                None
            }
        };
        let (layout, pool) = (self.spec.weights.layout.clone(), self.pool.clone());
        let work = move || compensate(&layout, &gradient, before.as_ref(), &pool);
        let done = tokio::task::spawn_blocking(work).await.map_err(Error::other)??;
        let Compensated { chunks, residual } = done;
        // Before the gradient goes out: once the step is applied, nobody can compute this again.
        residuals.put(step + 1, slot, residual).await;
        Ok(Some(chunks))
    }
}

/// How parameters travel where gradients travel like this: nothing feeds back what int8 would round off them.
fn of_parameters(wire: WireFormat) -> WireFormat {
    match wire {
        WireFormat::Int8 => WireFormat::Bf16,
        other => other,
    }
}

/// Does `work`, and goes on with the pushes meanwhile.
async fn beside<T>(
    pushes: &mut FuturesUnordered<impl Future<Output = Result<()>>>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            Some(pushed) = pushes.next() => pushed?,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn pushes_go_on_while_something_else_is_waited_for() {
        let (tell, told) = oneshot::channel::<()>();
        let mut pushes = FuturesUnordered::new();
        pushes.push(async move { tell.send(()).map_err(|()| Error::other("nobody waits")) });
        // What is waited for needs the push, as a question about the next slot may.
        let answer = beside(&mut pushes, async { told.await.map_err(Error::other) });
        timeout(Duration::from_secs(20), answer).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_push_that_fails_ends_the_wait() {
        let mut pushes = FuturesUnordered::new();
        pushes.push(async { Err(Error::other("the shard is gone")) });
        let never = beside(&mut pushes, std::future::pending::<Result<()>>());
        let failed = timeout(Duration::from_secs(20), never).await.unwrap().unwrap_err();
        assert!(failed.to_string().contains("the shard is gone"), "{failed}");
    }
}
