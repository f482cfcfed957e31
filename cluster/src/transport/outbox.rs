//! How much of large tensors may wait for one peer, whoever there they are for.
//!
//! A [window](super::window) bounds what one receiver has unread; many receivers behind one slow link
//! would still let a sender pile up a window for each. Messages with large tensors therefore wait until
//! the peer has taken enough of those before them. Answers never wait, since an actor that waited for one
//! peer would let down the others; but they count, so messages wait behind them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::{Mutex, Notify};

/// A message with large tensors begins only while less than this waits, in bytes: the bound is passed by
/// one message at most, by answers as they come.
pub(crate) const MAX_OUTBOX: u64 = 256 << 20;

/// What waits for one peer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: AtomicU64,
    room: Notify,
    /// Who waits longest is first…
    line: Mutex<()>,
    /// …and who comes when there is room again does not overtake those, so many of them as there are.
    waiting: AtomicUsize,
}

/// Room that tensors take, until all of them have gone.
#[derive(Debug)]
pub(crate) struct Held {
    outbox: Arc<Outbox>,
    bytes: u64,
}

impl Outbox {
    /// Takes room whether there is some or not.
    pub(crate) fn force(self: &Arc<Self>, bytes: u64) -> Held {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        Held { outbox: self.clone(), bytes }
    }

    /// Takes room if there is some and nobody waits for it.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        if self.waiting.load(Ordering::Acquire) > 0 {
            return None;
        }
        self.reserve(bytes)
    }

    fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let more = |now: u64| (now < MAX_OUTBOX).then(|| now.saturating_add(bytes));
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Held { outbox: self.clone(), bytes })
    }

    /// Waits for room in the order of asking, then takes it.
    pub(crate) async fn take(self: &Arc<Self>, bytes: u64) -> Held {
        let _waits = Waits::new(&self.waiting);
        let _turn = self.line.lock().await;
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Registered before it is looked at: room that comes in between is not missed.
            room.as_mut().enable();
            if let Some(held) = self.reserve(bytes) {
                return held;
            }
            room.await;
        }
    }
}

/// Counts one who waits, as long as it does: it may give up.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self.outbox.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= MAX_OUTBOX && before - self.bytes < MAX_OUTBOX {
            self.outbox.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn messages_wait_for_room_and_answers_only_count() {
        let outbox = Arc::<Outbox>::default();
        let first = outbox.take(MAX_OUTBOX - 1).await;
        let second = outbox.take(10 * MAX_OUTBOX).await;
        let answer = outbox.force(7);
        assert!(outbox.try_take(1).is_none());
        drop(second);
        assert!(outbox.take(1).now_or_never().is_none(), "the answer counts");
        let waiting = outbox.clone();
        let waits = tokio::spawn(async move { waiting.take(1).await });
        tokio::task::yield_now().await;
        drop((first, answer));
        assert!(outbox.try_take(1).is_none(), "it does not overtake who waits");
        let held = timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
        drop(held);
        assert_eq!(outbox.bytes.load(Ordering::Acquire), 0);
        assert!(outbox.try_take(1).is_some(), "nobody waits any more");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_nobody_back() {
        let outbox = Arc::<Outbox>::default();
        let full = outbox.force(MAX_OUTBOX);
        assert!(outbox.take(1).now_or_never().is_none());
        drop(full);
        assert!(outbox.try_take(1).is_some());
    }

    #[test]
    fn many_who_try_at_once_are_all_let_in_while_there_is_room() {
        let outbox = Arc::<Outbox>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let outbox = outbox.clone();
                scope.spawn(move || (0..20_000).for_each(|_| drop(outbox.try_take(1).unwrap())));
            }
        });
        assert_eq!(outbox.bytes.load(Ordering::Acquire), 0);
    }
}
