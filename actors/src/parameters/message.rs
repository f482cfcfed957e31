//! What a shard is started with, told and asked.

use footlight_runtime::{
    ActorAddr, HostTensor, Message, Streamed,
    tensor::{WireFormat, WireTensor},
};
use serde::{Deserialize, Serialize};

use super::{
    layout::Layout,
    optimizer::OptimizerSpec,
    rule::{LossScale, StepRule},
    shard::ShardError,
};
use crate::consistency::Consistency;

/// What a shard is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardSpec {
    /// Where each parameter lies.
    pub layout: Layout,
    /// Which shard of the layout this is.
    pub shard: u32,
    /// How gradients become parameters.
    pub optimizer: OptimizerSpec,
    /// What is to be known of a whole gradient first. If it is anything, the shards must [meet](super::gate::Meet).
    pub rule: StepRule,
    /// How far apart the workers may be.
    pub consistency: Consistency,
    /// Steps of the whole job, for the learning rate's schedule.
    pub total_steps: u64,
    /// Slots of each step.
    pub slots: u32,
    /// The actor that the shard serves, until another one adopts it.
    pub owner: ActorAddr,
}

/// Gives a chunk what it begins with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Initialise {
    /// Which chunk.
    pub chunk: u32,
    /// Its first parameters, or what it had after some steps.
    pub state: SavedChunk,
}

impl Message for Initialise {
    type Reply = std::result::Result<(), PushError>;
    const NAME: &'static str = "parameters.initialise";
}

/// A chunk between two steps, as it travels: all that the steps after it depend on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedChunk {
    /// Steps that were applied.
    pub version: u64,
    /// Of them, those that the optimiser took.
    pub taken: u64,
    /// Steps in a row that were left out, up to this version.
    pub skipped: u32,
    /// What the loss is scaled by, where the [rule](StepRule) says so.
    pub loss_scale: LossScale,
    /// As many `f32` as the chunk has.
    pub params: HostTensor,
    /// The optimiser's [buffers](super::optimizer::OptimizerSpec::buffer_names), as long as `params`. None at
    /// version 0.
    pub buffers: Vec<HostTensor>,
}

impl SavedChunk {
    /// A chunk's first parameters.
    pub fn first(params: HostTensor) -> Self {
        SavedChunk {
            version: 0,
            taken: 0,
            skipped: 0,
            loss_scale: LossScale::default(),
            params,
            buffers: Vec::new(),
        }
    }
}

/// Asks for the state of a chunk right after so many steps, ahead of time: answered when it is there, with a copy made
/// before the next step.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Capture {
    /// Which chunk.
    pub chunk: u32,
    /// The number of steps that must have been applied.
    pub version: u64,
}

impl Message for Capture {
    type Reply = std::result::Result<SavedChunk, CaptureError>;
    const NAME: &'static str = "parameters.capture";
}

/// Why a state can't be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CaptureError {
    /// The question came too late.
    #[error("chunk {chunk} is at step {version} already")]
    GoneBy {
        /// The chunk.
        chunk: u32,
        /// Steps that were applied to it.
        version: u64,
    },
    /// There is no such chunk, or no further step will come.
    #[error(transparent)]
    Refused(#[from] PushError),
}

/// One slot's gradient of one chunk.
#[derive(Debug, Serialize, Deserialize)]
pub struct PushGradient {
    /// Which step, from 0.
    pub step: u64,
    /// Which slot of it.
    pub slot: u32,
    /// Which chunk.
    pub chunk: u32,
    /// As many `f32` as the chunk has, in whatever format they travel; they are summed as `f32`.
    pub gradient: WireTensor,
    /// What the slot has to report of itself; it comes with one chunk, and counts once as the
    /// gradient does.
    pub metrics: Option<SlotMetrics>,
}

impl Message for PushGradient {
    type Reply = std::result::Result<Pushed, PushError>;
    const NAME: &'static str = "parameters.push";
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pushed {
    /// It counts.
    Accepted,
    /// The slot had been pushed before: this one is dropped, and nothing is lost by it.
    Repeated,
}

/// A gradient or parameters that a shard can't take: the job can't go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct PushError(pub String);

impl From<ShardError> for PushError {
    fn from(error: ShardError) -> Self {
        PushError(error.to_string())
    }
}

/// What one slot reports.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SlotMetrics {
    /// Its samples.
    pub samples: u32,
    /// Their losses' sum.
    pub loss_sum: f32,
    /// How many were classified rightly before the step.
    pub correct: u32,
}

/// Asks for a version of a chunk's parameters; answered as soon as it is there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Pull {
    /// Which chunk.
    pub chunk: u32,
    /// The number of steps that must have been applied. Exactly this version is given if it is the
    /// newest, or the one before that; else the newest.
    ///
    /// The one before is what makes a slot that has to be computed again the same as the first time:
    /// a worker may have died between its pushes, so that some chunks are a version further than
    /// those that still wait for it. None is two further, as that takes a gradient of all chunks.
    pub version: u64,
    /// The newest version is wanted, in place of exactly this one.
    pub newest: bool,
    /// How the parameters are to travel; the shard keeps them as `f32` all the same.
    pub format: WireFormat,
}

impl Message for Pull {
    type Reply = std::result::Result<Chunk, PushError>;
    const NAME: &'static str = "parameters.pull";
}

/// Asks how many steps were applied to every chunk of a shard; `None` while one has no parameters. Answered at once,
/// unlike a [`Pull`], which may wait for gradients that nobody is there to push.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AskVersion;

impl Message for AskVersion {
    type Reply = Option<u64>;
    const NAME: &'static str = "parameters.version";
}

/// Asks to be told when so many steps are applied to every chunk of a shard: a [`Pull`] without the parameters.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AwaitVersion {
    /// How many.
    pub version: u64,
}

impl Message for AwaitVersion {
    /// How many are.
    type Reply = std::result::Result<u64, PushError>;
    const NAME: &'static str = "parameters.await_version";
}

/// A chunk's parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    /// The number of steps that they have had.
    pub version: u64,
    /// What the loss is to be multiplied by for this version; 1 unless the [rule](StepRule) says otherwise.
    pub loss_scale: f32,
    /// The parameters, `f32` in the format that was asked for.
    pub params: WireTensor,
}

/// Asks to be told of each step that is applied, in order. Of those that are applied already, the
/// server remembers the latest 8,192.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct FollowSteps {
    /// The first step to tell of.
    pub from: u64,
}

impl Message for FollowSteps {
    type Reply = Streamed<StepDone>;
    const NAME: &'static str = "parameters.follow_steps";
}

/// A step that was applied, and what its slots reported: each slot counts once, whoever computed it
/// and how often.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepDone {
    /// Which step, from 0.
    pub step: u64,
    /// Samples of its batch.
    pub samples: u32,
    /// Their losses' sum.
    pub loss_sum: f32,
    /// How many were classified rightly before the step.
    pub correct: u32,
    /// The norm of its whole gradient, before it was clipped; only under a [rule](StepRule) that needs it.
    pub norm: Option<f64>,
    /// The step was left out, as its gradient was not finite.
    pub skipped: bool,
}
