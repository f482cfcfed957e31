//! When a voter stands for election: when it hears no leader, and would be elected.
//!
//! To stand for election raises the term, and a term that is greater than the leader's unseats the
//! leader, whose leases can't be renewed then until there is the next one. So a voter that hears no
//! leader first asks the others whether they would vote for it: Raft's pre-vote (Diego Ongaro,
//! *Consensus: Bridging Theory and Practice*, 2014, section 9.6). No says who hears a leader or leads,
//! and who knows more of the log. So a voter that was cut off unseats nobody when it is back, and
//! neither does one that knows too little to be elected.
//!
//! openraft has no pre-vote: it is told not to stand on its own, and told when to.

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    message::AskPreVote,
    types::{LogId, VoterId},
    voter::{Heard, Voter},
};

/// Would you vote for the sender?
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PreVote {
    /// The last entry that the sender has.
    pub(super) last_log_id: Option<LogId>,
}

/// One voter's wait until it stands for election.
#[derive(Debug)]
pub(super) struct Standing {
    range: Range<Duration>,
    /// Drawn from the range, anew after each try: two that wait equally long would split the votes.
    drawn: Duration,
    not_before: Instant,
    asking: Option<JoinHandle<bool>>,
}

impl Standing {
    /// `draw` gives a number below another one.
    pub(super) fn new(range: Range<Duration>, draw: impl FnMut(u64) -> u64) -> Self {
        let drawn = Self::draw(&range, draw);
        Standing { range, drawn, not_before: Instant::now(), asking: None }
    }

    fn draw(range: &Range<Duration>, mut draw: impl FnMut(u64) -> u64) -> Duration {
        let micros = (range.end - range.start).as_micros();
        range.start + Duration::from_micros(draw(u64::try_from(micros).unwrap_or(u64::MAX)))
    }

    /// Stands for election if it is time to and a majority would vote for it; how long until the next
    /// look. Never waits.
    pub(super) fn look(
        &mut self,
        voter: &Arc<Voter>,
        mut draw: impl FnMut(u64) -> u64,
        now: Instant,
    ) -> Duration {
        if let Some(asking) = &mut self.asking {
            let Some(won) = asking.now_or_never() else { return self.range.start / 4 };
            self.asking = None;
            self.drawn = Self::draw(&self.range, &mut draw);
            self.not_before = now
                + match won {
                    Ok(true) => self.drawn,
                    // That it asked has cost nobody anything.
                    Ok(false) | Err(_) => self.drawn / 4,
                };
        }
        // A leader is given up after twice the time, a candidate that was voted for after once.
        let Heard { leader, candidate } = voter.heard();
        let due = (leader + 2 * self.drawn).max(candidate + self.drawn).max(self.not_before);
        if now < due {
            return due - now;
        }
        let (voter, patience) = (voter.clone(), self.range.start);
        let control = voter.control.clone();
        self.asking = Some(control.spawn(async move {
            would_win(&voter, patience).await && voter.raft.trigger().elect().await.is_ok()
        }));
        self.range.start / 16
    }
}

/// Whether a majority of the voters says in time that it would vote for this one; while who votes is being changed, a
/// majority of those before and of those after.
async fn would_win(voter: &Voter, patience: Duration) -> bool {
    let last_log_id = voter.last_log_id();
    let configs = voter.configs();
    let me = voter.deed.me;
    if !configs.iter().any(|voters| voters.contains(&me)) {
        return false;
    }
    let others: BTreeSet<VoterId> = configs.iter().flatten().copied().collect();
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .filter(|other| *other != me)
        .map(|other| async move {
            let wire = voter.wires.to(other);
            let question = PreVote { last_log_id };
            let answer =
                wire.ask(&question, |to, lease, rpc| AskPreVote { to, lease, rpc }, patience);
            (other, answer.await.unwrap_or(false))
        })
        .collect();
    let mut yes = BTreeSet::from([me]);
    loop {
        if is_majority(&yes, &configs) {
            return true;
        }
        match answers.next().await {
            Some((other, true)) => drop(yes.insert(other)),
            Some((_, false)) => {}
            None => return false,
        }
    }
}

/// Whether these are more than half of each set of voters.
fn is_majority(yes: &BTreeSet<VoterId>, configs: &[BTreeSet<VoterId>]) -> bool {
    configs.iter().all(|voters| 2 * yes.intersection(voters).count() > voters.len())
}

impl Voter {
    /// Whether it would vote for the sender.
    pub(super) fn would_vote(&self, asked: &PreVote) -> bool {
        let hears_a_leader = self.heard().leader.elapsed() < self.lease_of_a_leader;
        self.reign().is_none() && !hears_a_leader && asked.last_log_id >= self.last_log_id()
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::NodeId;

    use super::*;

    fn voters(nodes: &[u64]) -> BTreeSet<VoterId> {
        nodes.iter().map(|node| VoterId { node: NodeId(*node), birth: 1 }).collect()
    }

    #[test]
    fn a_majority_of_each_set_of_voters_is_needed() {
        let five = voters(&[1, 2, 3, 4, 5]);
        assert!(is_majority(&voters(&[1, 2, 3]), std::slice::from_ref(&five)));
        assert!(!is_majority(&voters(&[1, 2]), std::slice::from_ref(&five)));
        let both = [five, voters(&[1, 6, 7])];
        assert!(!is_majority(&voters(&[1, 2, 3]), &both));
        assert!(is_majority(&voters(&[1, 2, 3, 6]), &both));
    }

    #[test]
    fn a_time_is_drawn_from_the_range() {
        let range = Duration::from_millis(350)..Duration::from_millis(500);
        assert_eq!(Standing::draw(&range, |_| 0), range.start);
        assert_eq!(Standing::draw(&range, |below| below / 2), Duration::from_millis(425));
    }
}
