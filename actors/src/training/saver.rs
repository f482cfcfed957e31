//! Saves a running job's state.
//!
//! The shards are asked ahead of time for the state at the next step that is due. Each chunk is copied there in the
//! moment it gets to that step, and goes on; all the rest happens here while the job runs.

use footlight_runtime::{Error, Result};
use futures::future::join_all;
use tokio::time::Instant;

use super::{event::JobEvent, job::JobSpec, log::Log, parts::Placed, residuals::Stay};
use crate::{
    checkpoint::{Checkpoints, DataOf, JobOf, JobState, Store},
    data::loader::Description,
};

/// The job that a checkpoint is of.
pub(super) fn job_of(spec: &JobSpec, data: &Description) -> JobOf {
    JobOf {
        job: spec.name.clone(),
        model: spec.model.name.clone(),
        optimizer: spec.optimizer,
        data: DataOf::new(data, spec.batch, spec.slots, spec.seed),
    }
}

/// Saves the job whenever that is due, from now, when so many steps are applied, to its end. A state that can't be
/// written is told of and left out. Where `residuals` are fed back, they are got from the nodes that hold them.
///
/// # Errors
/// A shard that is lost, or that can't go on.
pub(super) async fn save(
    job: &Placed,
    log: &Log,
    applied: u64,
    residuals: Option<&Stay>,
) -> Result<()> {
    let Some(checkpoints) = &job.spec.checkpoints else { return Ok(()) };
    let steps = job.data.steps;
    let mut from = applied;
    while let Some(due) = checkpoints.due(from, steps) {
        from = due + 1;
        let Some(state) = job.weights.capture(due, &job.spec.optimizer).await? else {
            // It went by while the one before was being written, or while there was no trainer.
            from = from.max(job.weights.applied().await?);
            continue;
        };
        let began = Instant::now();
        match write(job, checkpoints, state, residuals).await {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                log.tell(JobEvent::Saved { steps: due, bytes, took: began.elapsed() });
            }
            Err(error) => {
                let why = error.to_string();
                tracing::warn!(steps = due, why, "a checkpoint could not be written");
                log.tell(JobEvent::NotSaved { steps: due, why });
            }
        }
    }
    Ok(())
}

/// Writes a state and deletes what is too old. Says how many bytes; `None` if it is there already.
async fn write(
    job: &Placed,
    checkpoints: &Checkpoints,
    mut state: JobState,
    residuals: Option<&Stay>,
) -> Result<Option<u64>> {
    // First of all: they are not kept for ever.
    if let Some(residuals) = residuals {
        let steps = state.steps;
        let slots = (0..job.spec.slots)
            .map(|slot| async move { (slot, residuals.find(steps, slot).await) });
        for (slot, found) in join_all(slots).await {
            match found {
                Some(residual) => drop(state.residuals.insert(slot, residual)),
                // Nothing is computed after the last step, unless the job is given more of them.
                None if steps == job.data.steps => {
                    tracing::warn!(slot, "the last state is saved without what was rounded off");
                }
                None => {
                    return Err(Error::other(format!(
                        "what int8 had rounded off slot {slot} was lost before it was saved"
                    )));
                }
            }
        }
    }
    let store = Store::open(checkpoints.at()).await.map_err(Error::other)?;
    if store.finished().await.map_err(Error::other)?.contains(&state.steps) {
        return Ok(None);
    }
    let of = job_of(&job.spec, &job.data);
    let written = store.save(&job.weights.layout, &of, state).await.map_err(Error::other)?;
    store.prune(checkpoints.kept()).await.map_err(Error::other)?;
    Ok(Some(written.bytes))
}
