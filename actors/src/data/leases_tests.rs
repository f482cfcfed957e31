use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ask(leases: &mut Leases<u32>, worker: u32) -> Option<(u64, u32)> {
    leases.ask(worker).map(|work| (work.step, work.slot))
}

#[test]
fn slots_are_handed_out_in_order_up_to_the_look_ahead() {
    // DL-2, DL-3
    let mut leases = Leases::new(2, 2, 2, 2).unwrap();
    let first: Vec<_> = std::iter::from_fn(|| ask(&mut leases, 1)).collect();
    assert_eq!(first, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(leases.committed(0), Ok(true));
    assert_eq!(leases.ask(2), Some(Work { epoch: 1, step: 2, slot: 0 }));
    assert_eq!(leases.ask(2), Some(Work { epoch: 1, step: 2, slot: 1 }));
    assert_eq!(leases.ask(2), None);
}

#[test]
fn without_look_ahead_a_step_waits_for_the_one_before() {
    // DL-3
    let mut leases = Leases::new(1, 3, 1, 1).unwrap();
    assert_eq!(ask(&mut leases, 1), Some((0, 0)));
    assert_eq!(ask(&mut leases, 2), None);
    leases.committed(0).unwrap();
    assert_eq!(ask(&mut leases, 2), Some((1, 0)));
}

#[test]
fn nobody_passes_a_meeting_before_all_have_come() {
    // DL-7
    let mut leases = Leases::new(1, 10, 2, 10).unwrap();
    leases = leases.meeting_every(Some(3)).unwrap();
    for meeting in [3, 6, 9, 10] {
        let first = leases.committed_steps();
        let all: Vec<_> = std::iter::from_fn(|| ask(&mut leases, 1)).collect();
        let expected: Vec<_> = (first..meeting).flat_map(|step| [(step, 0), (step, 1)]).collect();
        assert_eq!(all, expected);
        // One step before the meeting is still missing: that of a lost worker is handed out all the same.
        if meeting - first > 1 {
            leases.committed(meeting - 2).unwrap();
        }
        assert_eq!(ask(&mut leases, 2), None);
        leases.worker_lost(&1);
        assert_eq!(ask(&mut leases, 2), Some((meeting - 1, 0)));
        leases.committed(meeting - 1).unwrap();
    }
    assert!(leases.is_done());
    assert_eq!(leases.meeting_every(Some(0)).unwrap_err(), LeaseError::Nothing);
}

#[test]
fn a_worker_keeps_its_slots_from_step_to_step() {
    // DL-8
    let mut leases = Leases::new(1, 10, 4, 2).unwrap().slots_stay(true);
    let had = [1, 2, 1, 2].map(|worker| ask(&mut leases, worker).unwrap());
    assert_eq!(had, [(0, 0), (0, 1), (0, 2), (0, 3)]);
    // In whatever order they ask.
    let has = [2, 1, 2, 1].map(|worker| ask(&mut leases, worker).unwrap());
    assert_eq!(has, [(1, 1), (1, 0), (1, 3), (1, 2)]);
    leases.committed(1).unwrap();
    // Who has done all of his own takes others'.
    let has = [2, 2, 2, 1].map(|worker| ask(&mut leases, worker).unwrap());
    assert_eq!(has, [(2, 1), (2, 3), (2, 0), (2, 2)]);
    // What is given back comes back, and what a lost one had goes to who has none.
    assert_eq!(leases.give_back(&2), 3);
    assert_eq!(ask(&mut leases, 2), Some((2, 0)));
    leases.worker_lost(&1);
    assert_eq!(ask(&mut leases, 3), Some((2, 2)));
    assert_eq!(ask(&mut leases, 3), Some((2, 1)), "the first, though another had it");
}

#[test]
fn what_a_lost_worker_had_comes_first() {
    // DL-2
    let mut leases = Leases::new(1, 5, 3, 2).unwrap();
    for worker in [1, 2, 1, 2] {
        leases.ask(worker);
    }
    assert_eq!(leases.worker_lost(&1), 2);
    let order: Vec<_> = (0..3).map(|_| ask(&mut leases, 3).unwrap()).collect();
    assert_eq!(order, [(0, 0), (0, 2), (1, 1)]);
    assert_eq!(leases.worker_lost(&1), 0);
}

#[test]
fn a_committed_step_is_never_handed_out_again() {
    // DL-4
    let mut leases = Leases::new(1, 2, 2, 2).unwrap();
    leases.ask(1);
    leases.worker_lost(&1);
    assert_eq!(leases.committed(0), Ok(true));
    assert_eq!(leases.committed(0), Ok(false));
    assert_eq!(ask(&mut leases, 2), Some((1, 0)));
    leases.committed(1).unwrap();
    assert_eq!((ask(&mut leases, 2), leases.is_done()), (None, true));
    assert_eq!(leases.committed(2), Err(LeaseError::NoSuchStep { step: 2, steps: 2 }));
}

#[test]
fn a_worker_finds_out_what_it_holds() {
    let mut leases = Leases::new(1, 2, 2, 2).unwrap();
    for worker in [1, 2, 1, 2] {
        leases.ask(worker);
    }
    leases.committed(0).unwrap();
    assert_eq!(leases.held_by(&1).collect::<Vec<_>>(), [Work { epoch: 0, step: 1, slot: 0 }]);
    assert_eq!(leases.held_by(&3).count(), 0);
}

#[test]
fn a_job_of_nothing_is_refused_and_one_of_no_epochs_is_done() {
    assert_eq!(Leases::<u32>::new(1, 0, 1, 2).unwrap_err(), LeaseError::Nothing);
    assert_eq!(Leases::<u32>::new(1, 1, 0, 2).unwrap_err(), LeaseError::Nothing);
    assert_eq!(Leases::<u32>::new(1, 1, 1, 0).unwrap_err(), LeaseError::Nothing);
    let mut none = Leases::new(0, 1, 1, 2).unwrap();
    assert_eq!((none.is_done(), none.ask(1)), (true, None));
}

#[derive(Debug, Clone)]
enum Event {
    Ask(u32),
    /// The worker with this number hands in the oldest slot that it holds and nobody has handed in yet.
    Push(u32),
    Kill(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let worker = 0..4u32;
    prop_oneof![
        4 => worker.clone().prop_map(Event::Ask),
        4 => worker.clone().prop_map(Event::Push),
        1 => worker.prop_map(Event::Kill),
    ]
}

/// Shards and workers as they should be, beside the leases that are tested.
struct Job {
    leases: Leases<(u32, u32)>,
    slots: u32,
    ahead: u64,
    /// What each worker holds, and its incarnation.
    workers: Vec<(u32, BTreeSet<(u64, u32)>)>,
    pushed: BTreeSet<(u64, u32)>,
}

impl Job {
    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Ask(id) => {
                let incarnation = self.workers[id as usize].0;
                let Some(Work { step, slot, .. }) = self.leases.ask((id, incarnation)) else {
                    return;
                };
                let committed = self.leases.committed_steps();
                assert!(step >= committed, "DL-4: {step} of {committed}");
                assert!(step < committed + self.ahead, "DL-3: {step} of {committed}");
                for (_, held) in &self.workers {
                    assert!(!held.contains(&(step, slot)), "DL-1: {step} {slot}");
                }
                self.workers[id as usize].1.insert((step, slot));
                let live: usize = self.workers.iter().map(|(_, held)| held.len()).sum();
                assert!(live as u64 <= self.ahead * u64::from(self.slots), "DL-6");
            }
            Event::Push(id) => {
                let mut held = self.workers[id as usize].1.iter();
                self.pushed.extend(held.find(|slot| !self.pushed.contains(slot)).copied());
                let step = self.leases.committed_steps();
                if (0..self.slots).all(|slot| self.pushed.contains(&(step, slot))) {
                    self.leases.committed(step).unwrap();
                    for (_, held) in &mut self.workers {
                        held.retain(|(held, _)| *held > step);
                    }
                }
            }
            Event::Kill(id) => {
                let (incarnation, held) = &mut self.workers[id as usize];
                self.leases.worker_lost(&(id, *incarnation));
                *incarnation += 1;
                held.clear();
            }
        }
        for (id, (incarnation, held)) in self.workers.iter().enumerate() {
            let named: BTreeSet<_> = self
                .leases
                .held_by(&(id as u32, *incarnation))
                .map(|work| (work.step, work.slot))
                .collect();
            assert_eq!(&named, held);
        }
    }
}

proptest! {
    #[test]
    fn whoever_is_killed_every_slot_is_committed_and_none_is_leased_twice(
        epochs in 1..3u64, steps in 1..6u32, slots in 1..5u32, ahead in 1..4u64, they_stay in any::<bool>(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let leases = Leases::new(epochs, steps, slots, ahead).unwrap().slots_stay(they_stay);
        let mut job = Job { leases, slots, ahead, workers: vec![(0, BTreeSet::new()); 4], pushed: BTreeSet::new() };
        for event in &events {
            job.happens(event);
        }
        // From here on one worker lives, and the others are lost: DL-5.
        for lost in 1..4 {
            job.happens(&Event::Kill(lost));
        }
        let mut rounds = 0;
        while !job.leases.is_done() {
            job.happens(&Event::Ask(0));
            job.happens(&Event::Push(0));
            rounds += 1;
            prop_assert!(rounds <= epochs * u64::from(steps * slots) * 2 + 2, "DL-5");
        }
        for step in 0..epochs * u64::from(steps) {
            prop_assert!((0..slots).all(|slot| job.pushed.contains(&(step, slot))), "DL-5");
        }
    }
}
