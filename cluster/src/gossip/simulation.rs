//! Nodes that tell each other over connections that can be cut, in virtual time, seed by seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use super::*;
use crate::record::{Load, MAX_RECORD};

const SEEDS: u64 = 20;

fn record(node: u64, incarnation: u64) -> Record {
    Record {
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
        version: 1,
        addr: "127.0.0.1:1".parse().unwrap(),
        message_addr: "127.0.0.1:3".parse().unwrap(),
        bulk_addr: "127.0.0.1:2".parse().unwrap(),
        http: None,
        roles: Vec::new(),
        labels: BTreeMap::new(),
        actors: Vec::new(),
        resources: Default::default(),
        free: Default::default(),
        load: Load::default(),
        leaving: false,
        unreachable: Vec::new(),
        groups: BTreeMap::new(),
        ledger: None,
    }
}

fn with_actors(mut record: Record, version: u64, actors: u32) -> Record {
    record.version = version;
    record.load.actors = actors;
    record
}

fn single(own: Record) -> Gossip {
    let mut rng = ChaCha8Rng::seed_from_u64(own.node.0);
    Gossip::new(own, &mut rng, Instant::now())
}

/// What is known of a node's actors: stands for all that a record says.
fn actors(gossip: &Gossip, node: u64) -> Option<u32> {
    gossip.record(NodeId(node)).map(|record| record.load.actors)
}

struct World {
    rng: ChaCha8Rng,
    now: Instant,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    on_the_way: BTreeMap<u64, (NodeId, Incarnation, Send)>,
    nodes: BTreeMap<NodeId, Gossip>,
    cut: BTreeSet<(NodeId, NodeId)>,
    sent: u64,
}

impl World {
    /// So many nodes that membership of all knows as up, and that have told each other nothing yet.
    fn new(seed: u64, nodes: u64) -> Self {
        let mut world = World {
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Instant::now(),
            sequence: 0,
            queue: BinaryHeap::new(),
            on_the_way: BTreeMap::new(),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            sent: 0,
        };
        for node in 1..=nodes {
            world.start(record(node, 1));
        }
        world
    }

    fn start(&mut self, own: Record) {
        let (node, incarnation) = (own.node, own.incarnation);
        let mut gossip = Gossip::new(own, &mut self.rng, self.now);
        for (other, known) in &mut self.nodes {
            if *other != node {
                known.up(node, incarnation);
                gossip.up(*other, known.own().incarnation);
            }
        }
        self.nodes.insert(node, gossip);
        // The first words on each connection.
        for other in self.peers(node) {
            for (from, to) in [(node, other), (other, node)] {
                let own = self.nodes[&from].own().clone();
                self.send(from, vec![(to, Telling::Record(own))]);
            }
        }
    }

    fn cut(&mut self, one: u64, other: u64) {
        self.cut.insert((NodeId(one.min(other)), NodeId(one.max(other))));
    }

    fn are_cut(&self, one: NodeId, other: NodeId) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    fn peers(&self, node: NodeId) -> Vec<NodeId> {
        let others = self.nodes.keys().copied();
        others.filter(|other| *other != node && !self.are_cut(node, *other)).collect()
    }

    fn send(&mut self, from: NodeId, sends: Vec<Send>) {
        let life = self.nodes[&from].own().incarnation;
        for send in sends {
            self.sent += 1;
            self.sequence += 1;
            let after = Duration::from_micros(self.rng.random_range(100..1000));
            self.queue.push(Reverse((self.now + after, self.sequence)));
            self.on_the_way.insert(self.sequence, (from, life, send));
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.nodes.values().map(Gossip::next_due).min().unwrap();
            let arrives = self.queue.peek().map(|Reverse((at, _))| *at);
            let next = arrives.map_or(due, |at| at.min(due)).max(self.now);
            if next > end {
                break;
            }
            self.now = next;
            if arrives == Some(next) {
                let Reverse((_, sequence)) = self.queue.pop().unwrap();
                let (from, life, (to, telling)) = self.on_the_way.remove(&sequence).unwrap();
                if self.are_cut(from, to) {
                    continue;
                }
                let Some(gossip) = self.nodes.get_mut(&to) else { continue };
                let answers = match telling {
                    Telling::Record(record) => {
                        gossip.heed(from, life, Record::clone(&record));
                        Vec::new()
                    }
                    Telling::Digest(digest) => gossip.compare(from, digest),
                    Telling::Want(nodes) => gossip.answer(from, &nodes),
                };
                self.send(to, answers);
                continue;
            }
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                let peers = self.peers(node);
                let sends = self.nodes.get_mut(&node).unwrap().at(self.now, &peers);
                self.send(node, sends);
            }
        }
        self.now = end;
    }

    fn tell(&mut self, node: u64, actors: u32) {
        let gossip = self.nodes.get_mut(&NodeId(node)).unwrap();
        gossip.tell(|record| record.load.actors = actors).unwrap();
    }

    /// Who knows what of a node, itself not asked.
    fn known(&self, of: u64) -> BTreeSet<Option<u32>> {
        let others = self.nodes.iter().filter(|(node, _)| node.0 != of);
        others.map(|(_, gossip)| actors(gossip, of)).collect()
    }
}

