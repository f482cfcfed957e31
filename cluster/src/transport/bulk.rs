//! Large tensors: each on one-way streams of connections and a socket of their own.
//!
//! ```text
//! stream = id: u64 LE │ length of the tensor: u64 LE │ piece: u32 LE │ pieces: u32 LE │ the piece's bytes
//! ```
//!
//! Sending hands the tensor's memory to quinn as it is; quinn copies it once, into the packets that
//! it encrypts. Receiving copies each decrypted slice once, to its place in a buffer of the node's
//! pool, which then is the tensor's memory.
//!
//! What one connection carries, one core encrypts. Where there are more of both, a long tensor is cut into
//! as many equal pieces as there are connections, each on a stream of another one; the [`assembly`](super::assembly)
//! puts them together.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use footlight_runtime::tensor::BufferPool;
use futures::future::try_join_all;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    assembly::AssemblyError,
    endpoint::IDLE_TIMEOUT,
    follow::{Way, follow},
    frame::MAX_SEGMENT,
    outbox::Held,
    session::Session,
};

/// Most connections that carry the tensors of one direction of a session.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// A tensor of more bytes than these is cut into pieces, if there are connections for them.
const STRIPED: usize = 8 << 20;

/// A tensor up to this many bytes gets its memory when it is announced on its stream; a longer one
/// only if its message has announced it too, else as it comes.
const UNANNOUNCED: u64 = 8 << 20;

/// A tensor that is ahead of its message, which comes over another connection, waits so long for it.
const ANNOUNCEMENT: Duration = Duration::from_millis(200);

/// Most tensors that are received at once on one connection.
const CONCURRENT: usize = 32;

/// A tensor of more bytes than these is large among the large: of such only [`AT_ONCE`] are sent at
/// once, the others wait their turn. All at once they would all arrive last, and who works on them one
/// by one could not begin.
pub(crate) const LONG: usize = 1 << 20;
/// Two, so that the next one is on its way while the end of one is acknowledged.
const AT_ONCE: usize = 2;

/// A peer that takes nothing of any tensor for so long does not read them: the reader of a connection
/// never waits. What its calls have produced must not be kept for ever.
pub(crate) const PATIENCE: Duration = IDLE_TIMEOUT;

/// Why the bulk connection of a session is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BulkError {
    #[error("a tensor of {0} bytes was announced, at most {MAX_SEGMENT} are allowed")]
    TooLong(u64),
    #[error("tensor {id} ended after {got} of {length} bytes")]
    Short { id: u64, got: u64, length: u64 },
    #[error("tensor {id} goes on after the {length} bytes that it has")]
    Long { id: u64, length: u64 },
    #[error("a tensor was cut off: {0}")]
    CutOff(String),
    #[error("tensor {0} is in more pieces than there can be connections")]
    Pieces(u64),
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    #[error("the peer has read nothing of the tensors sent to it for {PATIENCE:?}")]
    Unread,
    #[error("{0}")]
    Broken(String),
}

fn broken(error: impl std::fmt::Display) -> BulkError {
    BulkError::Broken(error.to_string())
}

fn cut_off(error: impl std::fmt::Display) -> BulkError {
    BulkError::CutOff(error.to_string())
}

/// What a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: u64,
    /// Of the whole tensor.
    pub(crate) length: u64,
    /// Which piece of it, and of how many.
    pub(crate) piece: u32,
    pub(crate) pieces: u32,
}

impl Head {
    const LEN: usize = 24;

    fn write(self) -> Bytes {
        let mut bytes = Vec::with_capacity(Head::LEN);
        bytes.put_u64_le(self.id);
        bytes.put_u64_le(self.length);
        bytes.put_u32_le(self.piece);
        bytes.put_u32_le(self.pieces);
        bytes.into()
    }

