//! The actors of a node that end with an owner.
//!
//! An owner's end is the end of what it owns, on whatever node. Each host watches the owners of its
//! actors, so nothing has to be told, and nobody has to be left to tell it. Three things end an actor
//! so:
//!
//! - **OW-1** Its owner has ended, or was lost with its node, as far as this node knows.
//! - **OW-2** Somebody who knows of that end sooner says so ([`EndOwned`](super::EndOwned)): then
//!   whatever is still asked for in the owner's name is refused, and the answer comes when nothing
//!   that it owned is left here.
//! - **OW-3** This node and the owner's have not reached each other for the time that the owner gave
//!   ([`Owner::unreachable`]), though both are members.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use footlight_runtime::{ActorAddr, System};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    host::end,
    message::{Owner, Refusal},
};
use crate::network::view::cut_between;

/// Owners of which it was told that they have ended are remembered, the latest so many: what they
/// asked for may still be on its way.
const REMEMBERED: usize = 1024;

/// What ends with whom, on one node.
#[derive(Debug, Default)]
pub(crate) struct Owned(Mutex<Owners>);

#[derive(Debug, Default)]
struct Owners {
    groups: HashMap<ActorAddr, Arc<Group>>,
    over: VecDeque<ActorAddr>,
}

/// What one owner has here.
#[derive(Debug)]
struct Group {
    over: CancellationToken,
    count: watch::Sender<usize>,
}

impl Owned {
    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// An actor is about to be started for an owner; it counts until what is given is dropped.
    pub(super) fn begin(self: &Arc<Self>, owner: Owner) -> Result<Belonging, Refusal> {
        let mut owners = self.lock();
        if owners.over.contains(&owner.actor) {
            return Err(Refusal::OwnerEnded(owner.actor));
        }
        let group = owners.groups.entry(owner.actor).or_insert_with(|| {
            Arc::new(Group { over: CancellationToken::new(), count: watch::Sender::new(0) })
        });
        group.count.send_modify(|count| *count += 1);
        Ok(Belonging { owned: self.clone(), owner, group: group.clone() })
    }

    /// The owner has ended (OW-2). Ready when nothing of it is left here.
    pub(crate) fn end(&self, owner: ActorAddr) -> impl Future<Output = ()> + Send + use<> {
        let mut owners = self.lock();
        if !owners.over.contains(&owner) {
            owners.over.push_back(owner);
            if owners.over.len() > REMEMBERED {
                owners.over.pop_front();
            }
        }
        let group = owners.groups.get(&owner).cloned();
        drop(owners);
        async move {
            let Some(group) = group else { return };
            group.over.cancel();
            let mut count = group.count.subscribe();
            // The sender is in the group that is held here.
            let _ = count.wait_for(|count| *count == 0).await;
        }
    }
}

/// That an actor of this node belongs to an owner.
#[derive(Debug)]
pub(super) struct Belonging {
    owned: Arc<Owned>,
    owner: Owner,
    group: Arc<Group>,
}

impl Belonging {
    /// The actor is up: from here on it ends with its owner.
    pub(super) fn started(self, system: &System, actor: ActorAddr) {
        let (ended, owner_ended) = (system.watch(actor), system.watch(self.owner.actor));
        let stops = system.clone();
        system.env().spawner.spawn(async move {
            let owner = self.owner.actor;
            let why = tokio::select! {
                biased;
                _ = ended => return,
                () = self.group.over.cancelled() => "it has ended".to_owned(),
                down = owner_ended => down.to_string(),
                () = self.out_of_reach(&stops) => "its node is out of reach".to_owned(),
            };
            tracing::info!(%actor, %owner, why, "stopped with its owner");
            end(&stops, actor, self.owner.stop_within).await;
        });
    }

    /// Ready when the two nodes have been cut from each other for as long as the owner allows
    /// (OW-3).
    async fn out_of_reach(&self, system: &System) {
        match self.owner.unreachable {
            Some(patience) => {
                cut_between(system, system.node(), self.owner.actor.node, patience).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Belonging {
    fn drop(&mut self) {
        let mut owners = self.owned.lock();
        self.group.count.send_modify(|count| *count -= 1);
        if *self.group.count.borrow() == 0 {
            owners.groups.remove(&self.owner.actor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use footlight_runtime::{ActorId, Incarnation, NodeId};
    use futures::FutureExt;

    use super::*;

    fn owner(actor: u64) -> Owner {
        let actor =
            ActorAddr { node: NodeId(1), incarnation: Incarnation(1), actor: ActorId(actor) };
        Owner { actor, unreachable: None, stop_within: Duration::ZERO }
    }

    #[test]
    fn ow2_an_owners_end_is_done_when_nothing_of_it_is_left_and_nothing_comes_after() {
        let owned = Arc::new(Owned::default());
        let [one, two] = [(); 2].map(|()| owned.begin(owner(20)).unwrap());
        let other = owned.begin(owner(21)).unwrap();
        let mut done = Box::pin(owned.end(owner(20).actor));
        assert_eq!((&mut done).now_or_never(), None);
        assert!(one.group.over.is_cancelled() && !other.group.over.is_cancelled());
        drop(one);
        assert_eq!((&mut done).now_or_never(), None);
        drop(two);
        assert_eq!(done.now_or_never(), Some(()));
        let refused = owned.begin(owner(20)).unwrap_err();
        assert_eq!(refused, Refusal::OwnerEnded(owner(20).actor));
        assert_eq!(owned.end(owner(20).actor).now_or_never(), Some(()));
        assert_eq!(owned.lock().groups.len(), 1, "what nobody owns is forgotten");
    }

    #[test]
    fn of_owners_that_ended_the_latest_are_remembered_and_no_more() {
        let owned = Arc::new(Owned::default());
        for actor in 0..2 * REMEMBERED as u64 {
            drop(owned.end(owner(actor).actor));
        }
        assert_eq!(owned.lock().over.len(), REMEMBERED);
    }
}
