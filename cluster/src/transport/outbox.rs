//! How much of large tensors may wait for one peer, whoever there they are for.
//!
//! A [window](super::window) bounds what one receiver has unread; many receivers behind one slow link
//! would still let a sender pile up a window for each. Messages with large tensors therefore wait until
//! the peer has taken enough of those before them. Answers never wait, since an actor that waited for one
//! peer would let down the others; but they count, so messages wait behind them, and while too many wait, the
//! peer's calls are not handled: see [`Credits::reads_slowly`](footlight_runtime::remote::Credits::reads_slowly).
//! What an actor answers later, to calls that it has taken before, has a bound past which the call fails.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};
use footlight_runtime::{
    ActorId,
    error::{Cause, Failure},
};
use tokio::sync::{Mutex, Notify};

use super::inbox::MAX_EARLY_BYTES;

/// A message with large tensors begins only while less than this waits, in bytes: the bound is passed by
/// one message at most, by answers as they come. While more than this of answers waits, an actor takes no call of the
/// peer: that bound is passed by one answer of each actor, and by those that actors have kept their callers waiting for.
pub(crate) const MAX_OUTBOX: u64 = 256 << 20;

/// An answer with large tensors fails if more than this of others waits, in bytes: as much as the reader bears.
pub(crate) const MAX_ANSWERS: u64 = MAX_EARLY_BYTES as u64;

/// What waits for one peer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: AtomicU64,
    /// Of them, those of answers…
    answers: AtomicU64,
    /// …and whose they are.
    answering: DashMap<ActorId, u64>,
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
    /// Whose answer it is.
    answer_of: Option<ActorId>,
}

impl Outbox {
    /// Takes room for the tensors of an actor's answer, past the bound for messages.
    ///
    /// # Errors
    /// Too much waits for that, too.
    pub(crate) fn take_for_answer(
        self: &Arc<Self>,
        actor: ActorId,
        bytes: u64,
    ) -> Result<Held, Failure> {
        let more = |now: u64| (now <= MAX_ANSWERS).then(|| now.saturating_add(bytes));
        let taken = self.answers.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.map_err(|_| Failure::not_sent(Cause::Overloaded))?;
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        *self.answering.entry(actor).or_default() += bytes;
        Ok(Held { outbox: self.clone(), bytes, answer_of: Some(actor) })
    }

    fn is_full_of_answers(&self) -> bool {
        self.answers.load(Ordering::Acquire) >= MAX_OUTBOX
    }

    /// Whether so much of answers waits, some of it an actor's, that the peer's calls to that one must wait, too.
    pub(crate) fn is_full_for(&self, actor: ActorId) -> bool {
        self.is_full_of_answers() && self.answering.contains_key(&actor)
    }

    /// Waits until the peer's calls need wait no longer.
    pub(crate) async fn takes_answers(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if !self.is_full_of_answers() {
                return;
            }
            room.await;
        }
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
        Some(Held { outbox: self.clone(), bytes, answer_of: None })
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
        let left = |counter: &AtomicU64| {
            let before = counter.fetch_sub(self.bytes, Ordering::AcqRel);
            before >= MAX_OUTBOX && before - self.bytes < MAX_OUTBOX
        };
        let mut has_room = left(&self.outbox.bytes);
        if let Some(actor) = self.answer_of {
            has_room |= left(&self.outbox.answers);
            if let Entry::Occupied(mut waiting) = self.outbox.answering.entry(actor) {
                *waiting.get_mut() -= self.bytes;
                if *waiting.get() == 0 {
                    waiting.remove();
                }
            }
        }
        if has_room {
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
        let answer = outbox.take_for_answer(ActorId(1), 7).unwrap();
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
    async fn calls_wait_for_the_answers_of_their_own_actor_and_too_many_answers_fail() {
        let outbox = Arc::<Outbox>::default();
        let (one, other) = (ActorId(1), ActorId(2));
        let first = outbox.take_for_answer(one, MAX_OUTBOX - 1).unwrap();
        let message = outbox.take(1).await;
        assert!(!outbox.is_full_for(one), "messages don't count");
        let second = outbox.take_for_answer(one, 1).unwrap();
        assert!(outbox.is_full_for(one) && !outbox.is_full_for(other));
        assert!(outbox.takes_answers().now_or_never().is_none());
        let waiting = outbox.clone();
        let waits = tokio::spawn(async move { waiting.takes_answers().await });
        tokio::task::yield_now().await;
        drop(second);
        timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
        let most = outbox.take_for_answer(other, MAX_ANSWERS).unwrap();
        let error = outbox.take_for_answer(one, 1).unwrap_err();
        assert_eq!(error.cause, Cause::Overloaded);
        drop((first, message, most));
        assert!(outbox.answering.is_empty() && outbox.bytes.load(Ordering::Acquire) == 0);
        assert!(outbox.try_take(1).is_some() && outbox.take_for_answer(one, 1).is_ok());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_nobody_back() {
        let outbox = Arc::<Outbox>::default();
        let full = outbox.take_for_answer(ActorId(1), MAX_OUTBOX).unwrap();
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
