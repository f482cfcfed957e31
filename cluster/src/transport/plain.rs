//! The headers of plain messages, answers and credits, written and read by hand.
//!
//! They are the same bytes as bincode makes of a [`Header`], without its walk through serde; most
//! frames are such. What is not plain (a message with tensors or streams, any other header, bytes that are
//! written otherwise or are broken) is left to bincode, which also words the errors.

use footlight_runtime::{ActorId, Fence, Incarnation};

use super::frame::{Header, Payload};

/// The longest plain header, in bytes: a message with every number at its greatest.
pub(crate) const LONGEST: usize = 1 + 3 * VARINT + (1 + 2 * VARINT) + (1 + VARINT) + 5 + 2;
const VARINT: usize = 9;

/// The order of [`Header`]'s variants.
const MESSAGE: u8 = 0;
const REPLY: u8 = 1;
const CREDIT: u8 = 7;

/// Writes a plain header into at least [`LONGEST`] bytes and gives its length; `None` if it is not plain.
pub(crate) fn write(header: &Header, into: &mut [u8]) -> Option<usize> {
    let mut writer = Writer { into, at: 0 };
    match header {
        Header::Message { to, incarnation, key, fence, call, payload } if is_plain(payload) => {
            writer.byte(MESSAGE);
            writer.varint(to.0);
            writer.varint(incarnation.0);
            writer.varint(*key);
            writer.byte(u8::from(fence.is_some()));
            if let Some(Fence { lease, generation }) = fence {
                writer.varint(*lease);
                writer.varint(*generation);
            }
            writer.byte(u8::from(call.is_some()));
            call.iter().for_each(|call| writer.varint(*call));
            writer.payload(payload);
        }
        Header::Reply { call, payload } if is_plain(payload) => {
            writer.byte(REPLY);
            writer.varint(*call);
            writer.payload(payload);
        }
        Header::Credit { actor, messages, bytes } => {
            writer.byte(CREDIT);
            writer.varint(actor.0);
            writer.varint(u64::from(*messages));
            writer.varint(*bytes);
        }
        _ => return None,
    }
    Some(writer.at)
}

fn is_plain(payload: &Payload) -> bool {
    payload.segments.is_empty() && payload.streams.is_empty()
}

/// Reads a header that is plain and is all of `bytes`; `None` if that is not so.
pub(crate) fn read(bytes: &[u8]) -> Option<Header> {
    let mut reader = Reader(bytes);
    let header = match reader.byte()? {
        MESSAGE => Header::Message {
            to: ActorId(reader.varint()?),
            incarnation: Incarnation(reader.varint()?),
            key: reader.varint()?,
            fence: match reader.flag()? {
                true => Some(Fence { lease: reader.varint()?, generation: reader.varint()? }),
                false => None,
            },
            call: match reader.flag()? {
                true => Some(reader.varint()?),
                false => None,
            },
            payload: reader.payload()?,
        },
        REPLY => Header::Reply { call: reader.varint()?, payload: reader.payload()? },
        CREDIT => Header::Credit {
            actor: ActorId(reader.varint()?),
            messages: u32::try_from(reader.varint()?).ok()?,
            bytes: reader.varint()?,
        },
        _ => return None,
    };
    reader.0.is_empty().then_some(header)
}

