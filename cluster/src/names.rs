//! Names of actors in the whole cluster: one name, one actor.
//!
//! A name is a key of the [ledger](crate::ledger), `name/…`, owned by the life of the node that the
//! actor lives on. That node keeps it: it watches the actor and deletes the name when it ends,
//! whoever asked for it, and registers it again if the ledger lost it (two clusters that met keep
//! the names of one of them). When the node's life is over, the ledger's leader deletes it.
//!
//! So a name that is found may have become stale a moment ago: calls to its actor fail then, as to
//! any actor that has ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorAddr, ActorId, ActorRef, Context, DeferredHandler, Error, Message, ReplyTo, Result,
    env::deadline_after, registry::Types,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    Node,
    ledger::{Client, Expect, Ledger, LedgerError, Life, MAX_KEY, Versioned},
    network::Network,
};

/// Every node's keeper of names has this number.
const KEEPER: ActorId = ActorId(3);
const PREFIX: &str = "name/";
/// Longest name, in bytes of UTF-8.
pub const MAX_NAME: usize = MAX_KEY - PREFIX.len();
/// Most names that one node keeps.
const MAX_KEPT: usize = 16_384;
/// An actor that has a name is asked so long whether it is still there.
const STILL_THERE: Duration = Duration::from_secs(1);
/// A name that could not be deleted or registered again is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A name could not be registered or looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Another actor has the name.
    #[error("the name `{name}` belongs to {by}, a {actor}")]
    Taken {
        /// The name.
        name: String,
        /// Who has it.
        by: ActorAddr,
        /// Of which type.
        actor: String,
    },
    /// The name belongs to an actor of another type than was asked for.
    #[error("the name `{name}` belongs to a {found}, not to a {asked}")]
    OtherType {
        /// The name.
        name: String,
        /// The type of the actor that has it.
        found: String,
        /// The type that was asked for.
        asked: String,
    },
    /// Nobody has taken the name in time.
    #[error("nobody has registered the name `{name}` within {waited:?}")]
    Missing {
        /// The name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The actor has ended.
    #[error("{actor} has ended, so the name `{name}` can't be its own")]
    Ended {
        /// The name.
        name: String,
        /// The actor.
        actor: ActorAddr,
    },
    /// A name that is empty or longer than [`MAX_NAME`].
    #[error("a name has 1 to {MAX_NAME} bytes, this one has {0}")]
    Length(usize),
    /// The actor's node keeps as many names as it can.
    #[error("a node keeps at most {MAX_KEPT} names")]
    TooMany,
    /// The ledger, or the actor's node, did not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Error::other(error)
    }
}

impl From<LedgerError> for NameError {
    fn from(error: LedgerError) -> Self {
        NameError::Unavailable(error.to_string())
    }
}

/// What the ledger says of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    actor: ActorAddr,
    /// The registered name of its type.
    kind: String,
}

impl Named {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(name: &str, found: &Versioned) -> Result<Self, NameError> {
        serde_json::from_slice(&found.value).map_err(|error| {
            NameError::Unavailable(format!("what the ledger says of `{name}` is no name: {error}"))
        })
    }

    fn owner(&self) -> Life {
        Life { node: self.actor.node, incarnation: self.actor.incarnation }
    }
}

fn key(name: &str) -> Result<String, NameError> {
    match name.len() {
        1..=MAX_NAME => Ok(format!("{PREFIX}{name}")),
        other => Err(NameError::Length(other)),
    }
}

/// Give an actor of the receiving node a name, or take it away.
#[derive(Debug, Serialize, Deserialize)]
pub struct Name {
    name: String,
    actor: ActorAddr,
    kind: String,
    /// Whether it is to have the name.
    has: bool,
}

impl Message for Name {
    type Reply = Result<(), NameError>;
    const NAME: &'static str = "names.name";
}

/// The actor of each node that keeps the names of its actors.
#[derive(Debug)]
pub struct NameKeeper(Arc<Names>);

impl NameKeeper {
    pub(crate) fn register(types: &mut Types) {
        types.register_own::<NameKeeper>(|keeper| keeper.defers::<Name>());
    }
}

impl Actor for NameKeeper {
    type Args = ();
    const NAME: &'static str = "cluster.names";

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let names = context.system().extension::<Names>();
        names.map(NameKeeper).ok_or_else(|| Error::other("this node keeps no names"))
    }
}

impl DeferredHandler<Name> for NameKeeper {
    async fn handle(
        &mut self,
        asked: Name,
        reply: ReplyTo<<Name as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let names = self.0.clone();
        context.system().env().spawner.spawn(async move {
            reply.send(match asked.has {
                true => {
                    names.give(asked.name, Named { actor: asked.actor, kind: asked.kind }).await
                }
                false => names.take_back(&asked.name, asked.actor).await,
            });
        });
    }
}

