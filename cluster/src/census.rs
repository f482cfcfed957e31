//! Which actors run where, for people and programs that look from outside.

use std::time::Duration;

use footlight_runtime::{ActorId, Context, DeferredHandler, Message, NodeId, ReplyTo, System};
use serde::{Deserialize, Serialize};

use crate::{Member, Node, NodeActor};

/// Each node has so long to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most actors that a node tells of.
const MOST: usize = 100_000;

/// Tell which actors run on the node, or on all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskActors {
    /// Only those of this type.
    pub kind: Option<String>,
    /// The node asks all that are up; else it tells of its own.
    pub everywhere: bool,
}

impl Message for AskActors {
    /// By node, the one that is asked first.
    type Reply = Vec<ActorsOf>;
    const NAME: &'static str = "cluster.ask_actors";
}

/// The actors of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorsOf {
    /// The node.
    pub node: NodeId,
    /// Its actors by number, the node's own included, at most 100,000; or why it did not answer.
    pub actors: Result<Vec<ActorInfo>, String>,
}

/// One actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorInfo {
    /// Its number on its node.
    pub id: ActorId,
    /// Its type's name.
    pub kind: String,
}

fn own(system: &System, ask: &AskActors) -> ActorsOf {
    let mut actors: Vec<_> = system
        .actors()
        .into_iter()
        .filter(|(_, kind)| ask.kind.as_ref().is_none_or(|wanted| wanted == kind))
        .map(|(id, kind)| ActorInfo { id, kind: kind.to_owned() })
        .collect();
    actors.truncate(MOST);
    ActorsOf { node: system.node(), actors: Ok(actors) }
}

impl DeferredHandler<AskActors> for NodeActor {
    /// Others may be slow to answer: nobody who asks this node something else waits for them.
    async fn handle(
        &mut self,
        ask: AskActors,
        reply: ReplyTo<Vec<ActorsOf>>,
        context: &Context<Self>,
    ) {
        let system = context.system().clone();
        let others: Vec<Member> = match Node::of(&system).filter(|_| ask.everywhere) {
            Some(node) => node.members(),
            None => Vec::new(),
        };
        context.system().env().spawner.spawn(async move {
            let me = system.node();
            let asked = others.iter().filter(|member| member.is_up() && member.id != me);
            let asked = asked.map(|member| {
                let there = NodeActor::of(member.id, member.incarnation, &system);
                let ask = AskActors { everywhere: false, ..ask.clone() };
                async move {
                    match there.call_within(ask, PATIENCE).await {
                        Ok(told) => told,
                        Err(error) => {
                            vec![ActorsOf { node: member.id, actors: Err(error.to_string()) }]
                        }
                    }
                }
            });
            let told = futures::future::join_all(asked).await;
            let own = own(&system, &ask);
            reply.send(std::iter::once(own).chain(told.into_iter().flatten()).collect());
        });
    }
}
