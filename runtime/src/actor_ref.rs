//! References to actors, here or on another node.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    CallError, Message, ReplyTo, System,
    actor::{Actor, Receives},
    codec::{self, scope},
    env::deadline_after,
    error::{Cause, Failure},
    fence,
    id::{ActorAddr, Fence},
    mailbox::{Envelope, Mailbox, Typed},
    message::name_hash,
    remote::{Answer, End, Outgoing, Unsent},
    watch::Watch,
};

/// How long [`ActorRef::call`] waits for an answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A reference to an actor of type `A`: the same type whether the actor is on this node or another.
///
/// Cheap to clone; it can travel inside messages. Messages sent through one reference by one task
/// arrive in order, large ones included. Holding one keeps nothing alive.
///
/// ```
/// # use footlight_runtime::{Actor, ActorRef, Context, Error, Fate, Handler, Message, NodeId, Result};
/// # use footlight_runtime::{System, env::Env, id::Incarnation, registry::Types};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Add(i64);
/// # impl Message for Add { type Reply = i64; const NAME: &'static str = "sum.add"; }
/// # struct Sum(i64);
/// # impl Actor for Sum {
/// #     type Args = ();
/// #     const NAME: &'static str = "sum.sum";
/// #     async fn start(_: (), _: &Context<Self>) -> Result<Self> { Ok(Sum(0)) }
/// # }
/// # impl Handler<Add> for Sum {
/// #     async fn handle(&mut self, add: Add, _: &Context<Self>) -> i64 { self.0 += add.0; self.0 }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let env = Env::system().map_err(Error::other)?;
/// # let system = System::start(NodeId(1), Incarnation(1), Types::default(), env).await?;
/// let sum: ActorRef<Sum> = system.spawn(()).await?;
/// sum.cast(Add(2)).await?;                        // accepted; nobody waits for the answer
/// assert_eq!(sum.call(Add(3)).await?, 5);         // comes after it
///
/// sum.stop();
/// sum.watch().await;
/// let error = sum.call(Add(1)).await.unwrap_err();
/// assert_eq!(error.fate(), Fate::NotSent);        // to send it elsewhere is safe
/// # Ok(()) }
/// ```
pub struct ActorRef<A: Actor> {
    addr: ActorAddr,
    system: System,
    local: Option<Arc<Mailbox<A>>>,
    fence: Option<Fence>,
    actor: PhantomData<fn() -> A>,
}

impl<A: Actor> ActorRef<A> {
    pub(crate) fn local(addr: ActorAddr, mailbox: Arc<Mailbox<A>>, system: System) -> Self {
        ActorRef { addr, system, local: Some(mailbox), fence: None, actor: PhantomData }
    }

    /// A reference by address, seen from the node `system`.
    pub fn at(addr: ActorAddr, system: &System) -> Self {
        let local = if system.is_here(addr) { system.mailbox::<A>(addr.actor) } else { None };
        ActorRef { addr, system: system.clone(), local, fence: None, actor: PhantomData }
    }

    /// Where the actor lives.
    pub fn addr(&self) -> ActorAddr {
        self.addr
    }

    /// The node from which the actor is seen: that of the one who holds this.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The same actor, addressed under a lease: receivers that have seen a later generation of the
    /// lease refuse what is sent through this reference. An actor that was started under a lease
    /// needs none: see [`fence`].
    pub fn fenced(mut self, lease: &str, generation: u64) -> Self {
        self.fence = Some(Fence { lease: name_hash(lease), generation });
        self
    }

    /// The right under which a message goes out: that of the reference, else that of the sender.
    fn fence(&self) -> Option<Fence> {
        self.fence.or_else(fence::held)
    }

    /// Sends a message and waits for the answer, at most [`CALL_TIMEOUT`].
    ///
    /// # Errors
    /// A [`CallError`] says whether the message was certainly not handled or may have been, and
    /// why.
    pub async fn call<M: Message, How: 'static>(&self, message: M) -> Result<M::Reply, CallError>
    where
        A: Receives<M, How>,
    {
        self.call_within(message, CALL_TIMEOUT).await
    }

