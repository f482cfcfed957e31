//! What waits in front of an actor.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Context, Message, ReplyTo,
    actor::{Actor, Receives},
    error::{Cause, Failure},
    id::{ActorAddr, Fence, NodeId},
    remote::{Batch, Credits, Incoming},
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
    pub(crate) life: Arc<Life>,
}

/// How far an actor's life has come, for those who must not wait for it to tell.
#[derive(Debug, Default)]
pub(crate) struct Life {
    stopping: AtomicBool,
    ended: AtomicBool,
    needed_here: AtomicBool,
}

impl Life {
    /// It was asked to stop: of the messages that it has taken together, it handles no more.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// It is no more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Somebody on the actor's own node sends it something.
    fn note_need(&self) {
        // Mostly this is known, and a sender that only reads holds up no other.
        if !self.is_needed_here() {
            self.needed_here.store(true, Ordering::Release);
        }
    }

    /// Somebody on the actor's own node has sent it something.
    pub(crate) fn is_needed_here(&self) -> bool {
        self.needed_here.load(Ordering::Acquire)
    }
}

impl<A: Actor> Mailbox<A> {
    /// What the actor has in hand is `counted`, unless it is one of the node's own.
    pub(crate) fn new(queue: ractor::ActorRef<Envelope<A>>, counted: bool) -> Self {
        let permits = Arc::new(Semaphore::new(A::MAILBOX.max(1)));
        let work = counted.then(|| Arc::new(Work::behind(permits.clone())));
        Mailbox { queue, permits, work, life: Arc::default() }
    }

    /// Asks the actor to stop after the message in hand.
    pub(crate) fn stop(&self) {
        self.life.stop();
        self.queue.stop(None);
    }

    /// Puts in what came from another node.
    pub(crate) fn put_batch(&self, batch: Batch) {
        self.put(Envelope::Wire(Queued::new(batch, self.work.clone())));
    }

    /// A message that was taken out, until it is handled and answered: until the result is dropped.
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
        if matches!(envelope, Envelope::Local { .. }) {
            self.life.note_need();
        }
        let _ = self.queue.send_message(envelope);
    }
}

/// What an actor's queue holds.
pub(crate) enum Envelope<A: Actor> {
    /// From this node: the value itself, neither encoded nor copied.
    Local { message: Box<dyn Deliver<A>>, fence: Option<Fence>, permit: OwnedSemaphorePermit },
    /// From another node, not yet decoded.
    Wire(Queued),
    /// A node has read its answers: what was put aside of its messages goes on.
    GoOn(NodeId),
    /// A watched actor ended.
    Down(ActorAddr, Down),
    /// A linked actor ended otherwise than by a stop.
    LinkDown(ActorAddr, Down),
    /// A task of the actor failed, and so does the actor.
    Fail(String),
}

/// A message of a known type for an actor of a known type.
pub(crate) trait Deliver<A: Actor>: Send {
    fn deliver<'a>(
        self: Box<Self>,
        actor: &'a mut A,
        context: &'a Context<A>,
        in_hand: Option<InHand>,
    ) -> BoxFuture<'a, ()>;
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
        in_hand: Option<InHand>,
    ) -> BoxFuture<'a, ()> {
        let Typed { message, mut reply, .. } = *self;
        reply.begin();
        let in_hand = reply.hold(in_hand);
        Box::pin(async move {
            let _in_hand = in_hand;
            actor.receive(message, reply, context).await;
        })
    }

    fn refuse(self: Box<Self>, failure: Failure) {
        self.reply.fail(failure);
    }
}

/// Messages from another node in the queue. The callers of those that the actor does not take out,
/// because it ends before, are told that these did not run.
pub(crate) struct Queued {
    messages: std::vec::IntoIter<Incoming>,
    work: Option<Arc<Work>>,
    credits: Arc<dyn Credits>,
    /// Taken out, and not told to the sender yet.
    taken: (u32, u64),
}

/// So many messages, or bytes, may be taken out before their sender is told, as long as more are
/// there: one word for many.
const TELL_MESSAGES: u32 = 32;
const TELL_BYTES: u64 = 64 << 10;

impl Queued {
    fn new(batch: Batch, work: Option<Arc<Work>>) -> Self {
        let Batch { messages, credits, .. } = batch;
        if let Some(work) = &work {
            work.add(messages.len());
        }
        Queued { messages: messages.into_iter(), work, credits, taken: (0, 0) }
    }

    /// Who has sent what is left.
    pub(crate) fn from(&self) -> Option<NodeId> {
        self.messages.as_slice().first().map(|message| message.parcel.from)
    }

    /// What the next message must wait for, if it is a call whose sender is slow to read its answers.
    pub(crate) fn must_wait(&self) -> Option<BoxFuture<'static, ()>> {
        let next = self.messages.as_slice().first()?;
        next.reply.as_ref().and_then(|_| self.credits.reads_slowly())
    }

    /// What counts each message that is taken out, until it is handled or answered.
    pub(crate) fn work(&self) -> Option<Arc<Work>> {
        self.work.clone()
    }

    /// The next message.
    pub(crate) fn take(&mut self) -> Option<Incoming> {
        let message = self.messages.next()?;
        self.taken.0 += 1;
        self.taken.1 = self.taken.1.saturating_add(message.bytes);
        let (messages, bytes) = self.taken;
        if self.messages.len() == 0 || messages >= TELL_MESSAGES || bytes >= TELL_BYTES {
            self.taken = (0, 0);
            self.credits.taken(messages, bytes);
        }
        Some(message)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        while let Some(message) = self.take() {
            let _in_hand = self.work.as_deref().map(InHand::of_many);
            if let Some(reply) = message.reply {
                reply.answer(Err(Failure::not_sent(Cause::Stopped)));
            }
        }
    }
}
