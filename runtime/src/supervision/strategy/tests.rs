use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

use super::{Strategy, *};
use Ending::{Failed, NodeLeft, Planned};
use Restart::{Permanent, Temporary, Transient};

const SECOND: Duration = Duration::from_secs(1);

fn restarts(supervision: Supervision, children: &[Restart]) -> Restarts {
    let rng = ChaCha12Rng::seed_from_u64(7);
    Restarts::new(supervision.backoff(Backoff::NONE), children.iter().copied(), Box::new(rng))
}

fn start(index: usize) -> Action {
    Action::StartAfter { index, delay: Duration::ZERO }
}

/// Starts all children and brings them up.
fn all_up(supervision: Supervision, children: &[Restart], now: Instant) -> Restarts {
    let mut restarts = restarts(supervision, children);
    let mut actions = VecDeque::from(restarts.start());
    while let Some(action) = actions.pop_front() {
        let Action::StartAfter { index, .. } = action else { panic!("{action:?}") };
        actions.extend(restarts.child_started(now, index));
    }
    restarts
}

#[test]
fn sv1_who_is_restarted_depends_on_the_child_and_on_how_it_ended() {
    let now = Instant::now();
    let children = [Permanent, Transient, Temporary];
    let answer = |index, how| all_up(OneForOne::new(), &children, now).child_down(now, index, how);
    assert_eq!(answer(0, Failed), [start(0)]);
    assert_eq!(answer(0, Planned), [start(0)]);
    assert_eq!(answer(1, Failed), [start(1)]);
    assert_eq!(answer(1, Planned), []);
    assert_eq!(answer(2, Failed), []);
    assert_eq!(answer(2, Planned), []);
}

#[test]
fn sv1_a_child_that_fails_to_start_is_tried_again_unless_it_is_temporary() {
    let now = Instant::now();
    let mut restarts = restarts(OneForOne::new(), &[Transient, Temporary]);
    assert_eq!(restarts.start(), [start(0), start(1)]);
    assert_eq!(restarts.start_failed(now, 0), [start(0)]);
    assert_eq!(restarts.start_failed(now, 1), []);
}

#[test]
fn sv2_one_failure_too_many_stops_everyone_and_escalates() {
    let now = Instant::now();
    let mut restarts = all_up(OneForOne::new().at_most(2, 10 * SECOND), &[Permanent; 3], now);
    for _ in 0..2 {
        assert_eq!(restarts.child_down(now, 1, Failed), [start(1)]);
        restarts.child_started(now, 1);
    }
    let reason = TooManyRestarts { child: 1, max: 2, within: 10 * SECOND };
    assert_eq!(
        reason.to_string(),
        "child 1 failed after 2 restarts within 10s: no more are allowed, see `at_most`"
    );
    assert_eq!(
        restarts.child_down(now + 9 * SECOND, 1, Failed),
        [Action::Stop(2), Action::Stop(0), Action::Escalate { reason }]
    );
    assert!(restarts.has_given_up());
    assert_eq!(restarts.child_down(now + 9 * SECOND, 0, Failed), []);
    assert_eq!(restarts.child_down(now + 100 * SECOND, 2, Failed), []);
    assert_eq!(restarts.start(), []);
}

#[test]
fn sv2_failures_that_are_far_apart_are_forgiven() {
    let mut now = Instant::now();
    let mut restarts = all_up(OneForOne::new().at_most(1, 10 * SECOND), &[Permanent], now);
    for _ in 0..20 {
        now += 10 * SECOND;
        assert_eq!(restarts.child_down(now, 0, Failed), [start(0)]);
        restarts.child_started(now, 0);
    }
    assert!(matches!(
        restarts.child_down(now + 9 * SECOND, 0, Failed)[..],
        [Action::Escalate { .. }]
    ));
}

#[test]
fn sv2_with_a_limit_of_zero_the_first_failure_escalates() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new().at_most(0, SECOND), &[Permanent; 2], now);
    assert!(matches!(
        restarts.child_down(now, 0, Failed)[..],
        [Action::Stop(1), Action::Escalate { .. }]
    ));
}

