//! Where workers may be apart.

use proptest::prelude::*;

use super::*;
use crate::parameters::optimizer::{Adam, Sgd};

const LEN: usize = 16;

fn shard(consistency: Consistency, optimizer: OptimizerSpec, slots: u32) -> Shard<Vec<f32>> {
    let layout = Layout::new([("all", vec![LEN])], 1).unwrap();
    let shard = Shard::new(&layout, 0, optimizer, StepRule::default(), 100, slots);
    let mut shard = shard.unwrap().consistency(consistency).unwrap();
    shard.init(0, vec![0.0; LEN]).unwrap();
    shard
}

fn stale(steps: u32, slots: u32) -> Shard<Vec<f32>> {
    shard(Consistency::BoundedStaleness(steps), Sgd::new(1.0).into(), slots)
}

fn all(value: f32) -> Vec<f32> {
    vec![value; LEN]
}

#[test]
fn a_slot_may_come_before_its_turn_and_is_applied_in_its_turn() {
    // PS-9
    let mut shard = stale(2, 1);
    assert_eq!(shard.push(2, 0, 0, all(4.0)), Ok(Push::Accepted));
    assert_eq!(shard.push(1, 0, 0, all(2.0)), Ok(Push::Accepted));
    assert_eq!(shard.push(1, 0, 0, all(99.0)), Ok(Push::Duplicate));
    assert_eq!((shard.missing(0, 0), shard.missing(1, 0)), (Ok(vec![0]), Ok(vec![])));
    assert_eq!(shard.params(0).unwrap(), (0, Arc::new(all(0.0))));
    assert_eq!(shard.push(0, 0, 0, all(1.0)), Ok(Push::Applied { version: 1 }));
    assert_eq!(shard.params(0).unwrap(), (1, Arc::new(all(-1.0))));
    assert_eq!(shard.advance(0), Ok(Some(Push::Applied { version: 2 })));
    assert_eq!(shard.advance(0), Ok(Some(Push::Applied { version: 3 })));
    assert_eq!(shard.advance(0), Ok(None));
    assert_eq!(shard.params(0).unwrap(), (3, Arc::new(all(-7.0))));
}

#[test]
fn beyond_the_window_a_push_is_refused() {
    // PS-3, PS-6
    let mut shard = stale(2, 1);
    let refused = Err(ShardError::FromTheFuture { chunk: 0, step: 3, version: 0 });
    assert_eq!(shard.push(3, 0, 0, all(1.0)), refused);
    shard.push(0, 0, 0, all(1.0)).unwrap();
    assert_eq!(shard.push(3, 0, 0, all(1.0)), Ok(Push::Accepted));
}

#[test]
fn a_sum_that_waits_holds_up_what_came_before_its_turn() {
    // PS-7, PS-9
    let layout = Layout::new([("all", vec![LEN])], 1).unwrap();
    let rule = StepRule::default().clip_norm(1e9);
    let shard = Shard::new(&layout, 0, Sgd::new(1.0).into(), rule, 100, 1).unwrap();
    let mut shard = shard.consistency(Consistency::BoundedStaleness(1)).unwrap();
    shard.init(0, all(0.0)).unwrap();
    assert!(matches!(shard.push(0, 0, 0, all(1.0)), Ok(Push::Summed { squares: Some(_) })));
    assert_eq!(shard.push(1, 0, 0, all(2.0)), Ok(Push::Accepted));
    assert_eq!(shard.advance(0), Ok(None));
    shard.decide(0, Verdict::Apply(1.0)).unwrap();
    assert!(matches!(shard.advance(0), Ok(Some(Push::Summed { squares: Some(_) }))));
    shard.decide(1, Verdict::Apply(1.0)).unwrap();
    assert_eq!(shard.params(0).unwrap(), (2, Arc::new(all(-3.0))));
}

#[test]
fn what_is_forgotten_may_come_again() {
    let mut shard = stale(1, 2);
    for (step, slot) in [(0, 0), (1, 0), (1, 1)] {
        assert_eq!(shard.push(step, slot, 0, all(9.0)), Ok(Push::Accepted));
    }
    shard.forget_unapplied();
    for (step, slot) in [(1, 1), (1, 0), (0, 1)] {
        assert_eq!(shard.push(step, slot, 0, all(1.0)), Ok(Push::Accepted));
    }
    assert_eq!(shard.push(0, 0, 0, all(1.0)), Ok(Push::Applied { version: 1 }));
    assert_eq!(shard.advance(0), Ok(Some(Push::Applied { version: 2 })));
    assert_eq!(shard.params(0).unwrap(), (2, Arc::new(all(-4.0))));
}

