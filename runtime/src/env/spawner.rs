//! A node's tasks: started on its runtime, counted, and all ended with it.

use std::{fmt, future::Future};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use super::EnvError;
use crate::fence;

/// Starts a node's tasks and ends them. Clones share the tasks.
///
/// Several nodes live in one process, so a node's tasks belong to the node: when it closes, its
/// own end and no others. A closing has two stages: tasks are asked to stop ([`Spawner::stopping`])
/// and have until a deadline; what is left then is dropped at the await where it stands.
#[derive(Clone)]
pub struct Spawner {
    handle: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

/// Tasks that were still at work when a closing ran out of time.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("{tasks} of the node's tasks did not stop in time and were dropped")]
pub struct Unfinished {
    /// How many.
    pub tasks: usize,
}

impl Spawner {
    /// Tasks on the runtime of `handle`.
    pub fn new(handle: Handle) -> Self {
        Spawner {
            handle,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        }
    }

    /// Tasks on the runtime of this thread.
    ///
    /// # Errors
    /// [`EnvError::NoRuntime`] if it has none.
    pub fn current() -> Result<Self, EnvError> {
        Handle::try_current().map(Spawner::new).map_err(EnvError::NoRuntime)
    }

    /// Starts a task, under the [`fence`] of the one that starts it; it runs whether or
    /// not its handle is kept. After a closing's deadline it is dropped before it runs.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let abort = self.abort.clone().cancelled_owned();
        self.tasks.spawn_on(fence::under(fence::held(), unless(abort, future)), &self.handle)
    }

    /// Drops a value where that may take long, or panic, without harm to anyone else.
    ///
    /// A runtime of several threads does it on a thread for blocking work. One of a single thread,
    /// as a simulation has, does it in a task: so it happens at the same point of each run.
    pub fn discard<T: Send + 'static>(&self, value: T) {
        if self.handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            self.spawn(async move { drop(value) });
        } else {
            self.tasks.spawn_blocking_on(move || drop(value), &self.handle);
        }
    }

    /// Cancelled when the node closes. A task that has something to bring to an end waits for it;
    /// `stopping().child_token()` can be cancelled alone.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// The runtime that the tasks run on.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Asks every task to stop and waits until all have, at most until `deadline`; then drops the
    /// rest. May be called again, and by several at once. Not from one of the node's own tasks,
    /// which would wait for itself.
    ///
    /// # Errors
    /// [`Unfinished`] tells how many were left at the deadline. A task that never awaits runs on.
    pub async fn close_and_wait(&self, deadline: Instant) -> Result<(), Unfinished> {
        self.stop.cancel();
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_ok() {
            self.abort.cancel();
            return Ok(());
        }
        let unfinished = Unfinished { tasks: self.tasks.len() };
        self.abort.cancel();
        Err(unfinished)
    }
}

async fn unless(abort: WaitForCancellationFutureOwned, future: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = abort => {}
        () = future => {}
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn closing_waits_for_tasks_that_stop_when_asked() {
        let spawner = Spawner::current().unwrap();
        let (done, mut all_done) = mpsc::channel(3);
        for _ in 0..3 {
            let (stop, done) = (spawner.stopping().clone(), done.clone());
            spawner.spawn(async move {
                stop.cancelled().await;
                done.send(()).await.ok();
            });
        }
        assert_eq!(spawner.close_and_wait(soon()).await, Ok(()));
        drop(done);
        let mut count = 0;
        while all_done.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, 3);
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_dropped_at_the_deadline() {
        let spawner = Spawner::current().unwrap();
        let (held, released) = oneshot::channel::<()>();
        spawner.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let closed = spawner.close_and_wait(Instant::now()).await;
        assert_eq!(closed, Err(Unfinished { tasks: 1 }));
        assert!(released.await.is_err(), "what the task held is dropped");
    }

    #[tokio::test]
    async fn after_a_closing_nothing_starts() {
        let spawner = Spawner::current().unwrap();
        spawner.close_and_wait(soon()).await.unwrap();
        let (ran, has_run) = oneshot::channel();
        let task = spawner.spawn(async move {
            ran.send(()).ok();
        });
        task.await.unwrap();
        assert!(has_run.await.is_err());
    }

    #[tokio::test]
    async fn one_nodes_closing_leaves_anothers_tasks_alone() {
        let [one, other] = [Spawner::current().unwrap(), Spawner::current().unwrap()];
        let (ask, asked) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        other.spawn(async move {
            if asked.await.is_ok() {
                answer.send(()).ok();
            }
        });
        one.close_and_wait(soon()).await.unwrap();
        ask.send(()).unwrap();
        answered.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_in_a_task_ends_that_task_only() {
        let spawner = Spawner::current().unwrap();
        let broken = spawner.spawn(async { panic!("on purpose") });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(spawner.close_and_wait(soon()).await, Ok(()));
    }
}
