//! What two nodes say to each other once they have shaken hands.
//!
//! ```text
//! frame   = length: u32 LE │ header_length: u16 LE │ header: bincode of Header │ body │ inline segments
//! length  = everything behind it
//! segment = on a stream of a bulk connection: id: u64 LE │ length: u64 LE │ bytes
//! ```
//!
//! Tensors up to [`INLINE_SEGMENT`] bytes travel inside the frame, larger ones each on a stream of
//! its own. Every length is checked against a limit before memory is taken.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use footlight_runtime::{
    ActorAddr, ActorId, Down, Failure, Fence, Incarnation, NodeId,
    codec::{Encoded, MAX_BODY},
    remote::End,
};
use serde::{Deserialize, Serialize};

use super::{
    plain,
    same_host::{Challenge, Lent, Place},
};
use crate::{gossip::Digest, record::Record, trust::tls::Shown};

/// Tensors up to this many bytes travel within the frame of their message: below it a stream of
/// its own costs more than the copy.
pub(crate) const INLINE_SEGMENT: usize = 32 << 10;
/// Most inline segments' bytes in one frame; past it further small tensors get streams.
const INLINE_TOTAL: usize = 1 << 20;
/// Longest frame.
pub(crate) const MAX_FRAME: usize = MAX_BODY + INLINE_TOTAL + MAX_HEADER + 2;
/// Longest header.
const MAX_HEADER: usize = 60 << 10;
/// Longest tensor that one stream carries: 4 GiB.
pub(crate) const MAX_SEGMENT: u64 = 4 << 30;
/// Most tensors, and most streams, of one message.
const MAX_PARTS: usize = 2048;

/// The first part of each frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Header {
    /// To an actor. `incarnation` is the receiving node's, as the sender knows it: a message to a
    /// past life is refused.
    Message {
        to: ActorId,
        incarnation: Incarnation,
        key: u64,
        fence: Option<Fence>,
        /// Set if an answer is awaited.
        call: Option<u64>,
        payload: Payload,
    },
    /// The answer to a call.
    Reply { call: u64, payload: Payload },
    /// A call that has no answer.
    Failed { call: u64, failure: Failure },
    /// One item of a stream that a message or reply carried.
    StreamItem { stream: u64, payload: Payload },
    /// A stream's end; with a failure if its sender could not go on.
    StreamEnd { stream: u64, failure: Option<Failure> },
    /// The reader of a stream has taken so many items.
    StreamCredit { stream: u64, items: u32 },
    /// The reader of a stream wants no more.
    StreamCancel { stream: u64 },
    /// An actor has taken so many messages and bytes out of its mailbox.
    Credit { actor: ActorId, messages: u32, bytes: u64 },
    /// Tell me when this actor ends.
    Watch { id: u64, actor: ActorAddr },
    /// I no longer want to know.
    Unwatch { id: u64 },
    /// The watched actor has ended.
    Down { id: u64, down: Down },
    /// End this actor.
    End { actor: ActorAddr, how: End },
    /// A membership packet that must arrive; the others travel as datagrams.
    Packet(Vec<u8>),
    /// The sender leaves soon: on this stream nothing follows but goodbye.
    LastWord,
    /// All that the peer sent before its last words has been read.
    Heard,
    /// The sender is leaving the cluster of its own will.
    Leaving,
    /// What a node tells of itself: the sender, or one whose news it passes on.
    Record(Box<Record>),
    /// The sender's certificate was renewed.
    Certificate(Shown),
    /// Which records the sender knows.
    Digest(Digest),
    /// The sender would like the records of these nodes.
    Want(Vec<NodeId>),
    /// The sender would lend tensors from its memory, if it is of the same host.
    Lend(Place),
    /// The sender would borrow; this is to be shown first.
    Prove(Challenge),
    /// A large tensor that a frame before this one names, in the sender's memory.
    Lent(Lent),
    /// The memory of a lent tensor is needed no more; if not `whole`, the tensor is wanted over the network.
    Fetched { id: u64, whole: bool },
}

/// How a value lies in the frame and beside it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) body: u32,
    pub(crate) segments: Vec<Segment>,
    pub(crate) streams: Vec<u64>,
}

