//! Who votes: what the leader decides next, from who votes now and who is there. A pure function.
//!
//! * A node votes because it has the role `server`. While fewer than three such nodes are there,
//!   those that vote already count too: the founder, whatever it is for.
//! * Who votes and has just begun a new life, or is not known to a leader that has, keeps its vote until
//!   more is known.
//! * As many vote as there are, but an odd number: a fourth voter would not make one more loss
//!   bearable, only writes slower. And at most five, unless the settings say otherwise.
//! * Who has left or is about to, or says that it is no voter (its disk was lost), is taken out at
//!   once. Who was declared down some time ago is replaced when another node can stand in its place;
//!   else it keeps its vote as long as taking it would not make more losses bearable.
//! * A new voter listens until it has caught up, and votes then. Who votes is changed by one entry
//!   of the log at a time.
//! * Two voters stay two when the third has left: a single one would bear as little, and have the
//!   only copy.
//! * A leader that has taken itself out decides nothing more, though it leads for a moment longer: the next
//!   one does. What it wrote now would be the entry of a leader that is not in its own configuration.
//! * Nothing is decided while no majority of the voters is there, or of those to come (LE-8). If so many
//!   leave that those who are away could not bring the majority back either, those that stay and are there
//!   vote without them: once the others have left it would be too late for good.

use std::collections::{BTreeMap, BTreeSet};

use footlight_runtime::NodeId;

use super::types::VoterId;

/// How a node is, as far as voting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It is there.
    Up,
    /// It does not answer, or was declared down a short while ago: it may come back.
    Away,
    /// It was declared down some time ago.
    Lost,
    /// It is there, and about to leave.
    Leaves,
    /// It has left.
    Left,
}

/// A node as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) health: Health,
    /// Whether it has the role `server`, if that is known.
    pub(super) server: Option<bool>,
    /// It was asked to vote a short while ago and could not.
    pub(super) refused: bool,
}

/// What the leader knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    /// Itself.
    pub(super) me: VoterId,
    /// Who votes.
    pub(super) voters: BTreeSet<VoterId>,
    /// Who is to vote, if a change was begun and not finished.
    pub(super) pending: Option<BTreeSet<VoterId>>,
    /// Who listens; whether it has caught up.
    pub(super) learners: BTreeMap<VoterId, bool>,
    /// Those that say that they are none any more.
    pub(super) unknown: BTreeSet<VoterId>,
    pub(super) nodes: BTreeMap<NodeId, Candidate>,
    /// Most voters.
    pub(super) most: usize,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All is well, or can't be made better now.
    Nothing,
    /// Ask a node to listen.
    Invite(NodeId),
    /// Let these vote, and no others.
    Vote(BTreeSet<VoterId>),
    /// Let one listen no longer.
    Dismiss(VoterId),
}

impl Present {
    fn health(&self, voter: &VoterId) -> Health {
        match self.nodes.get(&voter.node) {
            _ if self.unknown.contains(voter) => Health::Left,
            Some(candidate) => candidate.health,
            None => Health::Away,
        }
    }

    fn has_majority(&self, voters: &BTreeSet<VoterId>) -> bool {
        let there = |voter: &&VoterId| matches!(self.health(voter), Health::Up | Health::Leaves);
        2 * voters.iter().filter(there).count() > voters.len()
    }

    /// What to do next.
    pub(super) fn step(&self) -> Step {
        if !self.voters.contains(&self.me) || !self.has_majority(&self.voters) {
            return Step::Nothing;
        }
        if let Some(pending) = &self.pending {
            return Step::Vote(pending.clone());
        }
        let wanted = self.wanted();
        if wanted.is_empty() {
            return Step::Nothing;
        }
        // Who listens and is not wanted, or is gone.
        let idle = self.learners.keys().find(|learner| {
            !wanted.contains(&learner.node) || self.health(learner) == Health::Left
        });
        if let Some(learner) = idle {
            return Step::Dismiss(*learner);
        }
        let mut voters = BTreeSet::new();
        let mut waits = false;
        for node in &wanted {
            let known = |id: &&VoterId| id.node == *node && self.health(id) != Health::Left;
            if let Some(voter) = self.voters.iter().find(known) {
                voters.insert(*voter);
                continue;
            }
            match self.learners.iter().find(|(id, _)| known(id)) {
                Some((learner, true)) => drop(voters.insert(*learner)),
                Some((_, false)) => waits = true,
                None => return Step::Invite(*node),
            }
        }
        if waits {
            return Step::Nothing;
        }
        if !self.has_majority(&voters) {
            let may_stay =
                |voter: &&VoterId| matches!(self.health(voter), Health::Up | Health::Away);
            if 2 * self.voters.iter().filter(may_stay).count() > self.voters.len() {
                return Step::Nothing;
            }
            voters.retain(|voter| self.health(voter) == Health::Up);
        }
        if voters.is_empty() || voters == self.voters {
            return Step::Nothing;
        }
        Step::Vote(voters)
    }

    /// The nodes that are to vote.
    fn wanted(&self) -> BTreeSet<NodeId> {
        let server = |node: &NodeId| self.nodes.get(node).and_then(|node| node.server);
        let servers = self.nodes.values();
        let servers = servers.filter(|node| node.server == Some(true) && node.health == Health::Up);
        let enough = servers.count() >= 3;
        let may_stay = |voter: &&VoterId| !enough || server(&voter.node) != Some(false);
        let with = |healths: &[Health]| {
            let voters = self.voters.iter().filter(may_stay);
            let mut voters: Vec<&VoterId> =
                voters.filter(|voter| healths.contains(&self.health(voter))).collect();
            voters.sort_by_key(|voter| {
                (**voter != self.me, self.health(voter) != Health::Up, **voter)
            });
            voters.into_iter().map(|voter| voter.node).collect::<Vec<_>>()
        };
        let staying = with(&[Health::Up, Health::Away]);
        let lost = with(&[Health::Lost]);
        // A node that lost its disk may vote again, as another voter.
        let votes = |node: &NodeId| {
            self.voters.iter().any(|voter| voter.node == *node && !self.unknown.contains(voter))
        };
        let fresh = self.nodes.iter().filter(|(node, candidate)| {
            let willing = candidate.server == Some(true) && !candidate.refused;
            willing && candidate.health == Health::Up && !votes(node)
        });
        // Those that listen already come first: they have begun to catch up.
        let mut fresh: Vec<NodeId> = fresh.map(|(node, _)| *node).collect();
        let listens = |node: &NodeId| self.learners.keys().any(|learner| learner.node == *node);
        fresh.sort_by_key(|node| (!listens(node), *node));

        let there: Vec<NodeId> = staying.iter().chain(&fresh).copied().collect();
        let odd = |count: usize| match count.min(self.most) {
            count if count.is_multiple_of(2) => count.saturating_sub(1),
            count => count,
        };
        let mut without = odd(there.len());
        if without == 1 && staying.len() >= 2 {
            without = 2;
        }
        let with_lost = odd(there.len() + lost.len());
        // How many of so many voters may be lost: those that are lost already don't help.
        let bears = |count: usize| there.len().min(count).checked_sub(count / 2 + 1);
        let better = (bears(with_lost), with_lost) > (bears(without), without);
        let count = if better { with_lost } else { without };
        there.into_iter().chain(lost).take(count).collect()
    }
}

#[cfg(test)]
#[path = "voters_tests.rs"]
mod tests;
