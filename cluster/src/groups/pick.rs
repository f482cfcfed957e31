//! Whose turn it is: a function of what is given to it, and of nothing else.

use footlight_runtime::ActorAddr;

use super::members::Seen;

/// Which member of a group gets a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pick {
    /// One after the other, in the order of their addresses, as far as one [`Group`](super::Group)
    /// and its clones are concerned. Even if all messages are alike.
    #[default]
    RoundRobin,
    /// Of two that are drawn at random the one with fewer messages in hand (waiting, handled, or
    /// not answered); of equals, the one on the node with less load. Better if some messages take
    /// longer than others, or some members are slower.
    ///
    /// A member's messages in hand are the greater of two numbers: those that this node has sent it
    /// through any group and that are not answered, which is exact; and what its own node has told
    /// last, which counts everybody's, may be a second old, and says only which power of two is
    /// reached. That is why not the least of all is taken: all nodes would choose the same one until
    /// they hear better. Two choices are nearly as good (Mitzenmacher, "The Power of Two Choices in
    /// Randomized Load Balancing", 2001).
    LeastLoaded,
}

/// A member that may get the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) seen: Seen,
    /// Messages that this node has sent it and that are not answered.
    pub(super) outstanding: u32,
}

impl Candidate {
    /// The less, the better.
    fn busy(&self) -> (u64, u32) {
        let told = self.seen.backlog.at_least();
        // A float has no order; a hundredth of a core makes no difference.
        (told.max(self.outstanding.into()), (self.seen.load.cpu * 100.0) as u32)
    }
}

/// Chooses one; those whose node may not be reached come last. `last` is who had the last turn, and
/// `random` gives a number below the one it is given.
pub(super) fn pick(
    candidates: &[Candidate],
    how: Pick,
    last: Option<ActorAddr>,
    mut random: impl FnMut(usize) -> usize,
) -> Option<ActorAddr> {
    let well: Vec<&Candidate> = candidates.iter().filter(|one| one.seen.well).collect();
    let all = if well.is_empty() { candidates.iter().collect() } else { well };
    if all.is_empty() {
        return None;
    }
    let first = random(all.len());
    let chosen = match (how, last) {
        (Pick::RoundRobin, None) => all[first],
        (Pick::RoundRobin, Some(last)) => {
            let next =
                all.iter().filter(|one| one.seen.actor > last).min_by_key(|one| one.seen.actor);
            let again = all.iter().min_by_key(|one| one.seen.actor);
            next.or(again)?
        }
        (Pick::LeastLoaded, _) if all.len() == 1 => all[0],
        (Pick::LeastLoaded, _) => {
            // Another one, each as likely.
            let second = (first + 1 + random(all.len() - 1)) % all.len();
            if all[second].busy() < all[first].busy() { all[second] } else { all[first] }
        }
    };
    Some(chosen.seen.actor)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use footlight_runtime::{ActorId, Incarnation, NodeId};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::{super::Backlog, *};
    use crate::record::Load;

    fn addr(node: u64) -> ActorAddr {
        ActorAddr { node: NodeId(node), incarnation: Incarnation(1), actor: ActorId(16) }
    }

    fn one(node: u64, told: usize, outstanding: u32) -> Candidate {
        let (backlog, load) = (Backlog::of(told), Load::default());
        Candidate { seen: Seen { actor: addr(node), backlog, load, well: true }, outstanding }
    }

    /// How often each is chosen in so many turns.
    fn turns(candidates: &[Candidate], how: Pick, count: u32) -> BTreeMap<u64, u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut last, mut counts) = (None, BTreeMap::new());
        for _ in 0..count {
            last = pick(candidates, how, last, |below| rng.random_range(0..below));
            *counts.entry(last.unwrap().node.0).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn in_round_robin_each_has_its_turn() {
        let three = [one(1, 0, 0), one(2, 900, 9), one(3, 0, 0)];
        assert_eq!(
            turns(&three, Pick::RoundRobin, 300),
            BTreeMap::from([(1, 100), (2, 100), (3, 100)])
        );
        // Who has gone is passed over, and the turn goes on after it.
        let next =
            |last| pick(&[one(1, 0, 0), one(3, 0, 0)], Pick::RoundRobin, Some(addr(last)), |_| 0);
        assert_eq!([next(1), next(2), next(3)].map(|one| one.unwrap().node.0), [3, 3, 1]);
        assert_eq!(pick(&[], Pick::RoundRobin, None, |_| 0), None);
    }

    #[test]
    fn the_busiest_of_several_is_never_chosen_and_equals_share() {
        for busy in [one(2, 4, 0), one(2, 0, 4)] {
            let counts = turns(&[one(1, 0, 0), busy, one(3, 1, 1)], Pick::LeastLoaded, 3000);
            assert_eq!(counts.get(&2), None);
            assert!(counts[&1] > counts[&3], "{counts:?}");
        }
        let counts = turns(&[one(1, 0, 0), one(2, 0, 0), one(3, 0, 0)], Pick::LeastLoaded, 3000);
        assert!(
            counts.len() == 3 && counts.values().all(|n| (800..1200).contains(n)),
            "{counts:?}"
        );
        assert_eq!(turns(&[one(1, 9, 9)], Pick::LeastLoaded, 3), BTreeMap::from([(1, 3)]));
    }

    #[test]
    fn of_equals_the_one_on_the_node_with_less_load_is_chosen() {
        let mut loaded = one(1, 0, 0);
        loaded.seen.load.cpu = 1.5;
        assert_eq!(
            turns(&[loaded, one(2, 0, 0)], Pick::LeastLoaded, 100),
            BTreeMap::from([(2, 100)])
        );
    }

    #[test]
    fn who_may_not_be_reached_is_chosen_only_if_nobody_else_is_there() {
        let mut far = one(1, 0, 0);
        far.seen.well = false;
        for how in [Pick::RoundRobin, Pick::LeastLoaded] {
            assert_eq!(turns(&[far, one(2, 99, 99)], how, 10), BTreeMap::from([(2, 10)]));
            assert_eq!(turns(&[far], how, 10), BTreeMap::from([(1, 10)]));
        }
    }
}
