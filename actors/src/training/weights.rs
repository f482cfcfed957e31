//! A model's parameters on their way from the shards to a replica.

use std::ops::Range;

use footlight_runtime::{ActorRef, Cause, Error, HostTensor, Result};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::{
    model::ReplicaThread,
    parameters::{
        layout::Layout,
        server::{ParameterServer, Pull},
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
    pub shards: Vec<ActorRef<ParameterServer>>,
}

/// All chunks of one version.
#[derive(Clone, Debug)]
pub struct Version {
    /// The number of steps that had been applied.
    pub number: u64,
    chunks: Vec<(Range<usize>, HostTensor)>,
}

impl Weights {
    /// The shard that holds a chunk.
    pub(crate) fn shard(&self, chunk: usize) -> Result<&ActorRef<ParameterServer>> {
        let shard = self.layout.shard_of(chunk).and_then(|shard| self.shards.get(shard));
        shard.ok_or_else(|| Error::other(format!("no shard holds chunk {chunk}")))
    }

    /// Pulls all chunks as soon as they have at least this version.
    ///
    /// # Errors
    /// A shard that is lost, or that can't go on because the training diverged.
    pub async fn pull(&self, version: u64) -> Result<Version> {
        let pulls = (0..self.layout.chunks()).map(|number| async move {
            let range = self
                .layout
                .chunk(number)
                .ok_or_else(|| Error::other(format!("the layout has no chunk {number}")))?;
            let pull = Pull { chunk: number as u32, version };
            let shard = self.shard(number)?;
            let chunk = loop {
                match shard.call_within(pull, VERSION_PATIENCE).await {
                    // The version may take its time; a shard that is lost gives another error.
                    Err(error) if matches!(error.cause(), Cause::TimedOut(_)) => {}
                    answer => break answer?.map_err(Error::other)?,
                }
            };
            Ok::<_, Error>((chunk.version, range, chunk.params))
        });
        let pulled = try_join_all(pulls).await?;
        let number = pulled.iter().map(|(version, ..)| *version).min().unwrap_or(version);
        let chunks = pulled.into_iter().map(|(_, range, params)| (range, params)).collect();
        Ok(Version { number, chunks })
    }
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
