//! Where the shards of a job are, for those who talk to them.
//!
//! A shard with [backups](crate::parameters::replication) moves when its primary is lost. All clones of a [`Shards`]
//! within a process see that at once; what travels is where they are at that moment, and who has received it is told of
//! changes by the trainer.

use std::{sync::Arc, time::Duration};

use footlight_runtime::{ActorAddr, ActorRef, Cause, Error, Message, Result, actor::Receives};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::{sync::watch, time::timeout};

use super::weights::VERSION_PATIENCE;
use crate::parameters::ParameterServer;

/// After a connection broke.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// When a shard is gone, another primary is waited for so long: as long as a trainer may take to be started elsewhere.
pub(super) const SUCCESSOR: Duration = Duration::from_secs(60);

/// The primaries of a job's shards, in the layout's order.
#[derive(Clone, Debug)]
pub struct Shards {
    now: Arc<watch::Sender<Vec<ActorRef<ParameterServer>>>>,
    /// Each has backups, of which one takes over when it is lost.
    are_replicated: bool,
}

#[derive(Serialize, Deserialize)]
struct Told {
    now: Vec<ActorRef<ParameterServer>>,
    are_replicated: bool,
}

impl Serialize for Shards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Told { now: self.now(), are_replicated: self.are_replicated }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Told { now, are_replicated } = Told::deserialize(deserializer)?;
        Ok(Shards::new(now, are_replicated))
    }
}

impl Shards {
    /// Shards that stay where they are, or have backups.
    pub fn new(now: Vec<ActorRef<ParameterServer>>, are_replicated: bool) -> Self {
        Shards { now: Arc::new(watch::Sender::new(now)), are_replicated }
    }

    /// Where they are now.
    pub fn now(&self) -> Vec<ActorRef<ParameterServer>> {
        self.now.borrow().clone()
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.now.borrow().len()
    }

    pub(super) fn are_replicated(&self) -> bool {
        self.are_replicated
    }

    /// From here on they are there.
    pub(super) fn move_to(&self, shards: Vec<ActorRef<ParameterServer>>) {
        self.now.send_if_modified(|now| {
            let addrs =
                |shards: &[ActorRef<_>]| shards.iter().map(ActorRef::addr).collect::<Vec<_>>();
            let has_changed = addrs(now) != addrs(&shards);
            *now = shards;
            has_changed
        });
    }

    /// Tells when some have moved.
    pub(super) fn moves(&self) -> watch::Receiver<Vec<ActorRef<ParameterServer>>> {
        self.now.subscribe()
    }

    /// Where one of them is now.
    pub(super) fn get(&self, index: usize) -> Result<ActorRef<ParameterServer>> {
        let shard = self.now.borrow().get(index).cloned();
        shard.ok_or_else(|| Error::other(format!("there is no shard {index}")))
    }

    /// Waits until a shard is elsewhere than there.
    async fn has_moved(&self, index: usize, from: ActorAddr) {
        let elsewhere = |now: &Vec<ActorRef<ParameterServer>>| {
            now.get(index).is_some_and(|shard| shard.addr() != from)
        };
        // The sender is this one's own.
        let _ = self.now.subscribe().wait_for(elsewhere).await;
    }

    /// The answer to what may be asked again: it may take its time, a connection may break, and a backup may have to
    /// take over. A shard that is lost for good gives another error.
    pub(super) async fn ask<M: Message + Copy, How: 'static>(
        &self,
        index: usize,
        message: M,
    ) -> Result<M::Reply>
    where
        ParameterServer: Receives<M, How>,
    {
        loop {
            let shard = self.get(index)?;
            let error = match shard.call_within(message, VERSION_PATIENCE).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error.cause() {
                Cause::TimedOut(_) => {}
                Cause::Unreachable(_) | Cause::CutOff { .. } => {
                    // Perhaps it is the last that is heard of it.
                    drop(timeout(ASK_AGAIN, self.has_moved(index, shard.addr())).await);
                }
                cause if self.are_replicated && is_loss(cause) => {
                    let moved = self.has_moved(index, shard.addr());
                    if timeout(SUCCESSOR, moved).await.is_err() {
                        return Err(error.into());
                    }
                }
                _ => return Err(error.into()),
            }
        }
    }
}

/// Whether an actor is gone, with all that was sent to it.
pub(super) fn is_loss(cause: &Cause) -> bool {
    matches!(cause, Cause::NodeLost(_) | Cause::Leaving(_) | Cause::NoSuchActor | Cause::Stopped)
}
