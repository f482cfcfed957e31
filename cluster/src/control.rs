//! The threads that keep a node in touch with the others.
//!
//! Connections, membership and credits run on the control thread and nowhere else, on a tokio
//! runtime of one thread: actors and libtorch may keep every core busy, and the node still answers
//! in time. Large tensors have a thread of their own: encrypting some hundred MiB takes longer than
//! membership may be silent.

use std::{thread, time::Duration};

use tokio::{runtime::Handle, sync::oneshot};

use crate::ClusterError;

/// One such thread.
pub(crate) struct ControlThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl ControlThread {
    /// Starts a thread of this name.
    pub(crate) fn start(name: &str) -> Result<Self, ClusterError> {
        Self::start_many(name, 1)
    }

    /// Starts so many threads that share their work, and each other's name.
    pub(crate) fn start_many(name: &str, threads: usize) -> Result<Self, ClusterError> {
        let mut runtime = match threads {
            ..2 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        if threads > 1 {
            runtime.worker_threads(threads).thread_name(name);
        }
        let runtime = runtime.enable_all().build().map_err(ClusterError::ControlThread)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Ends when told to, or when the node is dropped without a word.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_timeout(Duration::from_millis(100));
                let _ = end.send(());
            })
            .map_err(ClusterError::ControlThread)?;
        Ok(ControlThread { handle, stop: Some(stop), ended: Some(ended) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread and waits until it has.
    pub(crate) async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(ended) = self.ended.take() {
            let _ = ended.await;
        }
    }
}
