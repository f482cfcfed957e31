use footlight_runtime::{ActorId, Incarnation, NodeId};
use proptest::prelude::*;

use super::*;

fn actor(number: u64) -> ActorAddr {
    ActorAddr { node: NodeId(1), incarnation: Incarnation(1), actor: ActorId(number) }
}

const ID: RequestId = RequestId(7);

fn full() -> Refusal {
    Refusal::Leaving
}

#[test]
fn sp1_all_who_ask_are_told_of_the_one_actor() {
    let (now, mut requests) = (Instant::now(), Requests::default());
    assert_eq!(requests.begin(now, ID, 'a'), Begin::Start);
    assert_eq!(requests.begin(now, ID, 'b'), Begin::Wait);
    assert_eq!(requests.finish(now, ID, Ok(actor(3))), Ok(['a', 'b'].into()));
    assert_eq!(requests.begin(now, ID, 'c'), Begin::Answer('c', Ok(actor(3))));
    // A start that failed has run too; one that was refused has not.
    assert_eq!(requests.begin(now, RequestId(8), 'd'), Begin::Start);
    let failed = Err(Refusal::Failed("no data".into()));
    requests.finish(now, RequestId(8), failed.clone()).unwrap();
    assert_eq!(requests.begin(now, RequestId(8), 'e'), Begin::Answer('e', failed));
    assert_eq!(requests.begin(now, RequestId(9), 'f'), Begin::Start);
    requests.finish(now, RequestId(9), Err(full())).unwrap();
    assert_eq!(requests.begin(now, RequestId(9), 'g'), Begin::Start);
}

#[test]
fn sp2_nothing_lives_for_an_abandoned_request() {
    let (now, mut requests) = (Instant::now(), Requests::default());
    // Started before.
    requests.begin(now, ID, 'a');
    requests.finish(now, ID, Ok(actor(3))).unwrap();
    assert_eq!(requests.abandon(now, ID), Abandoned::End(actor(3)));
    assert_eq!(requests.abandon(now, ID), Abandoned::Nothing);
    // Starting.
    requests.begin(now, RequestId(8), 'a');
    assert_eq!(requests.abandon(now, RequestId(8)), Abandoned::CallOff);
    assert_eq!(requests.finish(now, RequestId(8), Ok(actor(4))), Err(Some(actor(4))));
    // Not there yet.
    assert_eq!(requests.abandon(now, RequestId(9)), Abandoned::Nothing);
    for id in [7, 8, 9] {
        let refused = Begin::Answer('b', Err(Refusal::Abandoned));
        assert_eq!(requests.begin(now, RequestId(id), 'b'), refused);
    }
}

#[test]
fn sp3_what_is_remembered_is_bounded_in_number_and_time() {
    let (now, mut requests) = (Instant::now(), Requests::default());
    for id in 0..3 * MOST_DONE as u128 {
        requests.begin(now, RequestId(id), ());
        requests.finish(now, RequestId(id), Ok(actor(1))).unwrap();
        requests.abandon(now, RequestId(u128::MAX - id));
    }
    assert!(requests.known.len() <= MOST_DONE && requests.done.len() <= MOST_DONE);
    let later = now + REMEMBERED + Duration::from_secs(1);
    assert_eq!(requests.begin(later, ID, ()), Begin::Start);
    assert_eq!((requests.known.len(), requests.done.len()), (1, 0));
    for id in 1..MOST_STARTING as u128 {
        assert_eq!(requests.begin(later, RequestId(id << 64), ()), Begin::Start);
    }
    assert_eq!(requests.begin(later, RequestId(1), ()), Begin::Answer((), Err(Refusal::Busy)));
    // Those who wait for one request are few, too.
    for _ in 0..100 {
        requests.begin(later, ID, ());
    }
    assert_eq!(requests.finish(later, ID, Ok(actor(1))).unwrap().len(), MOST_WAITING);
}

proptest! {
    #[test]
    fn sp1_sp2_hold_in_any_order(events in prop::collection::vec((0u8..3, 0u128..4), 0..60)) {
        let (now, mut requests) = (Instant::now(), Requests::default());
        let mut starting = std::collections::BTreeMap::<u128, u64>::new();
        let mut alive = std::collections::BTreeMap::<u128, u64>::new();
        let mut abandoned = std::collections::BTreeSet::new();
        for (number, (what, id)) in events.into_iter().enumerate() {
            match what {
                0 => match requests.begin(now, RequestId(id), ()) {
                    Begin::Start => {
                        prop_assert!(!abandoned.contains(&id), "SP-2");
                        prop_assert!(!alive.contains_key(&id), "SP-1");
                        prop_assert!(starting.insert(id, number as u64).is_none(), "SP-1");
                    }
                    Begin::Wait => prop_assert!(starting.contains_key(&id)),
                    Begin::Answer((), Ok(there)) => {
                        prop_assert_eq!(alive.get(&id), Some(&there.actor.0), "SP-1");
                    }
                    Begin::Answer((), Err(_)) => prop_assert!(abandoned.contains(&id)),
                },
                1 => {
                    if let Some(number) = starting.remove(&id) {
                        match requests.finish(now, RequestId(id), Ok(actor(number))) {
                            Ok(_) => drop(alive.insert(id, number)),
                            Err(end) => prop_assert_eq!(end, Some(actor(number)), "SP-2"),
                        }
                    }
                }
                _ => {
                    if let Abandoned::End(there) = requests.abandon(now, RequestId(id)) {
                        prop_assert_eq!(alive.remove(&id), Some(there.actor.0));
                    }
                    abandoned.insert(id);
                    prop_assert!(!alive.contains_key(&id), "SP-2");
                }
            }
        }
    }
}
