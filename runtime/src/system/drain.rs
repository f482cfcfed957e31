//! What a node has in hand, and how it comes to an end with it.

use std::{
    hash::BuildHasher,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::System;
use crate::{id::ActorId, work::Work};

/// Who waits for a node to be idle looks this often.
const LOOK: Duration = Duration::from_millis(2);
/// While a node drains, it looks this often which actors are done.
const DISMISS: Duration = Duration::from_millis(50);

impl System {
    /// From here on this node's actors take nothing from other nodes, and none is started for one;
    /// the node's own actors are excepted, and messages within the node: what is in hand may need
    /// them.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Stops each actor as soon as it is done, until nothing is in hand: one that has nothing in hand,
    /// runs no task, and that nobody on this node has ever sent anything. The others may be needed by what is in
    /// hand. The node's own actors stay. For a node that [drains](Self::drain): who supervises such
    /// an actor from elsewhere need not wait for its neighbours.
    pub async fn dismiss_done(&self) {
        let idle = self.idle();
        tokio::pin!(idle);
        loop {
            for entry in &self.0.actors {
                if entry.work.as_ref().is_some_and(|work| work.is_done())
                    && !entry.life.is_needed_here()
                    && !entry.dismissed.swap(true, Ordering::AcqRel)
                {
                    entry.stop();
                }
            }
            tokio::select! {
                biased;
                () = &mut idle => return,
                () = tokio::time::sleep(DISMISS) => {}
            }
        }
    }

    /// Whether the node [drains](Self::drain).
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// How many messages the node's actors have in hand: waiting, handled, or taken and not answered.
    pub fn in_hand(&self) -> usize {
        let running =
            self.0.actors.iter().filter_map(|entry| entry.work.as_ref().map(|work| work.count()));
        let running: usize = running.sum();
        running + self.left_behind().iter().map(|work| work.unanswered()).sum::<usize>()
    }

    /// Waits until the node's actors have nothing in hand.
    pub async fn idle(&self) {
        while !self.look_idle() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether nothing is in hand. The actors are looked at one by one, and one may send something to another that was
    /// looked at before it, and be done. So a second look must find that nothing has begun since the first.
    pub(crate) fn look_idle(&self) -> bool {
        let first = self.begun_if_idle();
        first.is_some() && self.begun_if_idle() == first
    }

    /// If nothing is in hand: a number that follows from which actors there are and how much each has begun so far.
    fn begun_if_idle(&self) -> Option<u64> {
        let mut all = 0u64;
        for entry in &self.0.actors {
            let Some(work) = &entry.work else { continue };
            let begun = work.begun();
            // What begins after this look must not be counted as seen by it.
            if !work.is_idle() || work.begun() != begun {
                return None;
            }
            all = all.wrapping_add(self.0.actors.hasher().hash_one((entry.key(), begun)));
        }
        self.left_behind().is_empty().then_some(all)
    }

    /// Those of actors that have ended that are not done yet.
    fn left_behind(&self) -> MutexGuard<'_, Vec<Arc<Work>>> {
        let mut left = self.0.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|work| work.unanswered() > 0);
        left
    }

    /// An actor ends, and is not among those that run from here on.
    pub(super) fn leave_behind(&self, work: &Arc<Work>) {
        if work.unanswered() == 0 {
            return;
        }
        let mut left = self.0.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
        // Now and then only: many may end together.
        if left.len() == left.capacity() {
            left.retain(|work| work.unanswered() > 0);
        }
        left.push(work.clone());
    }

    /// How many messages one actor of this node has in hand: waiting, handled, or taken and not
    /// answered. `None` if there is no such actor, or it is one of the node's own.
    pub fn in_hand_of(&self, actor: ActorId) -> Option<usize> {
        self.entry(actor, |entry| entry.work.as_ref().map(|work| work.count())).flatten()
    }
}
