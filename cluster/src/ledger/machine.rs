//! The state as openraft's state machine, and as those who read and watch see it.
//!
//! The state is in memory. On disk are the log and, every [`SNAPSHOT_EVERY`] entries, a snapshot;
//! a voter that starts takes the snapshot and applies the log's committed entries again.

use std::{
    collections::VecDeque,
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard},
};

use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
    storage::RaftStateMachine,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    command::{Outcome, Reign},
    state::{Change, State},
    store::{Store, StoreError, decode, encode},
    types::{LogEntry, LogId, SnapshotMeta, StorageError, StoredMembership, Types, VoterId},
};

/// Changes that are kept for those who watch; who is further behind is told the whole state again.
const RECENT: usize = 1024;

/// What a voter has applied.
#[derive(Debug, Serialize, Deserialize)]
struct Applied {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

#[derive(Debug)]
struct Inner {
    applied: Arc<Applied>,
    /// The last changes of keys, in order, without a gap up to the state's revision.
    recent: VecDeque<Change>,
}

/// The state of a voter, as it is now.
#[derive(Debug)]
pub(super) struct View {
    inner: Mutex<Inner>,
    /// Told the number of entries applied so far.
    moved: watch::Sender<u64>,
}

/// What has happened since a revision.
pub(super) enum Since {
    /// These changes, and this is the revision now.
    Changes(Vec<Change>, u64),
    /// More than is remembered.
    Lost,
}

impl View {
    fn new(applied: Applied) -> Self {
        let inner = Inner { applied: Arc::new(applied), recent: VecDeque::new() };
        View { inner: Mutex::new(inner), moved: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Reads the state.
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock().applied.state)
    }

    /// Told whenever entries were applied.
    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// The changes after a revision.
    pub(super) fn since(&self, revision: u64) -> Since {
        let inner = self.lock();
        let now = inner.applied.state.revision();
        if revision == now {
            return Since::Changes(Vec::new(), now);
        }
        let first = inner.recent.front().map(|change| change.revision);
        if revision > now || first.is_none_or(|first| first > revision + 1) {
            return Since::Lost;
        }
        let after = inner.recent.iter().filter(|change| change.revision > revision);
        Since::Changes(after.cloned().collect(), now)
    }
}

/// The state machine of a voter.
#[derive(Debug)]
pub(super) struct Machine {
    view: Arc<View>,
    store: Store,
}

impl Machine {
    /// The state as the snapshot has it, or `empty`.
    pub(super) async fn load(
        store: Store,
        empty: State,
    ) -> Result<(Machine, Arc<View>), StoreError> {
        let applied = match store.snapshot().await? {
            Some((_, data)) => read(data).await?,
            None => Applied { state: empty, last: None, membership: StoredMembership::default() },
        };
        let view = Arc::new(View::new(applied));
        Ok((Machine { view: view.clone(), store }, view))
    }
}

/// Decoding a snapshot takes some time: not on the control thread.
async fn read(data: Vec<u8>) -> Result<Applied, StoreError> {
    let decoded = tokio::task::spawn_blocking(move || decode(&data));
    decoded.await.map_err(|error| StoreError::Failed(error.to_string()))?
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let inner = self.view.lock();
        Ok((inner.applied.last, inner.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut inner = self.view.lock();
        let Inner { applied, recent } = &mut *inner;
        // Copied only while a snapshot of it is being made.
        let Applied { state, last, membership } = Arc::make_mut(applied);
        let (mut outcomes, mut changes) = (Vec::new(), Vec::new());
        for entry in entries {
            *last = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Done,
                EntryPayload::Normal(normal) => {
                    let leader_id = entry.log_id.leader_id;
                    let reign = Reign { term: leader_id.term, leader: leader_id.node_id };
                    state.apply(normal, reign, &mut changes)
                }
                EntryPayload::Membership(new) => {
                    *membership = StoredMembership::new(Some(entry.log_id), new);
                    Outcome::Done
                }
            });
        }
        recent.extend(changes);
        let surplus = recent.len().saturating_sub(RECENT);
        recent.drain(..surplus);
        drop(inner);
        self.view.moved.send_modify(|moves| *moves += 1);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { applied: self.view.lock().applied.clone(), store: self.store.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let kept = bytes::Bytes::from(data.clone());
        let applied = read(data).await.map_err(|error| on_snapshot(meta, &error))?;
        // On the disk first: what was received must not be asked for again after a crash.
        let saved = self.store.save_snapshot(meta.clone(), kept).await;
        saved.map_err(|error| error.on_write())?;
        let mut inner = self.view.lock();
        *inner = Inner { applied: Arc::new(applied), recent: VecDeque::new() };
        drop(inner);
        self.view.moved.send_modify(|moves| *moves += 1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let found = self.store.snapshot().await;
        let found = found.map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(found.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

fn on_snapshot(meta: &SnapshotMeta, error: &StoreError) -> StorageError {
    StorageIOError::<VoterId>::write_snapshot(Some(meta.signature()), error).into()
}

impl Clone for Applied {
    fn clone(&self) -> Self {
        Applied { state: self.state.clone(), last: self.last, membership: self.membership.clone() }
    }
}

/// Makes a snapshot of the state as it was when this was made.
#[derive(Debug)]
pub(super) struct Builder {
    applied: Arc<Applied>,
    store: Store,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let applied = self.applied.clone();
        let last = applied.last;
        let meta = SnapshotMeta {
            last_log_id: last,
            last_membership: applied.membership.clone(),
            snapshot_id: last
                .map_or_else(String::new, |last| format!("{}-{}", last.leader_id, last.index)),
        };
        let encoded = tokio::task::spawn_blocking(move || encode(&*applied));
        let data = match encoded.await {
            Ok(encoded) => encoded,
            Err(error) => Err(StoreError::Failed(error.to_string())),
        };
        let data = data.map_err(|error| on_snapshot(&meta, &error))?;
        let kept = bytes::Bytes::from(data.clone());
        let saved = self.store.save_snapshot(meta.clone(), kept).await;
        saved.map_err(|error| on_snapshot(&meta, &error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
