//! A model's parameters on their way from the shards to a replica.

use std::ops::Range;

use footlight_runtime::{ActorRef, Error, HostTensor, Result, Streamed, tensor::WireFormat};
use futures::{Stream, StreamExt, future::try_join_all, stream};
use serde::{Deserialize, Serialize};

use super::shards::Shards;
use crate::{
    checkpoint::JobState,
    model::ReplicaThread,
    parameters::{
        ParameterServer,
        layout::Layout,
        optimizer::OptimizerSpec,
        server::{
            AskVersion, AwaitVersion, Capture, CaptureError, Chunk, FollowSteps, Pull, StepDone,
        },
    },
};

/// How long a version may be waited for: another worker may have to be replaced before it comes.
pub(crate) const VERSION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Where a job's parameters are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Weights {
    /// Which parameter lies where.
    pub layout: Layout,
    /// The shards, in the layout's order.
    pub shards: Shards,
}

/// All chunks; of one version, unless the [newest](Weights::pull_newest) were wanted.
#[derive(Clone, Debug)]
pub struct Version {
    /// The number of steps that had been applied; to each chunk at least.
    pub number: u64,
    /// What the loss is to be multiplied by.
    loss_scale: f32,
    chunks: Vec<(Range<usize>, HostTensor)>,
}

impl Weights {
    /// The number of the shard that holds a chunk.
    pub(crate) fn shard_of(&self, chunk: usize) -> Result<usize> {
        let shard = self.layout.shard_of(chunk);
        shard.ok_or_else(|| Error::other(format!("no shard holds chunk {chunk}")))
    }

    /// The shard that holds a chunk, where it is now.
    pub(crate) fn shard(&self, chunk: usize) -> Result<ActorRef<ParameterServer>> {
        self.shards.get(self.shard_of(chunk)?)
    }

    /// Pulls all chunks as soon as they have at least this version; all of one version, and exactly
    /// this one unless the job is further already.
    ///
    /// # Errors
    /// A shard that is lost, or that can't go on because the training diverged.
    pub async fn pull(&self, version: u64) -> Result<Version> {
        self.pull_in(version, WireFormat::F32).await
    }

    /// As [`pull`](Self::pull), with parameters that travel in `format` and are rounded by it.
    ///
    /// # Errors
    /// As there.
    pub async fn pull_in(&self, version: u64, format: WireFormat) -> Result<Version> {
        let mut version = version;
        let exactly =
            |chunk, version| self.pull_chunk(Pull { chunk, version, format, newest: false });
        let all = (0..self.layout.chunks()).map(|chunk| exactly(chunk as u32, version));
        let mut pulled = try_join_all(all).await?;
        loop {
            // Chunks that were pulled while a step was being applied may differ by it.
            version = pulled.iter().map(|chunk| chunk.version).max().unwrap_or(version);
            let behind = pulled.iter_mut().enumerate().filter(|(_, chunk)| chunk.version < version);
            let again = behind.map(|(chunk, place)| async move {
                *place = exactly(chunk as u32, version).await?;
                Ok::<_, Error>(())
            });
            if try_join_all(again).await?.is_empty() {
                break;
            }
        }
        Ok(self.version(version, pulled))
    }

    /// Pulls the newest parameters of each chunk as soon as it has at least this version; one may be further than
    /// another.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn pull_newest(&self, version: u64, format: WireFormat) -> Result<Version> {
        let newest = |chunk| self.pull_chunk(Pull { chunk, version, format, newest: true });
        let all = (0..self.layout.chunks()).map(|chunk| newest(chunk as u32));
        let pulled = try_join_all(all).await?;
        let least = pulled.iter().map(|chunk| chunk.version).min().unwrap_or(version);
        Ok(self.version(least, pulled))
    }

    fn version(&self, number: u64, pulled: Vec<Pulled>) -> Version {
        // The same for all chunks of a version; of several versions any will do, as gradients are divided by it.
        let loss_scale = pulled.first().map_or(1.0, |chunk| chunk.loss_scale);
        let chunks = pulled.into_iter().enumerate().map(|(number, chunk)| {
            let range = self.layout.chunk(number).unwrap_or_default();
            (range, chunk.params)
        });
        Version { number, loss_scale, chunks: chunks.collect() }
    }

    /// One chunk and its version.
    async fn pull_chunk(&self, pull: Pull) -> Result<Pulled> {
        let shard = self.shard_of(pull.chunk as usize)?;
        let chunk = self.shards.ask(shard, pull).await?.map_err(Error::other)?;
        let Chunk { version, loss_scale, params } = chunk;
        let params = params.into_tensor_in(self.shards.get(shard)?.system().pool());
        Ok(Pulled { version, loss_scale, params })
    }

    /// The job's state right after so many steps, as soon as they are applied. `None` if some chunk is further already.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub(crate) async fn capture(
        &self,
        steps: u64,
        optimizer: &OptimizerSpec,
    ) -> Result<Option<JobState>> {
        let chunks = (0..self.layout.chunks()).map(|chunk| async move {
            let capture = Capture { chunk: chunk as u32, version: steps };
            match self.shards.ask(self.shard_of(chunk)?, capture).await? {
                Ok(chunk) => Ok(Some(chunk)),
                Err(CaptureError::GoneBy { .. }) => Ok(None),
                Err(CaptureError::Refused(error)) => Err(Error::other(error)),
            }
        });
        let chunks: Option<Vec<_>> = try_join_all(chunks).await?.into_iter().collect();
        chunks.map(|chunks| JobState::of(&self.layout, optimizer, chunks)).transpose()
    }

    /// How many steps were applied to every chunk. It waits for no gradient: if a worker died between
    /// its pushes, some chunks are a step further than others, and stay so until somebody computes its slot again.
    ///
    /// # Errors
    /// A shard that is lost.
    pub async fn applied(&self) -> Result<u64> {
        let all = (0..self.shards.len()).map(|shard| self.shards.ask(shard, AskVersion));
        let versions = try_join_all(all).await?;
        // `None`, where nothing is initialised yet, is smaller than any version.
        Ok(versions.into_iter().min().flatten().unwrap_or(0))
    }

    /// Waits until so many steps are applied to every chunk; says how many are.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub(crate) async fn applied_at_least(&self, version: u64) -> Result<u64> {
        let all = (0..self.shards.len()).map(|shard| async move {
            let told = self.shards.ask(shard, AwaitVersion { version }).await?;
            told.map_err(Error::other)
        });
        let versions = try_join_all(all).await?;
        Ok(versions.into_iter().min().unwrap_or(version))
    }

    /// The steps that are applied, in order, from step `from` on; also when the shard that tells them is lost and
    /// another one takes its place.
    pub(crate) fn steps(&self, from: u64) -> impl Stream<Item = Result<StepDone>> + use<> {
        let shards = self.shards.clone();
        let begin = (shards, from, None::<Streamed<StepDone>>);
        stream::try_unfold(begin, async |(shards, from, mut steps)| {
            loop {
                let open = match &mut steps {
                    Some(open) => open,
                    // It remembers what came since.
                    None => steps.insert(shards.ask(0, FollowSteps { from }).await?),
                };
                match open.next().await {
                    Some(Ok(done)) => return Ok(Some((done, (shards, done.step + 1, steps)))),
                    _ => steps = None,
                }
            }
        })
    }
}

