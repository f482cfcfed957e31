use std::collections::BTreeMap;

use footlight_runtime::{Incarnation, NodeId};

use super::*;
use crate::ledger::command::Holder;

const EVERY: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(2);
const TIME: LeaseTime = LeaseTime(TTL);

fn held(generation: u64) -> BTreeMap<String, Grant> {
    let holder = Holder { node: NodeId(1), incarnation: Incarnation(1), text: String::new() };
    [("x".to_owned(), Grant { holder, generation })].into_iter().collect()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Looks every 100 ms from `from` until the lease lapses; tells when.
fn lapses(timers: &mut Timers, leases: &BTreeMap<String, Grant>, from: Instant) -> Duration {
    for step in 0.. {
        let now = from + EVERY * step;
        if !timers.look(leases, now, EVERY).is_empty() {
            return now - from;
        }
    }
    unreachable!()
}

#[test]
fn a_lease_that_is_not_renewed_lapses_after_its_whole_time_and_not_before() {
    let start = Instant::now();
    let mut timers = Timers::begin(start, TIME);
    assert_eq!(lapses(&mut timers, &held(5), start), TTL);
}

#[test]
fn a_renewal_counts_from_when_it_was_received() {
    let start = Instant::now();
    let mut timers = Timers::begin(start, TIME);
    assert!(timers.look(&held(5), start, EVERY).is_empty());
    timers.renewed("x", 5, start + millis(700));
    assert_eq!(lapses(&mut timers, &held(5), start), millis(700) + TTL);
    // Another generation's renewal, and an older one, change nothing.
    let mut timers = Timers::begin(start, TIME);
    assert!(timers.look(&held(5), start, EVERY).is_empty());
    timers.renewed("x", 5, start + millis(700));
    timers.renewed("x", 4, start + millis(900));
    timers.renewed("x", 5, start + millis(300));
    assert_eq!(lapses(&mut timers, &held(5), start), millis(700) + TTL);
}

#[test]
fn a_new_leader_and_a_new_grant_get_the_whole_time_anew() {
    let start = Instant::now();
    let mut timers = Timers::begin(start, TIME);
    assert!(timers.look(&held(5), start, EVERY).is_empty());
    let later = start + millis(100);
    assert!(timers.look(&held(6), later, EVERY).is_empty());
    assert_eq!(lapses(&mut timers, &held(6), later), TTL);
    let mut elected = Timers::begin(later, TIME);
    assert_eq!(lapses(&mut elected, &held(5), later), TTL);
}

#[test]
fn what_could_not_be_heard_while_the_leader_stood_still_is_waited_for() {
    let start = Instant::now();
    let mut timers = Timers::begin(start, TIME);
    assert!(timers.look(&held(5), start, EVERY).is_empty());
    // It stood still for three seconds: the renewals of that time wait at its door.
    let awake = start + Duration::from_secs(3);
    assert!(timers.look(&held(5), awake, EVERY).is_empty());
    let left = lapses(&mut timers, &held(5), awake);
    assert!(left >= TTL - EVERY && left <= TTL, "{left:?}");
}

/// LE-1 as a simulation: three voters that elect and confirm as Raft's do, their leaders' timers,
/// two who want one lease, and clocks that run up to 5 % apart. Messages take their time, get lost,
/// and voters are cut off from each other as it comes.
mod simulation {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const VOTERS: usize = 3;
    const STEP: u64 = 20;

    /// What happens in one step of 20 ms.
    #[derive(Clone, Debug)]
    enum Event {
        Nothing,
        /// These two voters, or a voter and a client, are cut off from each other, or no longer.
        Cut(usize, usize),
        Heal,
        /// A voter stands for election.
        Elect(usize),
        /// The client that asks at present asks a voter, whether it leads or not.
        Ask(usize),
        /// Another client asks from now on: the one before renews no more, and wants it again later.
        Turn(usize),
        /// A leader looks at its timers.
        Look(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            10 => Just(Event::Nothing),
            2 => (0..VOTERS, 0..VOTERS + 2).prop_map(|(a, b)| Event::Cut(a, b)),
            2 => Just(Event::Heal),
            1 => (0..VOTERS).prop_map(Event::Elect),
            60 => (0..VOTERS).prop_map(Event::Ask),
            2 => (0..2usize).prop_map(Event::Turn),
            60 => (0..VOTERS).prop_map(Event::Look),
        ]
    }

    #[derive(Default)]
    struct Voter {
        /// The term that it has voted for or confirmed.
        term: u64,
        leads: Option<(u64, Timers)>,
    }

    struct World {
        start: Instant,
        millis: u64,
        voters: Vec<Voter>,
        cuts: Vec<(usize, usize)>,
        /// What the log says: the generation, and who has it. Only a leader with a majority of its
        /// term behind it can change it.
        grant: Option<(u64, usize)>,
        generation: u64,
        /// For each client, the generation that it believes in and until when, by its own clock.
        beliefs: [Option<(u64, u64)>; 2],
    }

    impl World {
        fn cut(&self, a: usize, b: usize) -> bool {
            self.cuts.iter().any(|cut| *cut == (a, b) || *cut == (b, a))
        }

        /// How fast the clocks run, in thousandths: those of leaders and clients differ.
        fn clock(&self, who: usize) -> u64 {
            self.millis * [1000, 1050, 975, 1025, 980][who] / 1000
        }

        fn at(&self, voter: usize) -> Instant {
            self.start + millis(self.clock(voter))
        }

        /// Whether a majority confirms now that `leader` leads in its term.
        fn confirmed(&mut self, leader: usize) -> bool {
            let Some((term, _)) = self.voters[leader].leads else { return false };
            let reached: Vec<usize> = (0..VOTERS)
                .filter(|voter| *voter == leader || !self.cut(leader, *voter))
                .filter(|voter| self.voters[*voter].term <= term)
                .collect();
            for voter in &reached {
                self.voters[*voter].term = term;
            }
            2 * reached.len() > VOTERS
        }

        fn elect(&mut self, candidate: usize) {
            let term = self.voters[candidate].term + 1;
            let votes: Vec<usize> = (0..VOTERS)
                .filter(|voter| *voter == candidate || !self.cut(candidate, *voter))
                .filter(|voter| self.voters[*voter].term < term)
                .collect();
            for voter in &votes {
                self.voters[*voter].term = term;
            }
            self.voters[candidate].leads = None;
            if 2 * votes.len() > VOTERS {
                let timers = Timers::begin(self.at(candidate), TIME);
                self.voters[candidate].leads = Some((term, timers));
            }
        }

        fn leases(&self) -> BTreeMap<String, Grant> {
            match self.grant {
                Some((generation, _)) => held(generation),
                None => BTreeMap::new(),
            }
        }

        fn ask(&mut self, client: usize, voter: usize) {
            let sent = self.clock(VOTERS + client);
            let heard = !self.cut(voter, VOTERS + client);
            if !heard || !self.confirmed(voter) {
                return;
            }
            let received = self.at(voter);
            let mine = match self.grant {
                None => {
                    self.generation += 1;
                    self.grant = Some((self.generation, client));
                    self.generation
                }
                Some((generation, holder)) if holder == client => generation,
                Some(_) => return,
            };
            let leases = self.leases();
            if let Some((_, timers)) = &mut self.voters[voter].leads {
                // The leader sees the grant at its next look at the latest.
                timers.look(&leases, received, EVERY);
                timers.renewed("x", mine, received);
            }
            let until = sent + u64::try_from((TTL - TIME.margin()).as_millis()).unwrap();
            self.beliefs[client] = Some((mine, until));
        }

        fn look(&mut self, voter: usize) {
            let (now, leases) = (self.at(voter), self.leases());
            let Some((_, timers)) = &mut self.voters[voter].leads else { return };
            let lapsed = timers.look(&leases, now, EVERY);
            // It gets into the log only if a majority still follows.
            if !lapsed.is_empty() && self.confirmed(voter) {
                self.grant = None;
            }
        }

        /// Those who believe that they have the lease.
        fn believers(&self) -> usize {
            let believes = |client: &usize| {
                let now = self.clock(VOTERS + client);
                self.beliefs[*client].is_some_and(|(_, until)| now < until)
            };
            (0..2).filter(believes).count()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn le1_at_most_one_believes_in_a_lease(events in proptest::collection::vec(event(), 1..800)) {
            let mut world = World {
                start: Instant::now(),
                millis: 0,
                voters: (0..VOTERS).map(|_| Voter::default()).collect(),
                cuts: Vec::new(),
                grant: None,
                generation: 0,
                beliefs: [None, None],
            };
            let mut asks = 0;
            world.elect(0);
            for event in events {
                world.millis += STEP;
                match event {
                    Event::Nothing => {}
                    Event::Cut(a, b) => world.cuts.push((a, b)),
                    Event::Heal => world.cuts.clear(),
                    Event::Elect(voter) => world.elect(voter),
                    Event::Ask(voter) => world.ask(asks, voter),
                    Event::Turn(client) => asks = client,
                    Event::Look(voter) => world.look(voter),
                }
                prop_assert!(world.believers() <= 1, "two believe at {} ms", world.millis);
            }
        }
    }

    /// The simulation finds it if a leader forgets to wait.
    #[test]
    fn a_leader_that_would_not_wait_is_found_out() {
        let mut world = World {
            start: Instant::now(),
            millis: 20,
            voters: (0..VOTERS).map(|_| Voter::default()).collect(),
            cuts: Vec::new(),
            grant: None,
            generation: 0,
            beliefs: [None, None],
        };
        world.elect(0);
        world.ask(0, 0);
        assert_eq!(world.believers(), 1);
        world.elect(1);
        world.grant = None;
        world.ask(1, 1);
        assert_eq!(world.believers(), 2);
    }
}
