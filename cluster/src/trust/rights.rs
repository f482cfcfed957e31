//! Which role has which right: checked where a message or a frame arrives, before it is decoded.
//!
//! | right | observer | worker | server | admin, node |
//! | --- | --- | --- | --- | --- |
//! | ask how the cluster is | yes | yes | yes | yes |
//! | be a member, send messages, watch, join groups, hold leases | | yes | yes | yes |
//! | spawn and end actors elsewhere, vote in the ledger | | | yes | yes |
//! | make and revoke tokens, revoke and drain nodes, give nodes other orders | | | | yes |
//!
//! The role stands in the certificate. A connection that was made only to ask carries questions and
//! orders, whatever its role: the member's rights belong to connections of members.

use std::{collections::BTreeMap, fmt};

use footlight_runtime::{ActorId, Message, message::name_hash};

use super::Role;
use crate::{
    census::AskActors,
    enroll::{CreateToken, ListTokens, RevokeNode, RevokeToken},
    groups::Join,
    ledger::{OF_CLIENTS, OF_VOTERS},
    names::Name,
    network::links::Link,
    node_actor::{AskStatus, Drain, FindActors},
    spawn::{Abandon, EndFor, EndOwned, Spawn},
    transport::{frame::Header, handshake::Purpose},
};

/// Numbers below this belong to a node's own actors.
const FIRST_FREE_ACTOR: ActorId = ActorId(16);

/// Something that not every role may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Right {
    /// Ask how a node and its cluster are.
    Ask,
    /// Be a member: take part in membership, tell of oneself.
    Belong,
    /// Send messages to actors.
    Send,
    /// Learn of the ends of actors.
    Watch,
    /// Hold leases, register names, read what the ledger holds of them.
    Lease,
    /// Start actors on other nodes.
    Spawn,
    /// End actors on other nodes.
    End,
    /// Vote in the ledger. Who does holds the authority's key; who only may is not told it.
    Vote,
    /// Make, list and revoke tokens.
    Tokens,
    /// Revoke nodes.
    Revoke,
    /// Tell a node to drain or to leave.
    Drain,
    /// Give a node's own actors any other order.
    Command,
}

impl Right {
    /// Whether somebody who is no member may use it, over a connection that was made only to ask.
    fn is_of_askers(self) -> bool {
        use Right::{Ask, Command, Drain, Revoke, Tokens};
        matches!(self, Ask | Tokens | Revoke | Drain | Command)
    }
}

impl Right {
    /// The roles that a token can give and that have it: `server or admin`.
    pub(crate) fn of_roles(self) -> String {
        let all = [Role::Observer, Role::Worker, Role::Server, Role::Admin];
        let mut names: Vec<&str> =
            all.into_iter().filter(|role| role.may(self)).map(Role::name).collect();
        let last = names.pop().unwrap_or_default();
        match names.is_empty() {
            true => last.to_owned(),
            false => format!("{} or {last}", names.join(", ")),
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Ask => "ask",
            Right::Belong => "be a member",
            Right::Send => "send messages to actors",
            Right::Watch => "watch actors",
            Right::Lease => "use the ledger",
            Right::Spawn => "spawn on other nodes",
            Right::End => "end actors on other nodes",
            Right::Vote => "vote in the ledger",
            Right::Tokens => "make and revoke tokens",
            Right::Revoke => "revoke nodes",
            Right::Drain => "drain nodes",
            Right::Command => "give nodes orders",
        })
    }
}

impl Role {
    /// Whether a certificate of this role gives the right.
    pub fn may(self, right: Right) -> bool {
        use Right::{
            Ask, Belong, Command, Drain, End, Lease, Revoke, Send, Spawn, Tokens, Vote, Watch,
        };
        match right {
            Ask => true,
            Belong | Send | Watch | Lease => self != Role::Observer,
            Spawn | End | Vote => matches!(self, Role::Server | Role::Admin | Role::Node),
            Tokens | Revoke | Drain | Command => matches!(self, Role::Admin | Role::Node),
        }
    }

    /// Whether a node with a certificate of this role may say that it is for this, in its options
    /// (`--role`): a voter is chosen among those that say `server`, and holds the authority's key.
    pub fn may_claim(self, word: &str) -> bool {
        word != Role::Server.name() || self.may(Right::Vote)
    }
}

/// A right that somebody does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The role lacks it.
    #[error("the role `{role}` has no right to {right}: that takes a certificate of role {}", .right.of_roles())]
    Role {
        /// The role of the certificate.
        role: Role,
        /// What it does not allow.
        right: Right,
    },
    /// The role may have it, but the connection was made only to ask.
    #[error("a node that only observes has no right to {right}: that takes a member of role {}", .right.of_roles())]
    Asker {
        /// What that does not allow.
        right: Right,
    },
}

/// Who is at the other end of a connection, as far as rights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) role: Role,
    pub(crate) purpose: Purpose,
}

impl Standing {
    /// A member that may do everything: what most are.
    pub(crate) const EVERYTHING: Standing = Standing { role: Role::Node, purpose: Purpose::Member };

    pub(crate) fn check(self, right: Right) -> Result<(), Denied> {
        if !self.role.may(right) {
            return Err(Denied::Role { role: self.role, right });
        }
        match self.purpose {
            Purpose::Observer if !right.is_of_askers() => Err(Denied::Asker { right }),
            _ => Ok(()),
        }
    }
}

