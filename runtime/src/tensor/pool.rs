//! Memory that is used again: aligned buffers for tensors that arrive or are built.
//!
//! Training moves the same few sizes over and over. A fresh allocation of some megabytes costs a
//! page fault for each 4 KiB, which is more than the copy into it; a buffer from the pool costs a
//! look-up. Small ones go to the allocator, which is as fast for them.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::Bytes;

/// A cache line, in bytes: what buffers are aligned to and counted in.
const LINE: usize = 64;

/// A page of the larger kind, in bytes, as most processors have it.
const HUGE_PAGE: usize = 2 << 20;

/// Asks the system to back memory with huge pages where it has some: a processor that copies a tensor then
/// looks up one address where it would look up 512, and so does the kernel when it copies between
/// processes. What it says is no matter.
fn in_huge_pages(memory: &[u8]) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is a live allocation that begins at a page, and the advice changes no contents.
    unsafe {
        libc::madvise(memory.as_ptr().cast_mut().cast(), memory.len(), libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// So many lines of memory. Its bytes come from the system as zeros that are not there yet: memory
/// that is asked for takes none before it is written to, so that a tensor which only says that it is
/// large takes none either. (Asked for with its alignment, it would be written to at once.)
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    /// Where the first line begins.
    start: usize,
    lines: usize,
}

impl Block {
    fn zeroed(lines: usize) -> Self {
        let len = lines * LINE;
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        if align == HUGE_PAGE {
            in_huge_pages(&bytes[start..][..len]);
        }
        Block { bytes, start, lines }
    }

    fn len(&self) -> usize {
        self.lines
    }
}

/// Buffers under 4 KiB aren't kept.
const SMALLEST_KEPT: usize = 4096 / LINE;

/// A node's store of buffers to use again. Clones share the store.
///
/// A buffer serves any request of at least half its size. When what is kept would exceed the
/// limit, the buffers that came back first are freed.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    limit: usize,
    idle: Mutex<Idle>,
}

/// The buffers that nobody holds, found by size and by age.
#[derive(Default)]
struct Idle {
    /// By (lines, return number): the smallest that fits is the first of a range.
    by_size: BTreeMap<(usize, u64), Block>,
    /// Lines by return number: the oldest is the first.
    by_age: BTreeMap<u64, usize>,
    bytes: usize,
    returned: u64,
}

/// A buffer of exactly the length asked for, aligned to 64 bytes, that nobody else holds.
///
/// Dropped, it goes back to its pool; so does the memory behind [`PoolBuffer::freeze`], when the
/// last clone goes.
pub struct PoolBuffer {
    lines: Block,
    len: usize,
    /// Weak, so that a tensor that lives long keeps its own memory alive and not the whole pool's.
    pool: Weak<Shared>,
}

impl BufferPool {
    /// What [`BufferPool::default`] keeps at most: 256 MiB.
    pub const DEFAULT_LIMIT: usize = 256 << 20;

    /// An empty pool that keeps at most `limit` idle bytes. Buffers in use don't count.
    pub fn new(limit: usize) -> Self {
        BufferPool { shared: Arc::new(Shared { limit, idle: Mutex::default() }) }
    }

    /// A buffer of `len` bytes. Its contents are whatever the last user left: initialised memory,
    /// but no promise of zeros.
    ///
    /// A length that came from a peer must have been checked against a limit before; as everywhere
    /// in Rust, running out of memory ends the process.
    pub fn take(&self, len: usize) -> PoolBuffer {
        let need = len.div_ceil(LINE);
        // In a statement of its own, so that the lock is free again before anything is allocated.
        let found = self.shared.idle().take(need);
        let lines = found.unwrap_or_else(|| Block::zeroed(need));
        PoolBuffer { lines, len, pool: Arc::downgrade(&self.shared) }
    }

    /// How many idle bytes the pool holds now.
    pub fn idle_bytes(&self) -> usize {
        self.shared.idle().bytes
    }
}

