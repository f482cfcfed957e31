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

/// The text of a panic or an error is cut here, in bytes.
const LONGEST_TEXT: usize = 8 << 10;

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
    /// Its node leaves the cluster, and stopped it.
    NodeLeft(NodeId),
    /// Membership declared its node down.
    NodeLost(NodeId),
    /// There was no such actor when the watch began. One of the latest 1024 that ended on its node
    /// is remembered, and told as it was.
    NoSuchActor,
    /// Its node does not let this one watch: the text says which right is missing.
    Refused(String),
}

impl Down {
    /// Whether this is an ordinary end, after which a transient child is not started again.
    pub fn is_normal(&self) -> bool {
        matches!(self, Down::Stopped)
    }

    /// With a text that is not too long to travel, whatever an actor put into its panic.
    pub(crate) fn shortened(mut self) -> Self {
        if let Down::Panicked(text) | Down::Failed(text) = &mut self
            && text.len() > LONGEST_TEXT
        {
            text.truncate(text.floor_char_boundary(LONGEST_TEXT));
            text.push_str(" …");
        }
        self
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Down::Stopped => f.write_str("stopped"),
            Down::Panicked(text) => write!(f, "panicked: {text}"),
            Down::Failed(text) => write!(f, "failed: {text}"),
            Down::Killed => f.write_str("killed"),
            Down::NodeLeft(node) => write!(f, "stopped, since node {node} leaves"),
            Down::NodeLost(node) => write!(f, "node {node} lost"),
            Down::NoSuchActor => f.write_str("no such actor"),
            Down::Refused(why) => write!(f, "the watch was refused: {why}"),
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
