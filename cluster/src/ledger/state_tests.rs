use std::collections::BTreeMap;

use bytes::Bytes;
use footlight_runtime::{Incarnation, NodeId};
use proptest::prelude::*;

use super::*;
use crate::ledger::{
    command::{MAX_KEY, MAX_VALUE},
    types::VoterId,
};

fn life(node: u64, incarnation: u64) -> Life {
    Life { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

fn holder(node: u64) -> Holder {
    Holder { node: NodeId(node), incarnation: Incarnation(1), text: format!("holder {node}") }
}

fn put(key: &str, value: &str, expect: Expect) -> Command {
    Command::Put {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect,
        owner: None,
    }
}

fn acquire(lease: &str, node: u64) -> Command {
    Command::Acquire { lease: lease.to_owned(), holder: holder(node) }
}

fn reign(term: u64) -> Reign {
    Reign { term, leader: VoterId { node: NodeId(1), birth: 1 } }
}

fn lapse(lease: &str, generation: u64, term: u64) -> Command {
    Command::Lapse { reign: reign(term), grants: vec![(lease.to_owned(), generation)] }
}

fn release(lease: &str, generation: u64) -> Command {
    Command::Release { lease: lease.to_owned(), generation }
}

impl State {
    fn does(&mut self, command: Command) -> Outcome {
        self.apply(Entry { id: None, command }, reign(1), &mut Vec::new())
    }

    fn asked(&mut self, number: u64, answered: u64, command: Command) -> Outcome {
        let id = RequestId { client: life(1, 1), number, answered };
        self.apply(Entry { id: Some(id), command }, reign(1), &mut Vec::new())
    }
}

#[test]
fn a_key_is_written_only_if_it_is_as_expected() {
    let mut state = State::new(0);
    assert_eq!(state.does(put("a", "1", Expect::Version(1))), Outcome::Conflict(None));
    assert_eq!(state.does(put("a", "1", Expect::Absent)), Outcome::Written(1));
    assert_eq!(state.does(put("a", "2", Expect::Absent)), Outcome::Conflict(Some(1)));
    assert_eq!(state.does(put("a", "2", Expect::Version(1))), Outcome::Written(2));
    assert_eq!(state.does(put("a", "3", Expect::Version(1))), Outcome::Conflict(Some(2)));
    assert_eq!(state.get("a").unwrap().value, "2");
    let delete = |expect| Command::Delete { key: "a".to_owned(), expect };
    assert_eq!(state.does(delete(Expect::Version(1))), Outcome::Conflict(Some(2)));
    assert_eq!(state.does(delete(Expect::Version(2))), Outcome::Done);
    // A version is never used again: whoever read the first life of the key can't overwrite this.
    assert_eq!(state.does(put("a", "4", Expect::Absent)), Outcome::Written(4));
    assert_eq!(state.does(delete(Expect::Version(2))), Outcome::Conflict(Some(4)));
}

#[test]
fn a_lease_has_one_holder_and_each_grant_a_greater_generation() {
    let mut state = State::new(100);
    assert_eq!(state.does(acquire("x", 1)), Outcome::Granted(101));
    let held = Outcome::Held { by: holder(1), generation: 101 };
    assert_eq!(state.does(acquire("x", 2)), held);
    assert_eq!(state.does(acquire("x", 1)), held, "the holder, too, has it only once");
    // The release of another grant changes nothing.
    assert_eq!(state.does(release("x", 100)), Outcome::Done);
    assert!(state.holds("x", 101));
    assert_eq!(state.does(release("x", 101)), Outcome::Done);
    assert!(!state.holds("x", 101));
    assert_eq!(state.does(acquire("x", 2)), Outcome::Granted(102));
    // A lapse that was decided before the lease changed hands does not touch the new holder, nor
    // one that was decided by a leader who is none any more when it gets into the log.
    assert_eq!(state.does(lapse("x", 101, 1)), Outcome::Done);
    assert_eq!(state.does(lapse("x", 102, 2)), Outcome::Done);
    assert!(state.holds("x", 102));
    assert_eq!(state.does(lapse("x", 102, 1)), Outcome::Done);
    assert!(!state.holds("x", 102));
}

#[test]
fn le4_a_write_that_is_sent_twice_is_done_once() {
    let mut state = State::new(0);
    assert_eq!(state.asked(1, 1, acquire("x", 1)), Outcome::Granted(1));
    assert_eq!(state.asked(2, 1, put("a", "1", Expect::Absent)), Outcome::Written(1));
    assert_eq!(state.asked(2, 1, put("a", "1", Expect::Absent)), Outcome::Written(1));
    assert_eq!(state.asked(1, 1, acquire("x", 1)), Outcome::Granted(1));
    assert_eq!(state.does(release("x", 1)), Outcome::Done);
    // The lease is free again, and the late second copy does not take it.
    assert_eq!(state.asked(1, 1, acquire("x", 1)), Outcome::Granted(1));
    assert!(state.leases().is_empty());
    // Once the client has said that it has the answers, the copies are only late.
    assert_eq!(state.asked(3, 3, put("b", "1", Expect::Any)), Outcome::Written(2));
    assert_eq!(state.asked(2, 1, put("a", "2", Expect::Any)), Outcome::Stale);
    assert_eq!(state.get("a").unwrap().value, "1");
}

#[test]
fn le7_what_clients_leave_is_bounded() {
    let mut state = State::new(0);
    for number in 0..MAX_OUTCOMES as u64 {
        assert_eq!(state.asked(number, 0, Command::Nothing), Outcome::Done);
    }
    let more = state.asked(MAX_OUTCOMES as u64, 0, put("a", "1", Expect::Any));
    assert_eq!(more, Outcome::Refused(Bound::Writes));
    assert_eq!(state.get("a"), None);
    for client in 0..3 * MAX_CLIENTS as u64 {
        let id = RequestId { client: life(2 + client, 1), number: 1, answered: 0 };
        state.apply(Entry { id: Some(id), command: Command::Nothing }, reign(1), &mut Vec::new());
    }
    assert_eq!(state.clients.len(), MAX_CLIENTS);
}

#[test]
fn le7_keys_values_and_their_sum_are_bounded() {
    let mut state = State::new(0);
    let long = "k".repeat(MAX_KEY + 1);
    assert_eq!(state.does(put(&long, "", Expect::Any)), Outcome::Refused(Bound::Key(MAX_KEY + 1)));
    assert_eq!(state.does(put("", "", Expect::Any)), Outcome::Refused(Bound::Key(0)));
    let wide = "v".repeat(MAX_VALUE);
    let wider = "v".repeat(MAX_VALUE + 1);
    let refused = state.does(put("a", &wider, Expect::Any));
    assert_eq!(refused, Outcome::Refused(Bound::Value(MAX_VALUE + 1)));
    let mut written = 0;
    while let Outcome::Written(_) = state.does(put(&format!("{written:04}"), &wide, Expect::Any)) {
        written += 1;
    }
    assert_eq!(written, MAX_BYTES / (MAX_VALUE + 4));
    assert_eq!(state.does(put("more", &wide, Expect::Any)), Outcome::Refused(Bound::Full));
    // What is there can still be written anew and deleted, and then there is room.
    assert!(matches!(state.does(put("0000", &wide, Expect::Any)), Outcome::Written(_)));
    let delete = Command::Delete { key: "0000".to_owned(), expect: Expect::Any };
    assert_eq!(state.does(delete), Outcome::Done);
    assert!(matches!(state.does(put("more", &wide, Expect::Any)), Outcome::Written(_)));
}

#[test]
fn le9_what_an_ended_life_owns_goes_and_nothing_else() {
    let mut state = State::new(0);
    let owned = |key: &str, owner| Command::Put {
        key: key.to_owned(),
        value: Bytes::new(),
        expect: Expect::Any,
        owner,
    };
    state.does(owned("first life", Some(life(1, 5))));
    state.does(owned("second life", Some(life(1, 6))));
    state.does(owned("other node", Some(life(2, 5))));
    state.does(owned("nobody's", None));
    let mut changes = Vec::new();
    state.apply(Entry { id: None, command: Command::Forget(life(1, 5)) }, reign(1), &mut changes);
    let left: Vec<_> = state.with_prefix("").map(|(key, _)| key.as_str()).collect();
    assert_eq!(left, ["nobody's", "other node", "second life"]);
    assert_eq!(changes, [Change { revision: 5, key: "first life".to_owned(), now: None }]);
}

#[test]
fn le10_a_closed_ledger_changes_no_more_and_the_one_that_takes_it_up_grants_greater_generations() {
    let (old, young) = (LedgerId(1), LedgerId(2));
    let mut older = State::new(10);
    let mut younger = State::new(1000);
    older.does(acquire("both", 1));
    older.does(acquire("mine", 1));
    younger.does(acquire("both", 2));
    assert_eq!(younger.does(Command::Close { into: old }), Outcome::Done);
    assert_eq!(younger.does(acquire("late", 2)), Outcome::Closed(old));
    assert_eq!(younger.does(put("late", "", Expect::Any)), Outcome::Closed(old));
    let absorb = Command::Absorb {
        from: young,
        generation: younger.generation(),
        leases: younger.leases().keys().cloned().collect(),
        all: true,
    };
    assert_eq!(older.does(absorb.clone()), Outcome::Done);
    assert!(older.has_absorbed(young));
    // Receivers may have seen the younger's generation: the lease must be taken anew, above it.
    assert!(older.holds("mine", 12) && !older.leases().contains_key("both"));
    assert_eq!(older.does(acquire("both", 1)), Outcome::Granted(1002));
    // Told a second time, it takes nothing from those who have taken it anew.
    assert_eq!(older.does(absorb), Outcome::Done);
    assert!(older.holds("both", 1002));
}

#[derive(Clone, Debug)]
enum Step {
    Acquire(u8, u64),
    /// Releases, or lets lapse, the grant that had this generation.
    End(u8, u64, bool),
    Put(u8, u8, Option<u64>),
    Delete(u8),
    Forget(u64),
    /// The last asked for once more.
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 1..4u64).prop_map(|(lease, node)| Step::Acquire(lease, node)),
        (0..4u8, 0..30u64, any::<bool>())
            .prop_map(|(lease, back, lapse)| Step::End(lease, back, lapse)),
        (0..6u8, any::<u8>(), proptest::option::of(1..4u64))
            .prop_map(|(key, value, owner)| Step::Put(key, value, owner)),
        (0..6u8).prop_map(Step::Delete),
        (1..4u64).prop_map(Step::Forget),
        Just(Step::Again),
    ]
}

