//! Cuts, both ways and one way, and how a cluster becomes one again when they heal.

use super::*;

#[test]
fn a_node_that_was_cut_off_comes_back_as_a_new_life() {
    let mut slowest = Duration::ZERO;
    for seed in 0..SEEDS {
        let mut world = World::cluster(seed, 0.0);
        world.cut_off(&[3]);
        let down = SwimAction::Down(member(3, 1));
        world.run_until(ms(1500), |world| {
            [0, 1, 2, 4].iter().all(|node| world.was_told(*node, &down))
        });
        world.run_for(Duration::from_secs(5));
        world.heal();
        let healed = world.run_until(HEALED, World::is_one);
        slowest = slowest.max(healed);
        // Each had declared the others down: it alone comes back as new (ME-7).
        assert_eq!(world.rejoined(), BTreeSet::from([3]), "seed {seed}");
    }
    println!("slowest of {SEEDS}: {slowest:?}");
}

#[test]
fn of_two_halves_the_lesser_comes_back_as_new_lives_and_the_greater_goes_on() {
    let mut slowest = Duration::ZERO;
    for seed in 0..SEEDS {
        // Two against three; then, without one of the three, the two have the smallest node.
        for (crashed, lesser) in [(None, [0, 1]), (Some(4), [2, 3])] {
            let mut world = World::cluster(seed, 0.1);
            if let Some(node) = crashed {
                world.nodes.remove(&node);
                world.run_until(ms(2000), World::is_one);
            }
            world.cut_off(&[0, 1]);
            let third = if crashed.is_some() { 1 } else { 2 };
            world.run_until(ms(2000), |world| {
                (0..2).all(|node| world.up(node).len() == 1)
                    && (2..3 + third).all(|node| world.up(node).len() == third)
            });
            // At once or later: old news may still be under way or not.
            world.run_for(ms(seed % 2 * 3000));
            world.log.clear();
            world.heal();
            slowest = slowest.max(world.run_until(HEALED, World::is_one));
            world.run_for(Duration::from_secs(5));
            assert!(world.is_one(), "seed {seed}");
            assert_eq!(world.rejoined(), BTreeSet::from(lesser), "seed {seed}");
            for (_, _, told) in &world.log {
                let over = match told {
                    SwimAction::Down(over) | SwimAction::Renamed { old: over, .. } => over,
                    _ => continue,
                };
                let lesser = lesser.map(|node| member(node, 1));
                assert!(lesser.contains(over), "seed {seed}: {told:?}");
            }
        }
    }
    println!("slowest of {SEEDS}: {slowest:?}");
}

#[test]
fn a_node_that_nobody_hears_comes_back_as_new_and_nobody_else_does() {
    for seed in 0..SEEDS {
        let mut world = World::cluster(seed, 0.0);
        world.cut.extend([0, 1, 2, 4].map(|other| (3, other)));
        world.run_for(ms(2000 + 400 * seed));
        assert!((0..NODES).all(|node| node == 3 || !world.up(node).contains(&member(3, 1))));
        world.heal();
        world.run_until(HEALED, World::is_one);
        assert_eq!(world.rejoined(), BTreeSet::from([3]), "seed {seed}");
    }
}

#[test]
fn several_that_nobody_hears_are_back_within_five_seconds_and_lose_nobody_afterwards() {
    for (seed, deaf) in (0..8 * SEEDS).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::cluster(seed, 0.0);
        let time = world.rng.random_range(500..5000);
        let few = [3, 4];
        let others = few.iter().flat_map(|few| (0..NODES).map(|other| (*few, other)));
        world.cut = match deaf {
            true => others.map(|(few, other)| (other, few)).collect(),
            false => others.collect(),
        };
        world.run_for(ms(time));
        world.heal();
        world.run_for(Duration::from_secs(5));
        for after in 0..100 {
            let seen: Vec<_> = (0..NODES).map(|node| world.up(node)).collect();
            assert!(
                world.is_one(),
                "seed {seed}, deaf {deaf}, {time} ms, {after} tenths of a second later: {seen:#?}"
            );
            world.run_for(ms(100));
        }
    }
}

#[test]
fn whatever_is_cut_and_healed_at_whatever_moment_becomes_one_again() {
    let mut slowest = Duration::ZERO;
    let (mut cuts, mut both) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::cluster(seed, 0.05);
        for round in 0..8 {
            world.log.clear();
            let few: Vec<usize> = (0..NODES).filter(|_| world.rng.random_bool(0.4)).collect();
            world.cut_off(&few);
            if world.rng.random_bool(0.3) {
                // One way only.
                world.cut.retain(|(from, _)| few.contains(from));
            }
            let pause = world.rng.random_range(500..4000);
            world.run_for(ms(pause));
            world.heal();
            slowest = slowest.max(world.run_until(HEALED, World::is_one));
            world.run_for(ms(1000));
            assert!(world.is_one(), "seed {seed}, round {round}");
            let parted = world.rejoined();
            cuts += usize::from(!parted.is_empty());
            both += usize::from(
                parted.iter().any(|node| few.contains(node))
                    && parted.iter().any(|node| !few.contains(node)),
            );
        }
    }
    println!(
        "{cuts} times a half came back as new, {both} times both, the slowest after {slowest:?}"
    );
}

/// How long it takes until all know all after a cut of 3 to 20 s between those below `split` and the
/// others, of `nodes` in all.
fn heals(seed: u64, nodes: usize, split: usize) -> Duration {
    let mut world = World::cluster(seed, 0.0);
    for node in nodes..NODES {
        world.with(node, Swim::leave);
        world.nodes.remove(&node);
    }
    world.run_for(Duration::from_secs(1));
    world.cut_off(&(0..split).collect::<Vec<_>>());
    let cut = world.rng.random_range(3000..20_000);
    world.run_for(ms(cut));
    // No connection lasts that long without a word: what waited is lost.
    world.held.clear();
    world.heal();
    world.run_until(Duration::from_secs(5), World::is_one)
}

/// ME-6.
#[test]
fn after_a_cut_all_find_all_again_within_five_seconds_whatever_its_parts() {
    for (nodes, split) in [(2, 1), (3, 1), (5, 1), (5, 2)] {
        let mut times: Vec<_> = (0..SEEDS).map(|seed| heals(seed, nodes, split)).collect();
        times.sort();
        println!(
            "{split} of {nodes} cut off: {:?} … {:?}",
            times[SEEDS as usize / 2],
            times.last()
        );
    }
}
