//! How the actors that ended last have ended.

use std::collections::{HashMap, VecDeque};

use crate::{id::ActorId, watch::Down};

/// So many ends are remembered.
const REMEMBERED: usize = 1024;

/// A memory of the latest ends, for those who ask a moment too late: who was just told of an actor
/// that panics at once, or whose connection broke while the news was on its way.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    downs: HashMap<ActorId, Down>,
    order: VecDeque<ActorId>,
}

impl Ends {
    pub(crate) fn note(&mut self, actor: ActorId, down: Down) {
        if self.downs.insert(actor, down).is_none() {
            self.order.push_back(actor);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.downs.remove(&oldest);
        }
    }

    pub(crate) fn of(&self, actor: ActorId) -> Option<Down> {
        self.downs.get(&actor).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_ends_are_remembered_and_no_more() {
        let mut ends = Ends::default();
        let count = 3 * REMEMBERED as u64;
        for id in 0..count {
            ends.note(ActorId(id), Down::Failed(id.to_string()));
        }
        assert_eq!(ends.of(ActorId(count - 1)), Some(Down::Failed((count - 1).to_string())));
        assert_eq!(ends.of(ActorId(count - REMEMBERED as u64 - 1)), None);
        assert_eq!((ends.downs.len(), ends.order.len()), (REMEMBERED, REMEMBERED));
    }
}
