//! Links: two actors of which neither goes on without the other.
//!
//! A link is two halves. Each is kept by the node of the actor that is to fail: that node watches
//! the other actor, wherever it is. So nothing has to be told when an actor ends; only making and
//! unmaking a link is told, to the node of the other half.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    id::{ActorAddr, ActorId},
    system::System,
    watch::Down,
};

/// Most links of one actor that other nodes ask for.
const MOST: usize = 4096;

/// The halves of one actor, by the other one; each ends with its token.
pub(crate) type Links = BTreeMap<ActorAddr, CancellationToken>;

/// An actor has as many links as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the actor has {MOST} links already")]
pub struct TooManyLinks;

impl System {
    /// Links an actor of this node with another one.
    pub(crate) fn link(&self, me: ActorAddr, other: ActorAddr) {
        if me == other {
            return;
        }
        self.hold(me.actor, other);
        if self.is_here(other) {
            self.hold(other.actor, me);
        } else if let (true, Ok(remote)) = (other.node != me.node, self.remote()) {
            remote.link(other, me, true);
        }
    }

    pub(crate) fn unlink(&self, me: ActorAddr, other: ActorAddr) {
        self.drop_half_link(me.actor, other);
        if self.is_here(other) {
            self.drop_half_link(other.actor, me);
        } else if let (true, Ok(remote)) = (other.node != me.node, self.remote()) {
            remote.link(other, me, false);
        }
    }

    /// From now on an actor of this node fails with `other`, at the request of the other's node.
    /// Nothing happens if it is so already, or if the actor has ended.
    ///
    /// # Errors
    /// If the actor has too many links.
    pub fn hold_half_link(&self, actor: ActorId, other: ActorAddr) -> Result<(), TooManyLinks> {
        let links = |links: &Links| links.len() >= MOST && !links.contains_key(&other);
        let full = self.entry(actor, |entry| links(&lock(&entry.links)));
        if full == Some(true) {
            return Err(TooManyLinks);
        }
        self.hold(actor, other);
        Ok(())
    }

    /// `other` may end as it likes from now on. Whether the two were linked.
    pub fn drop_half_link(&self, actor: ActorId, other: ActorAddr) -> bool {
        let token = self.entry(actor, |entry| lock(&entry.links).remove(&other)).flatten();
        token.inspect(CancellationToken::cancel).is_some()
    }

    /// The other half of a link can't be: the actor of this node fails.
    pub fn break_link(&self, actor: ActorId, other: ActorAddr, why: String) {
        if let Some(tell) = self.entry(actor, |entry| entry.link_down.clone()) {
            tell(other, Down::Failed(why));
        }
    }

    pub(crate) fn links_of(&self, actor: ActorId) -> Vec<ActorAddr> {
        let all = self.entry(actor, |entry| lock(&entry.links).keys().copied().collect());
        all.unwrap_or_default()
    }

    fn hold(&self, actor: ActorId, other: ActorAddr) {
        let held = self.entry(actor, |entry| {
            let mut links = lock(&entry.links);
            if links.contains_key(&other) {
                return None;
            }
            // The half ends with the actor too.
            let token = entry.tasks.child_token();
            links.insert(other, token.clone());
            Some((token, entry.link_down.clone()))
        });
        let Some((unlinked, tell)) = held.flatten() else { return };
        let watch = self.watch(other);
        let system = self.clone();
        self.env().spawner.spawn(async move {
            let down = tokio::select! {
                biased;
                () = unlinked.cancelled() => return,
                down = watch => down,
            };
            if down.is_normal() {
                system.drop_half_link(actor, other);
            } else {
                tell(other, down);
            }
        });
    }
}

fn lock(links: &std::sync::Mutex<Links>) -> std::sync::MutexGuard<'_, Links> {
    links.lock().unwrap_or_else(|poison| poison.into_inner())
}
