//! Starting an actor, here or on another node.
//!
//! ```text
//! SpawnBuilder ── placement ──► candidates, the best first
//!      │ for each, until one takes it
//!      ▼
//! Spawn { request, needs, owner } ──► host: reserves, starts, ends it with its owner
//! ```
//!
//! The host decides: it may refuse what the others' news of it would allow. If its answer is lost,
//! the request is sent again under the same number, which starts nothing twice, or abandoned, which
//! ends what it has started.

mod host;
mod message;
mod order;
mod owned;
mod requests;
mod tally;

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Claim, Context, Result, System,
    codec::Opaque,
    message::{Fingerprint, fingerprint_of},
};
use futures::future::BoxFuture;

use crate::{
    Node, Placement,
    resources::{Granted, Needs},
};

pub(crate) use host::Host;
use host::STOP_PATIENCE;
pub(crate) use host::{end_for, knows};
pub use message::{Abandon, EndFor, EndOwned, Owner, Refusal, RequestId, Spawn};
pub(crate) use order::{Order, What, start};
pub(crate) use tally::Tally;

/// An actor that is about to be started; await it.
#[must_use = "nothing is started until this is awaited"]
pub struct SpawnBuilder<'a, A: Actor> {
    node: &'a Node,
    args: A::Args,
    order: Order,
}

impl Node {
    /// Starts an actor: on this node, or where [`on`](SpawnBuilder::on) says. Await the result.
    ///
    /// If the future is dropped before it is ready, no actor is left behind.
    pub fn spawn<A: Actor>(&self, args: A::Args) -> SpawnBuilder<'_, A> {
        SpawnBuilder { node: self, args, order: Order::default() }
    }
}

impl Granted {
    /// What was reserved for an actor: which GPUs are its own, say. `None` if it was not started
    /// through a [`Node`].
    pub fn of<A: Actor>(context: &Context<A>) -> Option<Arc<Granted>> {
        context.claim()
    }
}

impl<A: Actor> fmt::Debug for SpawnBuilder<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnBuilder")
            .field("actor", &A::NAME)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl<'a, A: Actor> SpawnBuilder<'a, A> {
    /// Where to start it. Default: on this node.
    pub fn on(mut self, placement: Placement) -> Self {
        self.order.placement = placement;
        self
    }

    /// What is reserved for it on its node, until it ends; [`Granted::of`] tells it what it got.
    /// Default: nothing.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.order.needs = needs;
        self
    }

    /// If no node fits now, waits so long until one joins or has enough left. Default: not at all.
    pub fn wait(mut self, patience: Duration) -> Self {
        self.order.wait = patience;
        self
    }

    /// Its node stops it when the owner, on whatever node, has ended or was lost with its node, and
    /// kills it if it has not stopped 5 s later. Default: it lives on without the one who started it.
    pub fn owned_by<B: Actor>(self, owner: &ActorRef<B>) -> Self {
        self.owned_by_any(Some(owner.addr()))
    }

    /// The [owner](Self::owned_by) counts as lost also when its node and the actor's have not reached
    /// each other for so long, though both are members. Default: only when its node is lost.
    pub fn out_of_reach(mut self, patience: Duration) -> Self {
        if let Some(owner) = &mut self.order.owner {
            owner.unreachable = Some(patience);
        }
        self
    }

    pub(crate) fn owned_by_any(mut self, owner: Option<ActorAddr>) -> Self {
        let ends_with = |actor| Owner { actor, unreachable: None, stop_within: STOP_PATIENCE };
        self.order.owner = owner.map(ends_with);
        self
    }
}

impl<'a, A: Actor> IntoFuture for SpawnBuilder<'a, A> {
    type Output = Result<ActorRef<A>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let SpawnBuilder { node, args, order } = self;
            let mut what = Typed::<A> { args: Some(args), shape: None };
            let addr = start(node, &mut what, &order).await?;
            Ok(ActorRef::at(addr, node.system()))
        })
    }
}

/// An actor whose Rust type is known here.
pub(crate) struct Typed<A: Actor> {
    /// There until it is started on this node.
    pub(crate) args: Option<A::Args>,
    pub(crate) shape: Option<Fingerprint>,
}

impl<A: Actor> What for Typed<A> {
    fn name(&self) -> &str {
        A::NAME
    }

    fn shape(&mut self, system: &System) -> Fingerprint {
        *self.shape.get_or_insert_with(|| fingerprint_of::<A::Args>(system))
    }

    fn args(&mut self) -> Result<Opaque> {
        match &self.args {
            Some(args) => Ok(Opaque::of(args)?),
            None => Err(order::used_up()),
        }
    }

    fn start_here<'a>(
        &'a mut self,
        system: &'a System,
        claim: Arc<dyn Claim>,
    ) -> BoxFuture<'a, Result<ActorAddr>> {
        Box::pin(async move {
            let args = self.args.take().ok_or_else(order::used_up)?;
            Ok(system.spawn_with_claim::<A>(args, Some(claim)).await?.addr())
        })
    }
}

#[cfg(test)]
mod tests;
