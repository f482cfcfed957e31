//! Telling the other node of a link between an actor of this node and one of its own.
//!
//! Each node keeps the half of the actor that is to fail. Here stands what the other node is to keep;
//! it is told until it has answered or is lost.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use footlight_runtime::{ActorAddr, CallError, Cause, Message, TooManyLinks};
use serde::{Deserialize, Serialize};

use super::Network;
use crate::NodeActor;

/// A node has so long to answer before it is told again.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
const TELL_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// From now on, `actor` fails when `with` ends otherwise than by a stop, or no longer does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Link {
    /// An actor of the node that receives this.
    pub actor: ActorAddr,
    /// An actor of the node that sends this.
    pub with: ActorAddr,
    /// Whether they are linked.
    pub linked: bool,
}

impl Message for Link {
    type Reply = Result<(), TooManyLinks>;
    const NAME: &'static str = "cluster.link";
}

/// What other nodes have not been told yet, by (actor there, actor here). While an entry is here, a
/// task tells it.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeMap<(ActorAddr, ActorAddr), bool>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ActorAddr, ActorAddr), bool>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Network {
    pub(super) fn tell_link(&self, actor: ActorAddr, with: ActorAddr, linked: bool) {
        if self.links.lock().insert((actor, with), linked).is_some() {
            return;
        }
        let network = self.me.clone();
        let there = NodeActor::of(actor.node, actor.incarnation, &self.system);
        self.system.env().spawner.spawn(async move {
            let (mut pause, longest) = TELL_AGAIN;
            loop {
                let wanted = match network.upgrade() {
                    Some(network) => network.links.lock().get(&(actor, with)).copied(),
                    None => return,
                };
                let Some(linked) = wanted else { return };
                let told = there.call_within(Link { actor, with, linked }, TELL_TIMEOUT).await;
                let Some(network) = network.upgrade() else { return };
                match told.as_ref().map_err(CallError::cause) {
                    Ok(outcome) => {
                        if let Err(why) = outcome {
                            network.system.break_link(with.actor, actor, why.to_string());
                        }
                        let mut links = network.links.lock();
                        // It may have been asked for something else meanwhile.
                        if links.get(&(actor, with)) == Some(&linked) {
                            links.remove(&(actor, with));
                            return;
                        }
                    }
                    Err(Cause::NodeLost(_)) => {
                        network.links.lock().remove(&(actor, with));
                        return;
                    }
                    // Nobody has told of that node, or it is forgotten: there is nobody to be told.
                    Err(_) if !network.knows(actor.node) => {
                        network.links.lock().remove(&(actor, with));
                        network.system.break_link(
                            with.actor,
                            actor,
                            "its node is not known".into(),
                        );
                        return;
                    }
                    Err(_) => {
                        drop(network);
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(longest);
                    }
                }
            }
        });
    }
}
