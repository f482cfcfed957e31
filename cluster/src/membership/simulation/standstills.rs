//! Members that stand still for a while, as a process without a processor does: nothing of theirs
//! happens meanwhile, and then all of it at once.

use super::*;

/// A member stands still from now on, for so long; the others go on.
fn stand_still(world: &mut World, who: usize, time: Duration) {
    let end = world.now + time;
    // In the order in which they would have happened.
    let mut late = Vec::new();
    while world.queue.peek().is_some_and(|Reverse((at, _))| *at <= end) {
        let Some(Reverse((_, sequence))) = world.queue.peek() else { break };
        let is_its = match &world.events[sequence] {
            Event::Packet { to, .. } => *to == who,
            Event::Timer { node, .. } => *node == who,
        };
        if !is_its {
            world.step();
            continue;
        }
        let Some(Reverse((_, sequence))) = world.queue.pop() else { break };
        late.extend(world.events.remove(&sequence));
    }
    world.now = end;
    for event in late {
        world.push(Duration::ZERO, event);
    }
}

/// Nobody is declared down although members stand still for so long, one after the other, with and
/// without loss.
fn is_borne(net: &Net, time: Duration) {
    let (mut stood_still, mut suspected) = (0, 0);
    for (seed, loss) in (0..SEEDS).flat_map(|seed| [(seed, 0.0), (seed, 0.1)]) {
        let mut world = World::cluster_on(net.clone(), seed, loss);
        for _ in 0..10 {
            let who = world.rng.random_range(0..NODES);
            stand_still(&mut world, who, time);
            let pause = world.rng.random_range(0.7..4.3);
            world.run_for(time.mul_f64(pause));
            stood_still += 1;
        }
        for (at, _, told) in &world.log {
            match told {
                SwimAction::Suspect(_) => suspected += 1,
                SwimAction::Cleared(_) => {}
                other => panic!("seed {seed}, loss {loss}, {at:?}: {other:?}"),
            }
        }
        assert!((0..NODES).all(|node| world.nodes[&node].1.me() == member(node, 1)));
    }
    // It was noticed, by most of the others, and each time it was in time to speak up.
    assert!(suspected > 2 * stood_still, "{suspected} of {stood_still}");
}

#[test]
fn a_standstill_of_seven_tenths_of_a_second_is_borne() {
    is_borne(&Net::lan(), ms(700));
}

#[test]
fn one_of_three_and_a_half_seconds_is_borne_in_a_wide_network() {
    is_borne(&Net::wan(), ms(3500));
}

#[test]
fn most_of_a_second_are_declared_down_and_come_back_as_new() {
    let mut declared = 0;
    for seed in 0..SEEDS {
        let mut world = World::cluster(seed, 0.0);
        stand_still(&mut world, 3, Duration::from_secs(1));
        let down = SwimAction::Down(member(3, 1));
        if [0, 1, 2, 4].iter().any(|node| world.was_told(*node, &down)) {
            declared += 1;
            world.run_until(HEALED, |world| world.is_one() && !world.rejoined().is_empty());
            assert_eq!(world.rejoined(), BTreeSet::from([3]), "seed {seed}");
        }
    }
    println!("{declared} of {SEEDS} were declared down");
    assert!(declared > SEEDS / 2, "{declared}");
}