/// Where one tensor's bytes are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Segment {
    Inline { len: u32 },
    Stream { id: u64, len: u64 },
}

impl Payload {
    /// Body and segments in bytes, as the window counts them.
    pub(crate) fn bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| match *segment {
            Segment::Inline { len } => u64::from(len),
            Segment::Stream { len, .. } => len,
        });
        u64::from(self.body).saturating_add(segments.fold(0, u64::saturating_add))
    }
}

impl Header {
    pub(crate) fn payload(&self) -> Option<&Payload> {
        match self {
            Header::Message { payload, .. }
            | Header::Reply { payload, .. }
            | Header::StreamItem { payload, .. } => Some(payload),
            _ => None,
        }
    }
}

/// What a peer sent that it never may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    TooLong(usize),
    #[error("a frame whose parts don't add up to its length")]
    Lengths,
    #[error("a frame header that can't be read: {0}")]
    Header(String),
    #[error("a message with more than {MAX_PARTS} tensors or streams")]
    Parts,
    #[error("a tensor of {0} bytes, at most {MAX_SEGMENT} are allowed")]
    Segment(u64),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_HEADER>()
}

/// Frames as memory, in the order in which they are to be written: small ones lie one behind the
/// other in one buffer, since many small pieces cost more than their copies.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    open: BytesMut,
    chunks: Vec<Bytes>,
    /// Of all chunks; the open buffer not counted.
    closed_len: usize,
}

/// A part of a frame up to this many bytes is copied behind the one before it.
const COPIED: usize = 4 << 10;
/// The open buffer is closed when it has grown to this, so that its memory can be sent and freed.
const OPEN_BUFFER: usize = 64 << 10;

impl Pieces {
    pub(crate) fn len(&self) -> usize {
        self.closed_len + self.open.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves all that there is behind `chunks`. The buffer's memory is used again when what lay in
    /// it has been sent.
    pub(crate) fn drain_into(&mut self, chunks: &mut Vec<Bytes>) {
        self.close();
        chunks.append(&mut self.chunks);
        self.closed_len = 0;
    }

    /// All that there is, as it would be written.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn concat(mut self) -> Vec<u8> {
        let mut chunks = Vec::new();
        self.drain_into(&mut chunks);
        chunks.concat()
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let closed = self.open.split().freeze();
            self.closed_len += closed.len();
            self.chunks.push(closed);
        }
    }

    fn put(&mut self, part: Bytes) {
        if part.len() <= COPIED {
            self.open.extend_from_slice(&part);
        } else {
            self.close();
            self.closed_len += part.len();
            self.chunks.push(part);
        }
    }

    /// Lays a frame behind those that are there; of one that can't be made, nothing stays.
    pub(crate) fn frame(
        &mut self,
        header: &Header,
        body: Bytes,
        inline: Vec<Bytes>,
    ) -> Result<(), FrameError> {
        const LENGTHS: usize = 6;
        let rest = body.len() + inline.iter().map(Bytes::len).sum::<usize>();
        if self.open.len() >= OPEN_BUFFER {
            self.close();
        }
        let start = self.open.len();
        let mut plain = [0; LENGTHS + plain::LONGEST];
        let header_length = if let Some(length) = plain::write(header, &mut plain[LENGTHS..]) {
            self.open.reserve(LENGTHS + length + body.len().min(COPIED));
            self.open.extend_from_slice(&plain[..LENGTHS + length]);
            length
        } else {
            self.open.put_bytes(0, LENGTHS);
            let mut writer = (&mut self.open).writer();
            bincode::serde::encode_into_std_write(header, &mut writer, config()).map_err(
                |error| {
                    self.open.truncate(start);
                    FrameError::Header(error.to_string())
                },
            )?
        };
        let length = 2 + header_length + rest;
        if length > MAX_FRAME || header_length > MAX_HEADER {
            self.open.truncate(start);
            return Err(FrameError::TooLong(length));
        }
        let mut lengths = &mut self.open[start..start + LENGTHS];
        lengths.put_u32_le(length as u32);
        lengths.put_u16_le(header_length as u16);
        self.put(body);
        inline.into_iter().for_each(|segment| self.put(segment));
        Ok(())
    }
}

