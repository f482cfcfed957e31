//! Tensors that come in pieces, over several connections at once.
//!
//! Each piece's task hands on the slices that quinn has decrypted; one task a tensor copies each to its place
//! in a buffer of the pool: so there is one copy, as for a whole tensor. Memory is taken only for a tensor
//! that a message has announced; until then the pieces wait, a few slices each.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use footlight_runtime::tensor::PoolBuffer;
use tokio::sync::mpsc;

use super::bulk::Head;

/// So many slices wait to be copied, for each tensor.
const SLICES: usize = 64;

/// A slice, and where it lies in the tensor.
pub(crate) type Slice = (usize, Bytes);

/// What a peer sends that does not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssemblyError {
    #[error("piece {piece} of tensor {id} was sent twice")]
    Twice { id: u64, piece: u32 },
    #[error("the pieces of tensor {0} don't agree on its length or their number")]
    Disagree(u64),
}

/// The tensors of one session of which pieces have come.
#[derive(Debug, Default)]
pub(crate) struct Assemblies(Mutex<HashMap<u64, Assembly>>);

#[derive(Debug)]
struct Assembly {
    length: u64,
    pieces: u32,
    /// A bit for each that has begun.
    begun: u32,
    slices: mpsc::Sender<Slice>,
}

impl Assemblies {
    /// A piece begins. Where its slices go, and with the first one of a tensor what brings them all.
    pub(crate) fn begin(
        &self,
        head: Head,
    ) -> Result<(mpsc::Sender<Slice>, Option<mpsc::Receiver<Slice>>), AssemblyError> {
        let Head { id, length, piece, pieces } = head;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = None;
        let assembly = all.entry(id).or_insert_with(|| {
            let (slices, come) = mpsc::channel(SLICES);
            first = Some(come);
            Assembly { length, pieces, begun: 0, slices }
        });
        if (assembly.length, assembly.pieces) != (length, pieces) {
            return Err(AssemblyError::Disagree(id));
        }
        let bit = 1 << piece;
        if assembly.begun & bit != 0 {
            return Err(AssemblyError::Twice { id, piece });
        }
        assembly.begun |= bit;
        Ok((assembly.slices.clone(), first))
    }

    /// A tensor is whole.
    pub(crate) fn end(&self, id: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Copies all slices of a tensor to their places: each byte comes once, since no piece comes twice or is
/// longer than it may be. `None` if they will not all come.
pub(crate) async fn fill(
    mut buffer: PoolBuffer,
    mut slices: mpsc::Receiver<Slice>,
) -> Option<PoolBuffer> {
    let mut missing = buffer.len();
    while missing > 0 {
        let (at, bytes) = slices.recv().await?;
        buffer.get_mut(at..at + bytes.len())?.copy_from_slice(&bytes);
        missing = missing.checked_sub(bytes.len())?;
    }
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use footlight_runtime::tensor::BufferPool;

    use super::*;

    fn head(piece: u32) -> Head {
        Head { id: 7, length: 1_000, piece, pieces: 3 }
    }

    #[tokio::test]
    async fn pieces_in_whatever_order_make_the_tensor() {
        let all = Assemblies::default();
        let tensor: Vec<u8> = (0..1_000).map(|at| at as u8).collect();
        let (first, come) = all.begin(head(2)).unwrap();
        let (second, none) = all.begin(head(0)).unwrap();
        assert!(none.is_none());
        let (third, _) = all.begin(head(1)).unwrap();
        let filled = tokio::spawn(fill(BufferPool::default().take(1_000), come.unwrap()));
        for (slices, piece) in [(first, 2), (second, 0), (third, 1)] {
            let range = head(piece).range();
            for at in range.clone().step_by(100) {
                let end = (at + 100).min(range.end);
                slices.send((at, Bytes::copy_from_slice(&tensor[at..end]))).await.unwrap();
            }
        }
        assert_eq!(filled.await.unwrap().unwrap().to_vec(), tensor);
        all.end(7);
        assert!(all.begin(head(0)).unwrap().1.is_some(), "its number is free again");
    }

    #[test]
    fn a_piece_that_comes_twice_or_does_not_fit_is_refused() {
        let all = Assemblies::default();
        let _kept = all.begin(head(0)).unwrap();
        assert_eq!(all.begin(head(0)).unwrap_err(), AssemblyError::Twice { id: 7, piece: 0 });
        for other in [Head { length: 999, ..head(1) }, Head { pieces: 4, ..head(1) }] {
            assert_eq!(all.begin(other).unwrap_err(), AssemblyError::Disagree(7));
        }
    }

    #[test]
    fn pieces_cover_a_tensor_without_gap_or_overlap() {
        for length in [0, 1, 2, 3, 16, 999, 1_000, (4 << 30) - 1] {
            for pieces in 1..=16 {
                let mut end = 0;
                for piece in 0..pieces {
                    let range = Head { id: 7, length, piece, pieces }.range();
                    assert_eq!(range.start, end);
                    end = range.end;
                }
                assert_eq!(end as u64, length);
            }
        }
    }
}