impl Default for BufferPool {
    fn default() -> Self {
        BufferPool::new(BufferPool::DEFAULT_LIMIT)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("limit", &self.shared.limit)
            .field("idle_bytes", &self.idle_bytes())
            .finish()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Nothing under the lock panics half-way through a change, so a poisoned lock is sound.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn take(&mut self, need: usize) -> Option<Block> {
        let most = need.saturating_mul(2);
        let key = *self.by_size.range((need, 0)..=(most, u64::MAX)).next()?.0;
        self.remove(key)
    }

    fn give_back(&mut self, lines: Block, limit: usize) {
        let bytes = lines.len() * LINE;
        if lines.len() < SMALLEST_KEPT || bytes > limit {
            return;
        }
        while self.bytes > limit - bytes {
            let Some((&returned, &len)) = self.by_age.first_key_value() else {
                break;
            };
            self.remove((len, returned));
        }
        self.returned += 1;
        self.by_age.insert(self.returned, lines.len());
        self.bytes += bytes;
        self.by_size.insert((lines.len(), self.returned), lines);
    }

    fn remove(&mut self, key: (usize, u64)) -> Option<Block> {
        let lines = self.by_size.remove(&key)?;
        self.by_age.remove(&key.1);
        self.bytes -= lines.len() * LINE;
        Some(lines)
    }
}

impl PoolBuffer {
    /// A buffer of `len` zeros that belongs to no pool.
    pub(crate) fn unpooled(len: usize) -> PoolBuffer {
        PoolBuffer { lines: Block::zeroed(len.div_ceil(LINE)), len, pool: Weak::new() }
    }

    /// Makes the buffer immutable and shared, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.lines.bytes[self.lines.start..][..self.len]
    }
}

impl DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.lines.start;
        &mut self.lines.bytes[start..][..self.len]
    }
}

impl AsRef<[u8]> for PoolBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let lines = std::mem::take(&mut self.lines);
            pool.idle().give_back(lines, pool.limit);
        }
    }
}

impl fmt::Debug for PoolBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolBuffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_is_aligned_to_64_bytes() {
        let pool = BufferPool::default();
        for len in [0, 1, 63, 64, 65, 4096, MIB + 3] {
            let buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            assert_eq!(buffer.freeze().len(), len);
        }
    }

    #[test]
    fn a_large_buffer_begins_where_a_huge_page_can() {
        let pool = BufferPool::default();
        for len in [HUGE_PAGE, HUGE_PAGE + 1, 9 * HUGE_PAGE] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.as_ptr() as usize % HUGE_PAGE, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert_eq!(buffer.len(), len);
        }
    }

    #[test]
    fn memory_comes_back_when_the_last_clone_goes_and_not_before() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(MIB);
        buffer[0] = 7;
        let address = buffer.as_ptr();
        let first = buffer.freeze();
        let second = first.slice(10..20);
        drop(first);
        assert_eq!(pool.idle_bytes(), 0);
        drop(second);
        assert_eq!(pool.idle_bytes(), MIB);

        let again = pool.take(MIB - 100);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again[0], 7);
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn a_buffer_more_than_twice_as_big_is_not_wasted_on_a_small_request() {
        let pool = BufferPool::default();
        drop(pool.take(4 * MIB));
        drop(pool.take(MIB));
        assert_eq!(pool.idle_bytes(), 5 * MIB);
        let small = pool.take(MIB / 2);
        assert_eq!(pool.idle_bytes(), 4 * MIB);
        let smaller = pool.take(MIB / 2);
        assert_eq!(pool.idle_bytes(), 4 * MIB);
        drop((small, smaller));
    }

    #[test]
    fn no_more_than_the_limit_is_kept_and_the_oldest_goes_first() {
        let pool = BufferPool::new(3 * MIB);
        let [a, b, c] = [MIB, 2 * MIB, MIB].map(|len| pool.take(len));
        let newest = c.as_ptr();
        drop(a);
        drop(b);
        assert_eq!(pool.idle_bytes(), 3 * MIB);
        drop(c);
        assert_eq!(pool.idle_bytes(), 3 * MIB);
        assert_eq!(pool.take(MIB).as_ptr(), newest);
        drop(pool.take(4 * MIB));
        assert_eq!(pool.idle_bytes(), 3 * MIB, "one above the limit is freed at once");
    }

    #[test]
    fn small_buffers_and_those_of_a_pool_that_is_gone_are_freed() {
        let pool = BufferPool::default();
        drop(pool.take(1000));
        assert_eq!(pool.idle_bytes(), 0);
        let bytes = pool.take(MIB).freeze();
        drop(pool);
        assert_eq!(bytes.len(), MIB);
    }

    #[test]
    fn threads_that_share_a_pool_never_share_a_buffer() {
        let pool = BufferPool::new(8 * MIB);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for round in 0..100usize {
                        let mut buffer = pool.take(10_000 + round);
                        buffer.fill(thread);
                        let bytes = buffer.freeze();
                        std::thread::yield_now();
                        assert!(bytes.iter().all(|&b| b == thread));
                    }
                });
            }
        });
        assert!(pool.idle_bytes() <= 8 * MIB);
    }
}
