//! What a node has placed where, for placements that spread or pack.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use footlight_runtime::{NodeId, Watch};
use futures::FutureExt;

/// The living actors that were placed from this node, by type.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    by_kind: BTreeMap<String, BTreeMap<u64, Placed>>,
    next: u64,
}

#[derive(Debug)]
struct Placed {
    node: NodeId,
    /// None while it is being started.
    watch: Option<Watch>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Kinds> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Lets `choose` take a node in view of what lies where, and counts the actor there from now on:
    /// of many placed at once, each sees those before it.
    pub(super) fn place<R>(
        self: &Arc<Self>,
        kind: &str,
        choose: impl FnOnce(&BTreeMap<NodeId, u32>) -> (Option<NodeId>, R),
    ) -> (Option<(NodeId, Assumed)>, R) {
        let mut kinds = self.lock();
        let number = kinds.next;
        kinds.next += 1;
        let mut counts = BTreeMap::new();
        if let Some(placed) = kinds.by_kind.get_mut(kind) {
            // Asked, not told: who was just told of an end itself finds it counted.
            placed.retain(|_, placed| match &mut placed.watch {
                Some(watch) => watch.now_or_never().is_none(),
                None => true,
            });
            placed.values().for_each(|placed| *counts.entry(placed.node).or_insert(0) += 1);
        }
        let (node, rest) = choose(&counts);
        let Some(node) = node else { return (None, rest) };
        let placed = Placed { node, watch: None };
        kinds.by_kind.entry(kind.to_owned()).or_default().insert(number, placed);
        let assumed =
            Assumed { tally: self.clone(), kind: kind.to_owned(), number, settled: false };
        (Some((node, assumed)), rest)
    }
}

/// An actor that is counted, but may not come into the world.
#[derive(Debug)]
pub(super) struct Assumed {
    tally: Arc<Tally>,
    kind: String,
    number: u64,
    settled: bool,
}

impl Assumed {
    /// It is there, and counts until it ends.
    pub(super) fn settle(mut self, watch: Watch) {
        self.settled = true;
        if let Some(placed) = self.tally.lock().by_kind.get_mut(&self.kind)
            && let Some(placed) = placed.get_mut(&self.number)
        {
            placed.watch = Some(watch);
        }
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut kinds = self.tally.lock();
        if let Some(placed) = kinds.by_kind.get_mut(&self.kind) {
            placed.remove(&self.number);
            if placed.is_empty() {
                kinds.by_kind.remove(&self.kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use footlight_runtime::{ActorAddr, ActorId, Down, Incarnation};

    use super::*;

    fn counts(tally: &Arc<Tally>) -> Vec<(u64, u32)> {
        let look = |counts: &BTreeMap<NodeId, u32>| {
            (None, counts.iter().map(|(node, count)| (node.0, *count)).collect())
        };
        tally.place("a", look).1
    }

    fn place(tally: &Arc<Tally>, kind: &str, node: u64) -> Assumed {
        tally.place(kind, |_| (Some(NodeId(node)), ())).0.unwrap().1
    }

    #[test]
    fn what_is_being_started_counts_and_what_failed_or_ended_does_not() {
        let tally = Arc::new(Tally::default());
        let (one, two) = (place(&tally, "a", 1), place(&tally, "a", 1));
        let other = place(&tally, "b", 1);
        assert_eq!(counts(&tally), [(1, 2)]);
        drop((two, other));
        assert_eq!(counts(&tally), [(1, 1)]);
        let actor = ActorAddr { node: NodeId(1), incarnation: Incarnation(1), actor: ActorId(20) };
        let (ended, watch) = Watch::new(actor);
        one.settle(watch);
        assert_eq!(counts(&tally), [(1, 1)]);
        ended.send(Down::Stopped).unwrap();
        assert_eq!(counts(&tally), []);
        assert_eq!(tally.lock().by_kind.len(), 1, "kept until it is looked at again");
    }
}
