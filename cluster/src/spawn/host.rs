//! The node that an actor is started on: reserves what it needs, and ends it with its owner.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::{
    ActorAddr, Down, Error, ReplyTo, System, message::Fingerprint, remote::End,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    message::{EndFor, Owner, Refusal, RequestId, Spawn},
    owned::{Belonging, Owned},
    requests::{Abandoned, Begin, Outcome, Requests},
};
use crate::{
    network::Network,
    resources::{Granted, Needs, Shared},
};

/// An actor that is to end has so long to stop before it is killed.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What one node does for those who start actors on it.
pub(crate) struct Host {
    network: Weak<Network>,
    pool: Arc<Shared>,
    asked: Mutex<Asked>,
    owned: Arc<Owned>,
}

#[derive(Default)]
struct Asked {
    requests: Requests<ReplyTo<Outcome>>,
    /// Calls the starts off that are under way.
    call_offs: HashMap<RequestId, CancellationToken>,
}

impl Host {
    /// The host of a node that has what its record tells.
    pub(crate) fn new(network: &Arc<Network>) -> Self {
        let pool = Shared::new(network.own().resources.clone());
        let tells = Arc::downgrade(network);
        pool.on_change(move |free| {
            if let Some(network) = tells.upgrade()
                && let Err(error) = network.tell(|record| record.free = free)
            {
                tracing::error!(%error, "what this node has left could not be told");
            }
        });
        Host {
            network: Arc::downgrade(network),
            pool,
            asked: Mutex::default(),
            owned: Arc::default(),
        }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Reserves what an actor needs, if this node takes any.
    pub(crate) fn admit(&self, needs: &Needs) -> Result<Arc<Granted>, Refusal> {
        let network = self.network.upgrade().ok_or(Refusal::Leaving)?;
        if network.leaving.load(Ordering::Acquire) || network.own().leaving {
            return Err(Refusal::Leaving);
        }
        Ok(self.pool.reserve(needs)?)
    }

    /// Starts an actor for another node; everybody who asks for the same request is answered.
    pub(crate) fn spawn(self: &Arc<Self>, system: &System, spawn: Spawn, reply: ReplyTo<Outcome>) {
        let id = spawn.request;
        let mut asked = self.asked();
        match asked.requests.begin(Instant::now(), id, reply) {
            Begin::Wait => return,
            Begin::Answer(reply, outcome) => {
                drop(asked);
                return reply.send(outcome);
            }
            Begin::Start => {}
        }
        let call_off = CancellationToken::new();
        asked.call_offs.insert(id, call_off.clone());
        drop(asked);
        let host = self.clone();
        // Starting may take its time (loading a model, say): others can be started meanwhile.
        let starting = system.clone();
        system.env().spawner.spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = call_off.cancelled() => Err(Refusal::Abandoned),
                outcome = host.start(&starting, spawn) => outcome,
            };
            let mut asked = host.asked();
            asked.call_offs.remove(&id);
            let told = asked.requests.finish(Instant::now(), id, outcome.clone());
            drop(asked);
            match told {
                Ok(waiting) => waiting.into_iter().for_each(|reply| reply.send(outcome.clone())),
                Err(Some(actor)) => stop_or_kill(&starting, actor),
                Err(None) => {}
            }
        });
    }

    async fn start(&self, system: &System, spawn: Spawn) -> Outcome {
        let Spawn { actor, args_shape, args, needs, owner, .. } = spawn;
        knows(system, &actor, args_shape)?;
        let belonging = self.belongs_to(owner)?;
        let granted = self.admit(&needs)?;
        let started = system.spawn_by_name_with_claim(&actor, args, Some(granted)).await;
        let started = started.map_err(|error| match error {
            // Who asked names the type too.
            Error::Start { why, .. } => Refusal::Failed(why),
            Error::Leaving(_) => Refusal::Leaving,
            error => Refusal::Failed(error.to_string()),
        })?;
        if let Some(belonging) = belonging {
            belonging.started(system, started);
        }
        Ok(started)
    }

    /// An actor is about to be started for an owner, if it has one.
    pub(super) fn belongs_to(&self, owner: Option<Owner>) -> Result<Option<Belonging>, Refusal> {
        owner.map(|owner| self.owned.begin(owner)).transpose()
    }

    /// Ends what an owner has here; ready when nothing of it is left.
    pub(crate) fn end_owned(&self, owner: ActorAddr) -> impl Future<Output = ()> + Send + use<> {
        self.owned.end(owner)
    }

    /// Nobody waits for a request any more.
    pub(crate) fn abandon(&self, system: &System, id: RequestId) {
        let mut asked = self.asked();
        let abandoned = asked.requests.abandon(Instant::now(), id);
        let call_off = asked.call_offs.get(&id).cloned();
        drop(asked);
        match (abandoned, call_off) {
            (Abandoned::End(actor), _) => stop_or_kill(system, actor),
            (Abandoned::CallOff, Some(call_off)) => call_off.cancel(),
            (Abandoned::CallOff, None) | (Abandoned::Nothing, _) => {}
        }
    }
}

/// Whether this node can host a type, with arguments of this shape.
pub(crate) fn knows(system: &System, actor: &str, args: Fingerprint) -> Result<(), Refusal> {
    match system.catalog().actors.get(actor) {
        None => Err(Refusal::UnknownType(actor.to_owned())),
        Some(shape) if *shape != args => {
            Err(Refusal::OtherShape { actor: actor.to_owned(), node: system.node() })
        }
        Some(_) => Ok(()),
    }
}

/// Stops an actor of this node; kills it if that takes too long.
fn stop_or_kill(system: &System, actor: ActorAddr) {
    let system = system.clone();
    let stops = system.env().spawner.clone();
    stops.spawn(async move {
        end(&system, actor, STOP_PATIENCE).await;
    });
}

/// Ends an actor, here or elsewhere, for another node; answers when it has ended.
pub(crate) fn end_for(system: &System, end_for: EndFor, reply: ReplyTo<Down>) {
    let system = system.clone();
    let ends = system.env().spawner.clone();
    ends.spawn(async move {
        let EndFor { actor, stop_within } = end_for;
        reply.send(end(&system, actor, stop_within).await);
    });
}

/// Stops an actor and kills it if that takes longer than `patience`; how it ended.
pub(super) async fn end(system: &System, actor: ActorAddr, patience: Duration) -> Down {
    let mut ended = system.watch(actor);
    system.end(actor, End::Stop);
    match tokio::time::timeout(patience, &mut ended).await {
        Ok(down) => down,
        Err(_) => {
            system.end(actor, End::Kill);
            ended.await
        }
    }
}