#[test]
fn sv3_sv4_sv5_one_for_all_stops_the_others_backwards_and_starts_all_forwards() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new(), &[Permanent; 3], now);
    assert_eq!(restarts.child_down(now, 1, Failed), [Action::Stop(2), Action::Stop(0)]);
    assert_eq!(restarts.child_down(now, 2, Planned), []);
    assert_eq!(restarts.child_down(now, 0, Planned), [start(0)]);
    assert_eq!(restarts.child_started(now, 0), [start(1)]);
    assert_eq!(restarts.child_started(now, 1), [start(2)]);
    assert_eq!(restarts.child_started(now, 2), []);
}

#[test]
fn sv3_rest_for_one_leaves_those_before_the_failed_child_alone() {
    let now = Instant::now();
    let mut restarts = all_up(RestForOne::new(), &[Permanent; 4], now);
    assert_eq!(restarts.child_down(now, 2, Failed), [Action::Stop(3)]);
    assert_eq!(restarts.child_down(now, 3, Planned), [start(2)]);
    assert_eq!(restarts.child_started(now, 2), [start(3)]);
}

#[test]
fn sv4_a_failure_during_a_restart_widens_it_and_still_waits_for_every_stop() {
    let now = Instant::now();
    let mut restarts = all_up(RestForOne::new(), &[Permanent; 4], now);
    assert_eq!(restarts.child_down(now, 2, Failed), [Action::Stop(3)]);
    assert_eq!(restarts.child_down(now, 0, Failed), [Action::Stop(1)]);
    assert_eq!(restarts.child_down(now, 1, Planned), [], "3 is still on its way down");
    assert_eq!(restarts.child_down(now, 3, Planned), [start(0)]);
    assert_eq!(restarts.child_started(now, 0), [start(1)]);
    assert_eq!(restarts.child_down(now, 0, Failed), [Action::Stop(1)]);
    assert_eq!(restarts.child_started(now, 1), [], "it was told to stop as it came up");
    assert_eq!(restarts.child_down(now, 1, Planned), [start(0)]);
}

#[test]
fn sv6_with_its_group_a_finished_transient_child_returns_and_a_temporary_one_does_not() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new(), &[Transient, Temporary, Permanent], now);
    assert_eq!(restarts.child_down(now, 0, Planned), []);
    assert_eq!(restarts.child_down(now, 2, Failed), [Action::Stop(1)]);
    assert_eq!(restarts.child_down(now, 1, Planned), [start(0)]);
    assert_eq!(restarts.child_started(now, 0), [start(2)]);
    assert_eq!(restarts.child_started(now, 2), []);
}

#[test]
fn sv6_a_temporary_child_whose_first_start_was_called_off_gets_its_turn() {
    let now = Instant::now();
    let mut restarts = restarts(RestForOne::new(), &[Permanent, Temporary, Temporary]);
    assert_eq!(restarts.start(), [start(0)]);
    assert_eq!(restarts.child_started(now, 0), [start(1)]);
    assert_eq!(restarts.child_down(now, 0, Failed), [Action::Stop(1)]);
    assert_eq!(restarts.child_down(now, 1, Planned), [start(0)]);
    assert_eq!(restarts.child_started(now, 0), [start(1)]);
    assert_eq!(restarts.child_started(now, 1), [start(2)]);
}

#[test]
fn sv7_the_delay_doubles_up_to_its_longest_and_starts_over_after_a_healthy_while() {
    let mut now = Instant::now();
    let backoff = Backoff {
        first: SECOND,
        max: 5 * SECOND,
        factor: 2.0,
        jitter: 0.0,
        reset_after: 30 * SECOND,
    };
    let supervision = OneForOne::new().at_most(100, SECOND).backoff(backoff);
    let rng = ChaCha12Rng::seed_from_u64(7);
    let mut restarts = Restarts::new(supervision, [Permanent], Box::new(rng));
    restarts.start();
    let mut delays = Vec::new();
    for up_for in [0, 1, 29, 0, 30, 0] {
        restarts.child_started(now, 0);
        now += up_for * SECOND;
        let actions = restarts.child_down(now, 0, Failed);
        let [Action::StartAfter { delay, .. }] = actions[..] else { panic!("{actions:?}") };
        delays.push(delay.as_secs());
    }
    assert_eq!(delays, [1, 2, 4, 5, 1, 2]);
}

