//! What the ledger is asked to do, and what came of it: the entries of the log.

use std::fmt;

use bytes::Bytes;
use footlight_runtime::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use super::{LedgerId, types::VoterId};

/// Longest key, in bytes of UTF-8.
pub const MAX_KEY: usize = 256;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 64 * 1024;
/// Longest name of a lease, and longest text of a holder, in bytes of UTF-8.
pub const MAX_NAME: usize = 256;
/// Most keys.
pub const MAX_KEYS: usize = 65_536;
/// Most bytes of all keys and values together: 16 MiB.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most leases held at the same time.
pub const MAX_LEASES: usize = 16_384;

/// One life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node it lives on.
    pub node: NodeId,
    /// In which life of the node.
    pub incarnation: Incarnation,
    /// Who on that node, for people: at most [`MAX_NAME`] bytes.
    pub text: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on node {}", self.text, self.node)
    }
}

/// What a write expects of the key that it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Anything.
    #[default]
    Any,
    /// The key is not there.
    Absent,
    /// The key has this version.
    Version(u64),
}

/// A value with its history's number: a version is never used twice, not even by another key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The number of the write that made it.
    pub version: u64,
    /// With whose life the key ends, if with one.
    pub owner: Option<Life>,
}

impl fmt::Debug for Versioned {
    /// Without the value: it may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versioned")
            .field("bytes", &self.value.len())
            .field("version", &self.version)
            .field("owner", &self.owner)
            .finish()
    }
}

/// Which write this is, so that one that is sent twice is done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RequestId {
    /// Who asks: a node in one of its lives.
    pub client: Life,
    /// The how many-th write of that client.
    pub number: u64,
    /// The client has all answers to writes before this one and asks for none of them again.
    pub answered: u64,
}

/// One voter's time as the leader, from an election to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reign {
    /// The term.
    pub term: u64,
    /// The leader.
    pub leader: VoterId,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `None` for what the leader does on its own: that is harmless to do twice.
    pub id: Option<RequestId>,
    /// What to do.
    pub command: Command,
}

/// A change of the ledger.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    /// Nothing: a new leader's first entry.
    Nothing,
    /// Writes a key.
    Put {
        /// At most [`MAX_KEY`] bytes.
        key: String,
        /// At most [`MAX_VALUE`] bytes.
        value: Bytes,
        /// What the key must be.
        expect: Expect,
        /// With whose life the key ends, if with one.
        owner: Option<Life>,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: String,
        /// What the key must be.
        expect: Expect,
    },
    /// Takes a lease that is free.
    Acquire {
        /// The lease: at most [`MAX_NAME`] bytes.
        lease: String,
        /// For whom.
        holder: Holder,
    },
    /// Gives a lease back.
    Release {
        /// The lease.
        lease: String,
        /// Which grant of it: another one is not touched.
        generation: u64,
    },
    /// A leader says that these grants were not renewed in time.
    Lapse {
        /// Which leader, in which term. From another one's log the entry means nothing: between
        /// the two, a third may have renewed.
        reign: Reign,
        /// The grants, by lease and generation.
        grants: Vec<(String, u64)>,
    },
    /// The leader says that a node's lives up to this one are over: what they own goes.
    Forget(Life),
    /// No change after this one: the ledger goes up in another one.
    Close {
        /// The other one.
        into: LedgerId,
    },
    /// Another ledger goes up in this one, that had granted these leases: each later grant here has
    /// a greater generation than any there, and who holds one of them here must take it anew.
    Absorb {
        /// The other one.
        from: LedgerId,
        /// The greatest generation that it granted.
        generation: u64,
        /// Leases held there.
        leases: Vec<String>,
        /// Whether that is all: nothing of the other one is missing here.
        all: bool,
    },
}

