//! What one node tells of its own actors in groups.

use std::{collections::BTreeMap, fmt};

use footlight_runtime::ActorId;
use serde::{Deserialize, Serialize};

use super::GroupError;

/// All groups that the actors of one node are in take at most so many bytes of its record.
pub const MAX_GROUPS: usize = 32 << 10;

/// What a group takes besides its two names, at most, and each member.
const GROUP_BYTES: usize = 9 + 9 + 9;
const MEMBER_BYTES: usize = 9 + 1;

/// The actors of one node that are in one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPart {
    /// The registered name of their type.
    pub kind: String,
    /// By number, with what each has in hand.
    pub actors: BTreeMap<ActorId, Backlog>,
}

/// How many messages an actor has in hand, as far as another node needs to know: the power of two
/// that it has reached. So it takes one byte and seldom changes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Backlog(u8);

impl Backlog {
    /// Of so many messages.
    pub fn of(messages: usize) -> Self {
        // Of a number of 64 bits at most 64.
        Backlog((usize::BITS - messages.leading_zeros()) as u8)
    }

    /// There are so many messages, or up to twice as many: 0, 1, 2 (or 3), 4 (to 7), …
    pub fn at_least(self) -> u64 {
        match self.0 {
            0 => 0,
            // What a peer makes up must not overflow.
            level => 1 << (level - 1).min(63),
        }
    }
}

impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at_least().fmt(f)
    }
}

/// The groups of one node's actors, by name.
pub(crate) type Parts = BTreeMap<String, GroupPart>;

/// Puts an actor into a group. False if it is in already.
///
/// # Errors
/// If the group is of another type, or there is no room; then nothing has changed.
pub(super) fn enter(
    parts: &mut Parts,
    group: &str,
    kind: &str,
    actor: ActorId,
) -> Result<bool, GroupError> {
    let is_new = match parts.get(group) {
        Some(part) if part.kind != kind => {
            let (group, found, asked) = (group.to_owned(), part.kind.clone(), kind.to_owned());
            return Err(GroupError::OtherType { group, found, asked });
        }
        Some(part) if part.actors.contains_key(&actor) => return Ok(false),
        Some(_) => 0,
        None => GROUP_BYTES + group.len() + kind.len(),
    };
    let bytes = |(name, part): (&String, &GroupPart)| {
        GROUP_BYTES + name.len() + part.kind.len() + part.actors.len() * MEMBER_BYTES
    };
    if parts.iter().map(bytes).sum::<usize>() + is_new + MEMBER_BYTES > MAX_GROUPS {
        return Err(GroupError::Full { group: group.to_owned() });
    }
    let part = parts.entry(group.to_owned()).or_default();
    kind.clone_into(&mut part.kind);
    part.actors.insert(actor, Backlog::default());
    Ok(true)
}

/// Takes an actor out of a group. A group without actors is none.
pub(super) fn leave(parts: &mut Parts, group: &str, actor: ActorId) {
    if let Some(part) = parts.get_mut(group) {
        part.actors.remove(&actor);
        if part.actors.is_empty() {
            parts.remove(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_told_by_its_power_of_two() {
        let told = |count| Backlog::of(count).at_least();
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 1000].map(told), [0, 1, 2, 2, 4, 4, 8, 512]);
        assert_eq!(told(usize::MAX), 1 << 63);
        assert_eq!(Backlog(u8::MAX).at_least(), 1 << 63);
        assert!(Backlog::of(3) < Backlog::of(4));
    }

    #[test]
    fn a_group_holds_one_type_and_each_actor_once() {
        let mut parts = Parts::new();
        assert_eq!(enter(&mut parts, "g", "a", ActorId(16)), Ok(true));
        assert_eq!(enter(&mut parts, "g", "a", ActorId(16)), Ok(false));
        let other = enter(&mut parts, "g", "b", ActorId(17)).unwrap_err();
        assert_eq!(
            other.to_string(),
            "group `g` is of actors of type a: one of type b can't join it, nor use it"
        );
        leave(&mut parts, "g", ActorId(17));
        assert_eq!(parts["g"].actors.len(), 1);
        leave(&mut parts, "g", ActorId(16));
        assert!(parts.is_empty());
        assert_eq!(enter(&mut parts, "g", "b", ActorId(17)), Ok(true), "it begins anew");
    }

    #[test]
    fn a_node_s_groups_have_a_bound_and_what_fits_fits_into_a_record() {
        let mut parts = Parts::new();
        let mut joined = 0;
        let refused = loop {
            // Large numbers take the most room.
            let group = format!("group {}", joined % 7);
            match enter(&mut parts, &group, "test.probe", ActorId(u64::MAX - joined)) {
                Ok(true) => joined += 1,
                Ok(false) => unreachable!(),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, GroupError::Full { .. }), "{refused}");
        assert!(joined > 3000, "{joined}");
        let before = parts.clone();
        assert!(enter(&mut parts, "another", "test.probe", ActorId(1)).is_err());
        assert_eq!(parts, before);
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&parts, config).unwrap().len();
        assert!((MAX_GROUPS * 9 / 10..=MAX_GROUPS).contains(&bytes), "{bytes}");
    }
}
