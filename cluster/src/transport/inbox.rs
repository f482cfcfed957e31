//! Order for each reference, large tensors included.
//!
//! Frames come in order on a lane; large tensors come on streams of their own, before or after the
//! frame that names them. A frame whose tensors have not all arrived waits here, and so do later
//! frames to the same receiver, and nobody else's.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use footlight_runtime::ActorId;

use super::frame::{Frame, Header, Segment};

/// Most tensors, and most of their bytes, that may arrive before the frames that name them.
const MAX_EARLY: usize = 4096;
pub(crate) const MAX_EARLY_BYTES: usize = 4 << 30;
/// Most frames, and most tensors, that may wait for tensors which are announced.
const MAX_HELD: usize = 1 << 16;

/// Whose order a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    Actor(ActorId),
    Call(u64),
    Stream(u64),
}

/// A frame with all its tensors.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
    pub(crate) segments: Vec<Bytes>,
}

/// A tensor that no frame can name, or too many of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InboxError {
    #[error("tensor {0} was sent twice")]
    Twice(u64),
    #[error(
        "more than {MAX_EARLY} tensors, or {MAX_EARLY_BYTES} bytes of them, without the messages \
         that name them"
    )]
    TooManyEarly,
    #[error("more than {MAX_HELD} messages or tensors are announced and do not come")]
    TooManyHeld,
    #[error("tensor {id} has {got} bytes where its message announced {announced}")]
    Length { id: u64, announced: u64, got: u64 },
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Tensors that have arrived and are not delivered.
    arrived: HashMap<u64, Bytes>,
    /// Those of them that no frame has named yet, and their bytes.
    unnamed: usize,
    unnamed_bytes: usize,
    /// Tensors that a held frame names and that have not arrived, with their lengths.
    expected: HashMap<u64, (Order, u64)>,
    held: HashMap<Order, VecDeque<Frame>>,
    held_frames: usize,
}

impl Inbox {
    /// Whether a frame that arrived can be delivered at once, as most can: nothing of it is still to come, and nothing
    /// before it waits.
    pub(crate) fn passes(&self, frame: &Frame) -> bool {
        // Only what has an order has tensors.
        large(frame).next().is_none()
            && (self.held.is_empty()
                || order(&frame.header).is_none_or(|order| !self.held.contains_key(&order)))
    }

    /// A frame arrived. What can be delivered now is laid behind `ready`, in order.
    pub(crate) fn frame(&mut self, frame: Frame, ready: &mut Vec<Whole>) -> Result<(), InboxError> {
        let order = match order(&frame.header) {
            Some(order) if !self.passes(&frame) => order,
            _ => {
                ready.push(frame.into());
                return Ok(());
            }
        };
        for (id, len) in large(&frame) {
            if let Some(bytes) = self.arrived.get(&id) {
                self.unnamed = self.unnamed.saturating_sub(1);
                self.unnamed_bytes = self.unnamed_bytes.saturating_sub(bytes.len());
            } else if self.expected.insert(id, (order, len)).is_some() {
                return Err(InboxError::Twice(id));
            }
        }
        if self.held_frames >= MAX_HELD || self.expected.len() > MAX_HELD {
            return Err(InboxError::TooManyHeld);
        }
        self.held_frames += 1;
        self.held.entry(order).or_default().push_back(frame);
        self.release(order, ready)
    }

    /// A large tensor arrived. What can be delivered now is laid behind `ready`, in order.
    pub(crate) fn segment(
        &mut self,
        id: u64,
        bytes: Bytes,
        ready: &mut Vec<Whole>,
    ) -> Result<(), InboxError> {
        let length = bytes.len();
        if self.arrived.insert(id, bytes).is_some() {
            return Err(InboxError::Twice(id));
        }
        if let Some((order, _)) = self.expected.remove(&id) {
            return self.release(order, ready);
        }
        self.unnamed += 1;
        self.unnamed_bytes += length;
        if self.unnamed > MAX_EARLY || self.unnamed_bytes > MAX_EARLY_BYTES {
            return Err(InboxError::TooManyEarly);
        }
        Ok(())
    }

    /// Whether nothing waits for tensors.
    pub(crate) fn is_empty(&self) -> bool {
        self.held_frames == 0
    }

    /// Whether a frame has announced a tensor of this number and length: then memory may be taken
    /// for it before it comes.
    pub(crate) fn expects(&self, id: u64, length: u64) -> bool {
        self.expected.get(&id).is_some_and(|(_, announced)| *announced == length)
    }

    fn release(&mut self, order: Order, ready: &mut Vec<Whole>) -> Result<(), InboxError> {
        let Some(held) = self.held.get_mut(&order) else { return Ok(()) };
        while let Some(frame) = held.front() {
            if !large(frame).all(|(id, _)| self.arrived.contains_key(&id)) {
                return Ok(());
            }
            let Some(frame) = held.pop_front() else { break };
            self.held_frames = self.held_frames.saturating_sub(1);
            ready.push(whole(frame, &mut self.arrived)?);
        }
        self.held.remove(&order);
        Ok(())
    }
}

