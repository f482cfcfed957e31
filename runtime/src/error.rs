//! Errors as values: what happened, where, and whether the message may have run.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::id::{ActorAddr, NodeId};

/// The result type of Footlight's public functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong in an actor's life or in a node's own work.
///
/// `Debug` prints the same single line as `Display`, so that `fn main() -> Result<()>` ends with a
/// sentence and not with a structure.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call or cast failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An actor could not be started; the text is what its `start` said.
    #[error("{actor} could not start: {why}")]
    Start {
        /// The actor type's name.
        actor: String,
        /// What went wrong.
        why: String,
    },
    /// The node has no such actor type.
    #[error(
        "no actor type `{0}` is registered on this node: add `.register::<…>()` to its builder"
    )]
    UnknownActorType(String),
    /// A value could not be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] crate::codec::CodecError),
    /// A tensor's shape, type and bytes disagree.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::TensorError),
    /// libtorch refused, or a compute thread ended.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Compute(#[from] crate::compute::ComputeError),
    /// The node drains: it finishes what it has in hand and starts nothing new.
    #[error("node {0} is leaving and starts nothing new")]
    Leaving(NodeId),
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Any other error, of a user's actor or of another room.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// An error of one's own: a text, or any error value.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Other(error.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the receiver can have seen a message whose call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// The receiver's handler certainly did not run: sending it again is safe.
    NotSent,
    /// The handler may have run, in part or whole; only the answer is missing.
    MayHaveRun,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// No connection to the node, or it broke. See [`CutOff`](Cause::CutOff) for two members that are
    /// known not to reach each other.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Membership has declared the node down.
    #[error("node {0} was lost")]
    NodeLost(NodeId),
    /// The receiver's node drains: it finishes what it has in hand and takes nothing new.
    #[error("node {0} is leaving")]
    Leaving(NodeId),
    /// No answer within the deadline.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The node is there, the actor is not (it has ended, or never was).
    #[error("no such actor")]
    NoSuchActor,
    /// The actor stopped, or dropped the [`ReplyTo`](crate::ReplyTo), before it answered.
    #[error("the actor stopped or dropped the reply")]
    Stopped,
    /// The mailbox stayed full.
    #[error("overloaded: the mailbox is full")]
    Overloaded,
    /// The receiving side refused the message: unknown, of another shape, or fenced.
    #[error("refused: {0}")]
    Refused(String),
    /// The message or the answer could not be encoded.
    #[error("cannot encode: {0}")]
    CannotEncode(String),
    /// The message or the answer could not be decoded.
    #[error("cannot decode: {0}")]
    CannotDecode(String),
    /// Two members can't reach each other, though others reach both: a cut, of which the cluster's
    /// events tell too. Nothing was sent.
    #[error(
        "unreachable: node {from} and node {to} can't reach each other, though others reach both: {why}"
    )]
    CutOff {
        /// The caller's node.
        from: NodeId,
        /// The receiver's node.
        to: NodeId,
        /// Why no connection can be made.
        why: String,
    },
}

/// What a failed call says, without whom it was for: this is what travels between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether the handler may have run.
    pub fate: Fate,
    /// Why.
    pub cause: Cause,
}

impl Failure {
    /// The handler did not run.
    pub fn not_sent(cause: Cause) -> Self {
        Failure { fate: Fate::NotSent, cause }
    }
    /// The handler may have run.
    pub fn may_have_run(cause: Cause) -> Self {
        Failure { fate: Fate::MayHaveRun, cause }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::NotSent => "not sent",
            Fate::MayHaveRun => "may have run",
        };
        write!(f, "{fate}, {}", self.cause)
    }
}

impl std::error::Error for Failure {}

/// A failed call or cast: to whom, which message, whether it may have run, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{message}` to {to}: {failure}")]
pub struct CallError {
    /// The receiver.
    pub to: ActorAddr,
    /// The message's name.
    pub message: &'static str,
    /// Whether it may have run, and why it failed.
    pub failure: Failure,
}

impl CallError {
    /// Whether the handler may have run.
    pub fn fate(&self) -> Fate {
        self.failure.fate
    }
    /// Why the call failed.
    pub fn cause(&self) -> &Cause {
        &self.failure.cause
    }
}
