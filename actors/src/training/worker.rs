//! The actor that computes gradients, slot by slot.

use std::{pin::pin, time::Duration};

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Cause, Context, Down, Error, Handler, HostTensor, Message, Result,
    compute::{Device, DeviceChoice},
    tensor::{BufferPool, DType, WireFormat},
};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{maybe_done, try_join_all},
    poll,
    stream::FuturesUnordered,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use super::weights::{VERSION_PATIENCE, Weights};
use crate::{
    data::loader::{DataLoader, NextWork, SlotWork},
    model::{Draw, ModelSpec, PendingGradient, Precision, ReplicaThread},
    parameters::server::{PushGradient, SlotMetrics},
};

/// After a connection broke, the loader is asked again so much later.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// When the loader is gone, its successor is waited for so long: as long as the trainer tries to
/// start one.
const SUCCESSOR: Duration = Duration::from_secs(60);

/// Computes slots until there are none left, and then waits to be stopped: so any end before that is
/// a loss, also that of a worker whose node leaves.
///
/// It holds nothing that would be lost with it: the data comes from the loader, the parameters from
/// the shards, and a slot that it did not finish is leased to another.
#[derive(Debug)]
pub struct Worker {
    device: Device,
    loader: watch::Sender<ActorRef<DataLoader>>,
}

/// Asks where a worker computes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskDevice;

impl Message for AskDevice {
    type Reply = Device;
    const NAME: &'static str = "training.device";
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
    /// The model.
    pub model: ModelSpec,
    /// The job's seed.
    pub seed: u64,
    /// How gradients and parameters travel.
    pub wire: WireFormat,
    /// In which numbers to compute.
    pub precision: Precision,
    /// In how many parts the samples of a slot go through the model.
    pub parts: u32,
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
        context.run(async move { Work { spec, me, replica, pool, loaders }.run().await });
        Ok(Worker { device, loader })
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

struct Work {
    spec: WorkerSpec,
    me: ActorAddr,
    replica: ReplicaThread,
    pool: BufferPool,
    loaders: watch::Receiver<ActorRef<DataLoader>>,
}

/// A slot that was begun, and is not pushed yet.
struct Begun {
    step: u64,
    slot: u32,
    pending: PendingGradient,
}

impl Work {
    /// While a slot is computed, the next one's data travels, and the gradient of the one before goes to the shards.
    async fn run(&self) -> Result<()> {
        let mut version = None;
        let mut pushes = FuturesUnordered::new();
        let mut next = self.ask(0).await?;
        while let Some(work) = next {
            if version != Some(work.step) {
                // The step that is waited for may need them.
                while pushes.try_next().await?.is_some() {}
                let pulled = self.spec.weights.pull_in(work.step, self.spec.wire).await?;
                let number = pulled.number;
                pulled.load(&self.replica).await?;
                version = Some(number);
            }
            let committed = version.unwrap_or(0);
            let mut asked = pin!(maybe_done(self.ask(committed)));
            // The question goes out now. Its answer may need a push from here, so it is not waited for alone.
            let _ = poll!(&mut asked);
            // Otherwise the step was applied already: this slot had been pushed by another.
            if committed == work.step {
                let begun = beside(&mut pushes, self.begin(work)).await?;
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

    /// The next slot, from whichever loader the job has.
    async fn ask(&self, committed: u64) -> Result<Option<SlotWork>> {
        let mut loaders = self.loaders.clone();
        let mut anew = false;
        loop {
            let loader = loaders.borrow_and_update().clone();
            let ask = NextWork { worker: self.spec.worker, committed, from: Some(self.me), anew };
            let error = match loader.call_within(ask, VERSION_PATIENCE).await {
                Ok(answer) => return answer.map_err(Error::other),
                Err(error) => error,
            };
            match error.cause() {
                // Perhaps only the connection: then the same loader is asked again.
                Cause::Unreachable(_) => drop(timeout(ASK_AGAIN, loaders.changed()).await),
                Cause::NodeLost(_) | Cause::Leaving(_) | Cause::NoSuchActor | Cause::Stopped => {
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

    /// Has the device compute one slot. On the processor it is computed when this returns.
    async fn begin(&self, work: SlotWork) -> Result<Begun> {
        let SlotWork { step, slot, batch, images, labels } = work;
        let (seed, parts) = (self.spec.seed, self.spec.parts as usize);
        let pending = self
            .replica
            .run(move |replica| {
                let images = images.as_slice().unwrap_or_default();
                let labels = labels.as_slice().unwrap_or_default();
                let draw = Draw { seed, step, slot, part: 0 };
                replica.begin(images, labels, batch as usize, parts, draw)
            })
            .await?;
        Ok(Begun { step, slot, pending })
    }

    /// Pushes a slot's gradient when it is there, all chunks at once.
    async fn push(&self, begun: Begun) -> Result<()> {
        let Begun { step, slot, pending } = begun;
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
        // Not copied: the chunks share its memory.
        let gradient = &computed.gradient;
        let pushes = (0..weights.layout.chunks()).map(|chunk| async move {
            let range = weights.layout.chunk(chunk).unwrap_or_default();
            let bytes = range.start * size_of::<f32>()..range.end * size_of::<f32>();
            let part = gradient.bytes().slice(bytes);
            let part = HostTensor::from_bytes(DType::F32, &[range.len()], part)?;
            let push = PushGradient {
                step,
                slot,
                chunk: chunk as u32,
                gradient: part.encoded_in(self.spec.wire, &self.pool),
                metrics: (chunk == 0).then_some(metrics),
            };
            weights.shard(chunk)?.call(push).await?.map_err(Error::other)?;
            Ok::<_, Error>(())
        });
        try_join_all(pushes).await?;
        Ok(())
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
