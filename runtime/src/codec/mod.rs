//! The one place that knows how values become bytes: bincode 2 with serde.
//!
//! Four things can't be understood from bytes alone: a tensor (its data stays outside the encoded
//! body, as a segment), a reference to an actor, a stream, and who sent it all. They find what they
//! need in a scope (`scope.rs`) that surrounds each encoding and decoding.

pub mod opaque;
pub(crate) mod scope;
mod sender;

use std::cell::Cell;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::Failure, id::NodeId, system::System};

pub use opaque::Opaque;
pub use scope::ScopeError;
pub use sender::Sender;

/// The longest encoded body that is made or accepted, in bytes. Tensors don't count: they are
/// outside the body.
pub const MAX_BODY: usize = 64 << 20;

/// Items of a stream on their way out.
pub type OutgoingStream = BoxStream<'static, Result<Encoded, CodecError>>;
/// Items of a stream as they arrive.
pub type IncomingStream = BoxStream<'static, Result<Parcel, Failure>>;

/// A value could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value refused, or is longer than [`MAX_BODY`].
    #[error("{type_name} can't be encoded: {why}")]
    Encode {
        /// The Rust type.
        type_name: &'static str,
        /// What bincode or the value said.
        why: String,
    },
    /// The bytes are no such value.
    #[error("{length} bytes are no {type_name}: {why}")]
    Decode {
        /// The Rust type.
        type_name: &'static str,
        /// The body's length in bytes.
        length: usize,
        /// What bincode or the value said.
        why: String,
    },
}

/// A value as bytes, its tensors' memory and its streams beside them.
#[derive(Default)]
pub struct Encoded {
    /// The bincode bytes.
    pub body: Bytes,
    /// The tensors' bytes, little-endian, in the order in which the body names them; shared with
    /// the tensors, not copied.
    pub segments: Vec<Bytes>,
    /// The streams that the body names.
    pub streams: Vec<OutgoingStream>,
}

impl Encoded {
    /// Body and segments together, in bytes.
    pub fn len(&self) -> usize {
        self.body.len() + self.segments.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there are no bytes at all (the unit type, say).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded")
            .field("body", &self.body.len())
            .field("segments", &self.segments.len())
            .field("streams", &self.streams.len())
            .finish()
    }
}

/// A value that arrived, with all that is needed to decode it later and elsewhere.
pub struct Parcel {
    /// The bincode bytes.
    pub body: Bytes,
    /// The tensors' bytes.
    pub segments: Vec<Bytes>,
    /// The streams that the body names.
    pub streams: Vec<IncomingStream>,
    /// The node that it arrived at: references to actors are resolved there.
    pub system: System,
    /// The node that sent it.
    pub from: NodeId,
}

impl Parcel {
    /// A value encoded on this node, to be decoded on this node.
    pub fn local(encoded: Encoded, system: &System) -> Self {
        use futures::StreamExt;
        let streams = encoded
            .streams
            .into_iter()
            .map(|stream| {
                let system = system.clone();
                stream
                    .map(move |item| match item {
                        Ok(item) => Ok(Parcel::local(item, &system)),
                        Err(error) => Err(scope::encode_failure(&error)),
                    })
                    .boxed()
            })
            .collect();
        Parcel {
            body: encoded.body,
            segments: encoded.segments,
            streams,
            system: system.clone(),
            from: system.node(),
        }
    }

    /// Decodes the value. Trailing bytes are an error: they mean that the two sides disagree.
    pub fn decode<T: DeserializeOwned>(mut self) -> Result<T, CodecError> {
        let body = std::mem::take(&mut self.body);
        let failed = |why: String| CodecError::Decode {
            type_name: std::any::type_name::<T>(),
            length: body.len(),
            why,
        };
        let (value, read) =
            scope::decoding(self, || bincode::serde::decode_from_slice::<T, _>(&body, config()))
                .map_err(|error| failed(error.to_string()))?;
        if read != body.len() {
            return Err(failed(format!("{} bytes are left over", body.len() - read)));
        }
        Ok(value)
    }
}

impl std::fmt::Debug for Parcel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parcel")
            .field("body", &self.body.len())
            .field("segments", &self.segments.len())
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BODY>()
}

/// Encodes a value. Its tensors are shared, not copied.
pub fn encode<T: Serialize>(value: &T) -> Result<Encoded, CodecError> {
    let failed = |why: String| CodecError::Encode { type_name: std::any::type_name::<T>(), why };
    // Taken, and put back at the end: a value may encode another one while it is encoded.
    let mut scratch = SCRATCH.take();
    let expected = EXPECTED.get();
    scratch.reserve(expected);
    let (written, mut encoded) = scope::encoding(|| {
        bincode::serde::encode_into_std_write(value, &mut (&mut scratch).writer(), config())
    });
    let body = scratch.split().freeze();
    // Shorter ones make it forget a long one slowly.
    let forgotten = (expected - expected / 64).max(SCRATCH_LEFT);
    EXPECTED.set(body.len().clamp(forgotten, MAX_SCRATCH));
    if scratch.capacity() <= MAX_SCRATCH {
        SCRATCH.set(scratch);
    }
    written.map_err(|error| failed(error.to_string()))?;
    if body.len() > MAX_BODY {
        return Err(failed(format!("its body has {} bytes, {MAX_BODY} are allowed", body.len())));
    }
    encoded.body = body;
    Ok(encoded)
}

/// As much room as that is made for a value beforehand at least, in bytes: most need no more.
const SCRATCH_LEFT: usize = 256;
/// Of the buffer into which values are encoded, no more is kept than this, in bytes, and no more room made beforehand.
const MAX_SCRATCH: usize = 256 << 10;

thread_local! {
    /// Where the next value is encoded: behind those that are not sent yet. Memory whose values are
    /// gone is used again, so that most values take none.
    static SCRATCH: Cell<BytesMut> = Cell::new(BytesMut::with_capacity(4 << 10));
    /// How long the next value may be, going by those before: room that is made at once is not made by copying.
    static EXPECTED: Cell<usize> = const { Cell::new(SCRATCH_LEFT) };
}
