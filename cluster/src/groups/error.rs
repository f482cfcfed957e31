//! What can go wrong with groups.

use std::time::Duration;

use footlight_runtime::{ActorAddr, CallError, Error, Fate};
use serde::{Deserialize, Serialize};

use super::{MAX_GROUPS, MAX_NAME};

/// An actor could not join, or nobody in the group took a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Nobody is in it, as far as this node knows.
    #[error(
        "group `{group}` has no member of type {kind} now, as this node sees it: `wait_for` waits \
         until somebody joins"
    )]
    Empty {
        /// The group.
        group: String,
        /// The type that was asked for.
        kind: String,
    },
    /// Too few have joined in time.
    #[error("group `{group}` has {there} members after {patience:?}, not {wanted}")]
    Missing {
        /// The group.
        group: String,
        /// How many were waited for.
        wanted: usize,
        /// How many there are.
        there: usize,
        /// How long it was waited.
        patience: Duration,
    },
    /// The group is one of actors of another type.
    #[error(
        "group `{group}` is of actors of type {found}: one of type {asked} can't join it, nor use it"
    )]
    OtherType {
        /// The group.
        group: String,
        /// The type of its members.
        found: String,
        /// The type that was to join.
        asked: String,
    },
    /// The actor has ended.
    #[error("{actor} has ended, so it can't join group `{group}`")]
    Ended {
        /// The group.
        group: String,
        /// The actor.
        actor: ActorAddr,
    },
    /// The actor's node can't tell of more members.
    #[error(
        "the actor's node can't tell of one more member of group `{group}`: all groups that its \
         actors are in take at most {MAX_GROUPS} bytes of its record; let fewer actors join, one a \
         node say, and let these pass messages on"
    )]
    Full {
        /// The group.
        group: String,
    },
    /// A name that is empty or longer than [`MAX_NAME`].
    #[error("a group's name has 1 to {MAX_NAME} bytes, this one has {0}")]
    Length(usize),
    /// The actor's node did not answer, or this one has ended.
    #[error("{0}")]
    Unavailable(String),
    /// All members were tried, and none took the message: it was certainly handled by none.
    #[error("none of the {tried} members of group `{group}` took the message; the last: {last}")]
    NobodyTook {
        /// The group.
        group: String,
        /// How many were tried.
        tried: usize,
        /// What the last of them said, or why it was not reached.
        last: String,
    },
    /// The member that got the message may have handled it, and its answer is missing; or the
    /// message can't be sent to any.
    #[error("group `{group}`: {error}")]
    Call {
        /// The group.
        group: String,
        /// Whether it may have run.
        fate: Fate,
        /// To whom, and what happened.
        error: String,
    },
}

impl GroupError {
    /// Whether a member may have handled the message.
    pub fn fate(&self) -> Fate {
        match self {
            GroupError::Call { fate, .. } => *fate,
            _ => Fate::NotSent,
        }
    }

    pub(super) fn call(group: &str, error: &CallError) -> Self {
        let group = group.to_owned();
        GroupError::Call { group, fate: error.fate(), error: error.to_string() }
    }

    pub(super) fn no_node() -> Self {
        GroupError::Unavailable("this node has ended".to_owned())
    }
}

impl From<GroupError> for Error {
    fn from(error: GroupError) -> Self {
        Error::other(error)
    }
}
