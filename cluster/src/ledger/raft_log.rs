//! The store as openraft's log.

use std::{fmt::Debug, ops::RangeBounds};

use openraft::{
    LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    store::{BATCH, Store, StoreError},
    types::{LogEntry, LogId, StorageError, Types, Vote},
};

impl StoreError {
    fn on_read(&self) -> StorageError {
        StorageIOError::read(self).into()
    }

    pub(super) fn on_write(&self) -> StorageError {
        StorageIOError::write(self).into()
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<LogEntry>, StorageError> {
        self.entries(range, usize::MAX).await.map_err(|error| error.on_read())
    }

    /// What goes to another voter in one message.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, StorageError> {
        self.entries(start..end, BATCH).await.map_err(|error| error.on_read())
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let (last_purged_log_id, last_log_id) =
            self.ends().await.map_err(|error| error.on_read())?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        Store::save_vote(self, *vote).await.map_err(|error| error.on_write())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.vote().await.map_err(|error| error.on_read())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        Store::append(self, entries, callback).map_err(|error| error.on_write())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        Store::truncate(self, log_id.index).await.map_err(|error| error.on_write())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        Store::purge(self, log_id).await.map_err(|error| error.on_write())
    }
}