#[test]
fn sv8_events_that_make_no_sense_change_nothing() {
    let now = Instant::now();
    let mut restarts = all_up(OneForOne::new(), &[Permanent, Temporary], now);
    assert_eq!(restarts.child_down(now, 9, Failed), []);
    assert_eq!(restarts.child_started(now, 9), []);
    assert_eq!(restarts.start_failed(now, 9), []);
    assert_eq!(restarts.start_failed(now, 0), [], "it is up");
    assert_eq!(restarts.child_down(now, 1, Failed), []);
    assert_eq!(restarts.child_down(now, 1, Failed), [], "it is down already");
    assert_eq!(restarts.start(), [], "all were started");
}

const LIFE: Ending = Ending::NodeLost(NodeId(3), Incarnation(5));

#[test]
fn sv9_children_that_were_lost_with_one_node_count_as_one_failure() {
    let now = Instant::now();
    let within = 10 * SECOND;
    let mut restarts = all_up(OneForOne::new().at_most(2, within), &[Permanent; 4], now);
    for index in 0..4 {
        assert_eq!(restarts.child_down(now, index, LIFE), [start(index)]);
        restarts.child_started(now, index);
    }
    let next_life = Ending::NodeLost(NodeId(3), Incarnation(6));
    assert_eq!(restarts.child_down(now, 0, next_life), [start(0)]);
    assert_eq!(restarts.child_down(now, 1, next_life), [start(1)]);
    restarts.child_started(now, 0);
    assert!(matches!(restarts.child_down(now, 0, Failed).last(), Some(Action::Escalate { .. })));
}

#[test]
fn sv9_children_of_a_node_that_leaves_move_at_once_and_count_as_no_failure() {
    let now = Instant::now();
    let supervision = OneForOne::new().at_most(0, SECOND).backoff(Backoff::default());
    let rng = Box::new(ChaCha12Rng::seed_from_u64(7));
    let mut restarts = Restarts::new(supervision, [Permanent, Transient, Temporary], rng);
    restarts.start();
    (0..3).for_each(|index| drop(restarts.child_started(now, index)));
    assert_eq!(restarts.child_down(now, 0, NodeLeft), [start(0)]);
    assert_eq!(restarts.child_down(now, 1, NodeLeft), [start(1)]);
    assert_eq!(restarts.child_down(now, 2, NodeLeft), []);
}

#[test]
fn sv10_an_added_child_comes_last_and_in_its_turn() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new(), &[Permanent; 2], now);
    assert_eq!(restarts.add(Permanent), (2, vec![start(2)]));
    restarts.child_started(now, 2);
    assert_eq!(restarts.child_down(now, 0, Failed), [Action::Stop(2), Action::Stop(1)]);
    assert_eq!(restarts.add(Transient), (3, vec![]), "a start of all is under way");
    assert_eq!(restarts.child_down(now, 2, Planned), []);
    assert_eq!(restarts.child_down(now, 1, Planned), [start(0)]);
    for index in 1..4 {
        assert_eq!(restarts.child_started(now, index - 1), [start(index)]);
    }
}

#[test]
fn sv10_a_removed_child_is_stopped_and_stays_away() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new(), &[Permanent; 3], now);
    assert_eq!(restarts.remove(1), [Action::Stop(1)]);
    assert_eq!(restarts.remove(1), [], "it is on its way");
    assert_eq!(restarts.child_down(now, 1, Failed), []);
    assert_eq!(restarts.child_down(now, 1, Failed), [], "nobody knows it any more");
    assert_eq!(restarts.child_down(now, 0, Failed), [Action::Stop(2)]);
    assert_eq!(restarts.remove(0), [], "it is down");
    assert_eq!(restarts.child_down(now, 2, Planned), [start(2)]);
    assert_eq!(restarts.remove(2), [Action::Stop(2)]);
    assert!(restarts.knows(2), "it is still on its way");
    assert_eq!(restarts.start_failed(now, 2), []);
    assert!(!restarts.knows(2));
    assert_eq!(restarts.add(Permanent), (3, vec![start(3)]));
}

