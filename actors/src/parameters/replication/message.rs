//! What a trainer tells a shard of its backups, and a primary tells them.

use footlight_runtime::{ActorRef, HostTensor, Message};
use serde::{Deserialize, Serialize};

use super::Key;
use crate::parameters::{
    gate::TellSquares,
    rule::Verdict,
    server::{ParameterServer, PushError, SavedChunk, StepDone},
};

/// Makes a shard the primary, with these backups: those that are new are given its state. Answered when they have it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configure {
    /// Above that of all before.
    pub view: u64,
    /// All backups.
    pub backups: Vec<ActorRef<ParameterServer>>,
}

impl Message for Configure {
    type Reply = std::result::Result<(), PushError>;
    const NAME: &'static str = "parameters.configure";
}

/// Gives a backup the state of a chunk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// Of the primary.
    pub view: u64,
    /// Which chunk.
    pub chunk: u32,
    /// All of it between two steps.
    pub state: SavedChunk,
    /// With the first chunk: the steps that the shard remembers.
    pub history: Vec<StepDone>,
    /// With the first chunk: what the other shards were told last.
    pub squares: Option<TellSquares>,
}

impl Message for Copy {
    type Reply = Taken;
    const NAME: &'static str = "parameters.copy";
}

/// Tells a backup of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replicate {
    /// Of the primary.
    pub view: u64,
    /// The view in which the backup was given the state that this is to be applied to.
    pub given: u64,
    /// What is to be done.
    pub record: Record,
}

impl Message for Replicate {
    type Reply = Taken;
    const NAME: &'static str = "parameters.replicate";
}

/// What a primary tells its backups of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Record {
    /// The sum of a chunk's slots.
    Sum {
        /// Which step.
        step: u64,
        /// Which chunk.
        chunk: u32,
        /// As many `f32` as the chunk has.
        sum: HostTensor,
        /// It waits for the verdict; otherwise it is applied.
        waits: bool,
        /// What is told of the step, if this completes it.
        done: Option<StepDone>,
    },
    /// What becomes of a step whose sums wait.
    Verdict {
        /// Which step.
        step: u64,
        /// What becomes of it.
        verdict: Verdict,
        /// What the other shards were told for it: one that is replaced at the same time may need it again.
        squares: Option<Box<TellSquares>>,
        /// What is told of it.
        done: Option<StepDone>,
    },
}

/// What a backup does with what it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// It has it, now or already.
    Yes,
    /// Not before it has been given something else.
    NotYet,
    /// It has seen this later view.
    Deposed(u64),
    /// Never: primary and backup don't hold the same.
    Refused(String),
}

impl Record {
    /// What to wait for until this record's step is published: a sum that waits comes before its verdict.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Record::Sum { waits: true, .. } => None,
            Record::Sum { step, chunk, .. } => Some(Key::Sum { step: *step, chunk: *chunk }),
            Record::Verdict { step, .. } => Some(Key::Verdict { step: *step }),
        }
    }
}
