//! Large tensors between two processes of one host and user: read straight out of the memory of the one
//! that sends them.
//!
//! Cross-memory attach, as Open MPI and UCX use it too: `process_vm_readv` copies once, from the tensor's
//! memory into a buffer of the receiver's pool, without packets, encryption or a second copy. All
//! that the two say to each other stays on QUIC:
//!
//! ```text
//! lender                                     borrower
//!   │ ── Lend { place } ─────────────────────► │  when the session begins; is it this host? not this process?
//!   │ ◄───────────────────── Prove(challenge) ─ │  random, and another one for each session
//!   │ writes the challenge to `place.proof`     │
//!   │ ── Lent { id, at, len } ───────────────► │  for each large tensor, behind the frame that names it
//!   │                                           │  copies the tensor, and then looks at the proof
//!   │ ◄───────────────── Fetched { id, whole } ─ │  now its memory is free; not whole: it is sent over the network
//! ```
//!
//! * SH-1: what was copied counts only if the challenge stands in the lender's memory *afterwards*. So it came
//!   from the process at the other end of the session and from no other that has its number by now,
//!   or had it all along in another container; and since the lender wipes the challenge before it
//!   frees what it has lent, the tensor was still there. The kernel sees to it that both have one user.
//! * SH-2: memory that is lent is kept until the borrower has fetched it or the session ends.
//! * SH-3: where the kernel does not allow it (Yama, seccomp, another user), tensors go over the
//!   network, and the log says so once.

use std::{
    collections::HashMap,
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

use footlight_runtime::tensor::PoolBuffer;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::mpsc};

use super::bulk::Tensor;

/// So much is copied before others on the thread have their turn: some 0.2 ms.
const PIECE: usize = 1 << 20;

/// A tensor of more bytes than these is copied by several threads at once, which take longer to start than
/// to copy less.
const WIDE: usize = 8 << 20;
/// By so many at most: few are enough to keep the memory busy.
const MOST_THREADS: usize = 4;

/// Most tensors that a peer may have lent and that are not fetched yet.
const MAX_LENT: usize = 1 << 16;

/// How large tensors reach another process of this host and user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameHost {
    /// Straight from memory where the kernel allows it, else as to another host.
    #[default]
    Memory,
    /// As to another host.
    Network,
}

/// Where a process and its proof are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Drawn by the kernel when the host starts.
    host: u128,
    /// In which numbers of processes the next one counts.
    numbering: u64,
    process: i32,
    /// The address of the proof in its memory.
    proof: u64,
}

/// What a lender writes into its memory to show whose memory it is.
pub(crate) type Challenge = [u64; 4];

/// A tensor in the lender's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lent {
    pub(crate) id: u64,
    at: u64,
    pub(crate) len: u64,
}

/// What one session lends and borrows.
#[derive(Debug, Default)]
pub(crate) struct Neighbour {
    /// Read by the borrower; its address never changes.
    proof: Box<Proof>,
    /// The borrower has asked for the proof, and nothing has failed since.
    lends: AtomicBool,
    lent: Mutex<HashMap<u64, Tensor>>,
    /// How many tensors the borrower has fetched.
    pub(crate) fetched: AtomicU64,
    /// Whose memory this side may read, and what it has been asked to show.
    lender: OnceLock<(Place, Challenge)>,
    /// Tensors that wait to be fetched.
    queue: OnceLock<mpsc::UnboundedSender<Lent>>,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Proof([AtomicU64; 4]);

impl Proof {
    fn write(&self, challenge: Challenge) {
        self.0.iter().zip(challenge).for_each(|(word, value)| word.store(value, Ordering::Release));
        // The borrower is no thread of this process: what comes behind this, also frames, stays behind.
        fence(Ordering::SeqCst);
    }
}

/// What a peer may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LendError {
    #[error("the peer lends memory and was not asked for its proof")]
    Unproven,
    #[error("the peer says twice where its memory is")]
    Twice,
    #[error("the peer has lent tensor {0}, which no message names")]
    Unnamed(u64),
    #[error("the peer has lent more than {MAX_LENT} tensors at once")]
    TooMany,
}

impl Neighbour {
    /// Where this process and the proof of this session are; `None` where the system does not say.
    pub(crate) fn place(&self) -> Option<Place> {
        let (host, numbering) = *here()?;
        let process = i32::try_from(std::process::id()).ok()?;
        Some(Place {
            host,
            numbering,
            process,
            proof: std::ptr::from_ref::<Proof>(&self.proof) as u64,
        })
    }

    /// The peer says where it is. True if it is to prove it: another process of this host.
    pub(crate) fn consider(&self, place: Place, challenge: Challenge) -> Result<bool, LendError> {
        let own = self.place();
        let is_near = own.is_some_and(|own| {
            (own.host, own.numbering) == (place.host, place.numbering)
                && own.process != place.process
        });
        if !is_near {
            return Ok(false);
        }
        self.lender.set((place, challenge)).map_err(|_| LendError::Twice)?;
        Ok(true)
    }

    /// Shows the borrower what it wants to see, and lends from here on. False if that was done before.
    pub(crate) fn prove(&self, challenge: Challenge) -> bool {
        self.proof.write(challenge);
        !self.lends.swap(true, Ordering::AcqRel)
    }

    /// Lends a tensor until it is fetched; gives it back if nothing is lent.
    pub(crate) fn lend(&self, tensor: Tensor) -> Result<Lent, Tensor> {
        if !self.lends.load(Ordering::Acquire) {
            return Err(tensor);
        }
        let Tensor { id, bytes, .. } = &tensor;
        let lent = Lent { id: *id, at: bytes.as_ptr() as u64, len: bytes.len() as u64 };
        self.lent().insert(lent.id, tensor);
        Ok(lent)
    }

