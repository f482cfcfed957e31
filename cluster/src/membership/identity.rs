//! Who a member is to SWIM: a node, in one life, at one address.

use std::{
    fmt,
    net::{SocketAddr, SocketAddrV6},
};

use foca::Identity;
use footlight_runtime::id::{Incarnation, NodeId};

/// A node in one of its lives.
///
/// Two of one address can't both be members: the one with the higher incarnation takes the other's
/// place (of equal ones, the one with the higher node id, so that everybody decides alike).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    /// The node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Where the others reach it. Flow label and scope of an IPv6 address do not travel.
    pub addr: SocketAddr,
}

impl MemberId {
    /// A member, its address in the one form that all nodes compare.
    pub fn new(node: NodeId, incarnation: Incarnation, addr: SocketAddr) -> Self {
        // A dual-stack socket reports IPv4 peers as ::ffff:a.b.c.d: the same place.
        let addr = match (addr.ip().to_canonical(), addr.port()) {
            (std::net::IpAddr::V6(ip), port) => SocketAddrV6::new(ip, port, 0, 0).into(),
            (ip, port) => SocketAddr::new(ip, port),
        };
        Self { node, incarnation, addr }
    }

    /// Whether this member wins against another of the same address.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.incarnation, self.node) > (other.incarnation, other.node)
    }
}

impl Identity for MemberId {
    type Addr = SocketAddr;

    /// The next life, under which a member comes back that was declared down by mistake.
    fn renew(&self) -> Option<Self> {
        let incarnation = Incarnation(self.incarnation.0.checked_add(1)?);
        Some(Self { incarnation, ..*self })
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.supersedes(adversary)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({}, incarnation {})", self.node, self.addr, self.incarnation.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.node, self.addr, self.incarnation.0)
    }
}
