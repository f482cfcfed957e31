use std::{collections::BTreeMap, fs, path::Path};

use footlight_runtime::{ActorRef, System, tensor::DType};
use futures::poll;
use tempfile::TempDir;

use super::*;
use crate::data::Pass;
use crate::on_one_node::{Owner, soon, system};

/// Ten samples of 2×2 pixels; each pixel is the sample's number, and so is the label.
const SAMPLES: u32 = 10;

fn write_data(dir: &Path) {
    let idx = |magic: u32, dimensions: &[u32], data: Vec<u8>| {
        let header = [magic].into_iter().chain(dimensions.iter().copied());
        header.flat_map(u32::to_be_bytes).chain(data).collect::<Vec<u8>>()
    };
    let images = (0..SAMPLES as u8).flat_map(|sample| [sample; 4]).collect();
    let images = idx(0x0803, &[SAMPLES, 2, 2], images);
    fs::write(dir.join("train-images-idx3-ubyte"), images).unwrap();
    let labels = idx(0x0801, &[SAMPLES], (0..SAMPLES as u8).collect());
    fs::write(dir.join("train-labels-idx1-ubyte"), labels).unwrap();
}

/// Batches of 4 in 2 slots: 3 steps an epoch, the last one of 2 samples; 2 epochs.
async fn loader() -> (ActorRef<DataLoader>, ActorRef<Owner>) {
    loader_on(&system().await).await
}

async fn loader_on(system: &System) -> (ActorRef<DataLoader>, ActorRef<Owner>) {
    loader_after(system, 0).await
}

/// One that takes the place of another when so many steps are committed.
async fn loader_after(system: &System, committed: u64) -> (ActorRef<DataLoader>, ActorRef<Owner>) {
    let owner = system.spawn::<Owner>(()).await.unwrap();
    let (_dir, spec) = spec_after(committed, &owner);
    (system.spawn::<DataLoader>(spec).await.unwrap(), owner)
}

fn spec_after(committed: u64, owner: &ActorRef<Owner>) -> (TempDir, LoaderSpec) {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let data = DataSpec::idx(dir.path());
    let owner = owner.addr();
    let spec = LoaderSpec {
        data,
        seed: 7,
        batch: 4,
        slots: 2,
        epochs: 2,
        committed,
        consistency: Consistency::default(),
        slots_stay: false,
        meeting_every: None,
        owner,
    };
    (dir, spec)
}

fn ask(worker: u64, committed: u64) -> NextWork {
    NextWork { worker, committed, from: None, anew: false }
}

/// The step and slot that are leased, if any.
fn leased(answer: <NextWork as Message>::Reply) -> Option<(u64, u32)> {
    answer.unwrap().map(|work| (work.step, work.slot))
}

