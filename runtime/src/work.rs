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
    /// Handlers that run although their call may have been answered.
    handlers: AtomicUsize,
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
        self.is_idle()
            && self.tasks.load(Ordering::Acquire) == 0
            && !self.needed_here.load(Ordering::Acquire)
    }

    fn is_idle(&self) -> bool {
        self.count() == 0 && self.handlers.load(Ordering::Acquire) == 0
    }

    /// One piece more, until the result is dropped.
    pub(crate) fn take(self: &Arc<Self>) -> InHand {
        self.add(1);
        InHand(self.clone())
    }

    /// So many pieces more, each until what [`InHand::of_many`] makes of it is dropped.
    pub(crate) fn add(&self, pieces: usize) {
        self.count.fetch_add(pieces, Ordering::AcqRel);
        if let Some(whole) = &self.within {
            whole.add(pieces);
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

    /// A handler runs until the result is dropped. For handlers that may answer and go on: those of
    /// others are counted by what they handle.
    pub(crate) fn handling(self: &Arc<Self>) -> Handling {
        let all = std::iter::successors(Some(self), |work| work.within.as_ref());
        for work in all {
            work.handlers.fetch_add(1, Ordering::AcqRel);
        }
        Handling(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until nothing is in hand.
    pub(crate) async fn done(&self) {
        loop {
            let none = self.none.notified();
            if self.is_idle() {
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

/// A piece of work, until it is dropped.
pub(crate) struct InHand(Arc<Work>);

impl InHand {
    /// One of those that were [added](Work::add) together.
    pub(crate) fn of_many(work: &Arc<Work>) -> Self {
        InHand(work.clone())
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// A handler that runs.
pub(crate) struct Handling(Arc<Work>);

impl Drop for Handling {
    fn drop(&mut self) {
        let all = std::iter::successors(Some(&self.0), |work| work.within.as_ref());
        for work in all {
            if work.handlers.fetch_sub(1, Ordering::AcqRel) == 1 {
                work.none.notify_waiters();
            }
        }
    }
}
