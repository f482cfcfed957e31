//! The actor types that a binary can host, by name, and what other nodes may send them.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fmt,
    marker::PhantomData,
    sync::Arc,
};

use futures::future::BoxFuture;

use crate::{
    Context, Message, ReplyTo, Result, System,
    actor::{Actor, DeferredHandler, Handler, Receives},
    claim::Claim,
    codec::{Opaque, Parcel},
    error::{Cause, Failure},
    id::ActorAddr,
    message::{Fingerprint, fingerprint_of, fingerprint_of_message, name_hash},
    reply::WirePort,
};

pub(crate) type WireHandler<A> =
    for<'a> fn(&'a mut A, Parcel, Option<WirePort>, &'a Context<A>) -> BoxFuture<'a, ()>;

/// A message's name, and how its shape is found out: only when a node needs it.
type NamedShape = (&'static str, fn(&System) -> Fingerprint);

/// The handlers of one actor type, sorted by the hash of the message's name.
pub(crate) struct Handlers<A: Actor>(Vec<(u64, WireHandler<A>)>);

impl<A: Actor> Handlers<A> {
    fn new(by_key: BTreeMap<u64, WireHandler<A>>) -> Self {
        Handlers(by_key.into_iter().collect())
    }

    pub(crate) fn get(&self, key: u64) -> Option<WireHandler<A>> {
        let found = self.0.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        self.0.get(found).map(|(_, handler)| *handler)
    }
}

/// Says what other nodes may send to an actor type; see [`Types::register`].
pub struct Registration<A: Actor> {
    handlers: BTreeMap<u64, WireHandler<A>>,
    messages: Vec<NamedShape>,
}

impl<A: Actor> Registration<A> {
    /// Other nodes may send `M`, answered by [`Handler`].
    pub fn handles<M: Message>(self) -> Self
    where
        A: Handler<M>,
    {
        self.takes::<M, crate::actor::Now>()
    }

    /// Other nodes may send `M`, answered by [`DeferredHandler`].
    pub fn defers<M: Message>(self) -> Self
    where
        A: DeferredHandler<M>,
    {
        self.takes::<M, crate::actor::Later>()
    }

    fn takes<M: Message, How: 'static>(mut self) -> Self
    where
        A: Receives<M, How>,
    {
        self.handlers.insert(name_hash(M::NAME), receive::<A, M, How>);
        self.messages.push((M::NAME, fingerprint_of_message::<M>));
        self
    }
}

fn receive<'a, A: Receives<M, How>, M: Message, How: 'static>(
    actor: &'a mut A,
    parcel: Parcel,
    port: Option<WirePort>,
    context: &'a Context<A>,
) -> BoxFuture<'a, ()> {
    let mut reply = port.map_or_else(ReplyTo::nobody, ReplyTo::wire);
    // Before the future is made, so that this carries the message alone.
    match parcel.decode::<M>() {
        Ok(message) => {
            reply.begin();
            Box::pin(actor.receive(message, reply, context))
        }
        Err(error) => {
            tracing::warn!(message = M::NAME, %error, "a message could not be decoded");
            reply.fail(Failure::not_sent(Cause::CannotDecode(error.to_string())));
            Box::pin(std::future::ready(()))
        }
    }
}

/// One registered type, its Rust type forgotten.
trait AnyType: Send + Sync {
    fn spawn<'a>(
        &'a self,
        args: Opaque,
        claim: Option<Arc<dyn Claim>>,
        system: &'a System,
    ) -> BoxFuture<'a, Result<ActorAddr>>;
    fn args(&self, system: &System) -> Fingerprint;
    fn messages(&self) -> &[NamedShape];
    /// Whether it is one of the node's own.
    fn is_own(&self) -> bool;
    fn handlers(&self) -> Arc<dyn Any + Send + Sync>;
}

struct Registered<A: Actor> {
    handlers: Arc<Handlers<A>>,
    messages: Vec<NamedShape>,
    own: bool,
    actor: PhantomData<fn() -> A>,
}

