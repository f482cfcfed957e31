//! Lender and borrower are one process here: to the kernel it is all the same.

use std::sync::Arc;

use bytes::Bytes;
use footlight_runtime::tensor::BufferPool;

use super::*;
use crate::transport::outbox::Outbox;

const CHALLENGE: Challenge = [1, 2, 3, u64::MAX];
/// More than a piece, and not a whole number of them.
const LEN: usize = 2 * PIECE + 7;

fn pair() -> (Neighbour, Neighbour) {
    let (lender, borrower) = (Neighbour::default(), Neighbour::default());
    borrower.lender.set((lender.place().unwrap(), CHALLENGE)).unwrap();
    assert!(lender.prove(CHALLENGE));
    (lender, borrower)
}

fn tensor_of(id: u64, bytes: Bytes) -> Tensor {
    let held = Arc::<Outbox>::default().try_take(bytes.len() as u64);
    Tensor { id, bytes, held: Arc::new(held) }
}

fn tensor() -> Bytes {
    (0..LEN).map(|at| (at % 251) as u8).collect()
}

/// The first tensor that is borrowed.
async fn fetch(borrower: &Neighbour, lent: Lent) -> io::Result<Vec<u8>> {
    let mut queue = None;
    borrower.borrow(lent, |begun| queue = Some(begun)).unwrap();
    let lent = queue.unwrap().recv().await.unwrap();
    let into = BufferPool::default().take(lent.len as usize);
    borrower.fetch(lent, into).await.map(|filled| filled.to_vec())
}

#[tokio::test]
async fn a_tensor_that_is_lent_arrives_and_is_kept_until_then() {
    let (lender, borrower) = pair();
    let lent = lender.lend(tensor_of(7, tensor())).unwrap();
    assert_eq!(lender.lends_now(), 1);
    assert_eq!(fetch(&borrower, lent).await.unwrap(), tensor());
    assert_eq!(lender.is_fetched(7).unwrap().bytes, tensor());
    assert_eq!(lender.lends_now(), 0);
    assert!(lender.is_fetched(7).is_none());
}

#[tokio::test]
async fn a_tensor_that_several_threads_copy_arrives_whole() {
    let (lender, borrower) = pair();
    let large: Bytes = (0..WIDE + 7).map(|at| (at % 251) as u8).collect();
    let lent = lender.lend(tensor_of(7, large.clone())).unwrap();
    assert_eq!(fetch(&borrower, lent).await.unwrap(), large);
    for at in [8, u64::MAX - 1] {
        let (_, borrower) = pair();
        assert!(fetch(&borrower, Lent { at, ..lent }).await.is_err());
    }
}

#[tokio::test]
async fn sh1_what_was_taken_back_meanwhile_does_not_count() {
    for is_gone in [false, true] {
        let (lender, borrower) = pair();
        let kept = tensor();
        let mut lent = lender.lend(tensor_of(7, kept.clone())).unwrap();
        if is_gone {
            lent.at = 8;
        }
        lender.revoke();
        assert_eq!(lender.lends_now(), 0);
        let error = fetch(&borrower, lent).await.unwrap_err();
        assert!(error.to_string().contains("taken back"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "no reason to warn");
        assert_eq!(lender.lend(tensor_of(8, kept.clone())).unwrap_err().bytes, kept);
    }
}

#[tokio::test]
async fn sh1_the_memory_of_who_does_not_show_the_challenge_does_not_count() {
    let (lender, other) = (Neighbour::default(), Neighbour::default());
    other.lender.set((lender.place().unwrap(), [9; 4])).unwrap();
    lender.prove(CHALLENGE);
    let lent = lender.lend(tensor_of(7, tensor())).unwrap();
    assert!(fetch(&other, lent).await.unwrap_err().to_string().contains("another process"));
}

#[tokio::test]
async fn an_address_or_a_process_that_is_not_there_is_an_error() {
    let (lender, _) = pair();
    let lent = lender.lend(tensor_of(7, tensor())).unwrap();
    for at in [8, u64::MAX] {
        let (_, borrower) = pair();
        assert!(fetch(&borrower, Lent { at, ..lent }).await.is_err());
    }
    let nobody = Neighbour::default();
    // Greater than the kernel gives.
    let place = Place { process: i32::MAX, ..lender.place().unwrap() };
    nobody.lender.set((place, CHALLENGE)).unwrap();
    assert!(fetch(&nobody, lent).await.is_err());
}

#[test]
fn only_another_process_of_this_host_is_asked_for_its_proof() {
    let own = Neighbour::default().place().unwrap();
    let other = Place { process: own.process ^ 1, ..own };
    for (place, asked) in [
        (other, true),
        (own, false),
        (Place { host: !own.host, ..other }, false),
        (Place { numbering: 0, ..other }, false),
    ] {
        assert_eq!(Neighbour::default().consider(place, CHALLENGE), Ok(asked), "{place:?}");
    }
    let twice = Neighbour::default();
    assert_eq!(twice.consider(other, CHALLENGE), Ok(true));
    assert_eq!(twice.consider(other, CHALLENGE), Err(LendError::Twice));
}

#[test]
fn who_lends_unasked_or_without_end_breaches_the_protocol() {
    let (lender, borrower) = pair();
    let lent = lender.lend(tensor_of(7, tensor())).unwrap();
    let unproven = Neighbour::default().borrow(lent, |_| panic!("nothing is fetched"));
    assert_eq!(unproven, Err(LendError::Unproven));
    let mut queues = Vec::new();
    for _ in 0..MAX_LENT {
        assert_eq!(borrower.borrow(lent, |queue| queues.push(queue)), Ok(()));
    }
    assert_eq!(borrower.borrow(lent, |_| ()), Err(LendError::TooMany));
    assert_eq!(queues.len(), 1);
}
