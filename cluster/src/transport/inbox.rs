//! Order for each reference, large tensors included.
//!
//! Frames come in order on a lane; large tensors come on streams of their own, before or after the
//! frame that names them. A frame whose tensors have not all arrived waits here, and so do later
//! frames to the same receiver, and nobody else's.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use footlight_runtime::ActorId;

use super::frame::{Frame, Header, Segment};

/// Most tensors that may arrive before the frames that name them.
const MAX_EARLY: usize = 4096;

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
    #[error("more than {MAX_EARLY} tensors without the messages that name them")]
    TooManyEarly,
    #[error("tensor {id} has {got} bytes where its message announced {announced}")]
    Length { id: u64, announced: u64, got: u64 },
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    early: HashMap<u64, Bytes>,
    expected: HashMap<u64, Order>,
    held: HashMap<Order, VecDeque<Frame>>,
}

impl Inbox {
    /// A frame arrived. Returns what can be delivered now, in order.
    pub(crate) fn frame(&mut self, frame: Frame) -> Result<Vec<Whole>, InboxError> {
        let order = match &frame.header {
            Header::Message { to, .. } => Order::Actor(*to),
            Header::Reply { call, .. } | Header::Failed { call, .. } => Order::Call(*call),
            Header::StreamItem { stream, .. } | Header::StreamEnd { stream, .. } => {
                Order::Stream(*stream)
            }
            _ => {
                let Frame { header, body, .. } = frame;
                return Ok(vec![Whole { header, body, segments: Vec::new() }]);
            }
        };
        for (id, _) in large(&frame) {
            if !self.early.contains_key(&id) && self.expected.insert(id, order).is_some() {
                return Err(InboxError::Twice(id));
            }
        }
        self.held.entry(order).or_default().push_back(frame);
        self.release(order)
    }

    /// A large tensor arrived. Returns what can be delivered now, in order.
    pub(crate) fn segment(&mut self, id: u64, bytes: Bytes) -> Result<Vec<Whole>, InboxError> {
        if self.early.insert(id, bytes).is_some() {
            return Err(InboxError::Twice(id));
        }
        match self.expected.remove(&id) {
            Some(order) => self.release(order),
            None if self.early.len() > MAX_EARLY => Err(InboxError::TooManyEarly),
            None => Ok(Vec::new()),
        }
    }

    fn release(&mut self, order: Order) -> Result<Vec<Whole>, InboxError> {
        let mut ready = Vec::new();
        let Some(held) = self.held.get_mut(&order) else { return Ok(ready) };
        while let Some(frame) = held.front() {
            if !large(frame).all(|(id, _)| self.early.contains_key(&id)) {
                return Ok(ready);
            }
            let Some(frame) = held.pop_front() else { break };
            ready.push(whole(frame, &mut self.early)?);
        }
        self.held.remove(&order);
        Ok(ready)
    }
}

fn large(frame: &Frame) -> impl Iterator<Item = (u64, u64)> + '_ {
    let segments = frame.header.payload().map_or(&[][..], |payload| &payload.segments);
    segments.iter().filter_map(|segment| match *segment {
        Segment::Stream { id, len } => Some((id, len)),
        Segment::Inline { .. } => None,
    })
}

fn whole(frame: Frame, early: &mut HashMap<u64, Bytes>) -> Result<Whole, InboxError> {
    let Frame { header, body, inline } = frame;
    let mut inline = inline.into_iter();
    let mut segments = Vec::new();
    for segment in header.payload().map_or(&[][..], |payload| &payload.segments) {
        match *segment {
            Segment::Inline { .. } => segments.extend(inline.next()),
            Segment::Stream { id, len } => {
                let bytes = early.remove(&id).unwrap_or_default();
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
        assert!(keys(inbox.frame(message(20, 1, &[7, 8])).unwrap()).is_empty());
        assert!(keys(inbox.frame(message(20, 2, &[])).unwrap()).is_empty());
        assert_eq!(keys(inbox.frame(message(21, 3, &[])).unwrap()), [3]);
        assert!(keys(inbox.segment(8, ABC).unwrap()).is_empty());
        assert_eq!(keys(inbox.segment(7, ABC).unwrap()), [1, 2]);
        assert_eq!(keys(inbox.frame(message(20, 4, &[])).unwrap()), [4]);
    }

    #[test]
    fn a_tensor_may_arrive_before_its_message() {
        let mut inbox = Inbox::default();
        assert!(keys(inbox.segment(7, ABC).unwrap()).is_empty());
        assert_eq!(keys(inbox.frame(message(20, 1, &[7])).unwrap()), [1]);
        assert!(inbox.early.is_empty() && inbox.expected.is_empty() && inbox.held.is_empty());
    }

    #[test]
    fn a_tensor_of_another_length_than_announced_is_a_breach() {
        let mut inbox = Inbox::default();
        inbox.frame(message(20, 1, &[7])).unwrap();
        let error = inbox.segment(7, Bytes::from_static(b"ab")).unwrap_err();
        assert_eq!(error, InboxError::Length { id: 7, announced: 3, got: 2 });
    }

    #[test]
    fn tensors_that_nobody_names_are_bounded() {
        let mut inbox = Inbox::default();
        for id in 0..MAX_EARLY as u64 {
            inbox.segment(id, ABC).unwrap();
        }
        assert_eq!(inbox.segment(u64::MAX, ABC).unwrap_err(), InboxError::TooManyEarly);
    }
}
