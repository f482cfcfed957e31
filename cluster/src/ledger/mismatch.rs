//! Says that nodes of one cluster were started with different times for leases: that may not be, and
//! so those that differ don't heed each other (LE-1).

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::voter::lock;

/// It is said so often.
const AGAIN: Duration = Duration::from_secs(30);

/// When it was said last.
#[derive(Debug, Default)]
pub(super) struct Mismatch(Mutex<Option<Instant>>);

impl Mismatch {
    /// Says it, unless it has been said a moment ago.
    pub(super) fn say(&self) {
        let mut said = lock(&self.0);
        if said.is_none_or(|said| said.elapsed() >= AGAIN) {
            *said = Some(Instant::now());
            tracing::error!(
                "another node of this cluster was started with other settings for the ledger, so the \
                 two do not heed each other: start all nodes with the same `--network`"
            );
        }
    }
}