    /// The borrower needs a tensor's memory no more.
    pub(crate) fn is_fetched(&self, id: u64) -> Option<Tensor> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.lent().remove(&id)
    }

    /// How many tensors are lent.
    pub(crate) fn lends_now(&self) -> usize {
        self.lent().len()
    }

    /// Lends nothing more; what is lent may still be fetched.
    pub(crate) fn stop_lending(&self) {
        self.lends.store(false, Ordering::Release);
    }

    /// Takes all back: what is read from now on counts no more (SH-1).
    pub(crate) fn revoke(&self) {
        self.stop_lending();
        self.proof.write(Challenge::default());
        // Freed outside the lock.
        let _ = std::mem::take(&mut *self.lent());
    }

    /// The peer has lent a tensor: it is fetched in its turn, by the task that `begin` starts with the
    /// first one.
    pub(crate) fn borrow(
        &self,
        lent: Lent,
        begin: impl FnOnce(mpsc::UnboundedReceiver<Lent>),
    ) -> Result<(), LendError> {
        if self.lender.get().is_none() {
            return Err(LendError::Unproven);
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_LENT {
            return Err(LendError::TooMany);
        }
        let queue = self.queue.get_or_init(|| {
            let (sender, queue) = mpsc::unbounded_channel();
            begin(queue);
            sender
        });
        let _ = queue.send(lent);
        Ok(())
    }

    /// Copies a tensor that is lent; `into` has its length.
    ///
    /// # Errors
    /// What the kernel says, or that the memory is not the peer's any more.
    pub(crate) async fn fetch(&self, lent: Lent, into: PoolBuffer) -> io::Result<PoolBuffer> {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let Some((place, challenge)) = self.lender.get() else {
            return Err(io::Error::other("the peer has not said where its memory is"));
        };
        let process = place.process;
        if lent.at.checked_add(lent.len).is_none() {
            return Err(io::Error::other("memory beyond the end of all memory"));
        }
        let fetched = if into.len() > WIDE {
            let wide = Handle::current().spawn_blocking(move || read_wide(process, lent.at, into));
            wide.await.map_err(io::Error::other)?
        } else {
            read_in_turns(process, lent.at, into).await
        };
        let mut proof = [0; size_of::<Challenge>()];
        read(process, place.proof, &mut proof)?;
        let shown = challenge.iter().flat_map(|word| word.to_ne_bytes());
        if proof.into_iter().eq(shown) {
            return fetched;
        }
        // What [`Self::revoke`] leaves: then the tensor may be gone from there, too.
        if proof == [0; size_of::<Challenge>()] {
            let why = "the peer has taken back what it lent, as it does when it ends";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        Err(io::Error::other("it is the memory of another process"))
    }

    fn lent(&self) -> MutexGuard<'_, HashMap<u64, Tensor>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.revoke();
    }
}

/// This host and its numbering of processes.
fn here() -> Option<&'static (u128, u64)> {
    static HERE: OnceLock<Option<(u128, u64)>> = OnceLock::new();
    HERE.get_or_init(find_here).as_ref()
}

#[cfg(target_os = "linux")]
fn find_here() -> Option<(u128, u64)> {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let host = u128::from_str_radix(&boot.trim().replace('-', ""), 16).ok()?;
    Some((host, std::fs::metadata("/proc/self/ns/pid").ok()?.ino()))
}

#[cfg(not(target_os = "linux"))]
fn find_here() -> Option<(u128, u64)> {
    None
}

/// Reads piece by piece, between others on this thread.
async fn read_in_turns(process: i32, mut at: u64, mut into: PoolBuffer) -> io::Result<PoolBuffer> {
    for piece in into.chunks_mut(PIECE) {
        read(process, at, piece)?;
        at += piece.len() as u64;
        if piece.len() == PIECE {
            tokio::task::yield_now().await;
        }
    }
    Ok(into)
}

/// Reads with several threads at once.
fn read_wide(process: i32, at: u64, mut into: PoolBuffer) -> io::Result<PoolBuffer> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let size = into.len().div_ceil(threads);
    thread::scope(|scope| {
        let mut parts = into.chunks_mut(size).zip((at..).step_by(size));
        let own = parts.next();
        let others: Vec<_> =
            parts.map(|(part, at)| scope.spawn(move || read(process, at, part))).collect();
        own.map_or(Ok(()), |(part, at)| read(process, at, part))?;
        others.into_iter().try_for_each(|other| {
            other.join().unwrap_or_else(|_| Err(io::Error::other("a thread that read panicked")))
        })
    })?;
    Ok(into)
}

/// Reads the memory of a process.
#[cfg(target_os = "linux")]
fn read(process: i32, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
    use nix::{
        sys::uio::{RemoteIoVec, process_vm_readv},
        unistd::Pid,
    };
    while !into.is_empty() {
        let base = usize::try_from(at).map_err(io::Error::other)?;
        let remote = [RemoteIoVec { base, len: into.len() }];
        let mut local = [io::IoSliceMut::new(into)];
        match process_vm_readv(Pid::from_raw(process), &mut local, &remote) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => {
                at += copied as u64;
                into = &mut into[copied..];
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ESRCH) => {
                let why = "the peer's process has ended";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn read(_: i32, _: u64, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
#[path = "same_host_tests.rs"]
mod tests;
