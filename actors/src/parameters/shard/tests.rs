use proptest::prelude::*;

use super::*;
use crate::parameters::optimizer::{Adam, Sgd};

const LEN: usize = 48;

fn layout(shards: usize) -> Layout {
    Layout::new([("all", vec![LEN * shards])], shards).unwrap()
}

/// One chunk of zeros with number 0, two slots a step, p -= g.
fn shard(slots: u32) -> Shard<Vec<f32>> {
    let mut shard =
        Shard::new(&layout(1), 0, Sgd::new(1.0).into(), StepRule::default(), 10, slots).unwrap();
    shard.init(0, vec![0.0; LEN]).unwrap();
    shard
}

fn all(value: f32) -> Vec<f32> {
    vec![value; LEN]
}

#[test]
fn a_step_is_applied_when_its_last_slot_arrives() {
    // PS-3
    let mut shard = shard(2);
    assert_eq!(shard.missing(0, 0), Ok(vec![0, 1]));
    assert_eq!(shard.push(0, 1, 0, all(0.25)), Ok(Push::Accepted));
    assert_eq!(shard.params(0).unwrap(), (0, Arc::new(all(0.0))));
    assert_eq!((shard.missing(0, 0), shard.missing(1, 0)), (Ok(vec![0]), Ok(vec![0, 1])));
    assert_eq!(shard.push(0, 0, 0, all(0.5)), Ok(Push::Applied { version: 1 }));
    assert_eq!(shard.params(0).unwrap(), (1, Arc::new(all(-0.75))));
    assert_eq!((shard.version(), shard.missing(0, 0)), (Some(1), Ok(vec![])));
}

#[test]
fn a_second_push_is_recognised_before_the_step_is_applied_and_after() {
    // PS-2
    let mut shard = shard(2);
    shard.push(0, 0, 0, all(0.5)).unwrap();
    assert_eq!(shard.push(0, 0, 0, all(99.0)), Ok(Push::Duplicate));
    shard.push(0, 1, 0, all(0.25)).unwrap();
    for slot in [0, 1] {
        assert_eq!(shard.push(0, slot, 0, all(99.0)), Ok(Push::AlreadyApplied));
    }
    assert_eq!(shard.params(0).unwrap(), (1, Arc::new(all(-0.75))));
}

#[test]
fn a_push_of_the_future_is_refused() {
    // PS-3, PS-6
    let mut shard = shard(1);
    let refused = shard.push(1, 0, 0, all(1.0));
    assert_eq!(refused, Err(ShardError::FromTheFuture { chunk: 0, step: 1, version: 0 }));
    assert_eq!(shard.push(0, 0, 0, all(1.0)), Ok(Push::Applied { version: 1 }));
    assert_eq!(shard.push(1, 0, 0, all(1.0)), Ok(Push::Applied { version: 2 }));
    assert!(shard.push(u64::MAX, 0, 0, all(1.0)).is_err());
}

#[test]
fn who_reads_an_old_version_keeps_it() {
    // PS-4
    let mut shard = shard(1);
    let versions: Vec<_> = (0..6)
        .map(|step| {
            shard.push(step, 0, 0, all(1.0)).unwrap();
            shard.params(0).unwrap()
        })
        .collect();
    for (version, params) in versions {
        assert_eq!(*params, all(-(version as f32)));
    }
}