impl<A: Actor> AnyType for Registered<A> {
    fn spawn<'a>(
        &'a self,
        args: Opaque,
        claim: Option<Arc<dyn Claim>>,
        system: &'a System,
    ) -> BoxFuture<'a, Result<ActorAddr>> {
        Box::pin(async move {
            let args = args.decode::<A::Args>(system)?;
            Ok(system.spawn_with_claim::<A>(args, claim).await?.addr())
        })
    }
    fn args(&self, system: &System) -> Fingerprint {
        fingerprint_of::<A::Args>(system)
    }
    fn messages(&self) -> &[NamedShape] {
        &self.messages
    }
    fn is_own(&self) -> bool {
        self.own
    }
    fn handlers(&self) -> Arc<dyn Any + Send + Sync> {
        self.handlers.clone()
    }
}

/// The actor types of one node. They are fixed before the node starts.
#[derive(Default, Clone)]
pub struct Types {
    by_name: BTreeMap<&'static str, Arc<dyn AnyType>>,
    by_type: HashMap<TypeId, Arc<dyn AnyType>>,
    /// Names of the node's own types that others were registered under.
    taken: Vec<&'static str>,
}

/// Names and shapes of all that a node takes, exchanged when two nodes meet.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Catalog {
    /// Actor types that can be spawned (not the node's own), with the shape of their arguments.
    pub actors: BTreeMap<String, Fingerprint>,
    /// Messages, by the hash of their name, with their shape.
    pub messages: BTreeMap<u64, Fingerprint>,
}

impl Types {
    /// Registers an actor type: other nodes may spawn it by name and send it what `describe`
    /// names. A second registration of one name replaces the first. A node with a type under the
    /// name of one of its [own](Self::register_own) does not start.
    pub fn register<A: Actor>(
        &mut self,
        describe: impl FnOnce(Registration<A>) -> Registration<A>,
    ) {
        match self.is_own(A::NAME) {
            true => self.taken.push(A::NAME),
            false => self.add(false, describe),
        }
    }

    /// Registers the type of one of the node's own actors, those with a number that other nodes
    /// know: it takes messages, and nobody can spawn another one.
    pub fn register_own<A: Actor>(
        &mut self,
        describe: impl FnOnce(Registration<A>) -> Registration<A>,
    ) {
        self.add(true, describe);
    }

    fn add<A: Actor>(
        &mut self,
        own: bool,
        describe: impl FnOnce(Registration<A>) -> Registration<A>,
    ) {
        let described = describe(Registration { handlers: BTreeMap::new(), messages: Vec::new() });
        let registered: Arc<dyn AnyType> = Arc::new(Registered::<A> {
            handlers: Arc::new(Handlers::new(described.handlers)),
            messages: described.messages,
            own,
            actor: PhantomData,
        });
        self.by_name.insert(A::NAME, registered.clone());
        self.by_type.insert(TypeId::of::<A>(), registered);
    }

    /// Whether a name is that of one of the node's own types.
    pub(crate) fn is_own(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|kind| kind.is_own())
    }

    /// # Errors
    /// If a type was registered under the name of one of the node's own.
    pub(crate) fn check(&self) -> Result<()> {
        match self.taken.first() {
            None => Ok(()),
            Some(name) => Err(crate::Error::other(format!(
                "`{name}` is the name of one of the node's own actors: give your actor type another"
            ))),
        }
    }

    pub(crate) fn handlers<A: Actor>(&self) -> Option<Arc<Handlers<A>>> {
        self.by_type.get(&TypeId::of::<A>())?.handlers().downcast().ok()
    }

    /// Spawns a type by its name, on this node.
    ///
    /// # Errors
    /// An unknown name, arguments that can't be decoded, or what `start` said.
    pub(crate) async fn spawn(
        &self,
        name: &str,
        args: Opaque,
        claim: Option<Arc<dyn Claim>>,
        system: &System,
    ) -> Result<ActorAddr> {
        let known = self.by_name.get(name);
        let known = known.ok_or_else(|| crate::Error::UnknownActorType(name.to_owned()))?;
        known.spawn(args, claim, system).await
    }

    /// The names of all registered types, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }

    pub(crate) fn catalog(&self, system: &System) -> Catalog {
        let mut catalog = Catalog::default();
        for (name, kind) in &self.by_name {
            if !kind.is_own() {
                catalog.actors.insert((*name).to_owned(), kind.args(system));
            }
            for (message, fingerprint) in kind.messages() {
                catalog.messages.insert(name_hash(message), fingerprint(system));
            }
        }
        catalog
    }
}

impl fmt::Debug for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}
