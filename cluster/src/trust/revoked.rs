//! The nodes that were thrown out.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{PoisonError, RwLock},
};

use footlight_runtime::NodeId;

/// The nodes whose certificates count no more; shared by all that checks certificates.
#[derive(Default)]
pub struct Revoked(RwLock<BTreeSet<NodeId>>);

impl Revoked {
    /// Whether a node was thrown out.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    /// Throws a node out; false if it was already.
    pub fn insert(&self, node: NodeId) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(node)
    }

    /// Lets a node in again.
    pub fn remove(&self, node: NodeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revoked = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(revoked.iter()).finish()
    }
}
