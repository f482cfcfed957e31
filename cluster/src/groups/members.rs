//! Who is in a group, as one node sees it.

use std::sync::{Arc, Weak};

use footlight_runtime::{ActorAddr, NodeId};
use tokio::sync::watch;

use super::part::{Backlog, GroupPart};
use crate::{
    MemberState,
    network::{Network, view::Member},
    record::{Load, Record},
};

/// One member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) actor: ActorAddr,
    pub(super) backlog: Backlog,
    /// Of its node.
    pub(super) load: Load,
    /// Its node is up and can be reached from here, as far as is known.
    pub(super) well: bool,
}

/// The members of one group; looked up again when something has changed.
pub(super) struct Members {
    /// None if the node has ended.
    changes: Option<watch::Receiver<()>>,
    seen: Arc<[Seen]>,
    strangers: usize,
}

impl Members {
    pub(super) fn new(network: &Network) -> Self {
        let mut changes = network.view.changes();
        changes.mark_changed();
        Members { changes: Some(changes), seen: Arc::default(), strangers: 0 }
    }

    /// The members of this type by address, and how many of other types there are.
    pub(super) fn look(
        &mut self,
        network: &Weak<Network>,
        group: &str,
        kind: &str,
    ) -> (Arc<[Seen]>, usize) {
        let changed = self.changes.as_mut().map(|changes| changes.has_changed());
        match (changed, network.upgrade()) {
            (Some(Ok(false)), Some(_)) => {}
            (Some(Ok(true)), Some(network)) => {
                if let Some(changes) = &mut self.changes {
                    changes.mark_unchanged();
                }
                (self.seen, self.strangers) = find(&network, group, kind);
            }
            _ => *self = Members { changes: None, seen: Arc::default(), strangers: 0 },
        }
        (self.seen.clone(), self.strangers)
    }
}

fn find(network: &Network, group: &str, kind: &str) -> (Arc<[Seen]>, usize) {
    let (mut seen, mut strangers) = (Vec::new(), 0);
    let mut add = |part: &GroupPart, of: &dyn Fn(ActorAddr, Backlog) -> Seen, at: ActorAddr| {
        if part.kind != kind {
            strangers += part.actors.len();
            return;
        }
        let all = part.actors.iter();
        seen.extend(all.map(|(actor, backlog)| of(ActorAddr { actor: *actor, ..at }, *backlog)));
    };
    let somebody = footlight_runtime::ActorId(0);
    let own: Arc<Record> = network.own();
    if let Some(part) = own.groups.get(group).filter(|_| !own.leaving) {
        let at = ActorAddr { node: own.node, incarnation: own.incarnation, actor: somebody };
        let load = own.load;
        add(part, &|actor, backlog| Seen { actor, backlog, load, well: true }, at);
    }
    network.view.each(|member| {
        let Some(part) = member.groups.get(group).filter(|_| counts(member)) else { return };
        let at = ActorAddr { node: member.id, incarnation: member.incarnation, actor: somebody };
        let well = is_well(member, &own.unreachable, own.node);
        let load = member.load;
        add(part, &|actor, backlog| Seen { actor, backlog, load, well }, at);
    });
    seen.sort_unstable_by_key(|seen| seen.actor);
    (seen.into(), strangers)
}

/// Whether a node's actors take what is new.
fn counts(member: &Member) -> bool {
    matches!(member.state, MemberState::Up | MemberState::Suspect)
}

fn is_well(member: &Member, unreachable: &[NodeId], me: NodeId) -> bool {
    member.is_up() && !unreachable.contains(&member.id) && !member.unreachable.contains(&me)
}
