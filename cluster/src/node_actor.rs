//! The actor that each node has for the others: it starts actors and tells how the node is.

use std::time::Duration;

use footlight_runtime::{
    Actor, ActorAddr, ActorId, ActorRef, Context, DeferredHandler, Down, Handler, Message, NodeId,
    ReplyTo, Result, System, id::Incarnation, registry::Types, telemetry::Counts,
};
use serde::{Deserialize, Serialize};

use crate::{
    Node,
    census::AskActors,
    enroll::{Certificate, CreateToken, ListTokens, RevokeNode, RevokeToken},
    ledger::LedgerStatus,
    network::links::Link,
    network::view::Member,
    spawn::{Abandon, EndFor, EndOwned, Refusal, Spawn, end_for},
};

/// Every node's own actor has this number.
pub(crate) const NODE_ACTOR: ActorId = ActorId(1);

/// Answers what nodes ask each other: to start actors and how they are.
#[derive(Debug)]
pub struct NodeActor;

/// Tell how the node and, as far as it knows, the cluster is.
#[derive(Debug, Serialize, Deserialize)]
pub struct AskStatus;

impl Message for AskStatus {
    type Reply = Status;
    const NAME: &'static str = "cluster.status";
}

/// Drain and leave: see [`Node::drain_node`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Drain {
    /// How long to wait for what the node has in hand; none leaves it to the node.
    pub within: Option<Duration>,
}

impl Message for Drain {
    type Reply = Draining;
    const NAME: &'static str = "cluster.drain";
}

/// A node has begun to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// It leaves after this long at the latest.
    pub within: Duration,
    /// How many messages its actors have in hand: waiting, handled, or taken and not answered.
    pub in_hand: u64,
}

/// Tell which actors of a type run on the node.
#[derive(Debug, Serialize, Deserialize)]
pub struct FindActors {
    /// The type's registered name.
    pub actor: String,
}

impl Message for FindActors {
    /// Sorted by number: the oldest first.
    type Reply = Vec<ActorAddr>;
    const NAME: &'static str = "cluster.find_actors";
}

/// How a node and its cluster are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node that answers.
    pub node: NodeId,
    /// Its process.
    pub pid: u32,
    /// The members as it sees them, itself first.
    pub members: Vec<Member>,
    /// The ledger, if the node knows of one.
    pub ledger: Option<LedgerStatus>,
    /// How many messages its actors have in hand: waiting, handled, or taken and not answered.
    pub in_hand: u64,
    /// Its actors, as (type, count).
    pub actors: Vec<(String, u64)>,
    /// Asynchronous tasks that live on its control threads and on the runtime of its actors, which
    /// may be shared with others.
    pub tasks: u64,
    /// Its counters.
    pub counts: Counts,
    /// What it shows to others; `None` while it ends.
    pub certificate: Option<Certificate>,
    /// How many connections with members it has made or taken: one with each, and one more whenever
    /// one broke.
    pub connections: u64,
}

impl NodeActor {
    pub(crate) fn register(types: &mut Types) {
        types.register_own::<NodeActor>(|node| {
            node.defers::<Spawn>()
                .handles::<Abandon>()
                .defers::<EndOwned>()
                .defers::<EndFor>()
                .handles::<Link>()
                .handles::<AskStatus>()
                .handles::<Drain>()
                .handles::<FindActors>()
                .defers::<AskActors>()
                .defers::<CreateToken>()
                .defers::<ListTokens>()
                .defers::<RevokeToken>()
                .defers::<RevokeNode>()
        });
    }

    /// The node actor of a node in one of its lives.
    pub(crate) fn of(node: NodeId, incarnation: Incarnation, system: &System) -> ActorRef<Self> {
        ActorRef::at(ActorAddr { node, incarnation, actor: NODE_ACTOR }, system)
    }
}

impl Actor for NodeActor {
    type Args = ();
    const NAME: &'static str = "cluster.node";

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(NodeActor)
    }
}

impl DeferredHandler<Spawn> for NodeActor {
    async fn handle(
        &mut self,
        spawn: Spawn,
        reply: ReplyTo<<Spawn as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let system = context.system();
        match Node::of(system) {
            Some(node) => node.host().spawn(system, spawn, reply),
            None => reply.send(Err(Refusal::Leaving)),
        }
    }
}

impl Handler<Abandon> for NodeActor {
    async fn handle(&mut self, abandon: Abandon, context: &Context<Self>) {
        if let Some(node) = Node::of(context.system()) {
            node.host().abandon(context.system(), abandon.request);
        }
    }
}

impl DeferredHandler<EndOwned> for NodeActor {
    async fn handle(&mut self, end: EndOwned, reply: ReplyTo<()>, context: &Context<Self>) {
        let system = context.system();
        let Some(node) = Node::of(system) else { return };
        let ended = node.host().end_owned(end.owner);
        system.env().spawner.spawn(async move {
            ended.await;
            reply.send(());
        });
    }
}

impl DeferredHandler<EndFor> for NodeActor {
    async fn handle(&mut self, end: EndFor, reply: ReplyTo<Down>, context: &Context<Self>) {
        end_for(context.system(), end, reply);
    }
}

impl Handler<Link> for NodeActor {
    async fn handle(&mut self, link: Link, context: &Context<Self>) -> <Link as Message>::Reply {
        let (system, actor) = (context.system(), link.actor.actor);
        if link.linked {
            return system.hold_half_link(actor, link.with);
        }
        system.drop_half_link(actor, link.with);
        Ok(())
    }
}

impl Handler<Drain> for NodeActor {
    async fn handle(&mut self, drain: Drain, context: &Context<Self>) -> Draining {
        let (system, mut within) = (context.system(), Duration::ZERO);
        // Without a node it is ending already.
        if let Some(node) = Node::of(system) {
            within = drain.within.unwrap_or(node.drain_timeout());
            node.begin_departure(within);
        }
        Draining { within, in_hand: system.in_hand() as u64 }
    }
}

impl Handler<AskStatus> for NodeActor {
    async fn handle(&mut self, _: AskStatus, context: &Context<Self>) -> Status {
        let system = context.system();
        let cluster = Node::of(system);
        Status {
            node: system.node(),
            pid: std::process::id(),
            members: cluster.as_ref().map(Node::members).unwrap_or_default(),
            in_hand: system.in_hand() as u64,
            ledger: cluster.as_ref().and_then(|cluster| cluster.ledger().status()),
            actors: system
                .census()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count as u64))
                .collect(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64
                + cluster.as_ref().map_or(0, |cluster| cluster.network().tasks()),
            certificate: cluster.as_ref().map(|node| node.network().keyring.certificate()),
            connections: cluster.as_ref().map_or(0, |node| node.network().connections()),
            counts: cluster.map_or_else(Default::default, |cluster| cluster.counts()),
        }
    }
}

impl Handler<FindActors> for NodeActor {
    async fn handle(&mut self, find: FindActors, context: &Context<Self>) -> Vec<ActorAddr> {
        context.system().find(&find.actor)
    }
}
