//! The actor that computes gradients, slot by slot.

use std::time::Duration;

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Cause, Context, Down, Error, Handler, HostTensor, Message, Result,
    compute::{Device, DeviceChoice},
    tensor::{BufferPool, DType, WireFormat},
};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use super::{
    shards::{SUCCESSOR, Shards, is_loss},
    trainer::{Trainer, UnfitData},
    weights::{VERSION_PATIENCE, Weights},
};
use crate::{
    data::{
        loader::{DataLoader, NextWork, NoWork, SlotWork},
        rows,
    },
    model::{AnyReplica, Draw, ModelError, ModelSpec, Precision, ReplicaThread, SlotGradient},
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
/// the shards, and a slot that it did not finish is leased to another.
#[derive(Debug)]
pub struct Worker {
    device: Device,
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
        let shards = spec.weights.shards.clone();
        let work =
            Work { spec, me, replica, pool, loaders, version: None, committed: 0, anew: false };
        context.run(work.run());
        Ok(Worker { device, loader, shards })
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
    /// The version that the replica has, whole.
    version: Option<u64>,
    /// How many steps are known to be applied everywhere.
    committed: u64,
    /// What was leased may be lost: the loader is to hand it out again.
    anew: bool,
}

impl Work {
    /// Computes to the end, whatever shards move meanwhile.
    async fn run(mut self) -> Result<()> {
        let mut moves = self.spec.weights.shards.moves();
        loop {
            let outcome = tokio::select! {
                biased;
                _ = moves.changed() => None,
                outcome = self.compute() => Some(outcome),
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
            // them: what this worker was leased goes back. Parameters may have been set in part.
            self.anew = true;
            self.version = None;
        }
    }

    /// Computes until there is nothing left.
    async fn compute(&mut self) -> Result<()> {
        let anew = std::mem::take(&mut self.anew);
        let mut next = self.ask(anew).await?;
        while let Some(work) = next {
            if self.version != Some(work.step) {
                let version = self.spec.weights.pull_in(work.step, self.spec.wire).await?;
                let number = version.number;
                version.load(&self.replica).await?;
                self.version = Some(number);
            }
            self.committed = self.version.unwrap_or(0).max(self.committed);
            // The next slot's data travels while this one is computed.
            if self.version == Some(work.step) {
                let (asked, ()) = futures::try_join!(self.ask(false), self.slot(work))?;
                next = asked;
            } else {
                // The step was applied already: this slot had been pushed by another.
                next = self.ask(false).await?;
            }
        }
        Ok(())
    }

    /// The next slot, from whichever loader the job has.
    async fn ask(&self, mut anew: bool) -> Result<Option<SlotWork>> {
        let (mut loaders, committed) = (self.loaders.clone(), self.committed);
        loop {
            let loader = loaders.borrow_and_update().clone();
            let ask = NextWork { worker: self.spec.worker, committed, from: Some(self.me), anew };
            let error = match loader.call_within(ask, VERSION_PATIENCE).await {
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

    /// Computes one slot and pushes its gradient, all chunks at once.
    async fn slot(&self, work: SlotWork) -> Result<()> {
        let SlotWork { step, slot, batch, inputs, targets } = work;
        let (seed, parts) = (self.spec.seed, self.spec.parts as usize);
        let computed = self
            .replica
            .run(move |replica| {
                let draw = |part| Draw { seed, step, slot, part };
                match in_parts(replica, &inputs, &targets, batch as usize, parts, draw) {
                    Err(error) if error.is_of_data() => Ok(Err(error.to_string())),
                    other => other.map(Ok),
                }
            })
            .await?;
        let computed = match computed {
            Ok(computed) => computed,
            Err(why) => {
                let loader = self.loaders.borrow().clone();
                return Err(self.unfit(why, &loader).await);
            }
        };
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
        let gradient = &HostTensor::from_vec(computed.gradient, &[got])?;
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

/// The gradient of a slot whose samples go through the model in so many parts: their gradients' sum.
fn in_parts(
    replica: &mut dyn AnyReplica,
    inputs: &HostTensor,
    targets: &HostTensor,
    batch: usize,
    parts: usize,
    draw: impl Fn(u32) -> Draw,
) -> std::result::Result<SlotGradient, ModelError> {
    let all = targets.shape().first().copied().unwrap_or(0);
    let samples = all.div_ceil(parts.max(1));
    if samples == 0 || samples == all {
        return replica.gradient(inputs, targets, batch, draw(0));
    }
    let ranges = (0..all).step_by(samples).map(|first| first..(first + samples).min(all));
    let mut sum: Option<SlotGradient> = None;
    for (part, range) in (0..).zip(ranges) {
        let (Some(inputs), Some(targets)) = (rows(inputs, range.clone()), rows(targets, range))
        else {
            // Not as many of one as of the other: told by the model.
            return replica.gradient(inputs, targets, batch, draw(0));
        };
        let one = replica.gradient(&inputs, &targets, batch, draw(part))?;
        match &mut sum {
            None => sum = Some(one),
            Some(sum) => {
                sum.loss_sum += one.loss_sum;
                sum.correct += one.correct;
                sum.samples += one.samples;
                sum.gradient.iter_mut().zip(one.gradient).for_each(|(sum, one)| *sum += one);
            }
        }
    }
    sum.map_or_else(|| replica.gradient(inputs, targets, batch, draw(0)), Ok)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::{LeNet5, Replica};

    #[test]
    fn a_slot_in_parts_has_the_gradient_of_the_whole() {
        let mut replica = Replica::<LeNet5>::new(3, Device::Cpu).unwrap();
        let images: Vec<u8> = (0..10 * 784).map(|at| (at % 251) as u8).collect();
        let images = HostTensor::from_vec(images, &[10, 28, 28]).unwrap();
        let labels = HostTensor::from_vec((0..10u8).collect(), &[10]).unwrap();
        let draw = |part| Draw { seed: 1, step: 2, slot: 3, part };
        let mut of = |parts| in_parts(&mut replica, &images, &labels, 12, parts, draw).unwrap();
        let whole = of(1);
        for parts in [2, 3, 10, 99] {
            let sum = of(parts);
            assert_eq!((sum.samples, sum.correct), (10, whole.correct));
            assert!((sum.loss_sum / whole.loss_sum - 1.0).abs() < 1e-5);
            for (sum, whole) in sum.gradient.iter().zip(&whole.gradient) {
                assert!((sum - whole).abs() < 1e-5, "{parts} parts: {sum} {whole}");
            }
        }
    }

    #[test]
    fn a_slot_of_no_samples_has_a_gradient_of_zeros_in_parts_too() {
        let mut replica = Replica::<LeNet5>::new(3, Device::Cpu).unwrap();
        let draw = |part| Draw { seed: 1, step: 2, slot: 3, part };
        let images = HostTensor::from_vec(Vec::<u8>::new(), &[0, 28, 28]).unwrap();
        let labels = HostTensor::from_vec(Vec::<u8>::new(), &[0]).unwrap();
        let none = in_parts(&mut replica, &images, &labels, 12, 3, draw).unwrap();
        assert!(none.samples == 0 && none.gradient.iter().all(|number| *number == 0.0));
    }
}
