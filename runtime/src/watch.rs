//! How actors end, and who learns it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::id::{ActorAddr, NodeId};

/// Why an actor is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Down {
    /// It was asked to stop, or stopped itself.
    Stopped,
    /// A handler panicked with this text.
    Panicked(String),
    /// It gave up with this error.
    Failed(String),
    /// It was killed.
    Killed,
    /// Membership declared its node down.
    NodeLost(NodeId),
    /// There was no such actor when the watch began.
    NoSuchActor,
}

impl Down {
    /// Whether this is an ordinary end, after which a transient child is not started again.
    pub fn is_normal(&self) -> bool {
        matches!(self, Down::Stopped)
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Down::Stopped => f.write_str("stopped"),
            Down::Panicked(text) => write!(f, "panicked: {text}"),
            Down::Failed(text) => write!(f, "failed: {text}"),
            Down::Killed => f.write_str("killed"),
            Down::NodeLost(node) => write!(f, "node {node} lost"),
            Down::NoSuchActor => f.write_str("no such actor"),
        }
    }
}

/// A future that is ready when the watched actor has ended, exactly once. Dropping it ends the
/// watch.
#[derive(Debug)]
pub struct Watch {
    actor: ActorAddr,
    down: oneshot::Receiver<Down>,
}

impl Watch {
    /// A watch and the end through which the answer comes. A dropped sender counts as the loss of
    /// the actor's node.
    pub fn new(actor: ActorAddr) -> (oneshot::Sender<Down>, Self) {
        let (sender, down) = oneshot::channel();
        (sender, Watch { actor, down })
    }

    /// The watched actor.
    pub fn actor(&self) -> ActorAddr {
        self.actor
    }
}

impl Future for Watch {
    type Output = Down;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Down> {
        let lost = Down::NodeLost(self.actor.node);
        Pin::new(&mut self.down).poll(cx).map(|down| down.unwrap_or(lost))
    }
}
