use proptest::prelude::*;

use super::*;

fn voter(node: u64) -> VoterId {
    VoterId { node: NodeId(node), birth: node * 10 }
}

fn voters(nodes: &[u64]) -> BTreeSet<VoterId> {
    nodes.iter().map(|node| voter(*node)).collect()
}

fn server(health: Health) -> Candidate {
    Candidate { health, server: Some(true), refused: false }
}

/// Node 1 leads; so many servers are there.
fn present(voting: &[u64], servers: &[u64]) -> Present {
    Present {
        me: voter(1),
        voters: voters(voting),
        pending: None,
        learners: BTreeMap::new(),
        unknown: BTreeSet::new(),
        nodes: servers.iter().map(|node| (NodeId(*node), server(Health::Up))).collect(),
        most: 5,
    }
}

impl Present {
    fn with(mut self, node: u64, health: Health) -> Self {
        self.nodes.entry(NodeId(node)).or_insert(server(health)).health = health;
        self
    }

    fn no_server(mut self, node: u64) -> Self {
        let founder = Candidate { health: Health::Up, server: Some(false), refused: false };
        self.nodes.insert(NodeId(node), founder);
        self
    }

    /// Does all that is to do, as if each step went well; who votes in the end.
    fn settle(&mut self) -> Vec<u64> {
        for _ in 0..100 {
            match self.step() {
                Step::Nothing => {
                    return self.voters.iter().map(|voter| voter.node.0).collect();
                }
                Step::Invite(node) => {
                    let birth = self.unknown.iter().any(|voter| voter.node == node);
                    let birth = node.0 * 10 + u64::from(birth);
                    assert!(self.learners.insert(VoterId { node, birth }, false).is_none());
                    // It catches up.
                    assert_eq!(self.step_before_catching_up(), None);
                    self.learners.values_mut().for_each(|caught_up| *caught_up = true);
                }
                Step::Vote(voters) => {
                    let fine = |voter: &VoterId| {
                        self.voters.contains(voter) || self.learners.get(voter) == Some(&true)
                    };
                    assert!(voters.iter().all(fine), "only those that have caught up vote");
                    assert!(!voters.is_empty() && voters.len() <= self.most);
                    self.learners.retain(|learner, _| !voters.contains(learner));
                    self.voters = voters;
                    if !self.voters.contains(&self.me) {
                        assert_eq!(self.step(), Step::Nothing, "it has taken itself out");
                        self.me = *self.voters.first().unwrap();
                    }
                }
                Step::Dismiss(learner) => assert!(self.learners.remove(&learner).is_some()),
            }
        }
        panic!("it does not come to rest: {self:?}");
    }

    /// Nobody votes before it has caught up; others may be asked meanwhile.
    fn step_before_catching_up(&self) -> Option<Step> {
        let step = self.step();
        match &step {
            Step::Vote(voters) if voters.iter().any(|id| self.learners.get(id) == Some(&false)) => {
                Some(step)
            }
            _ => None,
        }
    }
}

