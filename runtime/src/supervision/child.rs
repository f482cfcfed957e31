//! What a supervisor is told of a child, and what it tells.

use std::{fmt, sync::Arc};

use futures::{FutureExt, future::BoxFuture};

use super::strategy::Restart;
use crate::{Result, id::ActorAddr, watch::Down};

/// How a child is started, and when it is started again.
pub struct ChildSpec {
    pub(super) name: String,
    pub(super) restart: Restart,
    pub(super) start: Arc<dyn Fn(u32) -> BoxFuture<'static, Result<ActorAddr>> + Send + Sync>,
}

impl ChildSpec {
    /// A child under a name of its own. `start` is called at each attempt to start it, once the
    /// back-off is over; it gets the number of attempts before this one, failed ones too, and
    /// returns the actor that it started.
    pub fn new<F>(
        name: impl Into<String>,
        restart: Restart,
        start: impl Fn(u32) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ActorAddr>> + Send + 'static,
    {
        ChildSpec { name: name.into(), restart, start: Arc::new(move |n| start(n).boxed()) }
    }
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec")
            .field("name", &self.name)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

/// What happened to a child, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ChildEvent {
    /// It is up.
    Started {
        /// Its name.
        child: String,
        /// Where it is.
        actor: ActorAddr,
        /// How many attempts to start it came before this one, failed ones too: no two attempts
        /// have the same number, and the first has 0.
        starts: u32,
    },
    /// It ended.
    Down {
        /// Its name.
        child: String,
        /// Where it was.
        actor: ActorAddr,
        /// Why.
        down: Down,
    },
    /// It could not be started; it is tried again as the limits allow.
    StartFailed {
        /// Its name.
        child: String,
        /// Why.
        why: String,
    },
    /// The limits were exceeded: all children are stopped, and the supervisor ends.
    GaveUp {
        /// Which limit, and which child's failure was one too many.
        why: String,
    },
}