#[test]
fn one_by_one_each_slot_is_a_step_of_the_optimiser() {
    // PS-2, PS-9
    let adam = Adam::new(0.1);
    let mut shard = shard(Consistency::Asynchronous, adam.into(), 2);
    let adam = OptimizerSpec::from(adam);
    let (mut state, mut params) = (adam.state(LEN), all(0.0));
    let pushes = [(1, 1, 0), (0, 1, 0), (0, 0, 1), (2, 0, 1), (1, 0, 2), (2, 1, 3)];
    for (taken, (step, slot, version)) in (1..).zip(pushes) {
        let gradient = all((step * 2 + u64::from(slot)) as f32 - 2.5);
        let pushed = shard.push(step, slot, 0, gradient.clone());
        assert_eq!(pushed, Ok(Push::Applied { version }));
        let before = params.clone();
        adam.apply(&mut state, taken, 1.0, &before, &gradient, &mut params).unwrap();
        assert!(same_bits(&shard.params(0).unwrap().1, &params), "{step} {slot}");
        assert_eq!(shard.push(step, slot, 0, all(99.0)), Ok(Push::AlreadyApplied));
        let between = Err(ShardError::BetweenSteps { chunk: 0, version });
        match taken {
            6 => assert_eq!((shard.state(0).unwrap().version, shard.advance(0)), (3, Ok(None))),
            _ => assert_eq!(shard.state(0).map(drop), between),
        }
    }
}

#[test]
fn one_by_one_a_number_that_is_not_finite_stops_the_chunk() {
    // PS-5
    let mut shard = shard(Consistency::Asynchronous, Sgd::new(1.0).into(), 2);
    shard.push(0, 0, 0, all(1.0)).unwrap();
    let numbers = Numbers::Gradient;
    let diverged = Err(ShardError::NonFinite { chunk: 0, step: 0, numbers });
    assert_eq!(shard.push(0, 1, 0, all(f32::NAN)), diverged);
    assert_eq!(shard.push(1, 1, 0, all(1.0)), diverged);
    assert_eq!(*shard.params(0).unwrap().1, all(-1.0));
}

#[test]
fn what_needs_a_whole_gradient_is_refused_where_there_is_none() {
    let layout = Layout::new([("all", vec![LEN])], 1).unwrap();
    let rule = StepRule::default().clip_norm(1.0);
    let shard = || Shard::<Vec<f32>>::new(&layout, 0, Sgd::new(1.0).into(), rule, 100, 1).unwrap();
    assert!(shard().consistency(Consistency::BoundedStaleness(1)).is_ok());
    assert_eq!(
        shard().consistency(Consistency::Asynchronous).unwrap_err(),
        ShardError::NoWholeGradient
    );
    assert!(shard().consistency(Consistency::BoundedStaleness(0)).is_err());
}

/// Slots in an order that a window allows, some of them twice.
fn pushes(steps: u64, slots: u32, window: u64) -> impl Strategy<Value = Vec<(u64, u32)>> {
    let all = (0..steps).flat_map(move |step| (0..slots).map(move |slot| (step, slot)));
    let all: Vec<_> = all.collect();
    let draws = prop::collection::vec(any::<prop::sample::Index>(), 4 * all.len());
    draws.prop_map(move |draws| {
        let mut left = all.clone();
        let mut done = Vec::new();
        for draw in draws {
            let Some(&(oldest, _)) = left.first() else { break };
            let open = left.iter().take_while(|(step, _)| step - oldest <= window).count();
            let drawn = draw.index(open + done.len().min(2));
            match drawn.checked_sub(open) {
                None => done.push(left.remove(drawn)),
                Some(again) => done.push(done[done.len() - 1 - again]),
            }
        }
        done.extend(left);
        done
    })
}

proptest! {
    /// PS-1, PS-2, PS-9: bit for bit what a bulk-synchronous shard makes of the same gradients.
    #[test]
    fn in_whatever_order_slots_come_steps_are_applied_whole_and_in_order(
        pushes in pushes(6, 3, 2)
    ) {
        let gradient = |step: u64, slot: u32| all((step * 3 + u64::from(slot)) as f32 / 7.0 - 1.0);
        let adam = || Adam::new(0.1).into();
        let mut apart = shard(Consistency::BoundedStaleness(2), adam(), 3);
        for (step, slot) in pushes {
            apart.push(step, slot, 0, gradient(step, slot)).unwrap();
            while apart.advance(0).unwrap().is_some() {}
        }
        let mut together = shard(Consistency::BulkSynchronous, adam(), 3);
        for (step, slot) in (0..6).flat_map(|step| (0..3).map(move |slot| (step, slot))) {
            together.push(step, slot, 0, gradient(step, slot)).unwrap();
        }
        prop_assert_eq!(apart.version(), Some(6));
        prop_assert_eq!(apart.state(0).unwrap(), together.state(0).unwrap());
    }

    /// PS-2, PS-9
    #[test]
    fn in_whatever_order_slots_come_one_by_one_each_counts_once(pushes in pushes(6, 3, 4)) {
        let mut apart = shard(Consistency::Asynchronous, Sgd::new(1.0).into(), 3);
        for (step, slot) in pushes {
            // Each a power of 2: the sum tells which were applied.
            let gradient = all((1u32 << (step as u32 * 3 + slot)) as f32);
            apart.push(step, slot, 0, gradient).unwrap();
        }
        let all_once = ((1u32 << 18) - 1) as f32;
        prop_assert_eq!(apart.params(0).unwrap(), (6, Arc::new(all(-all_once))));
        prop_assert_eq!(apart.state(0).unwrap().taken, 18);
    }
}
