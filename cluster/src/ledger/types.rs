//! The types that openraft is filled with.

use std::{fmt, io::Cursor};

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

use super::command::{Entry, Outcome};

/// A voter of the log: a node with the store that it made when it became one.
///
/// A node whose disk was lost comes back as another voter. It must: it does not know any more what
/// it has voted for and acknowledged, and a voter that forgets can lose what others were promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct VoterId {
    /// The node.
    pub node: NodeId,
    /// Drawn when the store was made.
    pub birth: u64,
}

impl Default for VoterId {
    /// Nobody: openraft asks for such a value.
    fn default() -> Self {
        VoterId { node: NodeId(0), birth: 0 }
    }
}

impl fmt::Display for VoterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node)
    }
}

/// What the log says of a voter besides its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keeps {
    /// Its store is on a disk, so that it comes back after a restart.
    pub(super) on_disk: bool,
}

openraft::declare_raft_types!(
    /// The ledger's log.
    pub(super) Types:
        D = Entry,
        R = Outcome,
        NodeId = VoterId,
        Node = Keeps,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
);

/// openraft, filled with these types.
pub(super) type Raft = openraft::Raft<Types>;
/// An entry as the log stores it.
pub(super) type LogEntry = openraft::Entry<Types>;
/// The place of an entry in the log.
pub(super) type LogId = openraft::LogId<VoterId>;
/// What a voter has voted for.
pub(super) type Vote = openraft::Vote<VoterId>;
/// Which voters there are, as the log says it.
pub(super) type StoredMembership = openraft::StoredMembership<VoterId, Keeps>;
/// What describes a snapshot.
pub(super) type SnapshotMeta = openraft::SnapshotMeta<VoterId, Keeps>;
/// What openraft calls an error of the disk.
pub(super) type StorageError = openraft::StorageError<VoterId>;
