//! Credits: how much one node may have unread at one actor of another.
//!
//! The sender's side is a [`Window`], the receiver's a [`Ledger`]. The receiver owes the sender what
//! its actor has taken out of the mailbox, and pays when a quarter of the window is owed or nothing
//! is left unread, so that a slow actor holds back its senders and nobody else.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use footlight_runtime::{
    ActorId,
    error::{Cause, Failure},
    remote::{WINDOW, WINDOW_BYTES},
};
use tokio::{sync::Semaphore, time::Instant};

/// What a sender may still send to one actor.
#[derive(Debug)]
pub(crate) struct Window {
    messages: Semaphore,
    bytes: Semaphore,
}

/// What a message of so many bytes takes from the window: a longer one than the window takes it
/// whole.
pub(crate) fn cost(bytes: u64) -> u32 {
    bytes.min(WINDOW_BYTES as u64) as u32
}

impl Window {
    pub(crate) fn new() -> Self {
        Window { messages: Semaphore::new(WINDOW), bytes: Semaphore::new(WINDOW_BYTES) }
    }

    /// Waits for room, in the order of asking.
    pub(crate) async fn take(&self, bytes: u64, deadline: Instant) -> Result<(), Failure> {
        let full = |_| Failure::not_sent(Cause::Overloaded);
        let closed = |_| Failure::not_sent(Cause::Unreachable("the connection ended".into()));
        let message = tokio::time::timeout_at(deadline, self.messages.acquire())
            .await
            .map_err(full)?
            .map_err(closed)?;
        tokio::time::timeout_at(deadline, self.bytes.acquire_many(cost(bytes)))
            .await
            .map_err(full)?
            .map_err(closed)?
            .forget();
        message.forget();
        Ok(())
    }

    /// Takes room if there is some.
    pub(crate) fn try_take(&self, bytes: u64) -> Result<(), Failure> {
        let full = |_| Failure::not_sent(Cause::Overloaded);
        let message = self.messages.try_acquire().map_err(full)?;
        self.bytes.try_acquire_many(cost(bytes)).map_err(full)?.forget();
        message.forget();
        Ok(())
    }

    /// A message that took room was not sent after all.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.give(1, u64::from(cost(bytes)));
    }

    /// Whether nothing is taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.messages.available_permits() == WINDOW
            && self.bytes.available_permits() == WINDOW_BYTES
    }

    /// The receiver has taken messages out. More than was sent is a breach that only widens the
    /// peer's own window; it is cut off at the full window.
    pub(crate) fn give(&self, messages: u32, bytes: u64) {
        let room = WINDOW.saturating_sub(self.messages.available_permits());
        self.messages.add_permits(room.min(messages as usize));
        let room = WINDOW_BYTES.saturating_sub(self.bytes.available_permits());
        self.bytes.add_permits(room.min(usize::try_from(bytes).unwrap_or(usize::MAX)));
    }

    /// The connection has ended: whoever waits fails.
    pub(crate) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }
}

/// What the receiving side owes, actor by actor.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: HashMap<ActorId, Account, RandomState>,
}

#[derive(Debug, Default)]
struct Account {
    unread: u32,
    unread_bytes: u64,
    owed: u32,
    owed_bytes: u64,
}

/// A peer sent more than its window allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("more than {WINDOW} messages or {WINDOW_BYTES} bytes unread at actor {0:?}")]
pub(crate) struct WindowBreached(pub(crate) ActorId);

impl Ledger {
    /// A message has arrived.
    pub(crate) fn arrived(&mut self, actor: ActorId, bytes: u64) -> Result<(), WindowBreached> {
        let account = self.accounts.entry(actor).or_default();
        account.unread += 1;
        account.unread_bytes += u64::from(cost(bytes));
        let owed = account.unread as usize + account.owed as usize;
        if owed > WINDOW || account.unread_bytes + account.owed_bytes > WINDOW_BYTES as u64 {
            return Err(WindowBreached(actor));
        }
        Ok(())
    }

    /// The actor has taken messages out: `bytes` is the sum of what they [cost](cost). Returns what
    /// is to be paid now.
    pub(crate) fn taken(
        &mut self,
        actor: ActorId,
        messages: u32,
        bytes: u64,
    ) -> Option<(u32, u64)> {
        let account = self.accounts.get_mut(&actor)?;
        account.unread = account.unread.saturating_sub(messages);
        account.unread_bytes = account.unread_bytes.saturating_sub(bytes);
        account.owed += messages;
        account.owed_bytes += bytes;
        let due = account.unread == 0
            || account.owed as usize >= WINDOW / 4
            || account.owed_bytes >= WINDOW_BYTES as u64 / 4;
        if !due {
            return None;
        }
        let paid = (account.owed, account.owed_bytes);
        if account.unread == 0 {
            self.accounts.remove(&actor);
        } else {
            (account.owed, account.owed_bytes) = (0, 0);
        }
        Some(paid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ACTOR: ActorId = ActorId(20);

    #[test]
    fn what_is_taken_from_the_window_comes_back_whole() {
        let (window, mut ledger) = (Window::new(), Ledger::default());
        for _ in 0..10 {
            // Nothing left unread: the window is whole again, so even the largest message fits.
            window.try_take(u64::MAX).unwrap();
            ledger.arrived(ACTOR, u64::MAX).unwrap();
            assert_eq!(
                window.try_take(1),
                Err(Failure::not_sent(Cause::Overloaded)),
                "a message as large as the window travels alone"
            );
            let (messages, bytes) = ledger.taken(ACTOR, 1, u64::from(cost(u64::MAX))).unwrap();
            window.give(messages, bytes);
        }
        assert_eq!(window.messages.available_permits(), WINDOW);
        assert_eq!(window.bytes.available_permits(), WINDOW_BYTES);
    }

    #[test]
    fn a_peer_that_ignores_its_window_is_found_out() {
        let mut ledger = Ledger::default();
        for _ in 0..WINDOW {
            ledger.arrived(ACTOR, 10).unwrap();
        }
        assert_eq!(ledger.arrived(ACTOR, 10), Err(WindowBreached(ACTOR)));
    }

    proptest! {
        /// Whatever the order of arrivals and takings, an honest sender is never found guilty and
        /// never starves once all is read.
        #[test]
        fn an_honest_sender_is_never_stuck(steps in proptest::collection::vec((any::<bool>(), 0u64..100 << 20), 1..600)) {
            let (window, mut ledger) = (Window::new(), Ledger::default());
            let mut unread = std::collections::VecDeque::new();
            for (send, bytes) in steps {
                if send {
                    if window.try_take(bytes).is_ok() {
                        prop_assert!(ledger.arrived(ACTOR, bytes).is_ok());
                        unread.push_back(bytes);
                    }
                } else if let Some(bytes) = unread.pop_front()
                    && let Some((messages, bytes)) = ledger.taken(ACTOR, 1, u64::from(cost(bytes)))
                {
                    window.give(messages, bytes);
                }
            }
            while let Some(bytes) = unread.pop_front() {
                if let Some((messages, bytes)) = ledger.taken(ACTOR, 1, u64::from(cost(bytes))) {
                    window.give(messages, bytes);
                }
            }
            prop_assert_eq!(window.messages.available_permits(), WINDOW);
            prop_assert_eq!(window.bytes.available_permits(), WINDOW_BYTES);
        }
    }
}
