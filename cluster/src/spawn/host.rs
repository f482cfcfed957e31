//! The node that an actor is started on: reserves what it needs, and ends it with its owner.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::{ActorAddr, ReplyTo, System, remote::End};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    message::{Owner, Refusal, RequestId, Spawn},
    requests::{Abandoned, Begin, Outcome, Requests},
};
use crate::{
    network::Network,
    resources::{Granted, Needs, Shared},
};

/// An actor that is to end has so long to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What one node does for those who start actors on it.
pub(crate) struct Host {
    network: Weak<Network>,
    pool: Arc<Shared>,
    asked: Mutex<Asked>,
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
        Host { network: Arc::downgrade(network), pool, asked: Mutex::default() }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Reserves what an actor needs, if this node takes any.
    pub(super) fn admit(&self, needs: &Needs) -> Result<Arc<Granted>, Refusal> {
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
        let (host, owner) = (self.clone(), spawn.owner);
        // Starting may take its time (loading a model, say): others can be started meanwhile.
        let starting = system.clone();
        system.env().spawner.spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = call_off.cancelled() => Err(Refusal::Abandoned),
                outcome = host.start(&starting, spawn) => outcome,
            };
            if let (Ok(actor), Some(owner)) = (&outcome, owner) {
                end_with(&starting, *actor, owner);
            }
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
        let Spawn { actor, args_shape, args, needs, .. } = spawn;
        match system.catalog().actors.get(&actor) {
            None => return Err(Refusal::UnknownType(actor)),
            Some(shape) if *shape != args_shape => {
                return Err(Refusal::OtherShape { actor, node: system.node() });
            }
            Some(_) => {}
        }
        let granted = self.admit(&needs)?;
        let started = system.spawn_by_name_with_claim(&actor, args, Some(granted)).await;
        started.map_err(|error| Refusal::Failed(error.to_string()))
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

/// Stops an actor of this node; kills it if that takes too long.
fn stop_or_kill(system: &System, actor: ActorAddr) {
    system.end(actor, End::Stop);
    let (watch, killer) = (system.watch(actor), system.clone());
    system.env().spawner.spawn(async move {
        if tokio::time::timeout(STOP_PATIENCE, watch).await.is_err() {
            killer.end(actor, End::Kill);
        }
    });
}

/// Sees to it that an actor of this node ends with its owner.
pub(super) fn end_with(system: &System, actor: ActorAddr, owner: Owner) {
    let (ended, owner_ended) = (system.watch(actor), system.watch(owner.actor));
    let stops = system.clone();
    system.env().spawner.spawn(async move {
        tokio::select! {
            biased;
            _ = ended => {}
            down = owner_ended => {
                tracing::info!(%actor, owner = %owner.actor, %down, "stopped with its owner");
                stop_or_kill(&stops, actor);
            }
        }
    });
}
