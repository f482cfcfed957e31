//! A value inside a message whose type only its final receiver knows.

use std::{fmt, sync::Mutex};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _, Visitor},
    ser::Error as _,
};

use super::{CodecError, Encoded, Parcel, encode, scope};
use crate::system::System;

/// A value that travels within a message without the message's type naming it: the arguments of an
/// actor in a spawn request, say. Its tensors and streams travel like any others.
pub struct Opaque {
    inner: Mutex<Option<Inner>>,
}

enum Inner {
    Made(Encoded),
    Arrived(Parcel),
}

impl Opaque {
    /// Encodes a value.
    pub fn of<T: Serialize>(value: &T) -> Result<Self, CodecError> {
        Ok(encode(value)?.into())
    }

    /// The same value once more, to be sent or decoded besides this one; its memory is shared.
    ///
    /// # Errors
    /// If it has streams, which can be read once only, or was sent already.
    pub fn again(&self) -> Result<Self, CodecError> {
        let inner = self.inner.lock().unwrap_or_else(|poison| poison.into_inner());
        let once = |why: &str| CodecError::Encode { type_name: "Opaque", why: why.to_owned() };
        let (body, segments, streams) = match &*inner {
            Some(Inner::Made(made)) => (&made.body, &made.segments, made.streams.len()),
            Some(Inner::Arrived(here)) => (&here.body, &here.segments, here.streams.len()),
            None => return Err(once("this value was sent on already")),
        };
        if streams > 0 {
            return Err(once("a stream can be read once only"));
        }
        let same = Encoded { body: body.clone(), segments: segments.clone(), streams: Vec::new() };
        Ok(Opaque { inner: Mutex::new(Some(Inner::Made(same))) })
    }

    /// Decodes the value at the node `system`.
    pub fn decode<T: DeserializeOwned>(self, system: &System) -> Result<T, CodecError> {
        let inner = self.inner.into_inner().unwrap_or_else(|poison| poison.into_inner());
        match inner {
            Some(Inner::Made(encoded)) => Parcel::local(encoded, system).decode(),
            Some(Inner::Arrived(parcel)) => parcel.decode(),
            None => Err(CodecError::Decode {
                type_name: std::any::type_name::<T>(),
                length: 0,
                why: "this value was sent on already".into(),
            }),
        }
    }
}

impl From<Encoded> for Opaque {
    /// A value that is encoded already.
    fn from(encoded: Encoded) -> Self {
        Opaque { inner: Mutex::new(Some(Inner::Made(encoded))) }
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opaque")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Opaque")]
struct Wire {
    body: ByteBuf,
    segments: Vec<u32>,
    streams: Vec<u32>,
}

impl Serialize for Opaque {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut inner = self.inner.lock().unwrap_or_else(|poison| poison.into_inner());
        let Some(Inner::Made(encoded)) = inner.take() else {
            return Err(S::Error::custom("an opaque value is sent once, by who made it"));
        };
        let segments = encoded
            .segments
            .into_iter()
            .map(scope::put_segment)
            .collect::<Result<_, _>>()
            .map_err(S::Error::custom)?;
        let streams = encoded
            .streams
            .into_iter()
            .map(scope::put_stream)
            .collect::<Result<_, _>>()
            .map_err(S::Error::custom)?;
        Wire { body: ByteBuf(encoded.body), segments, streams }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Opaque {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let system = scope::system().map_err(D::Error::custom)?;
        if scope::is_tracing() {
            return Ok(Opaque { inner: Mutex::new(None) });
        }
        let segments = wire
            .segments
            .into_iter()
            .map(scope::take_segment)
            .collect::<Result<_, _>>()
            .map_err(D::Error::custom)?;
        let streams = wire
            .streams
            .into_iter()
            .map(scope::take_stream)
            .collect::<Result<_, _>>()
            .map_err(D::Error::custom)?;
        let from = scope::sender().map_err(D::Error::custom)?;
        let parcel = Parcel { body: wire.body.0, segments, streams, system, from };
        Ok(Opaque { inner: Mutex::new(Some(Inner::Arrived(parcel))) })
    }
}

/// Bytes written in one piece; a `Vec<u8>` would go element by element.
struct ByteBuf(Bytes);

impl Serialize for ByteBuf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ByteBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytewise;
        impl Visitor<'_> for Bytewise {
            type Value = ByteBuf;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ByteBuf, E> {
                Ok(ByteBuf(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<ByteBuf, E> {
                Ok(ByteBuf(bytes.into()))
            }
        }
        deserializer.deserialize_byte_buf(Bytewise)
    }
}
