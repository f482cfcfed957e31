//! A replica on a thread of its own: what actors hold of a model.

use std::sync::Arc;

use footlight_cluster::Node;
use footlight_runtime::{
    Error, Result, System,
    compute::{ComputeError, ComputeThread, Device},
};

use super::{AnyReplica, ModelError, ModelSpec, Models, PendingGradient, SlotTensor};

/// A model on a compute thread. libtorch runs there and nowhere else; what awaits this blocks
/// nobody.
///
/// The loss of a GPU sticks to the process: the node then [fails](Node::fail), so that what runs
/// there is started elsewhere.
pub struct ReplicaThread {
    thread: ComputeThread<Box<dyn AnyReplica>>,
    system: System,
}

impl ReplicaThread {
    /// Builds a model that this node knows, with parameters drawn from a seed.
    ///
    /// # Errors
    /// If the node has no models or not this one, or libtorch refuses.
    pub async fn build(
        system: &System,
        name: impl Into<String>,
        spec: &ModelSpec,
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let models = system.extension::<Models>().unwrap_or_else(|| Arc::new(Models::new()));
        let factory = models.get(spec).map_err(Error::other)?;
        let thread = ComputeThread::spawn(name, device, move |device| {
            factory(seed, device.to_tch()).map_err(|error| match error {
                ModelError::Torch(text) => tch::TchError::Torch(text).into(),
                other => ComputeError::Torch(other.to_string()),
            })
        });
        Ok(ReplicaThread { thread: thread.await?, system: system.clone() })
    }

    /// Runs `work` with the replica.
    ///
    /// # Errors
    /// What `work` says. After a panic or the loss of the device the thread is gone, and every
    /// later call fails.
    pub async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn AnyReplica) -> std::result::Result<R, ModelError> + Send + 'static,
    ) -> Result<R> {
        let outcome = self.thread.run(move |replica| match work(replica.as_mut()) {
            Ok(value) => Ok(Ok(value)),
            // As libtorch's own error, so that the loss of a device is recognised.
            Err(ModelError::Torch(text)) => Err(tch::TchError::Torch(text).into()),
            Err(other) => Ok(Err(other)),
        });
        let outcome = outcome.await;
        self.look_at(&outcome);
        outcome?.map_err(Error::other)
    }

    /// Waits for a gradient that was begun by [`run`](Self::run). The thread is free for the next one meanwhile.
    ///
    /// # Errors
    /// As there.
    pub async fn wait(&self, pending: PendingGradient) -> Result<SlotTensor> {
        if !pending.is_under_way() {
            return pending.wait().map_err(Error::other);
        }
        let waited = tokio::task::spawn_blocking(move || pending.wait()).await;
        let outcome = match waited.map_err(|error| Error::other(error.to_string()))? {
            Ok(slot) => Ok(slot),
            Err(ModelError::Torch(text)) => Err(tch::TchError::Torch(text).into()),
            Err(other) => return Err(Error::other(other)),
        };
        self.look_at(&outcome);
        Ok(outcome?)
    }

    fn look_at<R>(&self, outcome: &std::result::Result<R, ComputeError>) {
        if let Err(ComputeError::DeviceLost(why)) = outcome
            && let Some(node) = Node::of(&self.system)
        {
            node.fail(format!("a device was lost: {why}"));
        }
    }
}

impl std::fmt::Debug for ReplicaThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReplicaThread").field(&self.thread.name()).finish()
    }
}