#[test]
fn a_chunk_of_many_blocks_is_stepped_as_a_whole_and_one_bad_number_anywhere_stops_it() {
    // PS-1, PS-5
    const LONG: usize = 2 * BLOCK + 16;
    let long = || {
        let layout = Layout::new([("all", vec![LONG])], 1).unwrap();
        let adam = Adam::new(0.1).weight_decay(0.01);
        let mut shard = Shard::new(&layout, 0, adam.into(), StepRule::default(), 10, 2).unwrap();
        shard.init(0, (0..LONG).map(|at| at as f32 / 100.0).collect()).unwrap();
        (shard, OptimizerSpec::from(adam))
    };
    let gradient =
        |slot: usize| (0..LONG).map(|at| (at * (slot + 1) % 7) as f32).collect::<Vec<_>>();
    let (mut shard, adam) = long();
    let (mut state, mut params) = (adam.state(LONG), shard.params(0).unwrap().1.to_vec());
    for step in 0..3 {
        for slot in [1, 0] {
            shard.push(step, slot, 0, gradient(slot as usize)).unwrap();
        }
        let sum: Vec<f32> = gradient(0).iter().zip(gradient(1)).map(|(a, b)| a + b).collect();
        let before = params.clone();
        adam.apply(&mut state, step + 1, 1.0, &before, &sum, &mut params).unwrap();
        assert!(same_bits(&shard.params(0).unwrap().1, &params), "step {step}");
    }
    for bad in [0, BLOCK - 1, BLOCK, LONG - 1] {
        let (mut shard, _) = long();
        let mut broken = gradient(0);
        broken[bad] = f32::NAN;
        shard.push(0, 1, 0, gradient(1)).unwrap();
        let error = shard.push(0, 0, 0, broken).unwrap_err();
        assert!(matches!(error, ShardError::NonFinite { numbers: Numbers::Gradient, .. }), "{bad}");
    }
}

