//! Parts of a job that outlive the actor they serve, for a while.
//!
//! Shards hold what nobody else has, and serve a trainer that may be started again on another node.
//! So they do not end with it: they wait for the next one to [`Adopt`] them, and end only if none
//! comes, or when they are [dismissed](Dismiss).

use std::time::Duration;

use footlight_runtime::{Actor, ActorAddr, Context, Message};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// How long a part whose owner is gone waits for another one. A new trainer is there within seconds,
/// unless the cluster has lost the majority of its voters.
pub const ADOPTION: Duration = Duration::from_secs(60);

/// The one who sends this is the owner from here on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Adopt {
    /// The new owner.
    pub owner: ActorAddr,
}

impl Message for Adopt {
    type Reply = ();
    const NAME: &'static str = "job.adopt";
}

/// The job is over: end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Dismiss;

impl Message for Dismiss {
    type Reply = ();
    const NAME: &'static str = "job.dismiss";
}

/// Whom a part serves.
#[derive(Debug)]
pub(crate) struct Owner {
    addr: ActorAddr,
    /// There while nobody is; dropped when somebody adopts.
    waiting: Option<oneshot::Sender<()>>,
}

impl Owner {
    /// The part that `context` belongs to serves this actor.
    pub(crate) fn new<A: Actor>(addr: ActorAddr, context: &Context<A>) -> Self {
        context.watch_addr(addr);
        Owner { addr, waiting: None }
    }

    pub(crate) fn is(&self, actor: ActorAddr) -> bool {
        self.addr == actor
    }

    /// Another one takes over.
    pub(crate) fn adopt<A: Actor>(&mut self, adopt: Adopt, context: &Context<A>) {
        if adopt.owner != self.addr || self.waiting.is_some() {
            *self = Owner::new(adopt.owner, context);
        }
    }

    /// The owner is gone: the part ends if nobody adopts it.
    pub(crate) fn lost<A: Actor>(&mut self, context: &Context<A>) {
        let (waiting, adopted) = oneshot::channel::<()>();
        self.waiting = Some(waiting);
        let me = context.me();
        context.run(async move {
            if tokio::time::timeout(ADOPTION, adopted).await.is_err() {
                tracing::info!(actor = %me.addr(), "nobody took this part of a job over");
                me.stop();
            }
            Ok(())
        });
    }
}
