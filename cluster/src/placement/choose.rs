//! From a placement to an order of nodes: a function of what is given to it, and of nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use footlight_runtime::NodeId;

use super::{Placement, Prefer, Site};
use crate::{
    network::view::{Member, MemberState},
    resources::{DoesNotFit, Needs},
};

/// What is to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    placement: &'a Placement,
    /// The type's name.
    actor: &'a str,
    here: NodeId,
    seed: NodeId,
    needs: Needs,
    /// The nodes that can't be reached from here.
    unreachable: &'a [NodeId],
    /// How many actors of the type were placed where.
    placed: Option<&'a BTreeMap<NodeId, u32>>,
}

/// Why an actor is not placed on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    NotNamed,
    NotHere,
    NotUp(MemberState),
    Unreachable,
    NotHosted,
    Role(String),
    Label(String, String),
    NotBeside,
    Away,
    /// It does not have that much, even if all of it were free.
    Has(DoesNotFit),
}

/// The nodes to try, the best first, and why the others are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) fit: Vec<NodeId>,
    pub(crate) unfit: Vec<(NodeId, Unfit)>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(
        placement: &'a Placement,
        actor: &'a str,
        here: NodeId,
        seed: NodeId,
    ) -> Self {
        let (unreachable, placed) = (&[][..], None);
        Request { placement, actor, here, seed, needs: Needs::none(), unreachable, placed }
    }

    pub(crate) fn needing(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    pub(crate) fn unreachable(mut self, nodes: &'a [NodeId]) -> Self {
        self.unreachable = nodes;
        self
    }

    pub(crate) fn placed(mut self, placed: &'a BTreeMap<NodeId, u32>) -> Self {
        self.placed = Some(placed);
        self
    }

    /// Why a node does not fit, if it doesn't. Resources that are only taken at the moment don't
    /// count here: its host knows better.
    pub(crate) fn unfit(&self, member: &Member) -> Option<Unfit> {
        let Placement { site, roles, labels, beside, away_from, .. } = self.placement;
        let elsewhere = match site {
            Site::Here => (member.id != self.here).then_some(Unfit::NotHere),
            Site::Seed => (member.id != self.seed).then_some(Unfit::NotNamed),
            Site::OneOf(nodes) => (!nodes.contains(&member.id)).then_some(Unfit::NotNamed),
            Site::Any => None,
        };
        // What is not registered can still be started where its type is known.
        let hosted = *site == Site::Here || member.actors.iter().any(|name| name == self.actor);
        elsewhere
            .or_else(|| (!may_be_up(member)).then_some(Unfit::NotUp(member.state)))
            .or_else(|| self.unreachable.contains(&member.id).then_some(Unfit::Unreachable))
            .or_else(|| (!hosted).then_some(Unfit::NotHosted))
            .or_else(|| {
                let missing = roles.iter().find(|role| !member.roles.contains(role));
                missing.cloned().map(Unfit::Role)
            })
            .or_else(|| {
                let has = |(key, value): &&(String, String)| member.labels.get(key) == Some(value);
                let missing = labels.iter().find(|label| !has(label)).cloned();
                missing.map(|(key, value)| Unfit::Label(key, value))
            })
            .or_else(|| {
                let other = beside.iter().any(|actor| actor.node != member.id);
                other.then_some(Unfit::NotBeside)
            })
            .or_else(|| {
                let there = away_from.iter().any(|actor| actor.node == member.id);
                there.then_some(Unfit::Away)
            })
            .or_else(|| {
                let (asked, free) = (self.needs.clone(), member.resources.clone());
                let has = DoesNotFit { asked, free };
                (!self.needs.fit(&has.free)).then_some(Unfit::Has(has))
            })
    }
}

/// Whether a node is up as far as is known: most suspects turn out to be.
pub(crate) fn may_be_up(member: &Member) -> bool {
    matches!(member.state, MemberState::Up | MemberState::Suspect)
}

/// The nodes to try, in order. Suspects come last. Nodes that, as far as they have told, have enough
/// left come before those that don't; then it is as the placement prefers; then the smallest id.
pub(crate) fn candidates(members: &[Member], request: &Request<'_>) -> Candidates {
    let mut found = Candidates::default();
    let mut fit = Vec::new();
    let mut seen = BTreeSet::new();
    for member in members.iter().filter(|member| seen.insert(member.id)) {
        match request.unfit(member) {
            None => fit.push(member),
            Some(why) => found.unfit.push((member.id, why)),
        }
    }
    let none = BTreeMap::new();
    let placed = request.placed.unwrap_or(&none);
    let count = |node: NodeId| placed.get(&node).copied().unwrap_or(0);
    let over = match &request.placement.prefer {
        Prefer::SpreadOver(label) => Some(label),
        _ => None,
    };
    // Of all members, not only of those that fit: what was placed stays placed.
    let mut of_value = BTreeMap::<Option<&String>, u32>::new();
    if let Some(label) = over {
        for member in members {
            *of_value.entry(member.labels.get(label)).or_default() += count(member.id);
        }
    }
    let named = |member: &Member| match &request.placement.site {
        Site::OneOf(nodes) => nodes.iter().position(|node| *node == member.id).unwrap_or(0),
        _ => 0,
    };
    fit.sort_by_cached_key(|member| {
        let (id, actors) = (member.id, u64::from(member.load.actors));
        let preference = match &request.placement.prefer {
            Prefer::First => (named(member) as u64, 0, 0),
            Prefer::Spread => (count(id).into(), actors, 0),
            Prefer::SpreadOver(label) => {
                let value = of_value.get(&member.labels.get(label)).copied().unwrap_or(0);
                (value.into(), count(id).into(), actors)
            }
            Prefer::Pack => {
                let parts = member.free.gpus.iter().map(|gpu| u64::from(gpu.share)).sum();
                (u64::from(u32::MAX - count(id)), parts, member.free.cpus.into())
            }
        };
        (!member.is_up(), !request.needs.fit(&member.free), preference, id)
    });
    found.fit = fit.into_iter().map(|member| member.id).collect();
    found
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::NotNamed | Unfit::NotHere => f.write_str("not asked for"),
            Unfit::NotUp(state) => write!(f, "is {state}"),
            Unfit::Unreachable => f.write_str("can't be reached from here"),
            Unfit::NotHosted => f.write_str("does not host the type"),
            Unfit::Role(role) => write!(f, "is not of role {role}"),
            Unfit::Label(key, value) => write!(f, "is not labelled {key}={value}"),
            Unfit::NotBeside => f.write_str("is another than that of the actor to be beside"),
            Unfit::Away => f.write_str("has the actor to be away from"),
            Unfit::Has(DoesNotFit { asked, free }) => {
                write!(f, "never fits: asked {asked}, it has {free}")
            }
        }
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
