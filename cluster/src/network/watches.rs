//! What is watched on one other node, and who waits for it.
//!
//! However many watch an actor from here, its node is asked once, and all hear its answer, in the
//! order in which they began to watch. So who has heard of an end finds it known wherever somebody
//! watched before.

use std::collections::{HashMap, hash_map::Entry};

use footlight_runtime::{ActorAddr, Down, Incarnation};
use tokio::sync::oneshot;

pub(super) type Watcher = oneshot::Sender<Down>;

/// The watched actors of one node. A watch has a number on the wire, which is that of its first
/// watcher.
#[derive(Default)]
pub(super) struct Watches {
    by_number: HashMap<u64, (ActorAddr, Vec<Watcher>)>,
    numbers: HashMap<ActorAddr, u64>,
    /// How many watchers there are, those that gave up among them.
    watchers: usize,
    /// How many there may be before those that gave up are looked for.
    sweep_at: usize,
}

impl Watches {
    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// The watched actors with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, ActorAddr)> {
        self.by_number.iter().map(|(number, (actor, _))| (*number, *actor))
    }

    /// Adds a watcher; true if its actor was not watched before, and its node is to be asked under
    /// `number`.
    pub(super) fn add(&mut self, number: u64, actor: ActorAddr, watcher: Watcher) -> bool {
        self.watchers += 1;
        match self.numbers.entry(actor) {
            Entry::Occupied(first) => {
                if let Some((_, watchers)) = self.by_number.get_mut(first.get()) {
                    watchers.push(watcher);
                }
                false
            }
            Entry::Vacant(none) => {
                none.insert(number);
                self.by_number.insert(number, (actor, vec![watcher]));
                true
            }
        }
    }

    /// Ends a watch, and gives those who are to be told.
    pub(super) fn take(&mut self, number: u64) -> Vec<Watcher> {
        let Some((actor, watchers)) = self.by_number.remove(&number) else { return Vec::new() };
        self.numbers.remove(&actor);
        self.watchers -= watchers.len();
        watchers
    }

    /// Ends the watches on actors of lives up to `over`.
    pub(super) fn take_lives(&mut self, over: Incarnation) -> Vec<Watcher> {
        let gone = self.iter().filter(|(_, actor)| actor.incarnation <= over);
        let gone: Vec<u64> = gone.map(|(number, _)| number).collect();
        gone.into_iter().flat_map(|number| self.take(number)).collect()
    }

    /// Forgets watchers that gave up; the numbers of watches that nobody needs any more.
    pub(super) fn sweep(&mut self) -> Vec<u64> {
        let mut unneeded = Vec::new();
        self.by_number.retain(|number, (actor, watchers)| {
            let before = watchers.len();
            watchers.retain(|watcher| !watcher.is_closed());
            self.watchers -= before - watchers.len();
            if watchers.is_empty() {
                self.numbers.remove(actor);
                unneeded.push(*number);
            }
            !watchers.is_empty()
        });
        self.sweep_at = (2 * self.watchers).max(8);
        unneeded
    }

    /// [`sweep`](Self::sweep), but only when so many have come that it is worth its time.
    pub(super) fn sweep_if_many(&mut self) -> Vec<u64> {
        if self.watchers < self.sweep_at { Vec::new() } else { self.sweep() }
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::{ActorId, NodeId};

    use super::*;

    fn actor(incarnation: u64, id: u64) -> ActorAddr {
        let (node, incarnation) = (NodeId(1), Incarnation(incarnation));
        ActorAddr { node, incarnation, actor: ActorId(id) }
    }

    #[test]
    fn all_who_watch_an_actor_are_one_watch_and_are_told_in_order() {
        let mut watches = Watches::default();
        let mut waiting = Vec::new();
        for number in 0..3 {
            let (sender, watcher) = oneshot::channel();
            assert_eq!(watches.add(number, actor(1, 7), sender), number == 0);
            waiting.push(watcher);
        }
        assert_eq!(watches.iter().collect::<Vec<_>>(), [(0, actor(1, 7))]);
        assert!(watches.take(1).is_empty(), "a number that was never asked under");
        for (told, mut watcher) in watches.take(0).into_iter().zip(waiting) {
            told.send(Down::Stopped).unwrap();
            assert!(matches!(watcher.try_recv(), Ok(Down::Stopped)));
        }
        assert!(watches.is_empty());
        // Who watches again asks again.
        assert!(watches.add(3, actor(1, 7), oneshot::channel().0));
    }

    #[test]
    fn a_life_that_is_over_takes_its_watches_and_no_others() {
        let mut watches = Watches::default();
        let (old, mut old_watcher) = oneshot::channel();
        let (new, _new_watcher) = oneshot::channel();
        watches.add(0, actor(1, 7), old);
        watches.add(1, actor(2, 7), new);
        for told in watches.take_lives(Incarnation(1)) {
            told.send(Down::Killed).unwrap();
        }
        assert!(old_watcher.try_recv().is_ok());
        assert_eq!(watches.iter().collect::<Vec<_>>(), [(1, actor(2, 7))]);
    }

    #[test]
    fn watchers_that_gave_up_do_not_pile_up_and_their_watches_end() {
        let mut watches = Watches::default();
        let (sender, _staying) = oneshot::channel();
        watches.add(0, actor(1, 0), sender);
        let mut ended = Vec::new();
        for number in 1..10_000 {
            ended.extend(watches.sweep_if_many());
            watches.add(number, actor(1, number), oneshot::channel().0);
            assert!(watches.watchers <= 16, "{} after {number}", watches.watchers);
        }
        ended.extend(watches.sweep());
        ended.sort_unstable();
        assert_eq!(ended, (1..10_000).collect::<Vec<_>>());
        assert_eq!(watches.iter().collect::<Vec<_>>(), [(0, actor(1, 0))]);
    }
}