#[test]
fn memory_is_used_again_when_nobody_reads_it() {
    let mut shard = shard(1);
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..20 {
        shard.push(step, 0, 0, all(1.0)).unwrap();
        seen.insert(shard.params(0).unwrap().1.as_ptr());
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_chunk_and_names_it() {
    // PS-5
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut shard = shard(2);
        let mut grad = all(1.0);
        grad[LEN - 1] = bad;
        assert_eq!(shard.push(0, 0, 0, grad), Ok(Push::Accepted));
        let error = shard.push(0, 1, 0, all(1.0)).unwrap_err();
        assert!(
            error.to_string().starts_with("the gradients of chunk 0 at step 0 are not all finite"),
            "{error}"
        );
        assert_eq!(shard.push(0, 0, 0, all(1.0)), Err(error));
        assert_eq!(shard.params(0).unwrap(), (0, Arc::new(all(0.0))));
    }
}

#[test]
fn parameters_that_leave_the_numbers_are_never_published() {
    // PS-5
    let mut shard =
        Shard::new(&layout(1), 0, Sgd::new(1e30).into(), StepRule::default(), 10, 1).unwrap();
    shard.init(0, all(0.0)).unwrap();
    let error = shard.push(0, 0, 0, all(1e30)).unwrap_err();
    assert!(error.to_string().starts_with("the new parameters of chunk 0 at step 0"), "{error}");
    assert_eq!(shard.push(0, 0, 0, all(0.0)), Err(error));
    assert_eq!(shard.params(0).unwrap(), (0, Arc::new(all(0.0))));
}

#[test]
fn what_does_not_belong_here_is_refused_and_changes_nothing() {
    // PS-6
    let layout = layout(2);
    assert!(matches!(
        Shard::<Vec<f32>>::new(&layout, 2, Sgd::new(1.0).into(), StepRule::default(), 10, 1),
        Err(ShardError::UnknownShard { shard: 2, shards: 2 })
    ));
    assert!(matches!(
        Shard::<Vec<f32>>::new(&layout, 0, Sgd::new(1.0).into(), StepRule::default(), 10, 0),
        Err(ShardError::NoSlots)
    ));
    assert!(matches!(
        Shard::<Vec<f32>>::new(&layout, 0, Sgd::new(-1.0).into(), StepRule::default(), 10, 1),
        Err(ShardError::Optimizer(_))
    ));
    let mut shard =
        Shard::new(&layout, 1, Sgd::new(1.0).into(), StepRule::default(), 10, 2).unwrap();
    assert_eq!(shard.chunks().collect::<Vec<_>>(), [1]);
    assert_eq!(shard.version(), None);
    assert_eq!(shard.push(0, 0, 1, all(1.0)), Err(ShardError::NotInitialised { chunk: 1 }));
    assert_eq!(shard.params(1), Err(ShardError::NotInitialised { chunk: 1 }));
    assert_eq!(shard.init(0, all(0.0)), Err(ShardError::UnknownChunk { chunk: 0 }));
    assert!(matches!(
        shard.init(1, vec![0.0; 3]),
        Err(ShardError::WrongLength { expected: LEN, got: 3, .. })
    ));
    assert!(matches!(shard.init(1, all(f32::NAN)), Err(ShardError::NonFinite { .. })));
    shard.init(1, all(0.0)).unwrap();
    assert_eq!(shard.push(0, 0, 0, all(1.0)), Err(ShardError::UnknownChunk { chunk: 0 }));
    assert!(matches!(
        shard.push(0, 0, 1, vec![]),
        Err(ShardError::WrongLength { expected: LEN, got: 0, .. })
    ));
    assert_eq!(
        shard.push(0, 2, 1, all(1.0)),
        Err(ShardError::SlotOutOfRange { slot: 2, slots: 2 })
    );
    assert_eq!(shard.missing(0, 1), Ok(vec![0, 1]));
}

#[test]
fn parameters_are_given_once_and_the_same_ones_may_be_given_again() {
    let mut shard = shard(1);
    assert_eq!(shard.init(0, all(0.0)), Ok(()));
    assert_eq!(
        shard.init(0, all(1.0)),
        Err(ShardError::AlreadyInitialised { chunk: 0, version: 0 })
    );
    shard.push(0, 0, 0, all(1.0)).unwrap();
    assert_eq!(
        shard.init(0, all(0.0)),
        Err(ShardError::AlreadyInitialised { chunk: 0, version: 1 })
    );
}

proptest! {
    #[test]
    fn the_order_of_arrival_and_repeated_pushes_do_not_change_a_bit(
        arrivals in prop::collection::vec(Just((0..5u32).collect::<Vec<_>>()).prop_shuffle(), 3),
        grads in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, LEN), 15),
        repeated in 0..5usize,
    ) {
        // PS-1, PS-2
        let run = |arrivals: &[Vec<u32>], repeated: Option<usize>| {
            let mut shard = Shard::new(&layout(1), 0, Adam::new(0.01).into(), StepRule::default(), 3, 5).unwrap();
            shard.init(0, all(0.5)).unwrap();
            for (step, slots) in arrivals.iter().enumerate() {
                for (number, &slot) in slots.iter().enumerate() {
                    let grad = &grads[step * 5 + slot as usize];
                    shard.push(step as u64, slot, 0, grad.clone()).unwrap();
                    if repeated == Some(number) {
                        let again = shard.push(step as u64, slot, 0, grad.clone()).unwrap();
                        assert!(matches!(again, Push::Duplicate | Push::AlreadyApplied));
                    }
                }
            }
            shard.params(0).unwrap()
        };
        let (version, params) = run(&arrivals, Some(repeated));
        let (expected_version, expected) = run(&[vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]], None);
        prop_assert_eq!(version, expected_version);
        prop_assert!(same_bits(&params, &expected));
    }
}

#[test]
fn the_version_before_the_newest_is_kept_and_no_older_one() {
    // PS-4: who computes a slot again that only some chunks have needs all chunks as they were.
    let mut shard = shard(1);
    assert_eq!(shard.params_of(0, 0), Some(Arc::new(all(0.0))));
    assert_eq!(shard.params_of(0, 1), None);
    for step in 0..3 {
        shard.push(step, 0, 0, all(1.0)).unwrap();
        let newest = -(step as f32) - 1.0;
        assert_eq!(shard.params_of(0, step + 1), Some(Arc::new(all(newest))));
        assert_eq!(shard.params_of(0, step), Some(Arc::new(all(newest + 1.0))));
        assert_eq!(shard.params_of(0, step + 2), None);
    }
    assert_eq!(shard.params_of(0, 1), None);
    assert_eq!(shard.params_of(0, u64::MAX), None);
    assert_eq!(shard.params_of(1, 0), None);
}

