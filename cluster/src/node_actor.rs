//! The actor that each node has for the others: it starts actors and tells how the node is.

use footlight_runtime::{
    Actor, ActorAddr, ActorId, ActorRef, Context, DeferredHandler, Handler, Message, NodeId,
    ReplyTo, Result, System, codec::Opaque, id::Incarnation, message::Fingerprint, registry::Types,
    telemetry::Counts,
};
use serde::{Deserialize, Serialize};

use crate::{Node, network::view::Member};

/// Every node's own actor has this number.
pub(crate) const NODE_ACTOR: ActorId = ActorId(1);

/// Answers what nodes ask each other: to start actors and how they are.
#[derive(Debug)]
pub struct NodeActor;

/// Start an actor on the node that receives this.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// The registered name of the type.
    pub actor: String,
    /// The shape of its arguments, as the sender knows it.
    pub args_shape: Fingerprint,
    /// Its arguments.
    pub args: Opaque,
}

impl Message for Spawn {
    type Reply = std::result::Result<ActorAddr, String>;
    const NAME: &'static str = "cluster.spawn";
}

/// Tell how the node and, as far as it knows, the cluster is.
#[derive(Debug, Serialize, Deserialize)]
pub struct AskStatus;

impl Message for AskStatus {
    type Reply = Status;
    const NAME: &'static str = "cluster.status";
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
    /// Its actors, as (type, count).
    pub actors: Vec<(String, u64)>,
    /// Its counters.
    pub counts: Counts,
}

impl NodeActor {
    pub(crate) fn register(types: &mut Types) {
        types.register::<NodeActor>(|node| {
            node.defers::<Spawn>().handles::<AskStatus>().handles::<FindActors>()
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
    /// Starting may take its time (loading a model, say): others can be started meanwhile.
    async fn handle(
        &mut self,
        spawn: Spawn,
        reply: ReplyTo<<Spawn as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let system = context.system().clone();
        context.system().env().spawner.spawn(async move {
            let known = system.catalog().actors.get(&spawn.actor).copied();
            reply.send(match known {
                Some(shape) if shape != spawn.args_shape => Err(format!(
                    "the arguments of `{}` have another shape on node {}: run the same build on \
                     all nodes",
                    spawn.actor,
                    system.node()
                )),
                _ => system
                    .spawn_by_name(&spawn.actor, spawn.args)
                    .await
                    .map_err(|error| error.to_string()),
            });
        });
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
            actors: system
                .census()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count as u64))
                .collect(),
            counts: cluster.map_or_else(Default::default, |cluster| cluster.counts()),
        }
    }
}

impl Handler<FindActors> for NodeActor {
    async fn handle(&mut self, find: FindActors, context: &Context<Self>) -> Vec<ActorAddr> {
        context.system().find(&find.actor)
    }
}
