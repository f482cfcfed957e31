//! All events of a job, for whoever follows it.

use std::sync::{Arc, Mutex, MutexGuard};

use footlight_runtime::Streamed;
use tokio::sync::Notify;

use super::event::JobEvent;

/// All events of a job: whoever comes late reads from the start.
#[derive(Debug, Default)]
pub(super) struct Log {
    told: Mutex<Told>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<JobEvent>,
    /// Nothing follows any more.
    closed: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Adds an event; after the end it is dropped.
    pub(super) fn tell(&self, event: JobEvent) {
        let mut told = self.lock();
        if !told.closed {
            told.events.push(event);
        }
        drop(told);
        self.grown.notify_waiters();
    }

    /// The job has failed: the last event. The first reason counts.
    pub(super) fn fail(&self, why: String) {
        self.tell(JobEvent::Failed(why));
        self.close();
    }

    /// Whether the job's end has been told.
    pub(super) fn is_over(&self) -> bool {
        let told = self.lock();
        told.closed || matches!(told.events.last(), Some(JobEvent::Done(_) | JobEvent::Failed(_)))
    }

    /// Nothing more will be told.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.grown.notify_waiters();
    }

    /// Waits until nothing more will be told.
    pub(super) async fn closed(&self) {
        self.until(|told| told.closed.then_some(())).await
    }

    async fn until<T>(&self, mut ready: impl FnMut(&Told) -> Option<T>) -> T {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registered before looking: an event between the two would be missed otherwise.
            grown.as_mut().enable();
            let found = ready(&self.lock());
            match found {
                Some(found) => return found,
                None => grown.await,
            }
        }
    }

    /// All events from the first on, until nothing more will be told.
    pub(super) fn follow(self: Arc<Self>) -> Streamed<JobEvent> {
        Streamed::from_stream(futures::stream::unfold((self, 0), |(log, index)| async move {
            let next = log.until(|told| match told.events.get(index) {
                Some(event) => Some(Some(event.clone())),
                None => told.closed.then_some(None),
            });
            let event = next.await?;
            Some((event, (log, index + 1)))
        }))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn evaluated(steps: u64) -> JobEvent {
        JobEvent::Evaluated { steps, accuracy: Some(0.5), loss: 1.0 }
    }

    #[tokio::test]
    async fn who_comes_late_reads_from_the_start_and_waits_for_what_comes() {
        let log = Arc::new(Log::default());
        log.tell(evaluated(1));
        let mut followed = log.clone().follow();
        assert_eq!(followed.next().await, Some(Ok(evaluated(1))));
        assert!(followed.next().now_or_never().is_none());
        log.tell(evaluated(2));
        assert_eq!(followed.next().await, Some(Ok(evaluated(2))));
    }

    #[tokio::test]
    async fn the_first_reason_of_a_failure_is_the_last_that_is_told() {
        let log = Arc::new(Log::default());
        let mut followed = log.clone().follow();
        log.fail("the shard was lost".into());
        log.fail("a pull failed".into());
        log.tell(evaluated(1));
        let failed = JobEvent::Failed("the shard was lost".into());
        assert_eq!(followed.next().await, Some(Ok(failed)));
        assert_eq!(followed.next().await, None);
        log.closed().await;
    }

    #[tokio::test]
    async fn who_waits_when_it_is_closed_is_not_left_waiting() {
        let log = Arc::new(Log::default());
        let mut followed = log.clone().follow();
        assert!(followed.next().now_or_never().is_none());
        log.close();
        assert_eq!(followed.next().await, None);
    }
}