/// As [`shard`], one slot a step, and `p -= g` only after a verdict.
fn ruled() -> Shard<Vec<f32>> {
    let rule = StepRule::default().clip_norm(1.0);
    let mut shard = Shard::new(&layout(1), 0, Sgd::new(1.0).into(), rule, 10, 1).unwrap();
    shard.init(0, vec![0.0; LEN]).unwrap();
    shard
}

#[test]
fn under_a_rule_no_step_is_taken_before_its_verdict() {
    // PS-7
    let mut shard = ruled();
    let early = shard.decide(0, Verdict::Apply(1.0));
    assert_eq!(early, Err(ShardError::NotSummed { chunk: 0, step: 0, version: 0 }));
    let mut squares = Box::<SquareSum>::default();
    squares.add(&all(0.5), LEN);
    assert_eq!(shard.push(0, 0, 0, all(0.5)), Ok(Push::Summed { squares: Some(squares) }));
    assert_eq!(shard.push(0, 0, 0, all(99.0)), Ok(Push::Duplicate));
    assert_eq!((shard.missing(0, 0), shard.version()), (Ok(vec![]), Some(0)));
    shard.decide(0, Verdict::Apply(0.5)).unwrap();
    assert_eq!(shard.params(0).unwrap(), (1, Arc::new(all(-0.25))));
    assert_eq!(shard.push(0, 0, 0, all(99.0)), Ok(Push::AlreadyApplied));
    let again = shard.decide(0, Verdict::Apply(1.0));
    assert_eq!(again, Err(ShardError::NotSummed { chunk: 0, step: 0, version: 1 }));
}

#[test]
fn a_step_that_is_left_out_changes_nothing_but_the_version() {
    // PS-7: the optimiser has taken one step less than there are versions.
    let rule = StepRule::default().clip_norm(1.0);
    let adam = || Adam::new(0.1).into();
    let mut skips = Shard::new(&layout(1), 0, adam(), rule, 10, 1).unwrap();
    let mut plain = Shard::new(&layout(1), 0, adam(), StepRule::default(), 10, 1).unwrap();
    for shard in [&mut skips, &mut plain] {
        shard.init(0, all(1.0)).unwrap();
    }
    skips.push(0, 0, 0, all(f32::NAN)).unwrap();
    skips.decide(0, Verdict::Skip).unwrap();
    assert_eq!(skips.params(0).unwrap(), (1, Arc::new(all(1.0))));
    assert_eq!(skips.params_of(0, 0), Some(Arc::new(all(1.0))));
    skips.push(1, 0, 0, all(0.5)).unwrap();
    skips.decide(1, Verdict::Apply(1.0)).unwrap();
    plain.push(0, 0, 0, all(0.5)).unwrap();
    assert_eq!(skips.params(0).unwrap().1, plain.params(0).unwrap().1);
    assert_eq!(skips.params(0).unwrap().0, 2);
}

#[test]
fn a_verdict_that_scales_nothing_gives_the_bits_of_a_step_without_one() {
    let mut with = ruled();
    let mut without = shard(1);
    let gradient: Vec<f32> = (0..LEN).map(|at| (at as f32 - 20.5) / 7.0).collect();
    with.push(0, 0, 0, gradient.clone()).unwrap();
    with.decide(0, Verdict::Apply(1.0)).unwrap();
    without.push(0, 0, 0, gradient).unwrap();
    assert!(same_bits(&with.params(0).unwrap().1, &without.params(0).unwrap().1));
}

#[test]
fn a_verdict_to_stop_stops_the_chunk_for_good() {
    // PS-5
    let mut shard = ruled();
    shard.push(0, 0, 0, all(f32::INFINITY)).unwrap();
    let numbers = Numbers::Gradient;
    let diverged = Err(ShardError::NonFinite { chunk: 0, step: 0, numbers });
    assert_eq!(shard.decide(0, Verdict::Stop), diverged);
    assert_eq!(shard.push(0, 0, 0, all(1.0)), diverged.map(|()| Push::Accepted));
    assert_eq!(shard.params(0).unwrap(), (0, Arc::new(all(0.0))));
}
