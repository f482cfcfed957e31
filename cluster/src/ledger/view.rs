//! What a node tells of the ledger that it knows.

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

/// Names a ledger for as long as it lives: drawn when it is founded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LedgerId(pub u64);

/// A ledger as one node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerView {
    /// Which one.
    pub id: LedgerId,
    /// When it was founded, by its founder's clock: microseconds since 1970.
    pub founded_unix_micros: u64,
    /// The latest term that is known.
    pub term: u64,
    /// That term's leader, if known.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Whether more than half of them keep it on a disk, so that it comes back when all of them
    /// are started again. Nodes without a fixed port keep nothing.
    pub on_disk: bool,
}
