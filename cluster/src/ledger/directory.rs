//! Whom to ask: the ledger that counts and its voters, from what the members tell.

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

use super::{LedgerId, LedgerView};
use crate::MemberState;

/// The ledger that counts, as far as a node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) ledger: LedgerId,
    pub(super) founded: u64,
    pub(super) term: u64,
    pub(super) leader: Option<NodeId>,
    /// Who votes, by the latest word.
    pub(super) voters: Vec<NodeId>,
    pub(super) on_disk: bool,
    /// Who votes and is there.
    pub(super) present: Vec<NodeId>,
}

/// Of two ledgers that meet, the one with the smaller rank stays: that founded first.
pub(super) fn rank(view: &LedgerView) -> (u64, LedgerId) {
    (view.founded_unix_micros, view.id)
}

/// What one member tells of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) node: NodeId,
    pub(crate) state: MemberState,
    /// Whether it has the role `server`, if it has told of itself in this life.
    pub(crate) server: Option<bool>,
    pub(crate) ledger: Option<LedgerView>,
}

impl Directory {
    /// Members that are gone don't count: what they told last may be out of date.
    pub(super) fn of(told: &[Told]) -> Option<Directory> {
        let there = || told.iter().filter(|told| !told.state.is_gone());
        let views = || there().filter_map(|told| told.ledger.as_ref());
        let oldest = views().map(rank).min()?;
        let of_it = views().filter(|view| rank(view) == oldest);
        let latest = of_it.max_by_key(|view| (view.term, view.leader.is_some()))?;
        let is_there = |node: &&NodeId| there().any(|told| told.node == **node);
        Some(Directory {
            ledger: latest.id,
            founded: latest.founded_unix_micros,
            term: latest.term,
            leader: latest.leader,
            voters: latest.voters.clone(),
            on_disk: latest.on_disk,
            present: latest.voters.iter().filter(is_there).copied().collect(),
        })
    }

    /// Whom to ask, the likeliest first: the leader, then this node itself, then the others.
    pub(super) fn order(&self, me: NodeId) -> Vec<NodeId> {
        let mut order = self.present.clone();
        order.sort_by_key(|node| (Some(*node) != self.leader, *node != me, *node));
        order
    }
}

/// How the ledger is: for people and for `footlight status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// Which ledger.
    pub id: LedgerId,
    /// When it was founded, by its founder's clock: microseconds since 1970.
    pub founded_unix_micros: u64,
    /// The latest term that is known.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Those of them that are not there.
    pub missing: Vec<NodeId>,
}

impl LedgerStatus {
    pub(crate) fn of(told: &[Told]) -> Option<Self> {
        let directory = Directory::of(told)?;
        let up = |node: &NodeId| {
            let fine = [MemberState::Up, MemberState::Leaving];
            told.iter().any(|told| told.node == *node && fine.contains(&told.state))
        };
        Some(LedgerStatus {
            id: directory.ledger,
            founded_unix_micros: directory.founded,
            term: directory.term,
            leader: directory.leader,
            missing: directory.voters.iter().filter(|voter| !up(voter)).copied().collect(),
            voters: directory.voters,
        })
    }

    /// How many more voters may be lost before the ledger stops; `None` if it has stopped.
    pub fn tolerance(&self) -> Option<usize> {
        let majority = self.voters.len() / 2 + 1;
        (self.voters.len() - self.missing.len()).checked_sub(majority)
    }
}

impl std::fmt::Display for LedgerStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let voters = match self.voters.len() {
            1 => "1 voter".to_owned(),
            many => format!("{many} voters"),
        };
        let missing = match self.missing.len() {
            0 => String::new(),
            some => format!(", {some} of them missing"),
        };
        let rest = match self.tolerance() {
            None => "it has stopped: no majority is there",
            Some(0) if self.voters.len() == 1 => "its loss stops the ledger",
            Some(0) => "the loss of one more stops the ledger",
            Some(1) => "one may be lost",
            Some(_) => "two may be lost",
        };
        write!(f, "{voters}{missing}: {rest}")
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