#[test]
fn a_change_reaches_all_that_are_connected_at_once_and_often_changes_are_told_together() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 5);
        world.run_for(Duration::from_millis(100));
        let sent = world.sent;
        for change in 1..=1000 {
            world.tell(1, change);
            world.run_for(Duration::from_millis(1));
        }
        world.run_for(PUSH_PERIOD);
        assert_eq!(world.known(1), BTreeSet::from([Some(1000)]));
        // Eleven pushes to four; five digests in each of two seconds, and what they bring.
        assert!(world.sent - sent < 12 * 4 + 10 * 8, "{}", world.sent - sent);
    }
}

/// GO-5.
#[test]
fn news_gets_around_a_cut_between_two_nodes() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 5);
        world.run_for(Duration::from_secs(1));
        world.cut(1, 2);
        world.tell(1, 7);
        world.run_for(Duration::from_secs(8));
        assert_eq!(world.known(1), BTreeSet::from([Some(7)]), "seed {seed}");
    }
}

/// GO-5.
#[test]
fn news_travels_along_a_chain() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 6);
        for one in 1..=6 {
            for other in one + 2..=6 {
                world.cut(one, other);
            }
        }
        world.tell(1, 7);
        world.run_for(Duration::from_secs(15));
        assert_eq!(world.known(1), BTreeSet::from([Some(7)]), "seed {seed}");
    }
}

/// GO-1, GO-2.
#[test]
fn a_restarted_node_s_record_takes_the_old_one_s_place_and_the_old_one_never_comes_back() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 5);
        world.cut(1, 2);
        world.tell(1, 7);
        world.run_for(Duration::from_secs(8));
        world.start(with_actors(record(1, 2), 1, 3));
        for _ in 0..80 {
            world.run_for(Duration::from_millis(100));
            let known = world.known(1);
            assert!(!known.contains(&Some(7)), "seed {seed}: {known:?}");
        }
        assert_eq!(world.known(1), BTreeSet::from([Some(3)]), "seed {seed}");
    }
}

/// GO-1, GO-2.
#[test]
fn who_tells_of_another_node_can_neither_bring_a_past_life_back_nor_make_up_a_later_one() {
    let mut gossip = single(record(1, 1));
    gossip.up(NodeId(2), Incarnation(5));
    let life = Incarnation(5);
    let told = with_actors(record(2, 5), 4, 4);
    assert!(gossip.heed(NodeId(2), life, told.clone()).is_some());
    for (incarnation, version) in [(4, 9), (6, 9), (u64::MAX, 9), (5, 3), (5, 4)] {
        let lie = with_actors(record(2, incarnation), version, 66);
        assert_eq!(gossip.heed(NodeId(3), Incarnation(1), lie), None, "{incarnation} {version}");
    }
    // Nor can it do so in its own name with the life of its connection wrong.
    assert_eq!(gossip.heed(NodeId(2), Incarnation(6), with_actors(record(2, 5), 9, 66)), None);
    assert_eq!(actors(&gossip, 2), Some(4));
    assert!(gossip.heed(NodeId(3), Incarnation(1), with_actors(record(2, 5), 5, 5)).is_some());
    // One that is no member is not heard of from others.
    assert_eq!(gossip.heed(NodeId(3), Incarnation(1), record(4, 1)), None);
}