#[tokio::test]
async fn each_sample_counts_once_an_epoch_in_another_order_for_the_next_one() {
    let (loader, _owner) = loader().await;
    let described = loader.call(Describe).await.unwrap();
    let expected = Description {
        samples: SAMPLES,
        steps_per_epoch: 3,
        steps: 6,
        input: Field::new(DType::U8, &[2, 2]),
        target: Field::scalar(DType::U8),
    };
    assert_eq!(described, expected);
    let mut epochs: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut committed = 0;
    let mut works = Vec::new();
    while let Some(work) = loader.call(ask(1, committed)).await.unwrap().unwrap() {
        let labels = work.targets.as_slice::<u8>().unwrap();
        let images = work.inputs.as_slice::<u8>().unwrap();
        assert_eq!(work.inputs.shape(), [labels.len(), 2, 2]);
        for (image, label) in images.chunks(4).zip(labels) {
            assert_eq!(image, [*label; 4]);
        }
        assert_eq!(work.batch, if work.step % 3 == 2 { 2 } else { 4 });
        epochs.entry(work.step / 3).or_default().extend(labels);
        works.push((work.step, work.slot));
        committed = work.step + u64::from(work.slot);
    }
    let expected: Vec<_> = (0..6).flat_map(|step| [(step, 0), (step, 1)]).collect();
    assert_eq!(works, expected);
    assert_ne!(epochs[&0], epochs[&1]);
    for mut labels in epochs.into_values() {
        labels.sort();
        assert_eq!(labels, (0..SAMPLES as u8).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn no_slot_is_leased_to_two_and_who_asks_too_early_waits_for_a_commit() {
    let (loader, _owner) = loader().await;
    let mut got = Vec::new();
    for worker in [1, 2, 1, 2] {
        got.push(leased(loader.call(ask(worker, 0)).await.unwrap()).unwrap());
    }
    assert_eq!(got, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    let mut early = Box::pin(loader.call(ask(3, 0)));
    assert!(poll!(&mut early).is_pending());
    // Who tells of the commit asks later, and so is served later.
    assert_eq!(leased(soon(loader.call(ask(1, 1))).await.unwrap()), Some((2, 1)));
    assert_eq!(leased(soon(early).await.unwrap()), Some((2, 0)));
}

#[tokio::test]
async fn what_a_lost_worker_held_goes_first_to_those_who_wait() {
    let (loader, _owner) = loader().await;
    for worker in [1, 2, 1, 2] {
        loader.call(ask(worker, 0)).await.unwrap().unwrap();
    }
    let mut waiting = Box::pin(loader.call(ask(3, 0)));
    let mut lost_too = Box::pin(loader.call(ask(1, 0)));
    assert!(poll!(&mut waiting).is_pending() && poll!(&mut lost_too).is_pending());
    assert_eq!(loader.call(WorkerLost { worker: 1 }).await.unwrap(), 2);
    assert_eq!(leased(soon(waiting).await.unwrap()), Some((0, 0)));
    assert!(soon(lost_too).await.is_err(), "its question has no answer any more");
    assert_eq!(leased(soon(loader.call(ask(2, 0))).await.unwrap()), Some((1, 0)));
    // Told twice, or of one that never asked: nothing to give back.
    assert_eq!(loader.call(WorkerLost { worker: 1 }).await.unwrap(), 0);
    assert_eq!(loader.call(WorkerLost { worker: 99 }).await.unwrap(), 0);
}

#[tokio::test]
async fn a_late_question_of_a_lost_worker_takes_no_lease_along() {
    let (loader, _owner) = loader().await;
    loader.call(ask(1, 0)).await.unwrap().unwrap();
    loader.call(WorkerLost { worker: 1 }).await.unwrap();
    let refused = loader.call(ask(1, 6)).await.unwrap().unwrap_err();
    assert_eq!(refused, NoWork::GivenUp { worker: 1 });
    // Nor does what it said of commits count.
    assert_eq!(leased(loader.call(ask(2, 0)).await.unwrap()), Some((0, 0)));
}

#[tokio::test]
async fn a_worker_that_ends_unnoticed_by_its_trainer_gives_its_leases_back() {
    let system = system().await;
    let (loader, _owner) = loader_on(&system).await;
    let worker = system.spawn::<Owner>(()).await.unwrap();
    for _ in 0..4 {
        let ask = NextWork { from: Some(worker.addr()), ..ask(1, 0) };
        loader.call(ask).await.unwrap().unwrap();
    }
    let mut waiting = Box::pin(loader.call(ask(2, 0)));
    assert!(poll!(&mut waiting).is_pending());
    worker.stop();
    assert_eq!(leased(soon(waiting).await.unwrap()), Some((0, 0)));
    assert!(loader.call(ask(1, 0)).await.unwrap().is_err(), "it was given up");
    assert_eq!(loader.call(Describe).await.unwrap().steps, 6, "the loader itself goes on");
}

#[tokio::test]
async fn slots_of_committed_steps_are_not_leased_again() {
    let (loader, _owner) = loader().await;
    for worker in [1, 2, 1, 2] {
        loader.call(ask(worker, 0)).await.unwrap().unwrap();
    }
    // Step 0 is done by the time the loss of worker 1 is known.
    assert_eq!(leased(loader.call(ask(2, 1)).await.unwrap()), Some((2, 0)));
    assert_eq!(loader.call(WorkerLost { worker: 1 }).await.unwrap(), 1);
    assert_eq!(leased(loader.call(ask(2, 1)).await.unwrap()), Some((1, 0)));
}

#[tokio::test]
async fn when_all_is_committed_everybody_is_told_that_there_is_nothing_left() {
    let (loader, _owner) = loader().await;
    for worker in [1, 2, 1, 2] {
        loader.call(ask(worker, 0)).await.unwrap().unwrap();
    }
    let mut waiting = Box::pin(loader.call(ask(3, 0)));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(leased(loader.call(ask(1, 6)).await.unwrap()), None);
    assert_eq!(leased(soon(waiting).await.unwrap()), None);
    let error = loader.call(ask(1, 7)).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("step 6 was committed, and the job has 6"), "{error}");
}

#[tokio::test]
async fn only_the_first_samples_are_used_if_so_many_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let spec = DataSpec::idx(dir.path());
    let labels = |spec: DataSpec| {
        let data = spec.open(Split::Train).unwrap();
        let all = data.batch(0..data.len() as u32, Pass { seed: 0, epoch: 0 }).unwrap();
        all.targets.as_slice::<u8>().unwrap().to_vec()
    };
    assert_eq!(labels(spec.clone().limit(3)), [0, 1, 2]);
    assert_eq!(labels(spec.clone().limit(10)).len(), 10);
    assert_eq!(labels(spec.clone().limit(u32::MAX)).len(), 10);
    assert!(spec.limit(0).open(Split::Train).is_err());
}

#[tokio::test]
async fn a_loader_goes_on_after_what_is_committed() {
    let system = system().await;
    let (first, _owner) = loader_on(&system).await;
    let (second, _owner) = loader_after(&system, 2).await;
    let described = second.call(Describe).await.unwrap();
    assert_eq!(described, first.call(Describe).await.unwrap());
    for at in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert_eq!(leased(first.call(ask(1, 0)).await.unwrap()), Some(at));
    }
    for at in [(2, 0), (2, 1), (3, 0)] {
        let went_on = first.call(ask(1, 2)).await.unwrap().unwrap().unwrap();
        let began = second.call(ask(1, 2)).await.unwrap().unwrap().unwrap();
        assert_eq!((began.step, began.slot), at);
        let labels = |work: &SlotWork| work.targets.as_slice::<u8>().unwrap().to_vec();
        assert_eq!(labels(&began), labels(&went_on), "{at:?} has other samples");
    }
    // All of them, and more than all.
    let (done, _owner) = loader_after(&system, 6).await;
    assert_eq!(leased(done.call(ask(1, 0)).await.unwrap()), None);
    let owner = system.spawn::<Owner>(()).await.unwrap();
    let (_dir, spec) = spec_after(7, &owner);
    let error = system.spawn::<DataLoader>(spec).await.unwrap_err().to_string();
    assert!(error.contains("step 6 was committed, and the job has 6"), "{error}");
}

#[tokio::test]
async fn who_asks_anew_gets_what_was_lost_on_its_way() {
    let (loader, _owner) = loader().await;
    let anew = |worker| NextWork { anew: true, ..ask(worker, 0) };
    assert_eq!(leased(loader.call(ask(1, 0)).await.unwrap()), Some((0, 0)));
    assert_eq!(leased(loader.call(ask(2, 0)).await.unwrap()), Some((0, 1)));
    assert_eq!(leased(loader.call(anew(1)).await.unwrap()), Some((0, 0)));
    assert_eq!(leased(loader.call(ask(1, 0)).await.unwrap()), Some((1, 0)));
    // A question that waits is not answered twice.
    assert_eq!(leased(loader.call(ask(2, 0)).await.unwrap()), Some((1, 1)));
    let mut lost = Box::pin(loader.call(ask(1, 0)));
    assert!(poll!(&mut lost).is_pending());
    assert_eq!(leased(loader.call(anew(1)).await.unwrap()), Some((0, 0)));
    assert!(soon(lost).await.is_err(), "nobody answers it any more");
}

#[tokio::test]
async fn a_loader_whose_data_is_wrong_does_not_start_and_one_whose_owner_is_gone_ends() {
    let system = system().await;
    let (loader, owner) = loader_on(&system).await;
    let spec = LoaderSpec {
        data: DataSpec::idx("/no/such/folder"),
        seed: 1,
        batch: 4,
        slots: 2,
        epochs: 1,
        committed: 0,
        consistency: Consistency::default(),
        slots_stay: false,
        meeting_every: None,
        owner: owner.addr(),
    };
    let error = system.spawn::<DataLoader>(spec).await.unwrap_err().to_string();
    assert!(error.contains("there is no train-images-idx3-ubyte"), "{error}");
    let end = loader.watch();
    owner.stop();
    assert_eq!(soon(end).await, Down::Stopped);
}
