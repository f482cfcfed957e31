//! What an actor knows of itself.

use std::{any::Any, fmt, future::Future, sync::Arc};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{
    ActorRef, Result, System,
    actor::Actor,
    claim::Claim,
    id::{ActorAddr, ActorId, NodeId},
    mailbox::{Envelope, Mailbox},
    work::{Handling, InHand, Work},
};

/// An actor's view of itself and its node, handed to each handler.
pub struct Context<A: Actor> {
    me: ActorRef<A>,
    mailbox: Arc<Mailbox<A>>,
    tasks: CancellationToken,
    claim: Option<Arc<dyn Claim>>,
}

impl<A: Actor> Context<A> {
    pub(crate) fn new(
        id: ActorId,
        mailbox: Arc<Mailbox<A>>,
        tasks: CancellationToken,
        claim: Option<Arc<dyn Claim>>,
        system: System,
    ) -> Self {
        let me = ActorRef::local(system.addr_of(id), mailbox.clone(), system);
        Context { me, mailbox, tasks, claim }
    }

    /// A reference to this actor, to be stored or sent.
    pub fn me(&self) -> ActorRef<A> {
        self.me.clone()
    }

    /// The node's actors.
    pub fn system(&self) -> &System {
        self.me.system()
    }

    /// What was reserved for this actor when it was started, if it was started with such a claim.
    pub fn claim<C: Claim>(&self) -> Option<Arc<C>> {
        let claim: Arc<dyn Any + Send + Sync> = self.claim.clone()?;
        claim.downcast().ok()
    }

    /// Stops this actor once the message in hand is done; what waits in the mailbox is dropped and
    /// its callers are told.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.mailbox.life.is_stopping()
    }

    /// A message was taken out of the mailbox.
    pub(crate) fn in_hand(&self) -> Option<InHand> {
        self.mailbox.in_hand()
    }

    /// A handler runs that may answer before it is done.
    pub(crate) fn handling(&self) -> Option<Handling> {
        self.mailbox.work.as_ref().map(Work::handling)
    }

    /// Runs a task beside the message loop. It is cancelled when the actor ends, before those who
    /// watch the actor are told; if it ends with an error or a panic, the actor fails with it.
    pub fn run(&self, task: impl Future<Output = Result<()>> + Send + 'static) {
        use futures::FutureExt;
        let cancelled = self.tasks.clone();
        let mailbox = self.mailbox.clone();
        let runs = mailbox.work.as_ref().map(Work::task);
        self.system().env().spawner.spawn(async move {
            let _runs = runs;
            let task = std::panic::AssertUnwindSafe(task).catch_unwind();
            let why = tokio::select! {
                biased;
                () = cancelled.cancelled() => return,
                outcome = task => match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => format!("a task panicked: {}", panic_text(&*panic)),
                },
            };
            mailbox.put(Envelope::Fail(why));
        });
    }

    /// What was put aside of a node's messages goes on once there is room for their answers.
    pub(crate) fn go_on_after(&self, room: BoxFuture<'static, ()>, node: NodeId) {
        let mailbox = self.mailbox.clone();
        let cancelled = self.tasks.clone();
        self.system().env().spawner.spawn(async move {
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {}
                () = room => mailbox.put(Envelope::GoOn(node)),
            }
        });
    }

    /// Calls [`Actor::down`] once when the other actor, on this node or another, has ended.
    pub fn watch<B: Actor>(&self, other: &ActorRef<B>) {
        self.watch_addr(other.addr());
    }

    /// As [`watch`](Self::watch), for an actor whose type is not known here.
    pub fn watch_addr(&self, other: ActorAddr) {
        let watch = self.system().watch(other);
        let mailbox = self.mailbox.clone();
        let cancelled = self.tasks.clone();
        self.system().env().spawner.spawn(async move {
            let who = watch.actor();
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {}
                down = watch => mailbox.put(Envelope::Down(who, down)),
            }
        });
    }

    /// Binds this actor and another one, on this node or another: if one of them ends otherwise
    /// than by a [stop](crate::Down::Stopped), the other fails with an error that says so. Linking two
    /// actors again changes nothing. An actor that has ended already fails this one too, unless it
    /// is known to have stopped.
    ///
    /// The other actor learns of the link a moment later, and if its node can't be reached now, as
    /// soon as it can.
    pub fn link<B: Actor>(&self, other: &ActorRef<B>) {
        self.system().link(self.me.addr(), other.addr());
    }

    /// Takes a [link](Self::link) back, whichever of the two made it. From now on the other's end
    /// does this actor no harm; the other learns of it a moment later.
    pub fn unlink<B: Actor>(&self, other: &ActorRef<B>) {
        self.system().unlink(self.me.addr(), other.addr());
    }

    /// The actors that this one is linked with, as its node knows by now.
    pub fn links(&self) -> Vec<ActorAddr> {
        self.system().links_of(self.me.addr().actor)
    }

    pub(crate) fn cancel_tasks(&self) {
        self.tasks.cancel();
    }
}

impl<A: Actor> Drop for Context<A> {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// The text of a panic, if it has one.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

impl<A: Actor> fmt::Debug for Context<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("me", &self.me).finish()
    }
}