#[test]
fn a_founder_alone_stays_alone_until_there_are_three() {
    assert_eq!(present(&[1], &[1]).settle(), [1]);
    assert_eq!(present(&[1], &[1, 2]).settle(), [1]);
    assert_eq!(present(&[1], &[1, 2, 3]).settle(), [1, 2, 3]);
    assert_eq!(present(&[1], &[1, 2, 3, 4]).settle(), [1, 2, 3]);
    assert_eq!(present(&[1], &[1, 2, 3, 4, 5, 6]).settle(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_founder_without_the_role_counts_while_there_are_fewer_than_three_servers() {
    assert_eq!(present(&[1], &[2]).no_server(1).settle(), [1]);
    assert_eq!(present(&[1], &[2, 3]).no_server(1).settle(), [1, 2, 3]);
    assert_eq!(present(&[1, 2, 3], &[2, 3, 4]).no_server(1).settle(), [2, 3, 4]);
}

/// It leads until its next tick, and openraft takes no further change from it.
#[test]
fn a_leader_that_has_taken_itself_out_decides_nothing_more() {
    let mut out = present(&[2, 3, 4], &[2, 3, 4, 5, 6]).no_server(1);
    assert_eq!(out.step(), Step::Nothing);
    out.me = voter(2);
    assert_eq!(out.step(), Step::Invite(NodeId(5)));
}

#[test]
fn who_has_just_begun_a_new_life_or_is_not_known_keeps_its_vote() {
    // It has not told of itself yet: whether it is a server is not known.
    let unheard = Candidate { health: Health::Away, server: None, refused: false };
    for seen in [Some(unheard), None] {
        for absent in [&[5][..], &[4, 5]] {
            let mut present = present(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]);
            for node in absent {
                present.nodes.remove(&NodeId(*node));
                present.nodes.extend(seen.map(|seen| (NodeId(*node), seen)));
            }
            assert_eq!(present.step(), Step::Nothing);
        }
    }
}

#[test]
fn who_has_left_is_taken_out_at_once_and_replaced_if_there_is_another() {
    for gone in [Health::Left, Health::Leaves] {
        assert_eq!(present(&[1, 2, 3], &[1, 2, 4]).with(3, gone).settle(), [1, 2, 4]);
        assert_eq!(present(&[1, 2, 3], &[1, 2]).with(3, gone).settle(), [1, 2]);
        assert_eq!(
            present(&[1, 2], &[1]).with(2, gone).settle(),
            match gone {
                // Nobody is left to agree with.
                Health::Left => vec![1, 2],
                _ => vec![1],
            }
        );
    }
}

#[test]
fn who_is_down_for_long_is_replaced_but_not_taken_out_for_nothing() {
    let away = present(&[1, 2, 3], &[1, 2, 4]).with(3, Health::Away);
    assert_eq!(away.clone().settle(), [1, 2, 3]);
    assert_eq!(away.with(3, Health::Lost).settle(), [1, 2, 4]);
    assert_eq!(present(&[1, 2, 3], &[1, 2]).with(3, Health::Lost).settle(), [1, 2, 3]);
    // Of five, two are lost: three that are there bear one more loss, five with these two none.
    let two_lost = present(&[1, 2, 3, 4, 5], &[1, 2, 3]);
    let two_lost = two_lost.with(4, Health::Lost).with(5, Health::Lost);
    assert_eq!(two_lost.clone().settle(), [1, 2, 3]);
    // With a fourth that is there, one that is lost may stay: as many losses are bearable.
    assert_eq!(two_lost.with(6, Health::Up).settle(), [1, 2, 3, 4, 6]);
}

#[test]
fn a_node_that_lost_its_disk_votes_again_as_another_voter() {
    let mut present = present(&[1, 2, 3], &[1, 2, 3]);
    present.unknown.insert(voter(3));
    assert_eq!(present.settle(), [1, 2, 3]);
    assert!(!present.voters.contains(&voter(3)));
}

#[test]
fn le8_without_a_majority_nothing_is_decided() {
    let present = present(&[1, 2, 3], &[1, 4, 5]).with(2, Health::Lost).with(3, Health::Left);
    assert_eq!(present.step(), Step::Nothing);
}

#[test]
fn who_is_away_is_waited_for_unless_the_others_leave_for_good() {
    // Node 3 may come back, and two of three are a majority again.
    let recovers = present(&[1, 2, 3], &[1, 2, 3]).with(3, Health::Away);
    assert_eq!(recovers.with(2, Health::Leaves).settle(), [1, 2, 3]);
    // Two of five are none, whoever comes back.
    let parts = present(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]).with(3, Health::Away);
    let parts = parts.with(2, Health::Leaves).with(4, Health::Left);
    assert_eq!(parts.with(5, Health::Leaves).settle(), [1]);
}

#[test]
fn a_change_that_was_begun_is_finished_first() {
    let mut present = present(&[1, 2, 3], &[1, 2, 3, 4, 5]);
    present.pending = Some(voters(&[1, 2, 4]));
    assert_eq!(present.step(), Step::Vote(voters(&[1, 2, 4])));
}

#[test]
fn a_node_that_refused_is_passed_over_for_a_while() {
    let mut present = present(&[1], &[1, 2, 3, 4]);
    present.nodes.get_mut(&NodeId(2)).unwrap().refused = true;
    assert_eq!(present.settle(), [1, 3, 4]);
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![
        4 => Just(Health::Up),
        1 => Just(Health::Away),
        1 => Just(Health::Lost),
        1 => Just(Health::Leaves),
        1 => Just(Health::Left),
    ]
}

fn any_present() -> impl Strategy<Value = Present> {
    let nodes = proptest::collection::btree_map(1..10u64, (health(), any::<Option<bool>>()), 1..10);
    (nodes, proptest::collection::btree_set(1..10u64, 1..6), 0..3usize).prop_map(
        |(nodes, voting, unknown)| {
            let voting: Vec<u64> = voting.into_iter().collect();
            let mut present = present(&voting, &[]);
            present.me = voter(voting[0]);
            for (node, (health, server)) in nodes {
                present.nodes.insert(NodeId(node), Candidate { health, server, refused: false });
            }
            let me = Candidate { health: Health::Up, server: Some(true), refused: false };
            present.nodes.insert(present.me.node, me);
            present.unknown =
                voting.iter().skip(1).rev().take(unknown).map(|node| voter(*node)).collect();
            present
        },
    )
}

proptest! {
    /// LE-8, wherever it begins: it comes to rest, and never takes the majority away.
    #[test]
    fn le8_whoever_is_there_it_comes_to_rest_with_a_majority(mut present in any_present()) {
        let could = present.has_majority(&present.voters);
        let before = present.voters.clone();
        present.settle();
        if !could {
            prop_assert_eq!(&present.voters, &before);
            return Ok(());
        }
        prop_assert!(present.has_majority(&present.voters), "{present:?}");
        // Nobody votes who has left, unless there would be no majority without it.
        let left = present.voters.iter().filter(|voter| present.health(voter) == Health::Left);
        if left.count() > 0 {
            let stay: BTreeSet<VoterId> = present.voters.iter().copied()
                .filter(|voter| present.health(voter) != Health::Left).collect();
            prop_assert!(!present.has_majority(&stay), "{present:?}");
        }
        // More losses are not bearable than with what is there.
        let up = present.nodes.values();
        let up = up.filter(|node| node.server == Some(true) && node.health == Health::Up).count();
        // Who is away for a while is not replaced: it counts as if it were there.
        let bears = |voters: &BTreeSet<VoterId>| {
            let counts =
                |voter: &&VoterId| matches!(present.health(voter), Health::Up | Health::Away);
            voters.iter().filter(counts).count().checked_sub(voters.len() / 2 + 1)
        };
        if up >= 5 {
            prop_assert_eq!(bears(&present.voters), Some(2), "{:?}", present);
        } else if up >= 3 {
            prop_assert!(bears(&present.voters) >= Some(1), "{present:?}");
        }
    }
}
