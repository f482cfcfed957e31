//! What is saved of a job.

use std::collections::BTreeMap;

use super::CheckpointError;
use crate::parameters::{
    layout::Layout, optimizer::OptimizerSpec, rule::LossScale, server::SavedChunk,
};
use footlight_runtime::{Error, HostTensor, Result, tensor::WireTensor};

/// The state of a job between two steps: all that the steps after it depend on but its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    /// Steps that were applied.
    pub steps: u64,
    /// Of them, those that the optimiser took: the others were left out, as their gradient was not finite.
    pub taken: u64,
    /// Steps in a row that were left out, up to the last one.
    pub skipped: u32,
    /// What the loss is scaled by, in a job that computes in fp16.
    pub loss_scale: LossScale,
    /// All parameters, in the layout's order.
    pub params: Vec<f32>,
    /// What the optimiser remembers: each buffer's name, and as many floats as there are parameters.
    pub buffers: Vec<(String, Vec<f32>)>,
    /// What int8 had rounded off each slot's gradients, in the layout's order; of a job that feeds it back.
    pub residuals: BTreeMap<u32, WireTensor>,
}

impl JobState {
    /// The state before the first step.
    pub(crate) fn first(params: Vec<f32>) -> Self {
        JobState {
            steps: 0,
            taken: 0,
            skipped: 0,
            loss_scale: LossScale::default(),
            params,
            buffers: Vec::new(),
            residuals: BTreeMap::new(),
        }
    }

    /// Puts the chunks of one step together, in the layout's order.
    ///
    /// # Errors
    /// Chunks that are not of one step.
    pub(crate) fn of(
        layout: &Layout,
        optimizer: &OptimizerSpec,
        chunks: Vec<SavedChunk>,
    ) -> Result<Self> {
        let first = chunks.first().ok_or_else(|| Error::other("a job of no parameters"))?;
        let head = |chunk: &SavedChunk| (chunk.version, chunk.taken, chunk.skipped);
        let of_first = head(first);
        let names = optimizer.buffer_names();
        let mut state = JobState {
            steps: first.version,
            taken: first.taken,
            skipped: first.skipped,
            loss_scale: first.loss_scale,
            params: Vec::with_capacity(layout.len()),
            buffers: names
                .iter()
                .map(|name| ((*name).to_owned(), Vec::with_capacity(layout.len())))
                .collect(),
            residuals: BTreeMap::new(),
        };
        // Each is freed when it is copied.
        for (number, chunk) in chunks.into_iter().enumerate() {
            if head(&chunk) != of_first || chunk.buffers.len() != names.len() {
                return Err(Error::other(format!(
                    "chunk {number} is at {:?} and chunk 0 at {of_first:?} (steps, taken, left out): \
                     their shards work on different jobs",
                    head(&chunk)
                )));
            }
            state.params.extend_from_slice(chunk.params.as_slice()?);
            for ((_, flat), buffer) in state.buffers.iter_mut().zip(&chunk.buffers) {
                flat.extend_from_slice(buffer.as_slice()?);
            }
        }
        Ok(state)
    }

    /// What one chunk begins with.
    ///
    /// # Errors
    /// No such chunk.
    pub(crate) fn chunk(&self, layout: &Layout, chunk: usize) -> Result<SavedChunk> {
        let part = |flat: &[f32]| {
            let part = layout.chunk(chunk).and_then(|range| flat.get(range));
            let part = part.ok_or_else(|| Error::other(format!("there is no chunk {chunk}")))?;
            Ok::<_, Error>(HostTensor::from_vec(part.to_vec(), &[part.len()])?)
        };
        Ok(SavedChunk {
            version: self.steps,
            taken: self.taken,
            skipped: self.skipped,
            loss_scale: self.loss_scale,
            params: part(&self.params)?,
            buffers: self.buffers.iter().map(|(_, flat)| part(flat)).collect::<Result<_>>()?,
        })
    }

    /// Whether this is the state of a job with this optimiser; its settings may be others.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn fits(
        &self,
        checkpoint: &str,
        optimizer: &OptimizerSpec,
    ) -> std::result::Result<(), CheckpointError> {
        let found: Vec<&str> = self.buffers.iter().map(|(name, _)| name.as_str()).collect();
        let needed = optimizer.buffer_names();
        if found == needed {
            return Ok(());
        }
        Err(CheckpointError::OtherJob {
            checkpoint: checkpoint.to_owned(),
            why: format!("its optimiser remembers {found:?}, and this job's {needed:?}"),
        })
    }
}
