//! What a supervisor is told of a child, and what it tells.

use std::{fmt, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::strategy::Restart;
use crate::{Error, Result, id::ActorAddr, watch::Down};

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
/// How a child is given up.
#[derive(Clone)]
pub(super) struct Lost {
    pub(super) when: Arc<dyn Fn(ActorAddr) -> BoxFuture<'static, ()> + Send + Sync>,
    pub(super) end: Arc<dyn Fn(ActorAddr) -> BoxFuture<'static, String> + Send + Sync>,
}

/// A child that was told to stop has so long before it is killed, unless told otherwise.
pub const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a child is started, and when it is started again.
#[derive(Clone)]
pub struct ChildSpec {
    pub(super) name: String,
    pub(super) restart: Restart,
    pub(super) start: Start,
    pub(super) lost: Option<Lost>,
    pub(super) stop_within: Duration,
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
        ChildSpec { name: name.into(), restart, start, lost: None, stop_within: STOP_PATIENCE }
    }

    /// How long the child has to stop before it is killed. Default: [`STOP_PATIENCE`]. One that
    /// supervises others needs the time of all of them.
    pub fn stop_within(mut self, patience: Duration) -> Self {
        self.stop_within = patience;
        self
    }

    /// The child is given up where it is, and started anew, when `lost` is ready before its end is
    /// told: its node is a member, but can't be reached, say. Then `end` sees to its end as far as
    /// that is possible, and says why it was given up; the child counts as gone when that is ready.
    /// Besides, it is told to stop as soon as it can be reached.
    pub fn lost_when<F, E>(
        mut self,
        lost: impl Fn(ActorAddr) -> F + Send + Sync + 'static,
        end: impl Fn(ActorAddr) -> E + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        E: Future<Output = String> + Send + 'static,
    {
        self.lost = Some(Lost {
            when: Arc::new(move |actor| lost(actor).boxed()),
            end: Arc::new(move |actor| end(actor).boxed()),
        });
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

/// A child could not be added or taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// The name is taken.
    #[error("two children are called `{0}`: give each a name of its own")]
    Taken(String),
    /// There is none of this name.
    #[error("there is no child called `{0}`")]
    Unknown(String),
    /// It could not be started, and was not added.
    #[error("the child `{child}` was not added: {why}")]
    NotStarted {
        /// Its name.
        child: String,
        /// What its start said.
        why: String,
    },
    /// It was taken away before it was up.
    #[error("the child `{0}` was taken away before it was up")]
    Removed(String),
    /// The supervisor has ended.
    #[error("the supervisor has ended")]
    Ended,
}

impl From<ChildError> for Error {
    fn from(error: ChildError) -> Self {
        Error::other(error)
    }
}

/// What happened to a child, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        /// Which child's failure was one too many, how it failed, and the limit.
        why: String,
    },
    /// The listener was slower than the supervisor: so many events before the next one are lost to
    /// it.
    Missed(u64),
}
