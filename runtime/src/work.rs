//! What a node has in hand: so that it can finish it before it leaves, and tell how busy it is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
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
    /// Somebody on the actor's own node has sent it something.
    needed_here: AtomicBool,
    /// Tasks that the actor runs beside its messages.
    tasks: AtomicUsize,
}

impl Work {
    /// A part of a whole.
    pub(crate) fn within(whole: Arc<Work>) -> Self {
        Work { within: Some(whole), ..Work::default() }
    }

    /// Somebody on the actor's own node sends it something.
    pub(crate) fn note_need(&self) {
        self.needed_here.store(true, Ordering::Release);
    }

    /// The actor runs a task until the result is dropped.
    pub(crate) fn task(self: &Arc<Self>) -> RunsTask {
        self.tasks.fetch_add(1, Ordering::AcqRel);
        RunsTask(self.clone())
    }

    /// Whether nothing is in hand and no task runs, and nobody on this node has ever sent anything:
    /// then what others have in hand does not need it.
    pub(crate) fn is_done(&self) -> bool {
        self.count() == 0
            && self.tasks.load(Ordering::Acquire) == 0
            && !self.needed_here.load(Ordering::Acquire)
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

/// A task of an actor.
pub(crate) struct RunsTask(Arc<Work>);

impl Drop for RunsTask {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::AcqRel);
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
