//! What can go wrong with the ledger.

use std::time::Duration;

use footlight_runtime::NodeId;

use super::command::{Bound, Holder};

/// The ledger did not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// No member tells of a ledger.
    #[error(
        "no node of this cluster has told of a ledger for {waited:?}: the first node, which is \
         started without seeds, founds one; start it again if it is gone"
    )]
    NoVoters {
        /// How long one was waited for.
        waited: Duration,
    },
    /// The voters did not answer.
    #[error(
        "the ledger's voters ({}) did not answer for {waited:?}: more than half of them must be up \
         and reach each other{}", list(voters), maybe(*may_be_done)
    )]
    NoLeader {
        /// The voters that there are.
        voters: Vec<NodeId>,
        /// How long they were asked.
        waited: Duration,
        /// What was asked for may have been done, or may still be done a little later: only the
        /// answer is missing. After this node's next write it will not be done any more.
        may_be_done: bool,
    },
    /// Somebody has the lease.
    #[error("the lease `{lease}` is held by {by}, as generation {generation}")]
    Held {
        /// The lease.
        lease: String,
        /// Who has it.
        by: Holder,
        /// Under which generation.
        generation: u64,
    },
    /// The lease is not held under this generation any more.
    #[error(
        "the lease `{lease}` was lost (generation {generation}): it was not renewed in time; \
         acquire it again"
    )]
    Lost {
        /// The lease.
        lease: String,
        /// The generation that it was held under.
        generation: u64,
    },
    /// The key was not as expected.
    #[error("the key `{key}` {}: read it again", present(*version))]
    Conflict {
        /// The key.
        key: String,
        /// The version that it has; `None` if it is not there.
        version: Option<u64>,
    },
    /// A bound of the ledger.
    #[error(transparent)]
    Bound(#[from] Bound),
    /// This node's certificate does not allow it.
    #[error("this node may not do that to the ledger: {0}")]
    Forbidden(String),
    /// This node's leases do not last as long as those of the node that was asked.
    #[error(
        "this node was started with other settings for the ledger than its voters: start all nodes \
         of a cluster with the same `--network`"
    )]
    OtherSettings,
    /// The node is ending.
    #[error("this node is ending")]
    Ended,
}

fn list(voters: &[NodeId]) -> String {
    voters.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

fn maybe(may_be_done: bool) -> &'static str {
    if may_be_done { "; what was asked for may have been done" } else { "" }
}

fn present(version: Option<u64>) -> String {
    match version {
        Some(version) => format!("has version {version}"),
        None => "is not there".to_owned(),
    }
}

impl From<LedgerError> for footlight_runtime::Error {
    fn from(error: LedgerError) -> Self {
        footlight_runtime::Error::other(error)
    }
}
