//! What waits in front of an actor.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Context, Message, ReplyTo,
    actor::{Actor, Receives},
    codec::Encoded,
    error::{Cause, Failure},
    id::{ActorAddr, Fence},
    remote::{Incoming, ReplyPort},
    watch::Down,
    work::{InHand, Work},
};

/// The bounded way into a local actor. ractor's own queue has no bound: a message from this node
/// enters it with a permit, one from another node with a credit, and both go back when the actor
/// takes the message out. Replies, `Down` and stop need neither.
pub(crate) struct Mailbox<A: Actor> {
    pub(crate) queue: ractor::ActorRef<Envelope<A>>,
    pub(crate) permits: Arc<Semaphore>,
    /// Counts what the actor has in hand; not for the node's own actors.
    pub(crate) work: Option<Arc<Work>>,
}

impl<A: Actor> Mailbox<A> {
    pub(crate) fn new(queue: ractor::ActorRef<Envelope<A>>, work: Option<Arc<Work>>) -> Self {
        Mailbox { queue, permits: Arc::new(Semaphore::new(A::MAILBOX.max(1))), work }
    }

    /// A message, or a call that is not answered, until the result is dropped.
    pub(crate) fn in_hand(&self) -> Option<InHand> {
        self.work.as_ref().map(Work::take)
    }

    /// Waits for room. Fair: who waits longest is first, so one sender's messages stay in order.
    pub(crate) async fn room(&self) -> OwnedSemaphorePermit {
        match self.permits.clone().acquire_owned().await {
            Ok(permit) => permit,
            // The semaphore is never closed: the mailbox of an ended actor refuses by itself.
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) fn try_room(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Puts an envelope into the queue. That of an ended actor drops it, which answers its caller.
    pub(crate) fn put(&self, envelope: Envelope<A>) {
        if let (Envelope::Local { .. }, Some(work)) = (&envelope, &self.work) {
            work.note_need();
        }
        let _ = self.queue.send_message(envelope);
    }
}

/// What an actor's queue holds.
pub(crate) enum Envelope<A: Actor> {
    /// From this node: the value itself, neither encoded nor copied.
    Local {
        message: Box<dyn Deliver<A>>,
        fence: Option<Fence>,
        permit: OwnedSemaphorePermit,
        in_hand: Option<InHand>,
    },
    /// From another node, not yet decoded.
    Wire(Queued, Option<InHand>),
    /// A watched actor ended.
    Down(ActorAddr, Down),
    /// A linked actor ended otherwise than by a stop.
    LinkDown(ActorAddr, Down),
    /// A task of the actor failed, and so does the actor.
    Fail(String),
}

/// A message of a known type for an actor of a known type.
pub(crate) trait Deliver<A: Actor>: Send {
    fn deliver<'a>(self: Box<Self>, actor: &'a mut A, context: &'a Context<A>)
    -> BoxFuture<'a, ()>;
    fn refuse(self: Box<Self>, failure: Failure);
}

pub(crate) struct Typed<M: Message, How> {
    pub(crate) message: M,
    pub(crate) reply: ReplyTo<M::Reply>,
    pub(crate) how: std::marker::PhantomData<fn() -> How>,
}

impl<A: Receives<M, How>, M: Message, How: 'static> Deliver<A> for Typed<M, How> {
    fn deliver<'a>(
        self: Box<Self>,
        actor: &'a mut A,
        context: &'a Context<A>,
    ) -> BoxFuture<'a, ()> {
        let Typed { message, mut reply, .. } = *self;
        reply.begin();
        Box::pin(actor.receive(message, reply, context))
    }

    fn refuse(self: Box<Self>, failure: Failure) {
        self.reply.fail(failure);
    }
}

/// A message from another node in the queue. If the actor ends before it takes the message out, the
/// caller is told that it did not run.
pub(crate) struct Queued(Option<Incoming>);

impl Queued {
    /// `in_hand` lasts until the message is answered.
    pub(crate) fn new(mut incoming: Incoming, in_hand: Option<InHand>) -> Self {
        if let Some(port) = incoming.reply.take() {
            incoming.reply = Some(Box::new(Counted { port, _in_hand: in_hand }));
        }
        Queued(Some(incoming))
    }
    pub(crate) fn take(mut self) -> Option<Incoming> {
        self.0.take()
    }
}

/// The way back for an answer, counted until it is used or dropped.
struct Counted {
    port: Box<dyn ReplyPort>,
    _in_hand: Option<InHand>,
}

impl ReplyPort for Counted {
    fn answer(self: Box<Self>, outcome: Result<Encoded, Failure>) {
        self.port.answer(outcome);
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take().and_then(|incoming| incoming.reply) {
            reply.answer(Err(Failure::not_sent(Cause::Stopped)));
        }
    }
}