proptest! {
    /// LE-2, LE-4 and the bookkeeping, whatever happens.
    #[test]
    fn le2_generations_only_grow_whatever_happens(steps in proptest::collection::vec(step(), 1..200)) {
        let mut state = State::new(7);
        let mut greatest = 7u64;
        let mut versions = 0;
        let mut number = 0;
        let mut last: Option<(Entry, Outcome)> = None;
        for step in steps {
            let command = match step {
                Step::Acquire(lease, node) => acquire(&lease.to_string(), node),
                Step::End(lease, back, false) => {
                    release(&lease.to_string(), greatest.saturating_sub(back))
                }
                Step::End(lease, back, true) => {
                    lapse(&lease.to_string(), greatest.saturating_sub(back), 1)
                }
                Step::Put(key, value, owner) => Command::Put {
                    key: key.to_string(),
                    value: Bytes::from(vec![0; value as usize]),
                    expect: Expect::Any,
                    owner: owner.map(|node| life(node, 1)),
                },
                Step::Delete(key) => Command::Delete { key: key.to_string(), expect: Expect::Any },
                Step::Forget(node) => Command::Forget(life(node, 1)),
                Step::Again => {
                    if let Some((entry, outcome)) = last.clone() {
                        let before = state.clone();
                        prop_assert_eq!(state.apply(entry, reign(1), &mut Vec::new()), outcome);
                        prop_assert_eq!(&state.keys, &before.keys);
                        prop_assert_eq!(&state.leases, &before.leases);
                    }
                    continue;
                }
            };
            let held = state.leases.clone();
            number += 1;
            let id = RequestId { client: life(9, 1), number, answered: number };
            let entry = Entry { id: Some(id), command: command.clone() };
            let mut changes = Vec::new();
            let outcome = state.apply(entry.clone(), reign(1), &mut changes);
            last = Some((entry, outcome.clone()));
            match (&command, &outcome) {
                (Command::Acquire { lease, .. }, Outcome::Granted(generation)) => {
                    prop_assert!(*generation > greatest, "a generation was granted before");
                    prop_assert!(!held.contains_key(lease), "somebody had it");
                    greatest = *generation;
                }
                (Command::Put { .. }, Outcome::Written(version)) => {
                    prop_assert!(*version > versions);
                    versions = *version;
                }
                _ => {}
            }
            // Only a release and a lapse of just this grant end one.
            for (lease, grant) in &held {
                let named = match &command {
                    Command::Release { lease: named, generation } => {
                        named == lease && *generation == grant.generation
                    }
                    Command::Lapse { grants, .. } => {
                        grants.contains(&(lease.clone(), grant.generation))
                    }
                    _ => false,
                };
                prop_assert_eq!(state.holds(lease, grant.generation), !named);
            }
            for change in &changes {
                prop_assert_eq!(state.get(&change.key), change.now.as_ref());
                versions = versions.max(change.revision);
            }
            let bytes: usize = state.keys.iter().map(|(key, at)| key.len() + at.value.len()).sum();
            prop_assert_eq!(state.bytes, bytes);
            prop_assert_eq!(state.revision, versions);
        }
    }

    /// Voters that apply the same entries, or a snapshot and the rest of them, agree.
    #[test]
    fn a_snapshot_in_between_changes_nothing(
        steps in proptest::collection::vec((1..4u64, 0..3u8, any::<bool>()), 1..60),
        cut in 0..60usize,
    ) {
        let entries: Vec<Entry> = steps.into_iter().enumerate().map(|(number, (node, name, put_it))| {
            let id = RequestId { client: life(node, 1), number: number as u64, answered: 0 };
            let name = name.to_string();
            let command = if put_it { put(&name, "v", Expect::Any) } else { acquire(&name, node) };
            Entry { id: Some(id), command }
        }).collect();
        let mut whole = State::new(0);
        let mut cut_off = State::new(0);
        for (index, entry) in entries.into_iter().enumerate() {
            if index == cut {
                let bytes = bincode::serde::encode_to_vec(&cut_off, bincode::config::standard());
                let (again, _) = bincode::serde::decode_from_slice::<State, _>(
                    &bytes.unwrap(), bincode::config::standard()).unwrap();
                cut_off = again;
            }
            whole.apply(entry.clone(), reign(1), &mut Vec::new());
            cut_off.apply(entry, reign(1), &mut Vec::new());
        }
        prop_assert_eq!(whole, cut_off);
    }
}

/// Keys are listed by prefix, in order, and no others.
#[test]
fn a_prefix_lists_its_keys_in_order() {
    let mut state = State::new(0);
    for key in ["name/b", "name/a", "names", "nam", "token/x", "name/"] {
        state.does(put(key, key, Expect::Any));
    }
    let listed: BTreeMap<_, _> = state.with_prefix("name/").collect();
    let keys: Vec<&str> = listed.keys().map(|key| key.as_str()).collect();
    assert_eq!(keys, ["name/", "name/a", "name/b"]);
}