/// How many bytes a frame without a payload takes.
pub(crate) fn bare_len(header: &Header) -> Result<usize, FrameError> {
    let mut pieces = Pieces::default();
    pieces.frame(header, Bytes::new(), Vec::new())?;
    Ok(pieces.len())
}

/// Splits a value into what goes inside the frame and the large segments that get streams, which
/// are numbered by `next_id`.
pub(crate) struct Laid {
    pub(crate) payload: Payload,
    body: Bytes,
    inline: Vec<Bytes>,
    /// The large tensors, each with the number under which the payload names it.
    pub(crate) large: Vec<(u64, Bytes)>,
}

/// Lays out a value's body and segments; its streams are numbered by the caller.
pub(crate) fn lay_out(
    value: &mut Encoded,
    mut next_id: impl FnMut() -> u64,
) -> Result<Laid, FrameError> {
    let segments = std::mem::take(&mut value.segments);
    if segments.len() > MAX_PARTS || value.streams.len() > MAX_PARTS {
        return Err(FrameError::Parts);
    }
    let body = std::mem::take(&mut value.body);
    let mut laid = Laid {
        payload: Payload { body: body.len() as u32, ..Payload::default() },
        body,
        inline: Vec::new(),
        large: Vec::new(),
    };
    let mut inline = Inline::default();
    for segment in segments {
        let len = segment.len();
        if inline.takes(len) {
            laid.payload.segments.push(Segment::Inline { len: len as u32 });
            laid.inline.push(segment);
        } else {
            if len as u64 > MAX_SEGMENT {
                return Err(FrameError::Segment(len as u64));
            }
            let id = next_id();
            laid.payload.segments.push(Segment::Stream { id, len: len as u64 });
            laid.large.push((id, segment));
        }
    }
    Ok(laid)
}

/// Which segments fit into their frame.
#[derive(Default)]
struct Inline {
    total: usize,
}

impl Inline {
    fn takes(&mut self, len: usize) -> bool {
        let takes = len <= INLINE_SEGMENT && self.total + len <= INLINE_TOTAL;
        self.total += if takes { len } else { 0 };
        takes
    }
}

/// How many bytes of a value travel beside its frame.
pub(crate) fn large_bytes(value: &Encoded) -> u64 {
    let mut inline = Inline::default();
    let large = value.segments.iter().map(Bytes::len).filter(|len| !inline.takes(*len));
    large.map(|len| len as u64).sum()
}

