//! What a node tells the others of itself.

use std::{collections::BTreeMap, net::SocketAddr};

use footlight_runtime::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::{
    groups::Parts,
    ledger::LedgerView,
    resources::Resources,
    transport::frame::{self, Header},
};

/// The longest record on the wire, in bytes: it travels in one frame's header.
pub(crate) const MAX_RECORD: usize = 48 << 10;

/// What one node tells of itself, in one of its lives; spread to all by [gossip](crate::gossip).
///
/// Only the node itself changes it, through `Network::tell`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Greater with each change. Of two records of one life the greater version counts.
    pub(crate) version: u64,
    /// Where it takes connections.
    pub(crate) addr: SocketAddr,
    /// Where it takes the connections that carry messages.
    pub(crate) message_addr: SocketAddr,
    /// Where it takes the connections that carry large tensors.
    pub(crate) bulk_addr: SocketAddr,
    /// Where it answers over HTTP, if it does.
    pub(crate) http: Option<SocketAddr>,
    /// What it is for, in the user's words: `server`, `worker`, …
    pub(crate) roles: Vec<String>,
    /// Labels for placement.
    pub(crate) labels: BTreeMap<String, String>,
    /// The actor types that it can host.
    pub(crate) actors: Vec<String>,
    /// All that it has.
    pub(crate) resources: Resources,
    /// What of it is not reserved.
    pub(crate) free: Resources,
    pub(crate) load: Load,
    /// It drains: nothing new is to be placed there.
    pub(crate) leaving: bool,
    /// Members that it can't hold a connection with.
    pub(crate) unreachable: Vec<NodeId>,
    /// Its actors in groups, by the group's name.
    pub(crate) groups: Parts,
    /// The ledger that it knows, if any.
    pub(crate) ledger: Option<LedgerView>,
}

/// How much a node has to do, as it told last. It looks once a second and tells what has changed
/// enough: `cpu` by 0.1, `in_hand` to another power of two, `actors` by an eighth at once and by less
/// within ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks of the whole machine that run or wait for a processor, per core, averaged over a
    /// minute: 1 means that all are busy.
    pub cpu: f32,
    /// Actors that live there, the node's own not counted.
    pub actors: u32,
    /// Messages that its actors have in hand: waiting, handled, or taken and not answered.
    pub in_hand: u32,
}

/// A record can't say more than fits into one frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what this node tells of itself would take {bytes} bytes, at most {MAX_RECORD} are allowed: \
     use fewer roles, labels, actor types or members of groups"
)]
pub(crate) struct RecordTooLarge {
    pub(crate) bytes: usize,
}

impl Record {
    /// Refuses what would not fit into a frame.
    pub(crate) fn check(&self) -> Result<(), RecordTooLarge> {
        let header = Header::Record(Box::new(self.clone()));
        match frame::bare_len(&header) {
            Ok(bytes) if bytes <= MAX_RECORD => Ok(()),
            Ok(bytes) => Err(RecordTooLarge { bytes }),
            Err(_) => Err(RecordTooLarge { bytes: usize::MAX }),
        }
    }

    /// Whether this says something newer of a node than `other` does.
    pub(crate) fn is_newer_than(&self, other: &Record) -> bool {
        (self.incarnation, self.version) > (other.incarnation, other.version)
    }
}
