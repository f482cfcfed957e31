//! Watching keys: what a voter tells, and the stream that a node makes of it.
//!
//! A voter tells first what is there, then each change, both as it has applied them itself: it need
//! not be the leader, and may be a little behind. When it has lost touch with a leader, or ends,
//! the stream breaks, and the node goes on at another voter; what it has seen it is not told again,
//! and it is never told anything older (LE-6).

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use footlight_runtime::Streamed;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    command::Versioned,
    machine::Since,
    message::{Watched, is_listed},
    voter::Voter,
};

/// Items that wait for a reader on either side.
const ROOM: usize = 64;
/// How often a voter checks that what it tells is not out of date.
const TOUCH: Duration = Duration::from_secs(1);

/// A voter's stream for one who watches.
pub(super) fn serve(
    voter: Arc<Voter>,
    prefix: String,
    guarded: bool,
    permit: OwnedSemaphorePermit,
) -> Streamed<Watched> {
    let (sender, stream) = Streamed::channel(ROOM);
    // With the voter's other tasks, whatever thread asks.
    let control = voter.control.clone();
    control.spawn(async move {
        let tell = tell(&voter, &prefix, guarded, &sender);
        let out_of_touch = async {
            let mut missed = 0;
            // An election takes a moment and is no reason to send everybody away.
            while missed < 3 {
                tokio::time::sleep(TOUCH).await;
                missed = if voter.is_in_touch() { 0 } else { missed + 1 };
            }
        };
        tokio::select! {
            biased;
            () = sender.closed() => {}
            () = out_of_touch => {}
            () = tell => {}
        }
        drop(permit);
    });
    stream
}

/// Tells until nobody listens or the voter has ended.
async fn tell(
    voter: &Voter,
    prefix: &str,
    guarded: bool,
    to: &footlight_runtime::stream::StreamSender<Watched>,
) {
    let may_see = |key: &str| key.starts_with(prefix) && is_listed(key, guarded);
    let mut moves = voter.view.moves();
    'begin: loop {
        moves.borrow_and_update();
        let (mut at, there) = voter.view.read(|state| {
            let there = state.with_prefix(prefix).filter(|(key, _)| may_see(key));
            let there: Vec<_> = there.map(|(key, now)| (key.clone(), now.clone())).collect();
            (state.revision(), there)
        });
        let there = there.into_iter().map(|(key, now)| Watched::There(key, now));
        for item in [Watched::Begin(at)].into_iter().chain(there).chain([Watched::All]) {
            if to.send(item).await.is_err() {
                return;
            }
        }
        loop {
            let Since::Changes(changes, now) = voter.view.since(at) else { continue 'begin };
            at = now;
            for change in changes {
                if may_see(&change.key) {
                    let item = Watched::Changed(change.revision, change.key, change.now);
                    if to.send(item).await.is_err() {
                        return;
                    }
                }
            }
            if moves.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The changes of keys, beginning with those that are there: see
/// [`Ledger::watch`](super::Ledger::watch).
#[derive(Debug)]
pub struct LedgerWatch {
    pub(super) changes: mpsc::Receiver<(String, Option<Versioned>)>,
}

impl LedgerWatch {
    pub(super) fn channel() -> (mpsc::Sender<(String, Option<Versioned>)>, Self) {
        let (sender, changes) = mpsc::channel(ROOM);
        (sender, LedgerWatch { changes })
    }

    /// The next change: a key, and what it is now, or `None` if it is gone. `None` once the node
    /// has ended.
    pub async fn next(&mut self) -> Option<(String, Option<Versioned>)> {
        self.changes.recv().await
    }
}

impl Stream for LedgerWatch {
    type Item = (String, Option<Versioned>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.changes.poll_recv(cx)
    }
}

/// What one who watches has been told, over all the voters that have told it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The version of each key that is there.
    keys: BTreeMap<String, u64>,
    revision: u64,
    /// The keys of a telling from the start that is under way.
    telling: Option<BTreeMap<String, u64>>,
}

impl Seen {
    /// Takes what a voter tells; gives the changes that are new. `None`: the voter is behind what
    /// was seen elsewhere, so another one must be asked.
    pub(super) fn take(&mut self, told: Watched) -> Option<Vec<(String, Option<Versioned>)>> {
        match told {
            Watched::Begin(revision) if revision < self.revision => None,
            Watched::Begin(revision) => {
                self.revision = revision;
                self.telling = Some(BTreeMap::new());
                Some(Vec::new())
            }
            Watched::There(key, now) => {
                self.telling.as_mut()?.insert(key.clone(), now.version);
                let known = self.keys.insert(key.clone(), now.version) == Some(now.version);
                Some(if known { Vec::new() } else { vec![(key, Some(now))] })
            }
            Watched::All => {
                let telling = self.telling.take()?;
                let gone = self.keys.keys().filter(|key| !telling.contains_key(*key)).cloned();
                let gone = gone.map(|key| (key, None)).collect();
                self.keys = telling;
                Some(gone)
            }
            Watched::Changed(revision, key, now) => {
                self.revision = self.revision.max(revision);
                match &now {
                    Some(now) => drop(self.keys.insert(key.clone(), now.version)),
                    None => drop(self.keys.remove(&key)),
                }
                Some(vec![(key, now)])
            }
        }
    }

    /// Another ledger counts from the start.
    pub(super) fn other_ledger(&mut self) {
        self.revision = 0;
        self.telling = None;
        // Versions of two ledgers can't be compared: what is still there is told once more.
        self.keys.values_mut().for_each(|version| *version = 0);
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
