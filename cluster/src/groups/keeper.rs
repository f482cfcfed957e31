//! One node's part of all groups: which of its actors are in them, and what it has sent to members.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use dashmap::DashMap;
use footlight_runtime::{
    Actor, ActorAddr, ActorId, Context, Error, Handler, Message, Result, registry::Types,
};
use futures::FutureExt;
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::{GroupError, MAX_NAME, part};
use crate::{network::Network, record::Record};

/// Every node's keeper of groups has this number.
pub(crate) const KEEPER: ActorId = ActorId(4);

pub(super) fn check(name: &str) -> Result<(), GroupError> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        other => Err(GroupError::Length(other)),
    }
}

/// Take an actor of the receiving node into a group, or out of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// The group.
    pub group: String,
    /// The actor.
    pub actor: ActorAddr,
    /// The registered name of its type, as the sender knows it.
    pub kind: String,
    /// Whether it is to be in.
    pub member: bool,
}

impl Message for Join {
    type Reply = Result<(), GroupError>;
    const NAME: &'static str = "groups.join";
}

/// The actor of each node that keeps its actors' groups.
#[derive(Debug)]
pub struct GroupKeeper(Arc<Groups>);

impl GroupKeeper {
    pub(crate) fn register(types: &mut Types) {
        types.register_own::<GroupKeeper>(|keeper| keeper.handles::<Join>());
    }
}

impl Actor for GroupKeeper {
    type Args = ();
    const NAME: &'static str = "cluster.groups";

    async fn start((): (), context: &Context<Self>) -> Result<Self> {
        let groups = context.system().extension::<Groups>();
        groups.map(GroupKeeper).ok_or_else(|| Error::other("this node keeps no groups"))
    }
}

impl Handler<Join> for GroupKeeper {
    async fn handle(&mut self, asked: Join, _: &Context<Self>) -> Result<(), GroupError> {
        let Join { group, actor, kind, member } = asked;
        match member {
            true => self.0.join(group, actor, &kind),
            false => {
                self.0.leave(&group, actor);
                Ok(())
            }
        }
    }
}

/// What one node keeps of groups.
pub(crate) struct Groups {
    network: Weak<Network>,
    /// Tasks that take an actor out of a group when it ends.
    followed: Mutex<BTreeMap<(ActorAddr, String), AbortHandle>>,
    /// Messages to members that are not answered; only of members that have some.
    outstanding: DashMap<ActorAddr, u32>,
    rng: Mutex<ChaCha12Rng>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Groups {
    pub(crate) fn new(network: &Arc<Network>) -> Self {
        Groups {
            network: Arc::downgrade(network),
            followed: Mutex::default(),
            outstanding: DashMap::new(),
            rng: Mutex::new(network.system.env().seeds.stream("groups")),
        }
    }

    fn join(
        self: &Arc<Self>,
        group: String,
        actor: ActorAddr,
        kind: &str,
    ) -> Result<(), GroupError> {
        check(&group)?;
        let network = self.network.upgrade().ok_or_else(GroupError::no_node)?;
        let ended = || GroupError::Ended { group: group.clone(), actor };
        let mut watch = network.system.watch(actor);
        // A life of this node that is over has no actors.
        let here = actor.node == network.node() && (&mut watch).now_or_never().is_none();
        let is = network.system.kind_of(actor.actor).filter(|_| here).ok_or_else(ended)?;
        let other = Some(is).filter(|is| *is != kind).map(str::to_owned);
        if let Some(found) = other.or_else(|| network.view.other_kind(&group, kind)) {
            return Err(GroupError::OtherType { group, found, asked: kind.to_owned() });
        }
        // From the change of the record to the entry here nobody else changes either.
        let mut followed = lock(&self.followed);
        let mut entered = Ok(false);
        let told = network.tell(|record: &mut Record| {
            entered = match record.incarnation == actor.incarnation {
                true => part::enter(&mut record.groups, &group, kind, actor.actor),
                false => Err(ended()),
            };
        });
        if told.is_err() {
            return Err(GroupError::Full { group });
        }
        if entered? {
            let (groups, key) = (Arc::downgrade(self), (actor, group.clone()));
            let task = network.control_thread.spawn(async move {
                watch.await;
                if let Some(groups) = groups.upgrade() {
                    groups.leave(&group, actor);
                }
            });
            followed.insert(key, task.abort_handle());
        }
        Ok(())
    }

    fn leave(&self, group: &str, actor: ActorAddr) {
        let mut followed = lock(&self.followed);
        if let Some(task) = followed.remove(&(actor, group.to_owned())) {
            task.abort();
        }
        let Some(network) = self.network.upgrade() else { return };
        let told = network.tell(|record| {
            // A number is not given again in a later life.
            part::leave(&mut record.groups, group, actor.actor);
        });
        if let Err(error) = told {
            // Less than before always fits.
            tracing::error!(%error, "the others could not be told who left a group");
        }
    }

    /// Counts a message to a member until the result is dropped.
    pub(super) fn sending(&self, actor: ActorAddr) -> Outstanding<'_> {
        *self.outstanding.entry(actor).or_default() += 1;
        Outstanding { groups: self, actor }
    }

    pub(super) fn outstanding(&self, actor: ActorAddr) -> u32 {
        self.outstanding.get(&actor).map_or(0, |count| *count)
    }

    /// A number below this one.
    pub(super) fn random(&self, below: usize) -> usize {
        lock(&self.rng).random_range(0..below.max(1))
    }
}

/// A message under way to a member.
pub(super) struct Outstanding<'a> {
    groups: &'a Groups,
    actor: ActorAddr,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.groups.outstanding.remove_if_mut(&self.actor, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}
