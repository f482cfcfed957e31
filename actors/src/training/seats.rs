//! Where the workers of a job are: each on the node that has the fewest, also when nodes come and go.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use footlight_runtime::NodeId;

/// The seats of a job's workers, by their index.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<BTreeMap<u32, Seat>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    node: NodeId,
    /// `None`: it is not known which.
    machine: Option<IpAddr>,
    /// Which of the job's workers on its machine it is, from 0: no two have the same.
    nth: u32,
}

/// A node that may have workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: NodeId,
    /// Its address, as nothing else tells nodes of one machine.
    pub(super) machine: Option<IpAddr>,
}

impl Seats {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, Seat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a worker a seat, in place of any that it had; the places in the order in which it should try them, and which
    /// worker of its machine it is at the first.
    ///
    /// Those with fewer workers come first; of those with as many the one of its own index, so that the first workers go
    /// to one node after the other.
    pub(super) fn take(&self, worker: u32, places: &[Place]) -> (Vec<NodeId>, u32) {
        let mut seats = self.all();
        seats.remove(&worker);
        let mut places = places.to_vec();
        let first = worker as usize % places.len().max(1);
        places.rotate_left(first);
        places.sort_by_key(|place| seats.values().filter(|seat| seat.node == place.node).count());
        let Some(Place { node, machine }) = places.first().copied() else {
            return Default::default();
        };
        let has =
            |nth: &u32| seats.values().any(|seat| (seat.machine, seat.nth) == (machine, *nth));
        let nth = (0..).find(|nth| !has(nth)).unwrap_or(0);
        seats.insert(worker, Seat { node, machine, nth });
        (places.into_iter().map(|place| place.node).collect(), nth)
    }

    /// A worker is on another node than the one that it had a seat on.
    pub(super) fn is_at(&self, worker: u32, at: NodeId, places: &[Place]) {
        if let Some(seat) = self.all().get_mut(&worker)
            && seat.node != at
        {
            let machine = places.iter().find(|place| place.node == at).and_then(|at| at.machine);
            *seat = Seat { node: at, machine, ..*seat };
        }
    }

    /// A worker that is to go elsewhere: its node has at least two more than another one that may have some.
    pub(super) fn crowded(&self, places: &[Place]) -> Option<u32> {
        let seats = self.all();
        let count = |node: NodeId| seats.values().filter(|seat| seat.node == node).count();
        let counts = || places.iter().map(|place| (count(place.node), place.node));
        let (most, crowded) = counts().max_by_key(|(count, _)| *count)?;
        let (fewest, _) = counts().min_by_key(|(count, _)| *count)?;
        let moves = seats.iter().rfind(|(_, seat)| seat.node == crowded);
        moves.filter(|_| most >= fewest + 2).map(|(worker, _)| *worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(machines: &[u8]) -> Vec<Place> {
        let place = |(node, machine): (u64, &u8)| Place {
            node: NodeId(node),
            machine: Some(IpAddr::from([10, 0, 0, *machine])),
        };
        (0..).zip(machines).map(place).collect()
    }

    #[test]
    fn workers_go_to_one_node_after_the_other_and_are_counted_on_each_machine() {
        let seated = |machines: &[u8]| {
            let seats = Seats::default();
            [0, 1, 2, 3, 4].map(|worker| {
                let (nodes, nth) = seats.take(worker, &places(machines));
                (nodes[0].0, nth)
            })
        };
        // One node or several on one machine; a node on each of two; two nodes on one of two.
        assert_eq!(seated(&[1]), [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]);
        assert_eq!(seated(&[1, 1]), [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]);
        assert_eq!(seated(&[1, 2]), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
        assert_eq!(seated(&[1, 1, 2]), [(0, 0), (1, 1), (2, 0), (0, 2), (1, 3)]);
    }

    #[test]
    fn who_starts_again_takes_the_emptiest_node_and_the_first_free_number() {
        let seats = Seats::default();
        let both = places(&[1, 1]);
        for worker in 0..4 {
            seats.take(worker, &both);
        }
        // Node 1 is lost, and its workers go to the other one; then node 2 has come.
        let first = &both[..1];
        assert_eq!(seats.take(1, first), (vec![NodeId(0)], 1));
        assert_eq!(seats.take(3, first), (vec![NodeId(0)], 3));
        let with_third = [both[0], places(&[1, 1, 1])[2]];
        assert_eq!(seats.crowded(&with_third), Some(3));
        assert_eq!(seats.take(3, &with_third), (vec![NodeId(2), NodeId(0)], 3));
        assert_eq!(seats.crowded(&with_third), Some(2));
        assert_eq!(seats.take(2, &with_third).0[0], NodeId(2));
        assert_eq!(seats.crowded(&with_third), None);
    }

    #[test]
    fn a_worker_that_went_elsewhere_is_counted_there() {
        let seats = Seats::default();
        let three = places(&[1, 2, 3]);
        seats.take(0, &three);
        seats.is_at(0, NodeId(1), &three);
        assert_eq!(seats.take(1, &three).0[0], NodeId(2));
        assert_eq!(seats.take(2, &three).0[0], NodeId(0));
        assert_eq!(seats.crowded(&three), None);
        assert_eq!(Seats::default().crowded(&[]), None);
        assert_eq!(seats.take(3, &[]), (vec![], 0));
    }
}
