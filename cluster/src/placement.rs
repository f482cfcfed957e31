//! Where an actor is started.

use std::fmt;

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

use crate::network::view::Member;

/// Where an actor is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Placement {
    /// On this node.
    #[default]
    Here,
    /// On the node that this one joined the cluster through; on a seed, here.
    Seed,
    /// On one node.
    Node(NodeId),
    /// On one of these nodes: the first that is up, in this order.
    AnyOf(Vec<NodeId>),
    /// On a node of this role: of several, the one with the smallest id.
    Role(String),
    /// On a node with this label: of several, the one with the smallest id.
    Label(String, String),
}

impl Placement {
    /// On this node.
    pub fn here() -> Self {
        Placement::Here
    }
    /// On the node that this one joined the cluster through.
    pub fn seed() -> Self {
        Placement::Seed
    }
    /// On one node.
    pub fn node(node: NodeId) -> Self {
        Placement::Node(node)
    }
    /// On a node of a role.
    pub fn role(role: impl Into<String>) -> Self {
        Placement::Role(role.into())
    }
    /// On a node with a label.
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Placement::Label(key.into(), value.into())
    }

    /// The member to start on, of those that are up and host the type.
    pub(crate) fn choose(
        &self,
        here: NodeId,
        seed: Option<NodeId>,
        members: &[Member],
        actor: &str,
    ) -> Option<NodeId> {
        let fits =
            |member: &&Member| member.is_up() && member.actors.iter().any(|hosted| hosted == actor);
        let one = |wanted: NodeId| members.iter().filter(fits).find(|m| m.id == wanted);
        let found = match self {
            // What is not registered can still be started where its type is known.
            Placement::Here => return Some(here),
            Placement::Seed => one(seed.unwrap_or(here)),
            Placement::Node(node) => one(*node),
            Placement::AnyOf(nodes) => nodes.iter().find_map(|node| one(*node)),
            Placement::Role(role) => members.iter().filter(fits).find(|m| m.roles.contains(role)),
            Placement::Label(key, value) => {
                members.iter().filter(fits).find(|m| m.labels.get(key) == Some(value))
            }
        };
        found.map(|member| member.id)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Here => f.write_str("this node"),
            Placement::Seed => f.write_str("the seed"),
            Placement::Node(node) => write!(f, "node {node}"),
            Placement::AnyOf(nodes) => {
                f.write_str("one of")?;
                nodes.iter().try_for_each(|node| write!(f, " {node}"))
            }
            Placement::Role(role) => write!(f, "a node of role {role}"),
            Placement::Label(key, value) => write!(f, "a node labelled {key}={value}"),
        }
    }
}

/// The members in a line, for the error that no node fits.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use footlight_runtime::Incarnation;

    use super::*;
    use crate::network::view::MemberState;

    fn member(id: u64, role: &str, state: MemberState) -> Member {
        Member {
            id: NodeId(id),
            address: "127.0.0.1:1".parse().unwrap(),
            state,
            incarnation: Incarnation(1),
            roles: vec![role.to_owned()],
            labels: BTreeMap::from([("zone".to_owned(), role.to_owned())]),
            http: None,
            actors: vec!["probe".to_owned()],
        }
    }

    #[test]
    fn only_members_that_are_up_and_host_the_type_are_chosen() {
        let members = [
            member(1, "worker", MemberState::Down),
            member(2, "worker", MemberState::Up),
            member(3, "server", MemberState::Up),
        ];
        let choose = |placement: Placement, actor| {
            placement.choose(NodeId(9), Some(NodeId(3)), &members, actor)
        };
        assert_eq!(choose(Placement::role("worker"), "probe"), Some(NodeId(2)));
        assert_eq!(choose(Placement::label("zone", "server"), "probe"), Some(NodeId(3)));
        assert_eq!(choose(Placement::seed(), "probe"), Some(NodeId(3)));
        assert_eq!(choose(Placement::node(NodeId(1)), "probe"), None);
        assert_eq!(
            choose(Placement::AnyOf(vec![NodeId(1), NodeId(3), NodeId(2)]), "probe"),
            Some(NodeId(3))
        );
        assert_eq!(choose(Placement::role("worker"), "other"), None);
    }
}
