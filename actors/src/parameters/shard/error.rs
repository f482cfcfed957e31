//! What a shard refuses, and why.

use thiserror::Error;

use crate::{
    consistency::ConsistencyError,
    parameters::{optimizer::OptimizerError, rule::RuleError},
};

/// Which numbers were not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// The sum of the slots' gradients.
    Gradient,
    /// The parameters after the step.
    Parameters,
}

/// What a shard refuses.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ShardError {
    /// The layout has no such shard.
    #[error("there is no shard {shard}: the layout has {shards}")]
    UnknownShard {
        /// The shard asked for.
        shard: usize,
        /// How many there are.
        shards: usize,
    },
    /// A step of no slots would never be complete.
    #[error("a step needs at least one slot")]
    NoSlots,
    /// The optimiser's settings are wrong.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The rule can't be kept.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The consistency is out of range.
    #[error(transparent)]
    Consistency(#[from] ConsistencyError),
    /// Slots that are applied one by one have no whole gradient.
    #[error(
        "gradients can't be clipped or left out as a whole in an asynchronous job, which has no whole one: choose \
         another consistency"
    )]
    NoWholeGradient,
    /// Slots of the next steps are applied already.
    #[error("chunk {chunk} is between steps {version} and {}: it has no state of one", version + 1)]
    BetweenSteps {
        /// The chunk.
        chunk: usize,
        /// Steps that are applied whole.
        version: u64,
    },
    /// The chunk is another shard's, or none.
    #[error("chunk {chunk} is not on this shard: sender and shard work on different layouts")]
    UnknownChunk {
        /// The chunk.
        chunk: usize,
    },
    /// The numbers are not as many as the chunk has.
    #[error("chunk {chunk} has {expected} numbers and {got} came")]
    WrongLength {
        /// The chunk.
        chunk: usize,
        /// How many it has.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// A step has no such slot.
    #[error("there is no slot {slot}: a step has {slots}")]
    SlotOutOfRange {
        /// The slot.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// The step's turn has not come: an earlier one is not applied yet.
    #[error("a gradient of step {step} came for chunk {chunk}, which is at step {version}")]
    FromTheFuture {
        /// The chunk.
        chunk: usize,
        /// The step that was pushed.
        step: u64,
        /// The step that is due.
        version: u64,
    },
    /// A verdict came for a chunk that does not wait for it.
    #[error(
        "a verdict on step {step} came for chunk {chunk}, which is at step {version} and does not wait for it"
    )]
    NotSummed {
        /// The chunk.
        chunk: usize,
        /// The step of the verdict.
        step: u64,
        /// The step that is due.
        version: u64,
    },
    /// The chunk has no parameters yet.
    #[error("chunk {chunk} has no parameters yet: initialise it first")]
    NotInitialised {
        /// The chunk.
        chunk: usize,
    },
    /// The chunk has other parameters already.
    #[error("chunk {chunk} has its parameters already and is at step {version}")]
    AlreadyInitialised {
        /// The chunk.
        chunk: usize,
        /// The step that is due.
        version: u64,
    },
    /// The training diverged: a NaN or an infinity. The job must stop.
    #[error(
        "the {} of chunk {chunk} at step {step} are not all finite (NaN or infinity): the training diverged; lower the \
         learning rate or look at the data", match .numbers {
            Numbers::Gradient => "gradients",
            Numbers::Parameters => "new parameters",
        }
    )]
    NonFinite {
        /// The chunk.
        chunk: usize,
        /// The step.
        step: u64,
        /// Where it was seen.
        numbers: Numbers,
    },
}