/// Whose order a frame belongs to, if it has any.
fn order(header: &Header) -> Option<Order> {
    match header {
        Header::Message { to, .. } => Some(Order::Actor(*to)),
        Header::Reply { call, .. } | Header::Failed { call, .. } => Some(Order::Call(*call)),
        Header::StreamItem { stream, .. } | Header::StreamEnd { stream, .. } => {
            Some(Order::Stream(*stream))
        }
        _ => None,
    }
}

impl From<Frame> for Whole {
    /// Of a frame that has no large tensors.
    fn from(frame: Frame) -> Self {
        let Frame { header, body, inline } = frame;
        Whole { header, body, segments: inline }
    }
}

fn large(frame: &Frame) -> impl Iterator<Item = (u64, u64)> + '_ {
    let segments = frame.header.payload().map_or(&[][..], |payload| &payload.segments);
    segments.iter().filter_map(|segment| match *segment {
        Segment::Stream { id, len } => Some((id, len)),
        Segment::Inline { .. } => None,
    })
}

fn whole(frame: Frame, arrived: &mut HashMap<u64, Bytes>) -> Result<Whole, InboxError> {
    let Frame { header, body, inline } = frame;
    let mut inline = inline.into_iter();
    let mut segments = Vec::new();
    for segment in header.payload().map_or(&[][..], |payload| &payload.segments) {
        match *segment {
            Segment::Inline { .. } => segments.extend(inline.next()),
            Segment::Stream { id, len } => {
                let bytes = arrived.remove(&id).unwrap_or_default();
                if bytes.len() as u64 != len {
                    let got = bytes.len() as u64;
                    return Err(InboxError::Length { id, announced: len, got });
                }
                segments.push(bytes);
            }
        }
    }
    Ok(Whole { header, body, segments })
}

#[cfg(test)]
mod tests {
    use footlight_runtime::Incarnation;

    use super::*;
    use crate::transport::frame::Payload;

    fn message(to: u64, key: u64, large: &[u64]) -> Frame {
        let segments = large.iter().map(|&id| Segment::Stream { id, len: 3 }).collect();
        Frame {
            header: Header::Message {
                to: ActorId(to),
                incarnation: Incarnation(1),
                key,
                fence: None,
                call: None,
                payload: Payload { body: 0, segments, streams: Vec::new() },
            },
            body: Bytes::new(),
            inline: Vec::new(),
        }
    }

    fn frame(inbox: &mut Inbox, frame: Frame) -> Vec<u64> {
        let mut ready = Vec::new();
        inbox.frame(frame, &mut ready).unwrap();
        keys(ready)
    }

    fn segment(inbox: &mut Inbox, id: u64) -> Result<Vec<u64>, InboxError> {
        let mut ready = Vec::new();
        inbox.segment(id, ABC, &mut ready)?;
        Ok(keys(ready))
    }

    fn keys(whole: Vec<Whole>) -> Vec<u64> {
        whole
            .into_iter()
            .map(|whole| match whole.header {
                Header::Message { key, .. } => key,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    const ABC: Bytes = Bytes::from_static(b"abc");

    #[test]
    fn a_large_message_holds_back_only_its_own_receiver_and_keeps_its_place() {
        let mut inbox = Inbox::default();
        assert!(frame(&mut inbox, message(20, 1, &[7, 8])).is_empty());
        assert!(frame(&mut inbox, message(20, 2, &[])).is_empty());
        assert_eq!(frame(&mut inbox, message(21, 3, &[])), [3]);
        assert!(segment(&mut inbox, 8).unwrap().is_empty());
        assert_eq!(segment(&mut inbox, 7).unwrap(), [1, 2]);
        assert_eq!(frame(&mut inbox, message(20, 4, &[])), [4]);
    }

    #[test]
    fn a_tensor_may_arrive_before_its_message() {
        let mut inbox = Inbox::default();
        assert!(segment(&mut inbox, 7).unwrap().is_empty());
        assert_eq!(frame(&mut inbox, message(20, 1, &[7])), [1]);
        assert!(inbox.arrived.is_empty() && inbox.expected.is_empty() && inbox.held.is_empty());
        assert_eq!((inbox.unnamed, inbox.unnamed_bytes, inbox.held_frames), (0, 0, 0));
    }

    #[test]
    fn a_tensor_of_another_length_than_announced_is_a_breach() {
        let mut inbox = Inbox::default();
        frame(&mut inbox, message(20, 1, &[7]));
        let error = inbox.segment(7, Bytes::from_static(b"ab"), &mut Vec::new()).unwrap_err();
        assert_eq!(error, InboxError::Length { id: 7, announced: 3, got: 2 });
    }

    #[test]
    fn tensors_that_nobody_names_are_bounded() {
        let mut inbox = Inbox::default();
        for id in 0..MAX_EARLY as u64 {
            segment(&mut inbox, id).unwrap();
        }
        assert_eq!(segment(&mut inbox, u64::MAX).unwrap_err(), InboxError::TooManyEarly);
    }
}