/// GO-3.
#[test]
fn what_was_made_up_in_a_node_s_name_is_gone_when_it_hears_of_it() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 5);
        world.run_for(Duration::from_secs(2));
        let lie = Arc::new(with_actors(record(1, 1), 1 << 60, 66));
        let told = [2, 3, 4].map(|node| (NodeId(node), Telling::Record(lie.clone())));
        world.send(NodeId(5), told.to_vec());
        world.run_for(Duration::from_millis(2));
        assert!(world.known(1).contains(&Some(66)));
        world.run_for(Duration::from_secs(8));
        assert_eq!(world.known(1), BTreeSet::from([Some(0)]), "seed {seed}");
        // And it can go on telling.
        world.tell(1, 8);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.known(1), BTreeSet::from([Some(8)]), "seed {seed}");
    }
}

/// GO-4.
#[test]
fn records_of_strangers_are_forgotten_and_those_of_members_stay() {
    let mut gossip = single(record(1, 1));
    for stranger in 10..1000 {
        assert!(gossip.heed(NodeId(stranger), Incarnation(1), record(stranger, 1)).is_some());
    }
    gossip.up(NodeId(10), Incarnation(1));
    let mut now = Instant::now();
    for _ in 0..=PATIENCE {
        now += ROUND;
        gossip.at(now, &[]);
    }
    assert_eq!(gossip.held.keys().copied().collect::<Vec<_>>(), [NodeId(10)]);
    gossip.gone(NodeId(10), Incarnation(1));
    assert!(gossip.held.is_empty() && gossip.up.is_empty());
}

/// GO-4.
#[test]
fn answers_and_digests_are_bounded_whatever_is_asked_and_all_are_told_in_turn() {
    let mut gossip = single(record(1, 1));
    let many = 3 * MAX_DIGEST as u64;
    for node in 2..=many {
        gossip.up(NodeId(node), Incarnation(1));
        gossip.heed(NodeId(node), Incarnation(1), record(node, 1)).unwrap();
    }
    let (mut told, mut now) = (BTreeSet::new(), Instant::now());
    for _ in 0..3 {
        now += 2 * ROUND;
        let sends = gossip.at(now, &[NodeId(2)]);
        let [(_, Telling::Digest(digest))] = &sends[..] else { panic!("{sends:?}") };
        assert!(digest.known.len() <= MAX_DIGEST);
        told.extend(digest.known.iter().map(|(node, _, _)| *node));
    }
    assert_eq!(told.len() as u64, many);
    let nothing = Digest { first: NodeId(0), last: NodeId(u64::MAX), known: Vec::new() };
    assert_eq!(gossip.compare(NodeId(2), nothing).len(), MAX_ANSWER);
    let inverted = Digest { first: NodeId(9), last: NodeId(1), known: Vec::new() };
    assert_eq!(gossip.compare(NodeId(2), inverted), Vec::new());
    let all: Vec<NodeId> = (1..=many).map(NodeId).collect();
    assert_eq!(gossip.answer(NodeId(2), &all).len(), MAX_ANSWER);
    let newer = all[1..].iter().map(|node| (*node, Incarnation(1), 2)).collect();
    let newer = Digest { first: NodeId(0), last: NodeId(u64::MAX), known: newer };
    let answer = gossip.compare(NodeId(2), newer);
    let Some((_, Telling::Want(wanted))) = answer.last() else { panic!("{answer:?}") };
    assert_eq!(wanted.len(), MAX_ANSWER);
}

#[test]
fn a_record_that_would_not_fit_is_refused_and_nothing_changes() {
    let mut gossip = single(record(1, 1));
    let before = gossip.own().clone();
    let too_many = vec!["a role".to_owned(); MAX_RECORD / 7];
    let error = gossip.tell(|own| own.roles = too_many).unwrap_err();
    assert!(error.bytes > MAX_RECORD, "{error}");
    assert_eq!(*gossip.own(), before);
    assert_eq!(gossip.tell(|_| {}), Ok(None), "what says the same is not told again");
}

#[test]
fn a_load_that_is_no_number_is_taken_as_none() {
    let mut gossip = single(record(1, 1));
    let mut odd = record(2, 1);
    odd.load.cpu = f32::NAN;
    let heeded = gossip.heed(NodeId(2), Incarnation(1), odd).unwrap();
    assert_eq!(heeded.load.cpu, 0.0);
}
