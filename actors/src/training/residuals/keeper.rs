//! The actor through which nodes get residuals from each other, and have them kept.

use std::sync::Arc;

use footlight_runtime::{Actor, Context, Handler, Message, Result, tensor::WireTensor};
use serde::{Deserialize, Serialize};

use super::{JobId, Residuals};

/// Answers for a node's residuals to other nodes. There is one wherever a job that feeds back what it rounds off has a
/// part.
#[derive(Debug)]
pub struct ResidualKeeper {
    residuals: Arc<Residuals>,
}

/// Asks for the residual of a slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AskResidual {
    /// Of which job.
    pub job: JobId,
    /// The step that it is for.
    pub step: u64,
    /// The slot.
    pub slot: u32,
}

impl Message for AskResidual {
    /// As many floats as the job has parameters, as int8, if the node has it.
    type Reply = Option<WireTensor>;
    const NAME: &'static str = "training.ask_residual";
}

/// Has a node keep the residual of a slot that was computed on another one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeepResidual {
    /// Of which job.
    pub job: JobId,
    /// The step that it is for.
    pub step: u64,
    /// The slot.
    pub slot: u32,
    /// As many floats as the job has parameters, as int8.
    pub residual: WireTensor,
    /// After each so many steps the job's state is saved.
    pub saved_every: Option<u64>,
}

impl Message for KeepResidual {
    /// Whether the node has it now; not if it has no room.
    type Reply = bool;
    const NAME: &'static str = "training.keep_residual";
}

/// Tells a node that a job's residuals are wanted still, or not any more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AreWanted {
    /// Which job's.
    pub job: JobId,
    /// Otherwise the job is over.
    pub wanted: bool,
}

impl Message for AreWanted {
    type Reply = ();
    const NAME: &'static str = "training.are_residuals_wanted";
}

impl Actor for ResidualKeeper {
    type Args = ();
    const NAME: &'static str = "training.residual_keeper";

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let residuals = context.system().extension::<Residuals>().unwrap_or_default();
        Ok(ResidualKeeper { residuals })
    }
}

impl Handler<AskResidual> for ResidualKeeper {
    async fn handle(&mut self, ask: AskResidual, _: &Context<Self>) -> Option<WireTensor> {
        self.residuals.get(&ask.job, ask.step, ask.slot)
    }
}

impl Handler<KeepResidual> for ResidualKeeper {
    async fn handle(&mut self, keep: KeepResidual, context: &Context<Self>) -> bool {
        let is_kept = self.residuals.keep(keep);
        self.residuals.are_swept(context.system());
        is_kept
    }
}

impl Handler<AreWanted> for ResidualKeeper {
    async fn handle(&mut self, told: AreWanted, _: &Context<Self>) {
        self.residuals.are_wanted(&told.job, told.wanted);
    }
}
