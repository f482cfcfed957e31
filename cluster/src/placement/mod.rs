//! Where an actor is started.
//!
//! A [`Placement`] is what must hold of a node, and which of those that fit is preferred.
//! `choose` turns it, the members and what was placed already into an order of candidates, with a
//! reason for each of the others; it asks nobody and its answer depends on nothing else.

mod choose;

use std::fmt;

use footlight_runtime::{Actor, ActorAddr, ActorRef, NodeId};
use serde::{Deserialize, Serialize};

pub(crate) use choose::{Candidates, Request, candidates, may_be_up};

use crate::{Node, network::view::Member};

/// Where an actor is to be started: what must hold of the node, and what is preferred.
///
/// ```
/// # use footlight_cluster::Placement;
/// let workers = Placement::role("worker").spread();
/// let zones = Placement::label("disk", "ssd").spread_over("zone");
/// # assert_eq!(workers.to_string(), "a node of role worker, spread over nodes");
/// # assert_eq!(zones.to_string(), "a node labelled disk=ssd, spread over zone");
/// ```
///
/// Only nodes that are up and can host the type are taken, a suspect if there is no other. Where nothing is preferred, it is the
/// node with the smallest id, so that the same question has the same answer everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    site: Site,
    roles: Vec<String>,
    labels: Vec<(String, String)>,
    beside: Vec<ActorAddr>,
    away_from: Vec<ActorAddr>,
    prefer: Prefer,
}

/// Which nodes are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Site {
    Here,
    Seed,
    Any,
    /// In this order.
    OneOf(Vec<NodeId>),
}

/// Which of those that fit comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Prefer {
    First,
    Spread,
    SpreadOver(String),
    Pack,
}

impl Default for Placement {
    fn default() -> Self {
        Placement::here()
    }
}

impl Placement {
    fn at(site: Site) -> Self {
        Placement {
            site,
            roles: Vec::new(),
            labels: Vec::new(),
            beside: Vec::new(),
            away_from: Vec::new(),
            prefer: Prefer::First,
        }
    }

    /// On this node. The default. A type that is not registered can be started here too.
    pub fn here() -> Self {
        Placement::at(Site::Here)
    }
    /// On any node.
    pub fn anywhere() -> Self {
        Placement::at(Site::Any)
    }
    /// On the node that this one joined the cluster through; on a seed, here.
    pub fn seed() -> Self {
        Placement::at(Site::Seed)
    }
    /// On one node.
    pub fn node(node: NodeId) -> Self {
        Placement::any_of([node])
    }
    /// On one of these nodes: the first that fits, in this order, unless something else is
    /// preferred.
    pub fn any_of(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Placement::at(Site::OneOf(nodes.into_iter().collect()))
    }
    /// On a node of a role.
    pub fn role(role: impl Into<String>) -> Self {
        Placement::anywhere().and_role(role)
    }
    /// On a node with a label.
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Placement::anywhere().and_label(key, value)
    }

    /// The node has this role too.
    pub fn and_role(mut self, role: impl Into<String>) -> Self {
        self.roles.push(role.into());
        self
    }
    /// The node has this label too.
    pub fn and_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }
    /// On the node of this actor.
    pub fn beside<A: Actor>(mut self, actor: &ActorRef<A>) -> Self {
        self.beside.push(actor.addr());
        self
    }
    /// Not on the node of this actor, whether the actor is still there or not.
    pub fn away_from<A: Actor>(mut self, actor: &ActorRef<A>) -> Self {
        self.away_from.push(actor.addr());
        self
    }

    /// Prefers the node with the fewest actors of the type; of equals, the one with the fewest
    /// actors at all, then the one with the smallest id. What counts are the actors that were placed
    /// from this node and have not ended as far as is known here.
    pub fn spread(mut self) -> Self {
        self.prefer = Prefer::Spread;
        self
    }
    /// Prefers the value of a label (a zone, a rack) with the fewest actors of the type, and among
    /// its nodes [spreads](Self::spread). Nodes without the label count as one value.
    pub fn spread_over(mut self, label: impl Into<String>) -> Self {
        self.prefer = Prefer::SpreadOver(label.into());
        self
    }
    /// Prefers the node with the most actors of the type, counted as in [`spread`](Self::spread);
    /// of equals, the one with the least GPUs and then processors left, then the smallest id. So as
    /// few nodes as possible are used.
    pub fn pack(mut self) -> Self {
        self.prefer = Prefer::Pack;
        self
    }

    /// Whether earlier placements matter for this one.
    pub(crate) fn counts(&self) -> bool {
        self.prefer != Prefer::First
    }

    /// Whether it is this node, whatever the type.
    pub(crate) fn is_here(&self) -> bool {
        self.site == Site::Here
    }

    /// The same place as seen from anywhere: places that are relative to `node` are named.
    pub(crate) fn settled(mut self, node: &Node) -> Self {
        self.site = match self.site {
            Site::Here => Site::OneOf(vec![node.id()]),
            Site::Seed => Site::OneOf(vec![node.seed()]),
            other => other,
        };
        self
    }

    /// Whether an actor of this type may be started on a member. For a place that is
    /// [settled](Self::settled).
    pub(crate) fn admits(&self, member: &Member, actor: &str) -> bool {
        let settled = !matches!(self.site, Site::Here | Site::Seed);
        let request = Request::new(self, actor, member.id, member.id);
        settled && request.unfit(member).is_none()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.site {
            Site::Here => f.write_str("this node")?,
            Site::Seed => f.write_str("the seed")?,
            Site::Any if self.roles.is_empty() && self.labels.is_empty() => {
                f.write_str("any node")?
            }
            Site::Any => f.write_str("a node")?,
            Site::OneOf(nodes) => match &nodes[..] {
                [node] => write!(f, "node {node}")?,
                nodes => {
                    f.write_str("one of")?;
                    nodes.iter().try_for_each(|node| write!(f, " {node}"))?;
                }
            },
        }
        let mut and = "";
        for role in &self.roles {
            write!(f, "{and} of role {role}")?;
            and = " and";
        }
        for (key, value) in &self.labels {
            write!(f, "{and} labelled {key}={value}")?;
            and = " and";
        }
        self.beside.iter().try_for_each(|actor| write!(f, ", beside {actor}"))?;
        self.away_from.iter().try_for_each(|actor| write!(f, ", away from {actor}"))?;
        match &self.prefer {
            Prefer::First => Ok(()),
            Prefer::Spread => f.write_str(", spread over nodes"),
            Prefer::SpreadOver(label) => write!(f, ", spread over {label}"),
            Prefer::Pack => f.write_str(", packed"),
        }
    }
}

/// The members in a line, for errors about all of them.
pub(crate) fn describe(members: &[Member]) -> String {
    if members.is_empty() {
        return "no members".to_owned();
    }
    let lines = members.iter().map(|member| {
        let roles = if member.roles.is_empty() { "-".to_owned() } else { member.roles.join("+") };
        format!(
            "{} ({}, roles {roles}, hosts {})",
            member.id,
            member.state,
            if member.actors.is_empty() { "nothing".to_owned() } else { member.actors.join(" ") }
        )
    });
    lines.collect::<Vec<_>>().join("; ")
}
