//! What a supervisor is told of a child, and what it tells.

use std::{fmt, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use tokio_util::sync::CancellationToken;

use super::strategy::Restart;
use crate::{Result, id::ActorAddr, watch::Down};

/// One attempt to start a child.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// How many attempts came before this one, failed ones too: no two have the same number, and
    /// the first has 0.
    pub number: u32,
    /// Whether the child has been up before.
    pub was_up: bool,
    /// Cancelled when the child is no longer wanted. A start that only waits (for a node that fits,
    /// say) ends with an error then; one that has begun goes on, and its actor is stopped.
    pub called_off: CancellationToken,
}

pub(super) type Start = Arc<dyn Fn(Attempt) -> BoxFuture<'static, Result<ActorAddr>> + Send + Sync>;
pub(super) type Lost = Arc<dyn Fn(ActorAddr) -> BoxFuture<'static, String> + Send + Sync>;

/// How a child is started, and when it is started again.
#[derive(Clone)]
pub struct ChildSpec {
    pub(super) name: String,
    pub(super) restart: Restart,
    pub(super) start: Start,
    pub(super) lost: Option<Lost>,
}

impl ChildSpec {
    /// A child under a name of its own. `start` is called at each attempt to start it, once the
    /// back-off is over, and returns the actor that it started.
    pub fn new<F>(
        name: impl Into<String>,
        restart: Restart,
        start: impl Fn(Attempt) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ActorAddr>> + Send + 'static,
    {
        let start: Start = Arc::new(move |attempt| start(attempt).boxed());
        ChildSpec { name: name.into(), restart, start, lost: None }
    }

    /// The child is given up where it is, and started anew, when `lost` is ready before its end is
    /// told: its node is a member, but can't be reached, say. The text says why. What was given up
    /// is told to stop as soon as that is possible.
    pub fn lost_when<F>(mut self, lost: impl Fn(ActorAddr) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = String> + Send + 'static,
    {
        self.lost = Some(Arc::new(move |actor| lost(actor).boxed()));
        self
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
        /// The [number](Attempt::number) of the attempt that succeeded.
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
    /// It was [given up](ChildSpec::lost_when), though nobody has told its end.
    Abandoned {
        /// Its name.
        child: String,
        /// Where it was.
        actor: ActorAddr,
        /// Why.
        why: String,
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