    fn read(bytes: [u8; Head::LEN]) -> Result<Self, BulkError> {
        let mut bytes = &bytes[..];
        let (id, length) = (bytes.get_u64_le(), bytes.get_u64_le());
        let (piece, pieces) = (bytes.get_u32_le(), bytes.get_u32_le());
        if length > MAX_SEGMENT {
            return Err(BulkError::TooLong(length));
        }
        if piece >= pieces || pieces as usize > MAX_CONNECTIONS {
            return Err(BulkError::Pieces(id));
        }
        Ok(Head { id, length, piece, pieces })
    }

    /// Where the piece lies in the tensor.
    pub(crate) fn range(self) -> Range<usize> {
        let length = self.length as usize;
        let size = length.div_ceil(self.pieces as usize);
        let start = (self.piece as usize * size).min(length);
        start..(start + size).min(length)
    }
}

/// Sends what the queue brings until the session ends: long tensors two at a time in their turn, shorter
/// ones beside and ahead of them.
pub(crate) async fn send(
    session: Arc<Session>,
    connections: Vec<quinn::Connection>,
    mut queue: Queue,
) -> Result<(), BulkError> {
    for connection in &connections {
        session.adopt(connection.clone());
        tokio::spawn(follow(connection.clone(), Way::Out));
    }
    let taken = Arc::<AtomicU64>::default();
    let (to_short, short) = mpsc::unbounded_channel();
    let (to_long, long) = mpsc::unbounded_channel();
    let sort = async {
        // The senders go with this block, and with them the two lines end.
        let (to_short, to_long) = (to_short, to_long);
        while let Some(tensor) = queue.recv().await {
            let line = if tensor.bytes.len() > LONG { &to_long } else { &to_short };
            let _ = line.send(tensor);
        }
        Ok(())
    };
    let short = send_line(&session, &connections, short, CONCURRENT - AT_ONCE, 1, &taken);
    let long = send_line(&session, &connections, long, AT_ONCE, 0, &taken);
    tokio::select! {
        biased;
        () = session.ended() => Ok(()),
        sent = async { tokio::try_join!(sort, short, long) } => sent.map(|_| ()),
    }
}

/// A tensor on its way to the peer.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) id: u64,
    pub(crate) bytes: Bytes,
    /// What its message takes of the outbox.
    pub(crate) held: Arc<Option<Held>>,
}

/// Tensors on their way to the bulk connections.
pub(crate) type Queue = mpsc::UnboundedReceiver<Tensor>;

/// Sends what comes, `at_once` at a time, in this order.
async fn send_line(
    session: &Arc<Session>,
    connections: &[quinn::Connection],
    mut queue: Queue,
    at_once: usize,
    priority: i32,
    taken: &Arc<AtomicU64>,
) -> Result<(), BulkError> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut turn = connections.iter().cycle();
    while let Some(Tensor { id, bytes, held }) = queue.recv().await {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let pieces = if bytes.len() > STRIPED { connections.len() as u32 } else { 1 };
        let mut writes = Vec::with_capacity(pieces as usize);
        for piece in 0..pieces {
            let Some(connection) = turn.next() else { return Ok(()) };
            let stream = timeout(PATIENCE, connection.open_uni()).await;
            let stream = stream.map_err(|_| BulkError::Unread)?.map_err(broken)?;
            stream.set_priority(priority).map_err(broken)?;
            let head = Head { id, length: bytes.len() as u64, piece, pieces };
            writes.push(write(stream, head, bytes.slice(head.range()), taken.clone()));
        }
        let session = session.clone();
        tokio::spawn(async move {
            if let Err(error) = try_join_all(writes).await {
                session.close(format!("a tensor could not be sent: {error}"));
            }
            drop((place, held));
        });
    }
    Ok(())
}

/// Writes one piece. `taken` grows whenever the peer takes something of any tensor of the session.
async fn write(
    mut stream: quinn::SendStream,
    head: Head,
    bytes: Bytes,
    taken: Arc<AtomicU64>,
) -> Result<(), BulkError> {
    let mut pieces = [head.write(), bytes];
    let mut left = &mut pieces[..];
    while !left.is_empty() {
        let before = taken.load(Ordering::Relaxed);
        match timeout(PATIENCE, stream.write_chunks(left)).await {
            Ok(written) => {
                left = &mut left[written.map_err(broken)?.chunks..];
                taken.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) if taken.load(Ordering::Relaxed) == before => return Err(BulkError::Unread),
            // Another one's turn took so long.
            Err(_) => {}
        }
    }
    stream.finish().map_err(broken)
}