#[test]
fn sv10_a_group_does_not_wait_for_a_child_that_was_removed() {
    let now = Instant::now();
    let mut restarts = all_up(OneForAll::new(), &[Permanent; 3], now);
    assert_eq!(restarts.child_down(now, 2, Failed), [Action::Stop(1), Action::Stop(0)]);
    assert_eq!(restarts.remove(1), []);
    assert_eq!(restarts.child_down(now, 0, Planned), []);
    assert_eq!(restarts.child_down(now, 1, Planned), [start(0)], "now all are down");
    assert_eq!(restarts.child_started(now, 0), [start(2)]);
}

#[test]
fn sv7_the_delays_of_children_that_failed_together_differ() {
    let now = Instant::now();
    let backoff = Backoff { first: SECOND, ..Backoff::default() };
    let supervision = OneForOne::new().at_most(100, SECOND).backoff(backoff);
    let rng = Box::new(ChaCha12Rng::seed_from_u64(7));
    let mut restarts = Restarts::new(supervision, [Permanent; 8], rng);
    restarts.start();
    let mut delays = BTreeSet::new();
    for index in 0..8 {
        restarts.child_started(now, index);
        let actions = restarts.child_down(now, index, Failed);
        let [Action::StartAfter { delay, .. }] = actions[..] else { panic!("{actions:?}") };
        assert!(delay <= SECOND && delay >= SECOND.mul_f64(0.8), "{delay:?}");
        delays.insert(delay);
    }
    assert_eq!(delays.len(), 8, "{delays:?}");
}

/// What a child does in the world that the supervisor acts on.
#[derive(Clone, Copy, PartialEq, Debug)]
enum World {
    Down,
    Starting,
    Up,
    /// Told to stop.
    Leaving,
}

/// Carries actions out, and checks each.
struct Driver {
    restarts: Restarts,
    kinds: Vec<Restart>,
    world: Vec<World>,
    removed: Vec<bool>,
    /// Starts since the last failure.
    starts: Vec<usize>,
    escalated: bool,
}

impl Driver {
    fn apply(&mut self, actions: Vec<Action>) -> Result<(), TestCaseError> {
        let in_order = self.restarts.supervision.strategy != Strategy::OneForOne;
        let mut last_stop = usize::MAX;
        for action in actions {
            prop_assert!(!self.escalated, "SV-2: {:?} after giving up", action);
            match action {
                Action::Stop(index) => {
                    prop_assert!(index < last_stop, "SV-4: stops go backwards");
                    prop_assert!(matches!(self.world[index], World::Up | World::Starting));
                    last_stop = index;
                    self.world[index] = World::Leaving;
                }
                Action::StartAfter { index, delay } => {
                    prop_assert!(delay <= self.restarts.supervision.backoff.max, "SV-7");
                    prop_assert_eq!(self.world[index], World::Down);
                    prop_assert!(!self.removed[index], "SV-10");
                    if in_order {
                        prop_assert!(!self.world.contains(&World::Leaving), "SV-4");
                        prop_assert!(!self.world.contains(&World::Starting), "SV-5");
                        prop_assert!(self.starts.last().is_none_or(|&last| last < index), "SV-5");
                    }
                    self.starts.push(index);
                    self.world[index] = World::Starting;
                }
                Action::Escalate { .. } => self.escalated = true,
            }
        }
        Ok(())
    }

