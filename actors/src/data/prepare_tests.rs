use std::{
    sync::{Condvar, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    time::Duration,
};

use footlight_runtime::{HostTensor, tensor::DType};

use super::*;
use crate::data::{
    DataError, Field, Sample, Source,
    collate::{Column, Padding},
    dataset::Chosen,
};

/// Samples of 4 bytes that count how often they are read, and hold while the gate is shut.
#[derive(Default)]
struct Gated {
    read: Arc<AtomicUsize>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

const SAMPLES: usize = 64;

impl Source for Gated {
    fn len(&self) -> usize {
        SAMPLES
    }

    fn input(&self) -> Field {
        Field::new(DType::U8, &[3])
    }

    fn target(&self) -> Field {
        Field::scalar(DType::U8)
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        self.read.fetch_add(1, SeqCst);
        let (open, changed) = &*self.gate;
        drop(changed.wait_while(open.lock().unwrap(), |open| !*open));
        assert!(index != 63, "sample 63 is a trap");
        let array = |len: usize, shape: &[usize]| {
            HostTensor::from_vec(vec![index as u8; len], shape)
                .map_err(|e| DataError::custom("t", e))
        };
        Ok(Sample { input: array(3, &[3])?, target: array(1, &[])? })
    }
}

struct Stage {
    preparer: Preparer,
    read: Arc<AtomicUsize>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Stage {
    /// Steps of one slot with one sample, 4 bytes each.
    fn new(slots: u32, bytes: u64) -> Self {
        let source = Gated::default();
        let (read, gate) = (source.read.clone(), source.gate.clone());
        let column = |field| Column::new("x", field, Padding::None, |with| with).unwrap();
        let columns = (column(source.input()), column(source.target()));
        let data =
            Dataset::new(Arc::new(source), Chosen::Range(0..SAMPLES), Vec::new(), columns).unwrap();
        let batches = Batches::new(SAMPLES as u32, 1, 1).unwrap();
        let limits = Prefetch { slots, bytes };
        Stage { preparer: Preparer::new(data, 7, batches, limits, Handle::current()), read, gate }
    }

    fn open(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    /// Wants the steps from this one on.
    fn want(&self, from: u64) {
        self.preparer.want((from..SAMPLES as u64).map(work), from);
    }

    async fn take(&self, step: u64) -> Prepared {
        match self.preparer.take(work(step)) {
            Taken::Now(slot) => *slot,
            Taken::Soon(slot) => tokio::time::timeout(Duration::from_secs(20), slot)
                .await
                .expect("it took too long")
                .unwrap(),
        }
    }

    fn ahead(&self) -> (usize, usize, u64) {
        let state = self.preparer.0.state();
        (state.running.len(), state.ready.len(), state.bytes)
    }

    async fn until_ahead(&self, what: (usize, usize, u64)) {
        let wait = async {
            while self.ahead() != what {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{:?} and not {what:?}", self.ahead());
    }
}

fn work(step: u64) -> Work {
    Work { epoch: 0, step, slot: 0 }
}

#[tokio::test]
async fn slots_are_prepared_ahead_up_to_their_number_and_the_first_one_alone() {
    let stage = Stage::new(3, u64::MAX);
    stage.want(0);
    // Nobody knows yet how large they are.
    assert_eq!(stage.ahead(), (1, 0, 0));
    stage.open();
    stage.until_ahead((0, 3, 12)).await;
    assert_eq!(stage.read.load(SeqCst), 3);
    for step in 0..10 {
        let slot = stage.take(step).await.unwrap();
        assert_eq!((slot.step, slot.batch), (step, 1));
        stage.want(step + 1);
        stage.until_ahead((0, 3, 12)).await;
        assert_eq!(stage.read.load(SeqCst) as u64, step + 4, "each is made once");
    }
}

#[tokio::test]
async fn slots_are_prepared_ahead_up_to_their_bytes_and_one_always() {
    let stage = Stage::new(8, 9);
    stage.open();
    stage.want(0);
    stage.until_ahead((0, 2, 8)).await;
    let tiny = Stage::new(8, 1);
    tiny.open();
    tiny.want(0);
    tiny.until_ahead((0, 1, 4)).await;
    assert_eq!(tiny.read.load(SeqCst), 1);
    let none = Stage::new(0, u64::MAX);
    none.open();
    none.want(0);
    assert_eq!(none.ahead(), (0, 0, 0));
    assert!(none.take(5).await.is_ok(), "what is asked for is made all the same");
}

#[tokio::test]
async fn what_is_asked_for_while_it_is_prepared_is_made_once_and_given_to_who_asked_last() {
    let stage = Stage::new(2, u64::MAX);
    stage.want(0);
    let Taken::Soon(first) = stage.preparer.take(work(0)) else { panic!("it can't be ready") };
    let Taken::Soon(second) = stage.preparer.take(work(0)) else { panic!("it can't be ready") };
    stage.open();
    assert!(first.await.is_err(), "its lease went to another");
    assert_eq!(second.await.unwrap().unwrap().step, 0);
    let read = stage.read.load(SeqCst);
    // Asked for again, as its worker was lost: the same again.
    let again = stage.take(0).await.unwrap();
    assert_eq!(again.inputs, stage.take(0).await.unwrap().inputs);
    assert!(stage.read.load(SeqCst) >= read + 2);
}

#[tokio::test]
async fn what_is_committed_meanwhile_is_let_go() {
    let stage = Stage::new(3, u64::MAX);
    stage.open();
    stage.want(0);
    stage.until_ahead((0, 3, 12)).await;
    stage.want(2);
    stage.until_ahead((0, 3, 12)).await;
    assert_eq!(stage.preparer.0.state().ready.keys().map(|at| at.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[tokio::test]
async fn a_source_that_panics_is_an_error_of_its_slot_and_of_no_other() {
    let stage = Stage::new(2, u64::MAX);
    stage.open();
    let order = order(7, 0, SAMPLES as u32);
    let trap = order.iter().position(|sample| *sample == 63).unwrap() as u64;
    let error = stage.take(trap).await.unwrap_err();
    assert_eq!(error, "the data's source or a transform panicked: sample 63 is a trap");
    assert!(stage.take((trap + 1) % SAMPLES as u64).await.is_ok());
}
