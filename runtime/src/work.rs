//! What a node has in hand: so that it can finish it before it leaves.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts the messages to a node's actors that wait, are handled, or are calls not answered yet.
#[derive(Default)]
pub(crate) struct Work {
    count: AtomicUsize,
    none: Notify,
}

impl Work {
    /// One piece more, until the result is dropped.
    pub(crate) fn take(self: &Arc<Self>) -> InHand {
        self.count.fetch_add(1, Ordering::AcqRel);
        InHand(Arc::new(Piece(self.clone())))
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until nothing is in hand.
    pub(crate) async fn done(&self) {
        loop {
            let none = self.none.notified();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// A piece of work, until its last clone is dropped.
#[derive(Clone)]
pub(crate) struct InHand(#[expect(dead_code, reason = "held for its drop")] Arc<Piece>);

struct Piece(Arc<Work>);

impl Drop for Piece {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}
