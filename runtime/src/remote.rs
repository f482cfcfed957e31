//! The seam between one node and the others.
//!
//! The `cluster` room implements [`Remote`]; this room never learns what carries a message. What
//! arrives is handed to [`System::deliver`](crate::System::deliver) in [`Batch`]es.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::{
    codec::{Encoded, Parcel},
    error::Failure,
    id::{ActorAddr, ActorId, Fence},
    message::Fingerprint,
    watch::Watch,
};

/// How many messages one node may have unread at one actor of another node. The receiver gives
/// credits back as the actor takes messages out of its mailbox, so senders wait for the actor, and
/// only those who send to it.
pub const WINDOW: usize = 1024;

/// How many bytes (body and tensors) one node may have unread at one actor of another node. A
/// single larger message takes the whole window and travels alone.
pub const WINDOW_BYTES: usize = 64 << 20;

/// A message on its way out.
#[derive(Debug)]
pub struct Outgoing {
    /// The receiver.
    pub to: ActorAddr,
    /// The message's name.
    pub name: &'static str,
    /// The hash of the name, as the envelope carries it.
    pub key: u64,
    /// The shape that the sender knows.
    pub fingerprint: Fingerprint,
    /// The right under which it is sent.
    pub fence: Option<Fence>,
    /// The value.
    pub value: Encoded,
}

/// Where an answer from another node goes.
pub type Answer = oneshot::Sender<Result<Parcel, Failure>>;

/// How an actor on another node is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum End {
    /// Finish the message in hand, then stop.
    Stop,
    /// End at the next await.
    Kill,
}

/// A message that was not sent, or not yet.
#[derive(Debug)]
pub enum Unsent {
    /// It can't be sent.
    Failed(Failure),
    /// It can't be sent at once; it is given back, with its answer. The failure says what is to be
    /// waited for: room, or a connection.
    NotNow(Box<(Outgoing, Option<Answer>)>, Failure),
}

impl Unsent {
    /// Why, for a sender that does not wait.
    pub fn into_failure(self) -> Failure {
        match self {
            Unsent::Failed(failure) | Unsent::NotNow(_, failure) => failure,
        }
    }
}

/// The way to other nodes.
pub trait Remote: Send + Sync + 'static {
    /// Sends one message, waiting for a connection and for credits at most `patience`.
    ///
    /// `Ok` means that the message is on its way, in order after those sent before to the same
    /// receiver. With an `answer`, exactly one outcome is sent to it afterwards unless this
    /// returns an error.
    fn send(
        &self,
        message: Outgoing,
        answer: Option<Answer>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(), Failure>>;

    /// Sends one message now, as [`send`](Self::send) does, or gives it back.
    ///
    /// # Errors
    /// [`Unsent::NotNow`] if something would have to be waited for.
    fn try_send(&self, message: Outgoing, answer: Option<Answer>) -> Result<(), Unsent>;

    /// Learns of the end of an actor.
    fn watch(&self, actor: ActorAddr) -> Watch;

    /// Ends an actor; the watch tells when it has.
    fn end(&self, actor: ActorAddr, how: End);

    /// Sees to it that an actor of another node fails when `with`, an actor of this one, ends
    /// otherwise than by a stop; or no longer does. Of two requests for one pair the later counts.
    fn link(&self, actor: ActorAddr, with: ActorAddr, linked: bool);
}

/// Where the answer to a message that came from another node goes.
pub trait ReplyPort: Send {
    /// Sends the answer. Never waits: replies pass every bound.
    fn answer(self: Box<Self>, outcome: Result<Encoded, Failure>);
}

/// Gives a sender the room back that its messages took.
pub trait Credits: Send + Sync {
    /// The actor has taken so many messages, of so many bytes together, out of its mailbox.
    fn taken(&self, messages: u32, bytes: u64);

    /// Whether the sender is slow to read its answers: then its calls, and what it sent after them, are put aside
    /// until the future is done. Everybody else's messages are handled meanwhile.
    fn reads_slowly(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// Messages from one other node to one actor of this one, in their order. They wake the actor once.
pub struct Batch {
    /// The receiver on this node.
    pub to: ActorId,
    /// The messages.
    pub messages: Vec<Incoming>,
    /// Told when they are taken, or dropped untaken.
    pub credits: Arc<dyn Credits>,
}

/// A message that arrived from another node, not yet decoded: decoding is the work of the
/// receiver's task, never of the reader of a connection.
pub struct Incoming {
    /// The hash of the message's name.
    pub key: u64,
    /// The right under which it was sent.
    pub fence: Option<Fence>,
    /// The value.
    pub parcel: Parcel,
    /// Where the answer goes; none for a cast.
    pub reply: Option<Box<dyn ReplyPort>>,
    /// What it took of its sender's room, in bytes.
    pub bytes: u64,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("key", &self.key).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("to", &self.to)
            .field("messages", &self.messages)
            .finish_non_exhaustive()
    }
}
