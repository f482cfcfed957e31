//! Who is who: nodes, their incarnations, actors and the fences of leases.

use std::{fmt, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize};

/// A node's identifier, the same for as long as its address keeps its state directory.
///
/// It stands in the node's certificate, so a peer can't claim another's. Printed as 16 hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// Which life of a node this is. Of two with the same [`NodeId`] the greater one is the newer, and
/// what the older one sends is refused.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// One actor's number on its node; never used twice within an incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ActorId(pub u64);

/// Where one actor lives: node, the node's incarnation, and the actor's number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ActorAddr {
    /// The node that hosts the actor.
    pub node: NodeId,
    /// The life of the node in which the actor was started: it ends with that life.
    pub incarnation: Incarnation,
    /// The actor on that node.
    pub actor: ActorId,
}

/// The right under which a message is sent: a lease and its generation.
///
/// A receiver remembers the greatest generation that it has seen of each lease and refuses older
/// ones, so a sender that lost its lease without knowing does no harm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// The lease, by the 64-bit hash of its name.
    pub lease: u64,
    /// Its generation: each new holder has a greater one.
    pub generation: u64,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(s, 16).map(NodeId)
    }
}

impl fmt::Display for ActorAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {} on node {}", self.actor.0, self.node)
    }
}
