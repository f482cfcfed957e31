//! What a node has in hand: so that it can finish it before it leaves, and tell how busy it is.
//!
//! Each actor counts its own, and the node adds up when it is asked, which is seldom. What this node sends itself is
//! counted by the mailbox's permits while it waits, and from there on by the actor that takes it out: senders on
//! other cores have nothing more to write to.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Semaphore;

/// Counts the messages to one actor that wait, are handled, or are calls not answered yet.
pub(crate) struct Work {
    /// Taken out of the mailbox, or come from another node; it only grows.
    begun: AtomicU64,
    /// Of those, handled and answered.
    ended: AtomicU64,
    /// A permit is out for each message from this node that waits.
    permits: Arc<Semaphore>,
    /// When none waits.
    all_permits: usize,
    /// Tasks that the actor runs beside its messages.
    tasks: AtomicUsize,
    /// Handlers that run although their call may have been answered.
    handlers: AtomicUsize,
}

impl Work {
    /// That of an actor into whose mailbox these permits lead.
    pub(crate) fn behind(permits: Arc<Semaphore>) -> Self {
        Work {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            all_permits: permits.available_permits(),
            permits,
            tasks: AtomicUsize::new(0),
            handlers: AtomicUsize::new(0),
        }
    }

    /// The actor runs a task until the result is dropped.
    pub(crate) fn task(self: &Arc<Self>) -> RunsTask {
        self.tasks.fetch_add(1, Ordering::AcqRel);
        RunsTask(self.clone())
    }

    /// Whether nothing is in hand and no task runs.
    pub(crate) fn is_done(&self) -> bool {
        self.is_idle() && self.tasks.load(Ordering::Acquire) == 0
    }

    /// Whether nothing waits, is handled, or is to be answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.count() == 0 && self.handlers.load(Ordering::Acquire) == 0
    }

    /// One piece more, until the result is dropped. Before the permit of a message is given back, so that it counts
    /// all the time.
    pub(crate) fn take(self: &Arc<Self>) -> InHand {
        self.add(1);
        InHand(self.clone())
    }

    /// So many pieces more, each until what [`InHand::of_many`] makes of it is dropped.
    pub(crate) fn add(&self, pieces: usize) {
        self.begun.fetch_add(pieces as u64, Ordering::AcqRel);
    }

    /// A handler runs until the result is dropped. For handlers that may answer and go on: those of
    /// others are counted by what they handle.
    pub(crate) fn handling(self: &Arc<Self>) -> Handling {
        self.handlers.fetch_add(1, Ordering::AcqRel);
        Handling(self.clone())
    }

    /// Messages that wait, are handled, or are not answered.
    pub(crate) fn count(&self) -> usize {
        // What waits first, and what has begun last: whatever goes on from one to the next meanwhile is not missed.
        let waiting = self.all_permits.saturating_sub(self.permits.available_permits());
        waiting + self.unanswered()
    }

    /// Messages that were taken out, or have come from another node, and are not answered.
    pub(crate) fn unanswered(&self) -> usize {
        let ended = self.ended.load(Ordering::Acquire);
        self.begun().saturating_sub(ended) as usize
    }

    /// How many pieces there have been. If it is the same twice, nothing has come in between.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
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
pub(crate) struct InHand<W: Deref<Target = Work> = Arc<Work>>(W);

impl<W: Deref<Target = Work>> InHand<W> {
    /// One of those that were [added](Work::add) together.
    pub(crate) fn of_many(work: W) -> Self {
        InHand(work)
    }
}

impl<W: Deref<Target = Work>> Drop for InHand<W> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// A handler that runs.
pub(crate) struct Handling(Arc<Work>);

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.handlers.fetch_sub(1, Ordering::AcqRel);
    }
}