struct Writer<'a> {
    into: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn byte(&mut self, byte: u8) {
        self.into[self.at] = byte;
        self.at += 1;
    }

    fn bytes<const N: usize>(&mut self, bytes: [u8; N]) {
        self.into[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
    }

    fn varint(&mut self, value: u64) {
        if value < u64::from(TWO) {
            self.byte(value as u8);
        } else if let Ok(value) = u16::try_from(value) {
            self.byte(TWO);
            self.bytes(value.to_le_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.byte(FOUR);
            self.bytes(value.to_le_bytes());
        } else {
            self.byte(EIGHT);
            self.bytes(value.to_le_bytes());
        }
    }

    fn payload(&mut self, payload: &Payload) {
        self.varint(u64::from(payload.body));
        // Neither segments nor streams.
        self.bytes([0, 0]);
    }
}

/// A number of one byte stands for itself; these say how many bytes of it follow.
const TWO: u8 = 251;
const FOUR: u8 = 252;
const EIGHT: u8 = 253;

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        match self.byte()? {
            TWO => self.bytes().map(|bytes| u16::from_le_bytes(bytes).into()),
            FOUR => self.bytes().map(|bytes| u32::from_le_bytes(bytes).into()),
            EIGHT => self.bytes().map(u64::from_le_bytes),
            byte if byte < TWO => Some(byte.into()),
            _ => None,
        }
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn payload(&mut self) -> Option<Payload> {
        let body = u32::try_from(self.varint()?).ok()?;
        let plain = self.bytes()? == [0, 0];
        plain.then(|| Payload { body, ..Payload::default() })
    }
}

#[cfg(test)]
mod tests {
    use bincode::config;
    use proptest::prelude::*;

    use super::*;
    use crate::transport::frame::Segment;

    fn by_bincode(header: &Header) -> Vec<u8> {
        bincode::serde::encode_to_vec(header, config::standard()).unwrap()
    }

    /// Numbers of every length.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..300u64, 65_000..66_000u64, any::<u32>().prop_map(u64::from), any::<u64>()]
    }

    fn payload() -> impl Strategy<Value = Payload> {
        any::<u32>().prop_map(|body| Payload { body, ..Payload::default() })
    }

    fn plain() -> impl Strategy<Value = Header> {
        let fence = proptest::option::of((number(), number()));
        let call = proptest::option::of(number());
        let message = (number(), number(), number(), fence, call, payload());
        prop_oneof![
            message.prop_map(|(to, incarnation, key, fence, call, payload)| Header::Message {
                to: ActorId(to),
                incarnation: Incarnation(incarnation),
                key,
                fence: fence.map(|(lease, generation)| Fence { lease, generation }),
                call,
                payload,
            }),
            (number(), payload()).prop_map(|(call, payload)| Header::Reply { call, payload }),
            (number(), any::<u32>(), number()).prop_map(|(actor, messages, bytes)| {
                Header::Credit { actor: ActorId(actor), messages, bytes }
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_bincode(header in plain()) {
            let mut bytes = [0; LONGEST];
            let length = write(&header, &mut bytes).unwrap();
            prop_assert_eq!(&bytes[..length], by_bincode(&header));
            prop_assert_eq!(format!("{:?}", read(&bytes[..length]).unwrap()), format!("{header:?}"));
        }

        #[test]
        fn what_is_read_from_any_bytes_is_what_bincode_reads(
            kind in prop_oneof![Just(MESSAGE), Just(REPLY), Just(CREDIT), any::<u8>()],
            rest in proptest::collection::vec(prop_oneof![0..3u8, 250..=255u8, any::<u8>()], 0..40),
        ) {
            let bytes = [vec![kind], rest].concat();
            if let Some(header) = read(&bytes) {
                let (same, length) =
                    bincode::serde::decode_from_slice::<Header, _>(&bytes, config::standard()).unwrap();
                prop_assert_eq!(length, bytes.len());
                prop_assert_eq!(format!("{header:?}"), format!("{same:?}"));
            }
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_bincode() {
        let tensors = vec![Segment::Inline { len: 3 }];
        let payload = Payload { body: 1, segments: tensors, streams: Vec::new() };
        let answer = Header::Reply { call: 1, payload };
        for header in [answer, Header::Leaving, Header::StreamCancel { stream: 3 }] {
            assert!(write(&header, &mut [0; LONGEST]).is_none(), "{header:?}");
            assert!(read(&by_bincode(&header)).is_none(), "{header:?}");
        }
    }
}