/// One chunk of one version.
struct Pulled {
    version: u64,
    loss_scale: f32,
    params: HostTensor,
}

impl Version {
    /// Sets a replica's parameters.
    ///
    /// # Errors
    /// If the model has other parameters.
    pub async fn load(self, replica: &ReplicaThread) -> Result<()> {
        // Checked here, so that the thread has nothing to refuse but the model's own shape.
        for (_, params) in &self.chunks {
            params.as_slice::<f32>()?;
        }
        replica
            .run(move |replica| {
                replica.set_loss_scale(self.loss_scale);
                self.chunks.iter().try_for_each(|(range, params)| {
                    replica.set_chunk(range.clone(), params.as_slice().unwrap_or_default())
                })
            })
            .await
    }

    /// The parameters as one array.
    ///
    /// # Errors
    /// If a chunk is not `f32`.
    pub fn flat(&self) -> Result<Vec<f32>> {
        let mut flat = Vec::new();
        for (_, params) in &self.chunks {
            flat.extend_from_slice(params.as_slice::<f32>()?);
        }
        Ok(flat)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::{
        consistency::Consistency,
        on_one_node::{Owner, soon, system},
        parameters::{
            ShardSpec,
            optimizer::Sgd,
            rule::StepRule,
            server::{Initialise, PushGradient, SavedChunk},
        },
    };

    /// Two shards with a chunk each, and one slot a step.
    #[tokio::test]
    async fn what_was_applied_everywhere_is_told_also_when_a_worker_died_between_its_pushes() {
        const LEN: usize = 32;
        let system = system().await;
        let owner = system.spawn::<Owner>(()).await.unwrap();
        let layout = Layout::new([("all", vec![2 * LEN])], 2).unwrap();
        let floats = || HostTensor::from_vec(vec![1.0f32; LEN], &[LEN]).unwrap();
        let mut shards = Vec::new();
        for shard in 0..2 {
            let spec = ShardSpec {
                layout: layout.clone(),
                shard,
                optimizer: Sgd::new(1.0).into(),
                rule: StepRule::default(),
                consistency: Consistency::default(),
                total_steps: 100,
                slots: 1,
                owner: owner.addr(),
            };
            shards.push(system.spawn::<ParameterServer>(spec).await.unwrap());
        }
        let weights = Weights { layout, shards: Shards::new(shards, false) };
        let shards = weights.shards.now();
        assert_eq!(soon(weights.applied()).await.unwrap(), 0);
        for (chunk, shard) in (0..).zip(&shards) {
            let first = Initialise { chunk, state: SavedChunk::first(floats()) };
            soon(shard.call(first)).await.unwrap().unwrap();
        }
        let push = async |step, chunk: u32| {
            let gradient = floats().into();
            let push = PushGradient { step, slot: 0, chunk, gradient, metrics: None };
            soon(shards[chunk as usize].call(push)).await.unwrap().unwrap();
        };
        push(0, 0).await;
        push(0, 1).await;
        assert_eq!(soon(weights.applied()).await.unwrap(), 1);
        // And here it dies.
        push(1, 0).await;
        assert_eq!(soon(weights.applied()).await.unwrap(), 1);
        assert_eq!(soon(weights.pull(1)).await.unwrap().number, 1);
        assert!(weights.pull(0).now_or_never().is_none(), "it waits for the other chunk");
        // Its slot is computed again.
        push(1, 0).await;
        push(1, 1).await;
        assert_eq!(soon(weights.applied()).await.unwrap(), 2);
    }
}
