//! A model's parameters on their way from the shards to a replica.

use std::ops::Range;

use footlight_runtime::{ActorRef, Cause, Error, HostTensor, Result, tensor::WireFormat};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::{
    model::ReplicaThread,
    parameters::{
        layout::Layout,
        server::{Chunk, ParameterServer, Pull},
    },
};

/// How long a version may be waited for: another worker may have to be replaced before it comes.
pub(crate) const VERSION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// After a connection broke.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Where a job's parameters are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Weights {
    /// Which parameter lies where.
    pub layout: Layout,
    /// The shards, in the layout's order.
    pub shards: Vec<ActorRef<ParameterServer>>,
}

/// All chunks, all of one version.
#[derive(Clone, Debug)]
pub struct Version {
    /// The number of steps that had been applied.
    pub number: u64,
    /// What the loss is to be multiplied by.
    loss_scale: f32,
    chunks: Vec<(Range<usize>, HostTensor)>,
}

impl Weights {
    /// The shard that holds a chunk.
    pub(crate) fn shard(&self, chunk: usize) -> Result<&ActorRef<ParameterServer>> {
        let shard = self.layout.shard_of(chunk).and_then(|shard| self.shards.get(shard));
        shard.ok_or_else(|| Error::other(format!("no shard holds chunk {chunk}")))
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
        let all = (0..self.layout.chunks()).map(|chunk| self.pull_chunk(chunk, version, format));
        let mut pulled = try_join_all(all).await?;
        loop {
            // Chunks that were pulled while a step was being applied may differ by it.
            version = pulled.iter().map(|chunk| chunk.version).max().unwrap_or(version);
            let behind = pulled.iter_mut().enumerate().filter(|(_, chunk)| chunk.version < version);
            let again = behind.map(|(chunk, place)| async move {
                *place = self.pull_chunk(chunk, version, format).await?;
                Ok::<_, Error>(())
            });
            if try_join_all(again).await?.is_empty() {
                break;
            }
        }
        // The same for all chunks of a version.
        let loss_scale = pulled.first().map_or(1.0, |chunk| chunk.loss_scale);
        let chunks = pulled.into_iter().enumerate().map(|(number, chunk)| {
            let range = self.layout.chunk(number).unwrap_or_default();
            (range, chunk.params)
        });
        Ok(Version { number: version, loss_scale, chunks: chunks.collect() })
    }

    /// One chunk and its version.
    async fn pull_chunk(&self, chunk: usize, version: u64, format: WireFormat) -> Result<Pulled> {
        let pull = Pull { chunk: chunk as u32, version, format };
        let shard = self.shard(chunk)?;
        loop {
            match shard.call_within(pull, VERSION_PATIENCE).await {
                // The version may take its time, and a connection may break: asking again does no
                // harm, and a shard that is lost gives another error.
                Err(error) if matches!(error.cause(), Cause::TimedOut(_)) => {}
                Err(error)
                    if matches!(error.cause(), Cause::Unreachable(_) | Cause::CutOff { .. }) =>
                {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => {
                    let chunk = answer?.map_err(Error::other)?;
                    let Chunk { version, loss_scale, params } = chunk;
                    let params = params.into_tensor_in(shard.system().pool());
                    return Ok(Pulled { version, loss_scale, params });
                }
            }
        }
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