    /// Something happens to a child; `choice` says what. Gives whether it was a failure that asks
    /// for a restart, and which life of a node went with it.
    fn step(
        &mut self,
        now: Instant,
        index: usize,
        choice: u8,
    ) -> Result<Option<Ending>, TestCaseError> {
        if choice == 7 {
            self.removed[index] = true;
            let actions = self.restarts.remove(index);
            self.apply(actions)?;
            return Ok(None);
        }
        let kind = self.kinds[index];
        let (next, failed, actions) = match (self.world[index], choice) {
            (World::Starting, 0) => {
                let failed = kind != Temporary;
                self.starts.clear();
                let failed = failed.then_some(Failed);
                (World::Down, failed, self.restarts.start_failed(now, index))
            }
            (World::Starting, _) => (World::Up, None, self.restarts.child_started(now, index)),
            (World::Up, 0..=3) => {
                let how = [Failed, Planned, NodeLeft, LIFE][choice as usize];
                let again = kind == Permanent || (kind == Transient && how != Planned);
                if again {
                    self.starts.clear();
                }
                let failed = (again && how != NodeLeft).then_some(how);
                (World::Down, failed, self.restarts.child_down(now, index, how))
            }
            (World::Leaving, 0) => (World::Down, None, self.restarts.start_failed(now, index)),
            (World::Leaving, _) => {
                (World::Down, None, self.restarts.child_down(now, index, Planned))
            }
            (state, _) => (state, None, Vec::new()),
        };
        self.world[index] = next;
        self.apply(actions)?;
        Ok(failed)
    }
}

fn a_strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
}

proptest! {
    #[test]
    fn whatever_happens_every_promise_holds(
        strategy in a_strategy(),
        kinds in prop::collection::vec(
            prop_oneof![3 => Just(Permanent), 1 => Just(Transient), 1 => Just(Temporary)], 1..6),
        max in 0u32..6,
        events in prop::collection::vec((0u64..5000, any::<prop::sample::Index>(), 0u8..8), 0..200),
    ) {
        let within = 10 * SECOND;
        let supervision = Supervision::new(strategy).at_most(max, within);
        let rng = Box::new(ChaCha12Rng::seed_from_u64(7));
        let mut driver = Driver {
            restarts: Restarts::new(supervision, kinds.iter().copied(), rng),
            world: vec![World::Down; kinds.len()],
            removed: vec![false; kinds.len()],
            kinds,
            starts: Vec::new(),
            escalated: false,
        };
        let actions = driver.restarts.start();
        driver.apply(actions)?;

        let mut now = Instant::now();
        let mut answered: Vec<(Instant, Ending)> = Vec::new();
        for (wait, index, choice) in events {
            now += Duration::from_millis(wait);
            let index = index.index(driver.kinds.len());
            let was_over = driver.escalated;
            let failed = driver.step(now, index, choice)?;
            answered.retain(|(at, _)| now - *at < within);
            if let (Some(how), false) = (failed, was_over) {
                let counts_already = how == LIFE && answered.iter().any(|(_, how)| *how == LIFE);
                if driver.escalated {
                    prop_assert!(!counts_already, "SV-9");
                    let recent = answered.len();
                    prop_assert_eq!(recent, max as usize, "SV-2: gave up too early or too late");
                } else if !counts_already {
                    answered.push((now, how));
                }
            }
            prop_assert!(answered.len() <= max as usize, "SV-2");
        }

        // Nothing fails any more: after a while all is as it should be.
        for _ in 0..4 * driver.kinds.len() {
            for index in 0..driver.kinds.len() {
                if driver.world[index] != World::Up {
                    driver.step(now, index, 5)?;
                }
            }
        }
        for (index, kind) in driver.kinds.iter().enumerate() {
            let state = driver.world[index];
            if driver.removed[index] {
                prop_assert_eq!(state, World::Down, "SV-10");
            } else if driver.escalated {
                prop_assert_ne!(state, World::Leaving);
            } else if *kind == Permanent {
                prop_assert_eq!(state, World::Up, "SV-1");
            } else {
                prop_assert!(matches!(state, World::Up | World::Down));
            }
        }
    }

    #[test]
    fn sv7_no_back_off_whatever_its_numbers_waits_too_long_or_panics(
        first in any::<Duration>(), max in any::<Duration>(),
        factor in any::<f64>(), jitter in any::<f64>(), before in any::<u32>(),
    ) {
        let backoff = Backoff { first, max, factor, jitter, reset_after: SECOND };
        let mut rng = ChaCha12Rng::seed_from_u64(7);
        prop_assert!(backoff.delay(before, &mut rng) <= max);
    }
}