/// Takes tensors until the connection ends.
pub(crate) async fn receive(session: Arc<Session>, connection: quinn::Connection) {
    session.adopt(connection.clone());
    tokio::spawn(follow(connection.clone(), Way::In));
    let places = Arc::new(Semaphore::new(CONCURRENT));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            biased;
            () = session.ended() => {
                connection.close(0u32.into(), b"the session ended");
                return;
            }
            stream = connection.accept_uni() => stream,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => return session.lost_beside("the bulk connection", &error).await,
        };
        let session = session.clone();
        tokio::spawn(async move {
            match tensor(stream, &session).await {
                Ok(Some((id, bytes))) => session.segment(id, bytes),
                Ok(None) => {}
                Err(error) => session.close(error.to_string()),
            }
            drop(place);
        });
    }
}

/// A tensor that came as a whole; of a piece, the assembly has what came.
async fn tensor(
    mut stream: quinn::RecvStream,
    session: &Arc<Session>,
) -> Result<Option<(u64, Bytes)>, BulkError> {
    let mut head = [0u8; Head::LEN];
    stream.read_exact(&mut head).await.map_err(cut_off)?;
    let head = Head::read(head)?;
    if head.pieces > 1 {
        return piece(stream, head, session).await.map(|()| None);
    }
    let Head { id, length, .. } = head;
    if length > UNANNOUNCED
        && timeout(ANNOUNCEMENT, session.is_announced(id, length)).await.is_err()
    {
        return Ok(Some((id, gather(stream, id, length, session.pool()).await?)));
    }
    let mut buffer = session.pool().take(length as usize);
    let mut filled = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.map_err(cut_off)? {
        let end = filled + chunk.bytes.len();
        match buffer.get_mut(filled..end) {
            Some(place) => place.copy_from_slice(&chunk.bytes),
            None => return Err(BulkError::Long { id, length }),
        }
        filled = end;
    }
    if filled as u64 != length {
        return Err(BulkError::Short { id, got: filled as u64, length });
    }
    Ok(Some((id, buffer.freeze())))
}

/// Hands one piece of a tensor to those who put it together.
async fn piece(
    mut stream: quinn::RecvStream,
    head: Head,
    session: &Arc<Session>,
) -> Result<(), BulkError> {
    let assembly = session.assemble(head)?;
    let Head { id, .. } = head;
    let Range { start: mut at, end } = head.range();
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.map_err(cut_off)? {
        let length = (end - head.range().start) as u64;
        if chunk.bytes.len() > end - at {
            return Err(BulkError::Long { id, length });
        }
        let start = at;
        at += chunk.bytes.len();
        // They are gone only with the session.
        if assembly.send((start, chunk.bytes)).await.is_err() {
            return Ok(());
        }
    }
    if at < end {
        let range = head.range();
        let (got, length) = ((at - range.start) as u64, range.len() as u64);
        return Err(BulkError::Short { id, got, length });
    }
    Ok(())
}

/// Reads a tensor that nobody has announced yet: memory grows with what arrives, and is copied once
/// more at the end.
async fn gather(
    mut stream: quinn::RecvStream,
    id: u64,
    length: u64,
    pool: &BufferPool,
) -> Result<Bytes, BulkError> {
    let mut chunks = Vec::new();
    let mut got = 0u64;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.map_err(cut_off)? {
        got += chunk.bytes.len() as u64;
        if got > length {
            return Err(BulkError::Long { id, length });
        }
        chunks.push(chunk.bytes);
    }
    if got != length {
        return Err(BulkError::Short { id, got, length });
    }
    let mut buffer = pool.take(length as usize);
    let mut filled = 0;
    for chunk in chunks {
        buffer[filled..filled + chunk.len()].copy_from_slice(&chunk);
        filled += chunk.len();
    }
    Ok(buffer.freeze())
}