impl Laid {
    /// Lays the frame behind those that are there; `header` puts the payload into its header. Gives
    /// the large segments.
    pub(crate) fn seal(
        self,
        into: &mut Pieces,
        header: impl FnOnce(Payload) -> Header,
    ) -> Result<Vec<(u64, Bytes)>, FrameError> {
        into.frame(&header(self.payload), self.body, self.inline)?;
        Ok(self.large)
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
    pub(crate) inline: Vec<Bytes>,
}

/// Checks the length that a frame announces.
pub(crate) fn check_length(length: u32) -> Result<usize, FrameError> {
    let length = length as usize;
    if length > MAX_FRAME { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// Reads a frame from the bytes behind its length.
pub(crate) fn open(mut bytes: Bytes) -> Result<Frame, FrameError> {
    if bytes.len() < 2 {
        return Err(FrameError::Lengths);
    }
    let header_length = bytes.get_u16_le() as usize;
    if bytes.len() < header_length {
        return Err(FrameError::Lengths);
    }
    // Only looked at: to cut the header off as a piece of its own would cost more than to read it.
    let header_bytes = &bytes[..header_length];
    let header = match plain::read(header_bytes) {
        Some(header) => header,
        None => by_bincode(header_bytes)?,
    };
    bytes.advance(header_length);
    let Some(payload) = header.payload() else {
        return match bytes.is_empty() {
            true => Ok(Frame { header, body: Bytes::new(), inline: Vec::new() }),
            false => Err(FrameError::Lengths),
        };
    };
    if payload.segments.len() > MAX_PARTS || payload.streams.len() > MAX_PARTS {
        return Err(FrameError::Parts);
    }
    if payload.segments.is_empty() {
        return match bytes.len() == payload.body as usize {
            true => Ok(Frame { header, body: bytes, inline: Vec::new() }),
            false => Err(FrameError::Lengths),
        };
    }
    if bytes.len() < payload.body as usize {
        return Err(FrameError::Lengths);
    }
    let body = bytes.split_to(payload.body as usize);
    let mut inline = Vec::new();
    for segment in &payload.segments {
        match *segment {
            Segment::Inline { len } if bytes.len() >= len as usize => {
                inline.push(bytes.split_to(len as usize));
            }
            Segment::Inline { .. } => return Err(FrameError::Lengths),
            Segment::Stream { len, .. } if len > MAX_SEGMENT => {
                return Err(FrameError::Segment(len));
            }
            Segment::Stream { .. } => {}
        }
    }
    if !bytes.is_empty() {
        return Err(FrameError::Lengths);
    }
    Ok(Frame { header, body, inline })
}

fn by_bincode(bytes: &[u8]) -> Result<Header, FrameError> {
    let (header, read) = bincode::serde::decode_from_slice::<Header, _>(bytes, config())
        .map_err(|error| FrameError::Header(error.to_string()))?;
    if read == bytes.len() { Ok(header) } else { Err(FrameError::Lengths) }
}

/// The bytes behind its length of a frame that was opened: what [`open`] was given, or another way
/// to say the same.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn again(frame: &Frame) -> Result<Bytes, FrameError> {
    let mut pieces = Pieces::default();
    pieces.frame(&frame.header, frame.body.clone(), frame.inline.clone())?;
    Ok(Bytes::from(pieces.concat()).slice(4..))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(payload: Payload) -> Header {
        Header::Message {
            to: ActorId(17),
            incarnation: Incarnation(3),
            key: 9,
            fence: Some(Fence { lease: 1, generation: 2 }),
            call: Some(5),
            payload,
        }
    }

    /// All bytes of one frame behind its length.
    fn joined(pieces: Pieces) -> Bytes {
        let total = pieces.len();
        let mut all = Bytes::from(pieces.concat());
        assert_eq!(all.len(), total);
        let length = all.get_u32_le() as usize;
        assert_eq!(length, all.len());
        all
    }

    #[test]
    fn small_tensors_travel_in_the_frame_and_large_ones_beside_it() {
        let small = Bytes::from(vec![1u8; 100]);
        let large = Bytes::from(vec![2u8; INLINE_SEGMENT + 1]);
        let mut value = Encoded {
            body: Bytes::from_static(b"body"),
            segments: vec![small.clone(), large.clone(), small.clone()],
            streams: Vec::new(),
        };
        let laid = lay_out(&mut value, || 77).unwrap();
        let mut pieces = Pieces::default();
        let beside = laid.seal(&mut pieces, message).unwrap();
        assert_eq!(beside, vec![(77, large)]);
        let frame = open(joined(pieces)).unwrap();
        assert_eq!(frame.body, Bytes::from_static(b"body"));
        assert_eq!(frame.inline, vec![small.clone(), small]);
        assert_eq!(frame.header.payload().unwrap().bytes(), 4 + 200 + INLINE_SEGMENT as u64 + 1);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_memory_is_taken() {
        assert_eq!(check_length(u32::MAX), Err(FrameError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn a_frame_with_bytes_left_over_or_missing_is_refused() {
        let mut pieces = Pieces::default();
        pieces.frame(&Header::Leaving, Bytes::new(), Vec::new()).unwrap();
        let whole = joined(pieces);
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert_eq!(open(longer.freeze()).unwrap_err(), FrameError::Lengths);
        assert!(open(whole.slice(..whole.len() - 1)).is_err());
    }

    #[test]
    fn of_a_frame_that_can_t_be_made_nothing_stays_among_the_others() {
        let mut pieces = Pieces::default();
        pieces.frame(&Header::Leaving, Bytes::new(), Vec::new()).unwrap();
        let before = pieces.len();
        let packet = Header::Packet(vec![0; MAX_HEADER + 1]);
        assert!(pieces.frame(&packet, Bytes::new(), Vec::new()).is_err());
        assert_eq!(pieces.len(), before);
        pieces.frame(&Header::Leaving, Bytes::new(), Vec::new()).unwrap();
        assert_eq!(pieces.len(), 2 * before);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = open(Bytes::from(bytes));
        }
    }
}
