//! What is kept of nodes that are gone, and for how long.
//!
//! A node that is gone leaves its [`Peer`](super::peer::Peer) behind, with its last connection. Twice a minute this node
//! looks which peers nothing needs any more: no connection is kept or being made, nobody watches or
//! ends an actor there. Of those that were so the last time too, one line stays: which life was the
//! latest, and which was declared over. So a past life is refused, and references to its actors fail
//! with `NodeLost`, long after the rest is forgotten; the latest [`MAX_PAST`] are known.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use footlight_runtime::{ActorAddr, Incarnation, NodeId};
use tokio::time::{MissedTickBehavior, interval};

use super::Network;

/// Peers are looked at this often.
const LOOK: Duration = Duration::from_secs(30);
/// Most nodes of which only their past is known.
const MAX_PAST: usize = 16_384;

/// What is known of the lives of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lives {
    /// The latest that is known.
    pub(super) latest: Incarnation,
    /// The latest that membership declared over.
    pub(super) lost: Option<Incarnation>,
}

impl Lives {
    /// Whether membership declared a life over.
    pub(super) fn is_over(&self, life: Incarnation) -> bool {
        self.lost.is_some_and(|lost| lost >= life)
    }
}

/// The nodes of which only their past is known. None of them is among the peers.
#[derive(Debug, Default)]
pub(super) struct Past(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lives: HashMap<NodeId, (u64, Lives)>,
    /// The nodes in the order in which they were forgotten.
    order: BTreeMap<u64, NodeId>,
    next: u64,
}

impl Past {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is forgotten but for this.
    pub(super) fn note(&self, node: NodeId, lives: Lives) {
        if lives == Lives::default() {
            return;
        }
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        if let Some((before, _)) = inner.lives.insert(node, (number, lives)) {
            inner.order.remove(&before);
        }
        inner.order.insert(number, node);
        if inner.order.len() > MAX_PAST
            && let Some((_, oldest)) = inner.order.pop_first()
        {
            inner.lives.remove(&oldest);
        }
    }

    /// A node is a peer again.
    pub(super) fn take(&self, node: NodeId) -> Lives {
        let mut inner = self.lock();
        let Some((number, lives)) = inner.lives.remove(&node) else { return Lives::default() };
        inner.order.remove(&number);
        lives
    }

    /// Whether an actor's life of its node is over, as far as is known here.
    fn is_over(&self, actor: ActorAddr) -> bool {
        let inner = self.lock();
        inner.lives.get(&actor.node).is_some_and(|(_, lives)| lives.is_over(actor.incarnation))
    }
}

impl Network {
    /// Whether an actor's node is forgotten, and its life was over.
    pub(super) fn is_past(&self, actor: ActorAddr) -> bool {
        self.past.is_over(actor)
    }

    /// Whether a node is, or was, a member, or news of it may be on its way.
    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.is_known())
    }

    /// Forgets peers that nothing has needed since the last time.
    pub(super) fn forget_idle(&self) {
        let idle: Vec<NodeId> =
            self.peers.iter().filter(|peer| peer.is_idle_again()).map(|peer| peer.id).collect();
        for node in idle {
            self.peers.remove_if(&node, |_, peer| {
                // Whoever holds it may be about to use it; nobody can get hold of it meanwhile.
                let goes = Arc::strong_count(peer) == 1 && peer.is_idle();
                if goes {
                    self.past.note(node, peer.lives());
                }
                goes
            });
        }
    }
}

/// Forgets until the node has gone.
pub(crate) async fn run(network: Weak<Network>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Some(network) = network.upgrade() else { return };
        network.forget_idle();
    }
}

#[cfg(test)]
#[path = "past_tests.rs"]
mod tests;
