//! The actor that computes gradients, slot by slot.

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Context, Down, Error, Handler, HostTensor, Message, Result,
    compute::{Device, DeviceChoice},
};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::weights::{VERSION_PATIENCE, Weights};
use crate::{
    data::loader::{DataLoader, NextWork, SlotWork},
    model::{Draw, ModelSpec, ReplicaThread},
    parameters::server::{PushGradient, SlotMetrics},
};

/// Computes slots until there are none left, and then waits to be stopped: so any end before that is
/// a loss, also that of a worker whose node leaves.
///
/// It holds nothing that would be lost with it: the data comes from the loader, the parameters from
/// the shards, and a slot that it did not finish is leased to another.
#[derive(Debug)]
pub struct Worker {
    device: Device,
}

/// Asks where a worker computes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskDevice;

impl Message for AskDevice {
    type Reply = Device;
    const NAME: &'static str = "training.device";
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
        context.watch_addr(spec.owner);
        let me = context.me().addr();
        context.run(async move { Work { spec, me, replica, version: None }.run().await });
        Ok(Worker { device })
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

struct Work {
    spec: WorkerSpec,
    me: ActorAddr,
    replica: ReplicaThread,
    /// The version that the replica has, whole.
    version: Option<u64>,
}

impl Work {
    async fn run(&mut self) -> Result<()> {
        let mut next = self.ask(0).await?;
        while let Some(work) = next {
            if self.version != Some(work.step) {
                let version = self.spec.weights.pull(work.step).await?;
                let number = version.number;
                version.load(&self.replica).await?;
                self.version = Some(number);
            }
            let committed = self.version.unwrap_or(0);
            // The next slot's data travels while this one is computed.
            if committed == work.step {
                let (asked, ()) = futures::try_join!(self.ask(committed), self.slot(work))?;
                next = asked;
            } else {
                // The step was applied already: this slot had been pushed by another.
                next = self.ask(committed).await?;
            }
        }
        Ok(())
    }

    async fn ask(&self, committed: u64) -> Result<Option<SlotWork>> {
        let ask = NextWork { worker: self.spec.worker, committed, from: Some(self.me) };
        let answer = self.spec.loader.call_within(ask, VERSION_PATIENCE).await?;
        answer.map_err(Error::other)
    }

    /// Computes one slot and pushes its gradient, all chunks at once.
    async fn slot(&self, work: SlotWork) -> Result<()> {
        let SlotWork { step, slot, batch, images, labels } = work;
        let draw = Draw { seed: self.spec.seed, step, slot };
        let computed = self
            .replica
            .run(move |replica| {
                let images = images.as_slice().unwrap_or_default();
                let labels = labels.as_slice().unwrap_or_default();
                replica.gradient(images, labels, batch as usize, draw)
            })
            .await?;
        let metrics = SlotMetrics {
            samples: computed.samples as u32,
            loss_sum: computed.loss_sum,
            correct: computed.correct as u32,
        };
        let weights = &self.spec.weights;
        let gradient = &computed.gradient;
        let pushes = (0..weights.layout.chunks()).map(|chunk| async move {
            let part = weights.layout.chunk(chunk).and_then(|range| gradient.get(range));
            let part = part.ok_or_else(|| {
                Error::other(format!(
                    "the gradient has {} floats and no chunk {chunk}",
                    gradient.len()
                ))
            })?;
            let push = PushGradient {
                step,
                slot,
                chunk: chunk as u32,
                gradient: HostTensor::from_vec(part.to_vec(), &[part.len()])?.into(),
                metrics: (chunk == 0).then_some(metrics),
            };
            weights.shard(chunk)?.call(push).await?.map_err(Error::other)?;
            Ok::<_, Error>(())
        });
        try_join_all(pushes).await?;
        Ok(())
    }
}
