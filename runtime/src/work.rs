//! What a node has in hand: so that it can finish it before it leaves, and tell how busy it is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts the messages to one actor, or to all of a node, that wait, are handled, or are calls not
/// answered yet.
#[derive(Default)]
pub(crate) struct Work {
    count: AtomicUsize,
    none: Notify,
    /// What counts here counts there too.
    within: Option<Arc<Work>>,
}

impl Work {
    /// A part of a whole.
    pub(crate) fn within(whole: Arc<Work>) -> Self {
        Work { within: Some(whole), ..Work::default() }
    }

    /// One piece more, until the result is dropped.
    pub(crate) fn take(self: &Arc<Self>) -> InHand {
        self.add();
        InHand(Arc::new(Piece(self.clone())))
    }

    fn add(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        if let Some(whole) = &self.within {
            whole.add();
        }
    }

    fn remove(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
        if let Some(whole) = &self.within {
            whole.remove();
        }
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
        self.0.remove();
    }
}