/// The names of one node's actors.
pub(crate) struct Names {
    network: Weak<Network>,
    ledger: Ledger,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    names: BTreeMap<String, Named>,
    /// A task looks after them.
    followed: bool,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("kept", &self.kept).finish_non_exhaustive()
    }
}

impl Names {
    /// Keeps names on a node from now on.
    pub(crate) async fn begin(network: &Arc<Network>, client: Arc<Client>) -> Result<()> {
        let system = &network.system;
        system.extend(Arc::new(Names {
            network: Arc::downgrade(network),
            ledger: Ledger::new(client),
            kept: Mutex::default(),
        }));
        system.spawn_well_known::<NameKeeper>(KEEPER, ()).await?;
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn has(&self, name: &str, named: &Named) -> bool {
        self.kept().names.get(name) == Some(named)
    }

    async fn give(self: Arc<Self>, name: String, named: Named) -> Result<(), NameError> {
        let network = self.network.upgrade().ok_or(LedgerError::Ended)?;
        let actor = named.actor;
        let watch = network.system.watch(actor);
        if !is_here(&network, actor).await {
            return Err(NameError::Ended { name, actor });
        }
        if self.kept().names.len() >= MAX_KEPT {
            return Err(NameError::TooMany);
        }
        let key = key(&name)?;
        self.write(&network, &name, &key, &named).await?;
        {
            let mut kept = self.kept();
            let before = kept.names.insert(name.clone(), named.clone());
            if !std::mem::replace(&mut kept.followed, true) {
                network.control_thread.spawn(self.clone().follow());
            }
            if before.as_ref() == Some(&named) {
                // Somebody waits for its end already.
                return Ok(());
            }
        }
        let names = self.clone();
        network.control_thread.spawn(async move {
            let down = watch.await;
            tracing::debug!(name, %down, "an actor with a name has ended");
            names.forget(&name, &named).await;
        });
        Ok(())
    }

    /// Writes a name, in place of one whose actor has ended.
    async fn write(
        &self,
        network: &Network,
        name: &str,
        key: &str,
        named: &Named,
    ) -> Result<(), NameError> {
        let mut expect = Expect::Absent;
        loop {
            let written = self.ledger.put(key, named.encode(), expect, Some(named.owner())).await;
            match written {
                Ok(_) => return Ok(()),
                Err(LedgerError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let Some(found) = self.ledger.get(key).await? else {
                expect = Expect::Absent;
                continue;
            };
            let other = Named::decode(name, &found)?;
            if other == *named {
                return Ok(());
            }
            // One that has ended is told at once; a node that is cut off does not give its name up.
            if timeout(STILL_THERE, network.system.watch(other.actor)).await.is_err() {
                let name = name.to_owned();
                return Err(NameError::Taken { name, by: other.actor, actor: other.kind });
            }
            expect = Expect::Version(found.version);
        }
    }

    /// Takes a name away.
    async fn take_back(&self, name: &str, actor: ActorAddr) -> Result<(), NameError> {
        let kept = self.kept().names.get(name).filter(|named| named.actor == actor).cloned();
        match kept {
            Some(named) => {
                self.kept().names.remove(name);
                self.delete(name, &named).await
            }
            None => Ok(()),
        }
    }

    /// The actor has ended: its name goes, if it is still its own.
    async fn forget(&self, name: &str, named: &Named) {
        if !self.has(name, named) {
            return;
        }
        while let Err(error) = self.delete(name, named).await {
            if self.network.upgrade().is_none() {
                return;
            }
            tracing::debug!(name, %error, "a name could not be deleted yet");
            sleep(AGAIN).await;
        }
        let mut kept = self.kept();
        if kept.names.get(name) == Some(named) {
            kept.names.remove(name);
        }
    }

    async fn delete(&self, name: &str, named: &Named) -> Result<(), NameError> {
        let key = key(name)?;
        let Some(found) = self.ledger.get(&key).await? else { return Ok(()) };
        if Named::decode(name, &found)? != *named {
            return Ok(());
        }
        match self.ledger.delete(&key, Expect::Version(found.version)).await {
            // Somebody else has it by now.
            Ok(()) | Err(LedgerError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Registers names again that the ledger has lost.
    async fn follow(self: Arc<Self>) {
        let mut changes = self.ledger.watch(PREFIX);
        while let Some((key, now)) = changes.next().await {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let Some(named) = self.kept().names.get(name).cloned() else { continue };
            match now.map(|now| Named::decode(name, &now)) {
                Some(Ok(now)) if now == named => {}
                Some(Ok(now)) => {
                    tracing::warn!(
                        name, by = %now.actor, lost = %named.actor,
                        "a name went to another actor: two clusters that met had it both"
                    );
                    self.kept().names.remove(name);
                }
                Some(Err(error)) => tracing::warn!(%error, "a name can't be read"),
                None => {
                    let Some(network) = self.network.upgrade() else { return };
                    let again = self.clone().again(name.to_owned(), key, named);
                    network.control_thread.spawn(again);
                }
            }
        }
    }

    async fn again(self: Arc<Self>, name: String, key: String, named: Named) {
        while self.has(&name, &named) {
            let Some(network) = self.network.upgrade() else { return };
            // Its actor may have ended, and the name gone for that reason.
            if !is_here(&network, named.actor).await {
                return;
            }
            match self.write(&network, &name, &key, &named).await {
                Ok(()) => return,
                Err(error @ NameError::Taken { .. }) => {
                    tracing::warn!(%error, "a name was lost");
                    self.kept().names.remove(&name);
                    return;
                }
                Err(error) => tracing::debug!(name, %error, "a name is not registered again yet"),
            }
            drop(network);
            sleep(AGAIN).await;
        }
    }
}

/// Whether an actor of this node is alive.
async fn is_here(network: &Network, actor: ActorAddr) -> bool {
    timeout(Duration::ZERO, network.system.watch(actor)).await.is_err()
}

impl Node {
    /// Gives an actor, on whatever node, a name that all nodes know it by. It loses it when it ends.
    /// To give the same actor the same name twice is no error; it may have several.
    ///
    /// # Errors
    /// [`NameError::Taken`] if another actor has the name and has not ended, [`NameError::Ended`],
    /// [`NameError::Length`], and [`NameError::Unavailable`] if the ledger or the actor's node do
    /// not answer.
    pub async fn register<A: Actor>(
        &self,
        name: &str,
        actor: &ActorRef<A>,
    ) -> Result<(), NameError> {
        self.name(name, actor, true).await
    }

    /// Takes a name away from an actor; if it does not have it, nothing happens.
    ///
    /// # Errors
    /// [`NameError::Unavailable`] if the ledger or the actor's node do not answer.
    pub async fn unregister<A: Actor>(
        &self,
        name: &str,
        actor: &ActorRef<A>,
    ) -> Result<(), NameError> {
        self.name(name, actor, false).await
    }

    async fn name<A: Actor>(
        &self,
        name: &str,
        actor: &ActorRef<A>,
        has: bool,
    ) -> Result<(), NameError> {
        key(name)?;
        let addr = actor.addr();
        let keeper = ActorRef::<NameKeeper>::at(ActorAddr { actor: KEEPER, ..addr }, self.system());
        let asked = Name { name: name.to_owned(), actor: addr, kind: A::NAME.to_owned(), has };
        let answer = keeper.call(asked).await;
        answer.map_err(|error| NameError::Unavailable(error.to_string()))?
    }

    /// The actor that has a name, if one has.
    ///
    /// # Errors
    /// [`NameError::OtherType`] if it is of another type, [`NameError::Unavailable`] if the ledger
    /// does not answer.
    pub async fn lookup<A: Actor>(&self, name: &str) -> Result<Option<ActorRef<A>>, NameError> {
        let found = self.ledger().get(&key(name)?).await?;
        found.map(|found| self.named(name, &found)).transpose()
    }

    /// Waits until an actor has a name.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), and [`NameError::Missing`] after `patience`.
    pub async fn wait_for<A: Actor>(
        &self,
        name: &str,
        patience: Duration,
    ) -> Result<ActorRef<A>, NameError> {
        let deadline: Instant = deadline_after(patience);
        let key = key(name)?;
        let mut changes = self.ledger().watch(&key);
        loop {
            match timeout_at(deadline, changes.next()).await {
                Ok(Some((changed, Some(now)))) if changed == key => return self.named(name, &now),
                Ok(Some(_)) => {}
                Ok(None) => return Err(LedgerError::Ended.into()),
                Err(_) => {
                    let name = name.to_owned();
                    return Err(NameError::Missing { name, waited: patience });
                }
            }
        }
    }

    fn named<A: Actor>(&self, name: &str, found: &Versioned) -> Result<ActorRef<A>, NameError> {
        let Named { actor, kind } = Named::decode(name, found)?;
        if kind != A::NAME {
            let (name, asked) = (name.to_owned(), A::NAME.to_owned());
            return Err(NameError::OtherType { name, found: kind, asked });
        }
        Ok(ActorRef::at(actor, self.system()))
    }
}
