//! Frames on one QUIC stream: written in batches, read without waiting for anybody.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::frame::{self, FrameError, Pieces};

/// Most frames that one write takes from the queue.
const BATCH: usize = 256;

/// A queue of frames for one stream. It has no bound of its own: messages enter it with credits,
/// and of what needs none (answers, credits, ends) the bytes are counted, and counted off when they
/// are written.
pub(crate) type Queue = mpsc::UnboundedSender<(Pieces, usize)>;

/// Writes what the queue brings until the queue or the connection ends.
pub(crate) async fn write(
    mut queue: mpsc::UnboundedReceiver<(Pieces, usize)>,
    connection: quinn::Connection,
    mut stream: quinn::SendStream,
    backlog: Arc<AtomicUsize>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut chunks = Vec::with_capacity(BATCH);
    loop {
        let taken = tokio::select! {
            biased;
            taken = queue.recv_many(&mut batch, BATCH) => taken,
            _ = connection.closed() => return,
        };
        if taken == 0 {
            break;
        }
        let uncredited: usize = batch.iter().map(|(_, uncredited)| uncredited).sum();
        chunks.extend(batch.drain(..).flat_map(|(pieces, _)| pieces));
        let written = stream.write_all_chunks(&mut chunks).await;
        backlog.fetch_sub(uncredited, Ordering::AcqRel);
        if let Err(error) = written {
            // A peer that stops a lane while the session lives would wait for ever for what it asked.
            if let quinn::WriteError::Stopped(_) = error {
                connection.close(1u32.into(), b"the peer stopped reading a lane");
            }
            // The connection has ended, and the session with it.
            return;
        }
        chunks.clear();
    }
    let _ = stream.finish();
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
