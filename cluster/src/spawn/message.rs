//! What nodes say to each other to start an actor.

use std::time::Duration;

use footlight_runtime::{ActorAddr, Down, Message, NodeId, codec::Opaque, message::Fingerprint};
use serde::{Deserialize, Serialize};

use crate::resources::{DoesNotFit, Needs};

/// Names one request to start an actor, however often it is sent. Drawn at random: nobody else can
/// name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// Whose end is the end of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The owner.
    pub actor: ActorAddr,
    /// The actor is stopped also when its node and the owner's have not reached each other for so
    /// long, though both are members.
    pub unreachable: Option<Duration>,
    /// How long the actor has to stop before it is killed.
    pub stop_within: Duration,
}

/// Start an actor on the node that receives this. A second time with the same request it starts
/// nothing, and answers the same.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// Which request.
    pub request: RequestId,
    /// The registered name of the type.
    pub actor: String,
    /// The shape of its arguments, as the sender knows it.
    pub args_shape: Fingerprint,
    /// Its arguments.
    pub args: Opaque,
    /// What is to be reserved for it.
    pub needs: Needs,
    /// With whom it ends.
    pub owner: Option<Owner>,
}

impl Message for Spawn {
    type Reply = Result<ActorAddr, Refusal>;
    const NAME: &'static str = "cluster.spawn";
}

/// Forget a request whose answer was lost: what it has started, or is starting, ends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Abandon {
    /// Which request.
    pub request: RequestId,
}

impl Message for Abandon {
    type Reply = ();
    const NAME: &'static str = "cluster.abandon";
}

/// An actor has ended: end what it owned on the node that receives this. Answered when nothing of
/// it is left there.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndOwned {
    /// The one that has ended.
    pub owner: ActorAddr,
}

impl Message for EndOwned {
    type Reply = ();
    const NAME: &'static str = "cluster.end_owned";
}

/// End an actor of any node for the one who sends this and can't reach it. Answered when it has
/// ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndFor {
    /// Which actor.
    pub actor: ActorAddr,
    /// How long it has to stop before it is killed.
    pub stop_within: Duration,
}

impl Message for EndFor {
    type Reply = Down;
    const NAME: &'static str = "cluster.end_for";
}

/// Why a node does not start an actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It has too little left.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// It drains or leaves.
    #[error("is leaving")]
    Leaving,
    /// It does not know the type.
    #[error("does not host `{0}`")]
    UnknownType(String),
    /// It knows the type with arguments of another shape.
    #[error(
        "the arguments of `{actor}` have another shape on node {node}: run the same build on all \
         nodes"
    )]
    OtherShape {
        /// The type.
        actor: String,
        /// The node that knows it otherwise.
        node: NodeId,
    },
    /// The actor's start said this.
    #[error("{0}")]
    Failed(String),
    /// Its owner has ended.
    #[error("its owner {0} has ended")]
    OwnerEnded(ActorAddr),
    /// Nobody waits for it any more.
    #[error("the request was abandoned")]
    Abandoned,
    /// It is starting as many actors as it may.
    #[error("is starting too many actors at once")]
    Busy,
}

impl Refusal {
    /// Whether another node may take what this one refuses.
    pub(crate) fn is_of_this_node(&self) -> bool {
        matches!(
            self,
            Refusal::DoesNotFit(_) | Refusal::Leaving | Refusal::UnknownType(_) | Refusal::Busy
        )
    }
}