    /// Sends a message and waits for the answer, at most `patience` in all.
    ///
    /// # Errors
    /// As [`call`](Self::call); past the deadline the cause is [`Cause::Overloaded`] if the
    /// mailbox never had room (not sent), else [`Cause::TimedOut`] (may have run).
    pub async fn call_within<M: Message, How: 'static>(
        &self,
        message: M,
        patience: Duration,
    ) -> Result<M::Reply, CallError>
    where
        A: Receives<M, How>,
    {
        let outcome = match &self.local {
            Some(mailbox) => self.call_local(mailbox, message, patience).await,
            None => self.call_remote(&message, patience).await,
        };
        outcome.map_err(|failure| self.error::<M>(failure))
    }

    async fn call_local<M: Message, How: 'static>(
        &self,
        mailbox: &Mailbox<A>,
        message: M,
        patience: Duration,
    ) -> Result<M::Reply, Failure>
    where
        A: Receives<M, How>,
    {
        let deadline = deadline_after(patience);
        let permit = room(mailbox, || deadline).await?;
        self.system.still_receives(self.addr, &mailbox.life)?;
        let (sender, answer) = oneshot::channel();
        let reply = ReplyTo::local(sender);
        let message = Box::new(Typed { message, reply, how: PhantomData });
        mailbox.put(Envelope::Local { message, fence: self.fence(), permit });
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            // `ReplyTo` always answers; a lost sender can only be an actor torn down.
            Ok(Err(_)) => Err(Failure::may_have_run(Cause::Stopped)),
            Err(_) => Err(Failure::may_have_run(Cause::TimedOut(patience))),
        }
    }

    async fn call_remote<M: Message>(
        &self,
        message: &M,
        patience: Duration,
    ) -> Result<M::Reply, Failure> {
        let deadline = deadline_after(patience);
        let outgoing = self.outgoing(message)?;
        let (sender, answer) = oneshot::channel();
        self.send(outgoing, Some(sender), patience).await?;
        let parcel = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => {
                return Err(Failure::may_have_run(Cause::Unreachable(
                    "the connection ended before the answer came".into(),
                )));
            }
            Err(_) => return Err(Failure::may_have_run(Cause::TimedOut(patience))),
        };
        parcel
            .decode()
            .map_err(|error| Failure::may_have_run(Cause::CannotDecode(error.to_string())))
    }

    /// Sends a message and waits only until it is accepted here: until the mailbox, or the window
    /// to the other node, has room. An answer is thrown away.
    ///
    /// # Errors
    /// A [`CallError`] if it was certainly not sent. `Ok` is no promise that it will be handled.
    pub async fn cast<M: Message, How: 'static>(&self, message: M) -> Result<(), CallError>
    where
        A: Receives<M, How>,
    {
        let outcome = match &self.local {
            Some(mailbox) => {
                // A task that only sends lets others have their turn, too.
                tokio::task::coop::consume_budget().await;
                let deadline = || deadline_after(CALL_TIMEOUT);
                let room = room(mailbox, deadline).await;
                room.and_then(|permit| self.put(mailbox, message, permit))
            }
            None => match self.outgoing(&message) {
                Ok(outgoing) => self.send(outgoing, None, CALL_TIMEOUT).await,
                Err(failure) => Err(failure),
            },
        };
        outcome.map_err(|failure| self.error::<M>(failure))
    }

    /// Sends a message if it can be accepted at once.
    ///
    /// # Errors
    /// [`Cause::Overloaded`] if the mailbox or the window is full, [`Cause::Unreachable`] or
    /// [`Cause::CutOff`] if there is no connection to the node.
    pub fn try_cast<M: Message, How: 'static>(&self, message: M) -> Result<(), CallError>
    where
        A: Receives<M, How>,
    {
        let outcome = match &self.local {
            Some(mailbox) => mailbox
                .try_room()
                .ok_or(Failure::not_sent(Cause::Overloaded))
                .and_then(|permit| self.put(mailbox, message, permit)),
            None => self.outgoing(&message).and_then(|outgoing| {
                self.system.remote()?.try_send(outgoing, None).map_err(Unsent::into_failure)
            }),
        };
        outcome.map_err(|failure| self.error::<M>(failure))
    }

    fn put<M: Message, How: 'static>(
        &self,
        mailbox: &Mailbox<A>,
        message: M,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Failure>
    where
        A: Receives<M, How>,
    {
        self.system.still_receives(self.addr, &mailbox.life)?;
        let message = Box::new(Typed { message, reply: ReplyTo::nobody(), how: PhantomData });
        mailbox.put(Envelope::Local { message, fence: self.fence(), permit });
        Ok(())
    }

    /// Learns of the actor's end. Watching an actor that has ended already is no error: the answer
    /// comes at once.
    pub fn watch(&self) -> Watch {
        self.system.watch(self.addr)
    }

    /// Asks the actor to stop after the message in hand; what waits in its mailbox is dropped and
    /// its callers are told. Watch it to learn when it has.
    pub fn stop(&self) {
        self.system.end(self.addr, End::Stop);
    }

    /// Ends the actor at its next await, without [`Actor::stopped`].
    pub fn kill(&self) {
        self.system.end(self.addr, End::Kill);
    }

    /// Sends at once if that is possible, as it mostly is.
    async fn send(
        &self,
        outgoing: Outgoing,
        answer: Option<Answer>,
        patience: Duration,
    ) -> Result<(), Failure> {
        // A task that only sends lets others have their turn, too.
        tokio::task::coop::consume_budget().await;
        let remote = self.system.remote()?;
        match remote.try_send(outgoing, answer) {
            Ok(()) => Ok(()),
            Err(Unsent::Failed(failure)) => Err(failure),
            Err(Unsent::NotNow(unsent, _)) => {
                let (outgoing, answer) = *unsent;
                remote.send(outgoing, answer, patience).await
            }
        }
    }

    fn outgoing<M: Message>(&self, message: &M) -> Result<Outgoing, Failure> {
        if self.addr.node == self.system.node() {
            // It had ended, or is of another type: nothing of this node is reached by the network.
            self.system.receives(self.addr)?;
            return Err(Failure::not_sent(Cause::NoSuchActor));
        }
        let value = codec::encode(message)
            .map_err(|error| Failure::not_sent(Cause::CannotEncode(error.to_string())))?;
        let (key, fingerprint) = self.system.identity_of::<M>();
        Ok(Outgoing { to: self.addr, name: M::NAME, key, fingerprint, fence: self.fence(), value })
    }

    fn error<M: Message>(&self, failure: Failure) -> CallError {
        CallError { to: self.addr, message: M::NAME, failure }
    }
}