/// What a frame needs, those of messages aside; `None` for parts of what was asked before.
pub(crate) fn needed_by(header: &Header) -> Option<Right> {
    match header {
        Header::Watch { .. } | Header::Unwatch { .. } => Some(Right::Watch),
        Header::End { .. } => Some(Right::End),
        Header::Packet(_)
        | Header::Record(_)
        | Header::Digest(_)
        | Header::Want(_)
        | Header::Lend(_) => Some(Right::Belong),
        Header::Message { .. }
        | Header::Reply { .. }
        | Header::Failed { .. }
        | Header::StreamItem { .. }
        | Header::StreamEnd { .. }
        | Header::StreamCredit { .. }
        | Header::StreamCancel { .. }
        | Header::Credit { .. }
        | Header::Down { .. }
        | Header::Certificate(_)
        | Header::LastWord
        | Header::Heard
        | Header::Prove(_)
        | Header::Lent(_)
        | Header::Fetched { .. }
        // Those who only ask say goodbye too.
        | Header::Leaving => None,
    }
}

/// What messages need, by the hashes of their names.
#[derive(Debug)]
pub(crate) struct Needs(BTreeMap<u64, Right>);

impl Needs {
    pub(crate) fn new() -> Self {
        let names = [
            (AskStatus::NAME, Right::Ask),
            (FindActors::NAME, Right::Ask),
            (AskActors::NAME, Right::Ask),
            (Spawn::NAME, Right::Spawn),
            (Abandon::NAME, Right::Spawn),
            (EndOwned::NAME, Right::End),
            (EndFor::NAME, Right::End),
            // Whoever links an actor can fail it.
            (Link::NAME, Right::End),
            // Whoever may send to actors may say where they are found.
            (Join::NAME, Right::Send),
            (Name::NAME, Right::Lease),
            (Drain::NAME, Right::Drain),
            (CreateToken::NAME, Right::Tokens),
            (ListTokens::NAME, Right::Tokens),
            (RevokeToken::NAME, Right::Tokens),
            (RevokeNode::NAME, Right::Revoke),
        ];
        let of_clients = OF_CLIENTS.map(|name| (name, Right::Lease));
        let of_voters = OF_VOTERS.map(|name| (name, Right::Vote));
        let all = names.into_iter().chain(of_clients).chain(of_voters);
        Needs(all.map(|(name, right)| (name_hash(name), right)).collect())
    }

    /// What a message of this name's hash to this actor needs. One to a node's own actors that
    /// nobody has thought of here needs the most.
    pub(crate) fn of(&self, to: ActorId, key: u64) -> Right {
        let default = if to < FIRST_FREE_ACTOR { Right::Command } else { Right::Send };
        self.0.get(&key).copied().unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::{ActorAddr, Incarnation, NodeId, remote::End};

    use super::*;

    const ROLES: [Role; 5] = [Role::Observer, Role::Worker, Role::Server, Role::Admin, Role::Node];

    /// The table at the top, cell by cell.
    #[test]
    fn each_role_has_the_rights_of_the_table() {
        let from = |first: usize| std::array::from_fn::<bool, 5, _>(|i| i >= first);
        for (right, who) in [
            (Right::Ask, from(0)),
            (Right::Belong, from(1)),
            (Right::Send, from(1)),
            (Right::Watch, from(1)),
            (Right::Lease, from(1)),
            (Right::Spawn, from(2)),
            (Right::End, from(2)),
            (Right::Vote, from(2)),
            (Right::Tokens, from(3)),
            (Right::Revoke, from(3)),
            (Right::Drain, from(3)),
            (Right::Command, from(3)),
        ] {
            assert_eq!(ROLES.map(|role| role.may(right)), who, "{right:?}");
        }
    }

    #[test]
    fn who_only_asks_may_ask_and_order_and_no_more() {
        let asker = |role| Standing { role, purpose: Purpose::Observer };
        assert_eq!(asker(Role::Node).check(Right::Ask), Ok(()));
        assert_eq!(asker(Role::Admin).check(Right::Tokens), Ok(()));
        for right in [Right::Belong, Right::Send, Right::Watch, Right::Lease, Right::Spawn] {
            assert_eq!(asker(Role::Node).check(right), Err(Denied::Asker { right }));
        }
        let denied = asker(Role::Worker).check(Right::Tokens).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "the role `worker` has no right to make and revoke tokens: that takes a certificate of \
             role admin"
        );
        let denied = asker(Role::Admin).check(Right::Send).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "a node that only observes has no right to send messages to actors: that takes a \
             member of role worker, server or admin"
        );
    }

    #[test]
    fn messages_and_frames_need_what_they_do() {
        let needs = Needs::new();
        let (node, user) = (ActorId(1), ActorId(16));
        assert_eq!(needs.of(node, name_hash(AskStatus::NAME)), Right::Ask);
        assert_eq!(needs.of(node, name_hash(Spawn::NAME)), Right::Spawn);
        assert_eq!(needs.of(user, name_hash("my.message")), Right::Send);
        // What nobody has thought of here is for those who may do everything.
        assert_eq!(needs.of(node, name_hash("my.message")), Right::Command);
        let actor = ActorAddr { node: NodeId(1), incarnation: Incarnation(1), actor: user };
        assert_eq!(needed_by(&Header::End { actor, how: End::Kill }), Some(Right::End));
        assert_eq!(needed_by(&Header::Watch { id: 1, actor }), Some(Right::Watch));
        assert_eq!(needed_by(&Header::Packet(Vec::new())), Some(Right::Belong));
        assert_eq!(needed_by(&Header::Leaving), None);
    }

    #[test]
    fn only_who_may_vote_calls_itself_a_server() {
        assert_eq!(ROLES.map(|role| role.may_claim("server")), [false, false, true, true, true]);
        assert!(ROLES.iter().all(|role| role.may_claim("gpu")));
    }
}
