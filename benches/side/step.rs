//! A step of the parameter server: two processes, each with a worker and a shard. A worker pushes its
//! gradient chunk by chunk and pulls each chunk's next version, all at once, both in one format.

use std::ops::Range;

use anyhow::Context as _;
use footlight::{
    actors::{
        consistency::Consistency,
        parameters::{
            layout::Layout,
            optimizer::{OptimizerSpec, Sgd},
            replication::Configure,
            rule::StepRule,
            server::{Initialise, ParameterServer, Pull, PushGradient, SavedChunk, ShardSpec},
        },
    },
    prelude::*,
    runtime::tensor::{BufferPool, DType, WireFormat},
};
use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};

use crate::measure;

/// 25.6 million parameters: 102.4 MB.
pub(crate) const PARAMETERS: usize = 25_600_000;
const WORKERS: u32 = 2;
/// Every value of each worker's gradient.
pub(crate) const GRADIENT: f32 = 1e-3;
/// SGD's learning rate.
pub(crate) const RATE: f32 = 0.1;
/// Steps before the first that counts, and those that count.
pub(crate) const WARM_STEPS: u64 = 3;
pub(crate) const STEPS: u64 = 10;

/// Whether all of the steps were made, and rightly.
///
/// # Errors
/// If not.
pub(crate) fn check(parameters: &[f32]) -> anyhow::Result<()> {
    let wanted = -RATE * (WORKERS as f32 * GRADIENT) * (WARM_STEPS + STEPS) as f32;
    let are_right = parameters.iter().all(|value| (value - wanted).abs() < 1e-4);
    anyhow::ensure!(are_right, "the parameters are not what the gradients make of them");
    Ok(())
}

fn layout() -> anyhow::Result<Layout> {
    Ok(Layout::new([("flat", vec![PARAMETERS])], WORKERS as usize)?)
}

/// The worker beside the first shard: works until its process ends.
pub(crate) struct Worker;

impl Actor for Worker {
    type Args = ();
    const NAME: &'static str = "bench.worker";
    async fn start((): (), _: &Context<Self>) -> Result<Self> {
        Ok(Worker)
    }
}

/// Begin, with these shards.
#[derive(Serialize, Deserialize)]
pub(crate) struct Begin {
    shards: Vec<ActorRef<ParameterServer>>,
    format: WireFormat,
}

impl Message for Begin {
    type Reply = ();
    const NAME: &'static str = "bench.begin";
}

impl Handler<Begin> for Worker {
    async fn handle(&mut self, begin: Begin, context: &Context<Self>) {
        let pool = context.system().pool().clone();
        context.run(async move {
            let mut steps =
                Steps::new(begin.shards, 0, begin.format, pool).map_err(Error::other)?;
            loop {
                steps.step().await.map_err(Error::other)?;
            }
        });
    }
}

/// One worker's part in the steps.
struct Steps {
    shards: Vec<ActorRef<ParameterServer>>,
    chunks: Vec<(u32, Range<usize>)>,
    slot: u32,
    format: WireFormat,
    pool: BufferPool,
    step: u64,
    gradient: HostTensor,
    parameters: Vec<f32>,
}

impl Steps {
    fn new(
        shards: Vec<ActorRef<ParameterServer>>,
        slot: u32,
        format: WireFormat,
        pool: BufferPool,
    ) -> anyhow::Result<Self> {
        let layout = layout()?;
        let chunks = (0..layout.chunks())
            .filter_map(|chunk| layout.chunk(chunk).map(|range| (chunk as u32, range)));
        let gradient = HostTensor::from_vec(vec![GRADIENT; PARAMETERS], &[PARAMETERS])?;
        let (chunks, parameters) = (chunks.collect(), vec![0.0; PARAMETERS]);
        Ok(Steps { shards, chunks, slot, format, pool, step: 0, gradient, parameters })
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        let (step, slot, format, pool) = (self.step, self.slot, self.format, &self.pool);
        let mut pulled: FuturesUnordered<_> = self
            .chunks
            .iter()
            .map(|(chunk, range)| {
                let shard = &self.shards[*chunk as usize % self.shards.len()];
                let bytes = self.gradient.bytes().slice(range.start * 4..range.end * 4);
                async move {
                    let gradient = HostTensor::from_bytes(DType::F32, &[range.len()], bytes)?;
                    let gradient = gradient.encoded_in(format, pool);
                    let push = PushGradient { step, slot, chunk: *chunk, gradient, metrics: None };
                    let pull = Pull { chunk: *chunk, version: step + 1, format, newest: false };
                    // The answer to the push is behind it; nobody need wait for it first.
                    let (pushed, pulled) = tokio::join!(shard.call(push), shard.call(pull));
                    pushed??;
                    Ok::<_, anyhow::Error>((range.clone(), pulled??.params))
                }
            })
            .collect();
        while let Some(chunk) = pulled.next().await {
            let (range, params) = chunk?;
            params.copy_to(&mut self.parameters[range])?;
        }
        self.step += 1;
        Ok(())
    }
}

/// The median of a step, in ms, with the worker at `there` as the other one; each shard with a backup beside the other
/// worker, if they are replicated.
pub(crate) async fn measure(
    node: &Node,
    there: &ActorRef<Worker>,
    format: WireFormat,
    are_replicated: bool,
) -> anyhow::Result<f64> {
    let layout = layout()?;
    let spec = |shard| ShardSpec {
        layout: layout.clone(),
        shard,
        optimizer: OptimizerSpec::Sgd(Sgd::new(RATE.into())),
        rule: StepRule::default(),
        consistency: Consistency::default(),
        total_steps: WARM_STEPS + STEPS,
        slots: WORKERS,
        owner: there.addr(),
    };
    let beside = Placement::node(there.addr().node);
    let shards = vec![
        node.spawn::<ParameterServer>(spec(0)).on(beside.clone()).await?,
        node.spawn::<ParameterServer>(spec(1)).on(Placement::here()).await?,
    ];
    let initialised: FuturesUnordered<_> = (0..layout.chunks())
        .map(|chunk| {
            let shard = &shards[chunk % shards.len()];
            let length = layout.chunk(chunk).map_or(0, |range| range.len());
            async move {
                let params = HostTensor::from_vec(vec![0.0f32; length], &[length])?;
                shard
                    .call(Initialise { chunk: chunk as u32, state: SavedChunk::first(params) })
                    .await??;
                Ok::<_, anyhow::Error>(())
            }
        })
        .collect();
    initialised.try_collect::<Vec<_>>().await?;
    if are_replicated {
        let backups = [
            node.spawn::<ParameterServer>(spec(0)).on(Placement::here()).await?,
            node.spawn::<ParameterServer>(spec(1)).on(beside).await?,
        ];
        for (shard, backup) in shards.iter().zip(backups) {
            shard.call(Configure { view: 1, backups: vec![backup] }).await??;
        }
    }
    there.call(Begin { shards: shards.clone(), format }).await?;
    let pool = shards[0].system().pool().clone();
    // A task of the runtime works, as workers in earnest do.
    let worked = tokio::spawn(async move {
        let mut steps = Steps::new(shards, 1, format, pool)?;
        let mut samples = Vec::new();
        for step in 0..WARM_STEPS + STEPS {
            let (done, took) = measure::timed(steps.step()).await;
            done?;
            if step >= WARM_STEPS {
                samples.push(took);
            }
        }
        check(&steps.parameters)?;
        Ok(measure::us(measure::percentile(&mut samples, 0.5)) / 1e3)
    });
    worked.await.context("the worker panicked")?
}