/// Room in a mailbox: at once if there is some, as there mostly is, else until the deadline.
async fn room<A: Actor>(
    mailbox: &Mailbox<A>,
    deadline: impl FnOnce() -> Instant,
) -> Result<OwnedSemaphorePermit, Failure> {
    if let Some(permit) = mailbox.try_room() {
        return Ok(permit);
    }
    let room = tokio::time::timeout_at(deadline(), mailbox.room()).await;
    room.map_err(|_| Failure::not_sent(Cause::Overloaded))
}

impl<A: Actor> Clone for ActorRef<A> {
    fn clone(&self) -> Self {
        ActorRef {
            addr: self.addr,
            system: self.system.clone(),
            local: self.local.clone(),
            fence: self.fence,
            actor: PhantomData,
        }
    }
}

impl<A: Actor> fmt::Debug for ActorRef<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.addr, A::NAME)
    }
}

impl<A: Actor> PartialEq for ActorRef<A> {
    fn eq(&self, other: &Self) -> bool {
        self.addr == other.addr
    }
}

impl<A: Actor> Serialize for ActorRef<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.addr, self.fence).serialize(serializer)
    }
}

impl<'de, A: Actor> Deserialize<'de> for ActorRef<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (addr, fence) = <(ActorAddr, Option<Fence>)>::deserialize(deserializer)?;
        let system = scope::system().map_err(D::Error::custom)?;
        Ok(ActorRef { fence, ..ActorRef::at(addr, &system) })
    }
}
