//! What a user writes: an actor's state and its handlers.

use std::future::Future;

use serde::{Serialize, de::DeserializeOwned};

use crate::{Context, Message, ReplyTo, Result, id::ActorAddr, watch::Down};

/// A unit of state that handles one message at a time.
///
/// `start` builds the state from arguments that can travel, so the same type can be started here or
/// on another node. An `Err` from `start` means that the actor never existed. A panic in a handler
/// ends the actor with [`Down::Panicked`]; an error in a reply does not.
pub trait Actor: Sized + Send + 'static {
    /// What the actor is started with; travels as a message does.
    type Args: Serialize + DeserializeOwned + Send + 'static;
    /// The name under which nodes know the type, by custom `room.actor`.
    const NAME: &'static str;
    /// How many messages from this node may wait in the mailbox; senders past that wait, or fail
    /// with `try_cast`. Messages from other nodes take none of this room: each peer may have a
    /// [`WINDOW`](crate::remote::WINDOW) of its own waiting besides.
    const MAILBOX: usize = 1024;

    /// Builds the state.
    fn start(
        args: Self::Args,
        context: &Context<Self>,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// Runs when the actor has been stopped (not when it panicked or was killed).
    fn stopped(&mut self, context: &Context<Self>) -> impl Future<Output = ()> + Send {
        let _ = context;
        async {}
    }

    /// An actor that this one [watches](Context::watch) has ended.
    ///
    /// An `Err` ends this actor as failed: without an implementation the end is only logged.
    fn down(
        &mut self,
        actor: ActorAddr,
        down: Down,
        context: &Context<Self>,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = context;
        async move {
            tracing::info!(%actor, %down, "a watched actor ended");
            Ok(())
        }
    }
}

/// Answers a message when the handler returns.
///
/// ```
/// use footlight_runtime::{Actor, Context, Handler, Message, Result};
/// # use footlight_runtime::{Error, NodeId, System, env::Env, id::Incarnation, registry::Types};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Add(i64);
/// impl Message for Add { type Reply = i64; const NAME: &'static str = "sum.add"; }
///
/// struct Sum(i64);
/// impl Actor for Sum {
///     type Args = i64;
///     const NAME: &'static str = "sum.sum";
///     async fn start(first: i64, _: &Context<Self>) -> Result<Self> { Ok(Sum(first)) }
/// }
///
/// impl Handler<Add> for Sum {
///     async fn handle(&mut self, add: Add, _: &Context<Self>) -> i64 {
///         self.0 += add.0;
///         self.0
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let env = Env::system().map_err(Error::other)?;
/// # let system = System::start(NodeId(1), Incarnation(1), Types::default(), env).await?;
/// # let sum = system.spawn::<Sum>(40).await?;
/// assert_eq!(sum.call(Add(2)).await?, 42);
/// # Ok(()) }
/// ```
pub trait Handler<M: Message>: Actor {
    /// Handles one message; the next one waits until the future is done.
    fn handle(
        &mut self,
        message: M,
        context: &Context<Self>,
    ) -> impl Future<Output = M::Reply> + Send;
}

/// Answers a message later: the handler keeps the [`ReplyTo`] and returns at once, for a barrier or
/// a batch, say.
pub trait DeferredHandler<M: Message>: Actor {
    /// Takes one message and the right to answer it. Dropping `reply` unanswered tells the caller
    /// that the message may have run.
    fn handle(
        &mut self,
        message: M,
        reply: ReplyTo<M::Reply>,
        context: &Context<Self>,
    ) -> impl Future<Output = ()> + Send;
}

/// Marks an actor type that answers when its handler returns.
#[derive(Debug)]
pub enum Now {}
/// Marks an actor type that answers later.
#[derive(Debug)]
pub enum Later {}

/// That an actor takes a message, [now](Handler) or [later](DeferredHandler). Implemented for both
/// kinds of handler; nobody implements it by hand, and `How` is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no handler for `{M}`",
    note = "implement `Handler<{M}>`, or `DeferredHandler<{M}>` to answer later"
)]
pub trait Receives<M: Message, How>: Actor {
    #[doc(hidden)]
    fn receive(
        &mut self,
        message: M,
        reply: ReplyTo<M::Reply>,
        context: &Context<Self>,
    ) -> impl Future<Output = ()> + Send;
}

impl<A: Handler<M>, M: Message> Receives<M, Now> for A {
    async fn receive(&mut self, message: M, reply: ReplyTo<M::Reply>, context: &Context<Self>) {
        reply.send(self.handle(message, context).await);
    }
}

impl<A: DeferredHandler<M>, M: Message> Receives<M, Later> for A {
    async fn receive(&mut self, message: M, reply: ReplyTo<M::Reply>, context: &Context<Self>) {
        let _handling = context.handling();
        self.handle(message, reply, context).await;
    }
}
