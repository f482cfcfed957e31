//! The right under which a task acts.
//!
//! An actor of which the cluster runs exactly one acts under a lease; every message it sends carries
//! the lease's generation, so that a receiver can refuse a holder that was replaced without knowing.
//! Nobody has to think of it: the fence belongs to the task and goes along with whatever it starts.
//!
//! It is inherited by actors spawned on this node, by [`Context::run`](crate::Context::run) and by
//! the node's [`Spawner`](crate::env::Spawner). A task started with tokio's own `spawn`, and a
//! closure on a compute thread, act under none.

use tokio::task::futures::TaskLocalFuture;

use crate::id::Fence;

tokio::task_local! {
    static HELD: Option<Fence>;
}

/// The fence of the task that asks.
pub fn held() -> Option<Fence> {
    HELD.try_with(|held| *held).ok().flatten()
}

/// Runs a future under a fence, or under none.
pub fn under<F: Future>(fence: Option<Fence>, future: F) -> TaskLocalFuture<Option<Fence>, F> {
    HELD.scope(fence, future)
}