impl fmt::Debug for Command {
    /// Without values: one may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Nothing => f.write_str("Nothing"),
            Command::Put { key, value, expect, owner } => f
                .debug_struct("Put")
                .field("key", key)
                .field("bytes", &value.len())
                .field("expect", expect)
                .field("owner", owner)
                .finish(),
            Command::Delete { key, expect } => {
                f.debug_struct("Delete").field("key", key).field("expect", expect).finish()
            }
            Command::Acquire { lease, holder } => {
                f.debug_struct("Acquire").field("lease", lease).field("holder", holder).finish()
            }
            Command::Release { lease, generation } => {
                f.debug_tuple("Release").field(lease).field(generation).finish()
            }
            Command::Lapse { reign, grants } => {
                f.debug_struct("Lapse").field("reign", reign).field("grants", grants).finish()
            }
            Command::Forget(life) => f.debug_tuple("Forget").field(life).finish(),
            Command::Close { into } => f.debug_tuple("Close").field(into).finish(),
            Command::Absorb { from, generation, leases, all } => f
                .debug_struct("Absorb")
                .field("from", from)
                .field("generation", generation)
                .field("leases", &leases.len())
                .field("all", all)
                .finish(),
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// It is done (a release, a deletion, what the leader does on its own).
    Done,
    /// The key has this version now.
    Written(u64),
    /// The key was not as expected; this is its version, if it is there.
    Conflict(Option<u64>),
    /// The lease is the asker's, under this generation.
    Granted(u64),
    /// Somebody has the lease.
    Held {
        /// Who.
        by: Holder,
        /// Under which generation.
        generation: u64,
    },
    /// It breaks a bound and was not done.
    Refused(Bound),
    /// The ledger is closed: ask the one that it goes up in.
    Closed(LedgerId),
    /// The client had the answer to this write and asked again: nobody waits for this any more.
    Stale,
}

/// The bounds of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Bound {
    /// A key that is empty or longer than [`MAX_KEY`].
    #[error("a key has 1 to {MAX_KEY} bytes, this one has {0}")]
    Key(usize),
    /// A value longer than [`MAX_VALUE`].
    #[error(
        "a value has at most {MAX_VALUE} bytes, this one has {0}: keep it elsewhere and its name \
         here"
    )]
    Value(usize),
    /// A lease's name that is empty or longer than [`MAX_NAME`], or a holder's text that is longer.
    #[error("the name of a lease and of its holder has 1 to {MAX_NAME} bytes, this one has {0}")]
    Name(usize),
    /// The ledger has [`MAX_KEYS`] keys or [`MAX_BYTES`] bytes.
    #[error(
        "the ledger is full ({MAX_KEYS} keys, or {MAX_BYTES} bytes of keys and values): delete \
         what is not needed any more"
    )]
    Full,
    /// [`MAX_LEASES`] leases are held.
    #[error("{MAX_LEASES} leases are held: release what is not needed any more")]
    Leases,
    /// The client has too many writes under way.
    #[error("this node has more than {} writes under way", super::state::MAX_OUTCOMES)]
    Writes,
}

impl Command {
    /// Whether the command keeps the bounds of a single key, value and name. Checked where it is
    /// made, and again by the state machine.
    pub(super) fn check(&self) -> Result<(), Bound> {
        let key = |key: &str| match key.len() {
            1..=MAX_KEY => Ok(()),
            other => Err(Bound::Key(other)),
        };
        let name = |name: &str| match name.len() {
            1..=MAX_NAME => Ok(()),
            other => Err(Bound::Name(other)),
        };
        match self {
            Command::Put { key: at, value, .. } => {
                key(at)?;
                if value.len() > MAX_VALUE { Err(Bound::Value(value.len())) } else { Ok(()) }
            }
            Command::Delete { key: at, .. } => key(at),
            Command::Acquire { lease, holder } => {
                name(lease)?;
                if holder.text.len() > MAX_NAME {
                    return Err(Bound::Name(holder.text.len()));
                }
                Ok(())
            }
            Command::Release { lease, .. } => name(lease),
            Command::Nothing
            | Command::Lapse { .. }
            | Command::Forget(_)
            | Command::Close { .. }
            | Command::Absorb { .. } => Ok(()),
        }
    }
}
