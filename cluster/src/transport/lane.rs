//! Frames on one QUIC stream: written in batches, read without waiting for anybody.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::Notify;

use super::frame::{self, FrameError, Pieces};

/// Frames on their way to one stream. It has no bound of its own: messages enter it with credits,
/// and of what needs none (answers, credits, ends) the bytes are counted, and counted off when they
/// are written.
///
/// What is put in while the stream is being written to goes out with the next write: a batch costs
/// one wake-up, and the first frame of an idle lane waits for nothing.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    waiting: Mutex<Waiting>,
    /// The writer has something to do.
    work: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: Pieces,
    /// Of them, the bytes that entered without credits.
    uncredited: usize,
    /// The writer sleeps.
    idle: bool,
    /// Nothing comes after what is there.
    closed: bool,
    /// Nobody writes any more.
    dead: bool,
}

impl Lane {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `put` lay frames behind those that wait. Those without credits are counted in
    /// `backlog`. `None` if the stream has ended.
    pub(crate) fn put<R>(
        &self,
        backlog: Option<&AtomicUsize>,
        put: impl FnOnce(&mut Pieces) -> R,
    ) -> Option<R> {
        let mut waiting = self.waiting();
        if waiting.dead {
            return None;
        }
        let before = waiting.pieces.len();
        let result = put(&mut waiting.pieces);
        if let Some(backlog) = backlog {
            let bytes = waiting.pieces.len() - before;
            waiting.uncredited += bytes;
            backlog.fetch_add(bytes, Ordering::AcqRel);
        }
        let wake = std::mem::take(&mut waiting.idle);
        drop(waiting);
        if wake {
            self.work.notify_one();
        }
        Some(result)
    }

    /// Nothing is put in any more: the writer finishes the stream behind what is there.
    pub(crate) fn close(&self) {
        self.waiting().closed = true;
        self.work.notify_one();
    }

    /// Takes all that waits; the bytes of it that had no credits, or `None` at the end.
    async fn take(&self, chunks: &mut Vec<Bytes>) -> Option<usize> {
        loop {
            {
                let mut waiting = self.waiting();
                if !waiting.pieces.is_empty() {
                    waiting.pieces.drain_into(chunks);
                    return Some(std::mem::take(&mut waiting.uncredited));
                }
                if waiting.closed {
                    return None;
                }
                waiting.idle = true;
            }
            self.work.notified().await;
        }
    }

    /// Writes what comes until the lane is closed or the connection ends.
    ///
    /// # Errors
    /// If the connection ends in the middle of it, or the peer stops the lane.
    pub(crate) async fn write(
        &self,
        connection: &quinn::Connection,
        mut stream: quinn::SendStream,
        backlog: &AtomicUsize,
    ) -> Result<(), quinn::WriteError> {
        let _end = End(self);
        let mut chunks = Vec::new();
        loop {
            let uncredited = tokio::select! {
                biased;
                taken = self.take(&mut chunks) => taken,
                end = connection.closed() => return Err(end.into()),
            };
            let Some(uncredited) = uncredited else { break };
            let written = stream.write_all_chunks(&mut chunks).await;
            backlog.fetch_sub(uncredited, Ordering::AcqRel);
            written?;
            chunks.clear();
        }
        let _ = stream.finish();
        Ok(())
    }
}

/// Whatever ends a lane's writer, nothing waits for it afterwards.
struct End<'a>(&'a Lane);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.waiting() = Waiting { dead: true, ..Waiting::default() };
    }
}

/// The lanes of a session: closed when it is dropped, so that their writers end.
#[derive(Debug)]
pub(crate) struct Lanes<const N: usize>([Arc<Lane>; N]);

impl<const N: usize> Default for Lanes<N> {
    fn default() -> Self {
        Lanes(std::array::from_fn(|_| Arc::default()))
    }
}

impl<const N: usize> Lanes<N> {
    pub(crate) fn get(&self, lane: usize) -> &Arc<Lane> {
        &self.0[lane % N]
    }
}

impl<const N: usize> Drop for Lanes<N> {
    fn drop(&mut self) {
        self.0.iter().for_each(|lane| lane.close());
    }
}

/// Why a lane can't be read any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a lane was cut off in the middle of a frame")]
    CutOff,
    #[error("a lane was cut off: {0}")]
    Read(#[from] quinn::ReadError),
}

/// Cuts a stream into frames. Memory grows only with what has arrived, never with what a length
/// announces.
pub(crate) struct Reader {
    stream: quinn::RecvStream,
    chunk: Bytes,
}

impl Reader {
    pub(crate) fn new(stream: quinn::RecvStream) -> Self {
        Reader { stream, chunk: Bytes::new() }
    }

    /// The bytes of the next frame if all of it is here already.
    pub(crate) fn ready(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.chunk.first_chunk::<4>() else { return Ok(None) };
        let length = frame::check_length(u32::from_le_bytes(*length))?;
        if self.chunk.len() - 4 < length {
            return Ok(None);
        }
        self.chunk.advance(4);
        Ok(Some(self.chunk.split_to(length)))
    }

    /// The bytes of the next frame behind its length; `None` at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LaneError> {
        let Some(mut length) = self.take(4).await? else { return Ok(None) };
        let length = frame::check_length(length.get_u32_le())?;
        match self.take(length).await? {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(LaneError::CutOff),
        }
    }

    async fn take(&mut self, n: usize) -> Result<Option<Bytes>, LaneError> {
        if self.chunk.len() >= n {
            return Ok(Some(self.chunk.split_to(n)));
        }
        let mut gathered = BytesMut::with_capacity(n.min(64 << 10));
        loop {
            let part = self.chunk.split_to(self.chunk.len().min(n - gathered.len()));
            // One chunk that is the whole frame is handed on as it is.
            if gathered.is_empty() && part.len() == n {
                return Ok(Some(part));
            }
            gathered.put(part);
            if gathered.len() == n {
                return Ok(Some(gathered.freeze()));
            }
            match self.stream.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.chunk = chunk.bytes,
                None if gathered.is_empty() => return Ok(None),
                None => return Err(LaneError::CutOff),
            }
        }
    }
}
