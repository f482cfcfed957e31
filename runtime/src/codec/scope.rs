//! What surrounds one encoding or decoding: the tensors' segments, the streams, the node that
//! resolves references to actors, and the one that has sent the value.
//!
//! serde hands no context to `Serialize` and `Deserialize`, and both run on one thread from start
//! to end without an await, so the scope is a thread-local that is set for exactly that time.

use std::cell::RefCell;

use bytes::Bytes;

use super::{CodecError, Encoded, IncomingStream, OutgoingStream, Parcel};
use crate::{
    error::{Cause, Failure},
    id::NodeId,
    system::System,
};

enum Scope {
    Encoding {
        segments: Vec<Bytes>,
        streams: Vec<OutgoingStream>,
    },
    Decoding {
        segments: Vec<Option<Bytes>>,
        streams: Vec<Option<IncomingStream>>,
        system: System,
        from: NodeId,
    },
    Tracing {
        system: System,
    },
}

thread_local! {
    /// One within another: a value may encode another one while it is encoded.
    static SCOPES: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// A tensor, stream or reference met serde where it can't travel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Tensors, streams and references travel in messages only.
    #[error("tensors, streams and actor references can be encoded and decoded in messages only")]
    Outside,
    /// The body names a segment or stream that did not come with it, or names one twice.
    #[error("the message names part {0}, which did not come with it or was taken already")]
    Missing(u32),
}

/// The innermost scope, until it is left or dropped, as when serde's code panics.
struct Within;

impl Within {
    fn enter(scope: Scope) -> Self {
        SCOPES.with_borrow_mut(|scopes| scopes.push(scope));
        Within
    }

    fn leave(self) -> Option<Scope> {
        std::mem::forget(self);
        SCOPES.with_borrow_mut(Vec::pop)
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // What was not taken is dropped when the scopes are free again: it may be a stream, and encode something.
        let _scope = SCOPES.with_borrow_mut(Vec::pop);
    }
}

pub(super) fn encoding<R>(work: impl FnOnce() -> R) -> (R, Encoded) {
    let within = Within::enter(Scope::Encoding { segments: Vec::new(), streams: Vec::new() });
    let result = work();
    match within.leave() {
        Some(Scope::Encoding { segments, streams }) => {
            (result, Encoded { body: Bytes::new(), segments, streams })
        }
        _ => (result, Encoded::default()),
    }
}

pub(super) fn decoding<R>(parcel: Parcel, work: impl FnOnce() -> R) -> R {
    let Parcel { segments, streams, system, from, .. } = parcel;
    let (segments, streams) = (to_be_taken(segments), to_be_taken(streams));
    let _within = Within::enter(Scope::Decoding { segments, streams, system, from });
    work()
}

fn to_be_taken<T>(parts: Vec<T>) -> Vec<Option<T>> {
    // Most messages have none.
    if parts.is_empty() { Vec::new() } else { parts.into_iter().map(Some).collect() }
}

/// Runs `work` while a type's shape is traced with made-up values.
pub(crate) fn tracing<R>(system: &System, work: impl FnOnce() -> R) -> R {
    let _within = Within::enter(Scope::Tracing { system: system.clone() });
    work()
}

/// Whether the values are made up to find out a type's shape.
pub(crate) fn is_tracing() -> bool {
    SCOPES.with_borrow(|scopes| matches!(scopes.last(), Some(Scope::Tracing { .. })))
}

/// Lays a tensor's bytes beside the body; the index stands in the body.
pub(crate) fn put_segment(data: Bytes) -> Result<u32, ScopeError> {
    SCOPES.with_borrow_mut(|scopes| match scopes.last_mut() {
        Some(Scope::Encoding { segments, .. }) => {
            segments.push(data);
            Ok(segments.len() as u32 - 1)
        }
        _ => Err(ScopeError::Outside),
    })
}

/// Takes the bytes that came beside the body under this index, once.
pub(crate) fn take_segment(index: u32) -> Result<Bytes, ScopeError> {
    SCOPES.with_borrow_mut(|scopes| match scopes.last_mut() {
        Some(Scope::Decoding { segments, .. }) => segments
            .get_mut(index as usize)
            .and_then(Option::take)
            .ok_or(ScopeError::Missing(index)),
        _ => Err(ScopeError::Outside),
    })
}

pub(crate) fn put_stream(stream: OutgoingStream) -> Result<u32, ScopeError> {
    SCOPES.with_borrow_mut(|scopes| match scopes.last_mut() {
        Some(Scope::Encoding { streams, .. }) => {
            streams.push(stream);
            Ok(streams.len() as u32 - 1)
        }
        _ => Err(ScopeError::Outside),
    })
}

pub(crate) fn take_stream(index: u32) -> Result<IncomingStream, ScopeError> {
    SCOPES.with_borrow_mut(|scopes| match scopes.last_mut() {
        Some(Scope::Decoding { streams, .. }) => {
            streams.get_mut(index as usize).and_then(Option::take).ok_or(ScopeError::Missing(index))
        }
        _ => Err(ScopeError::Outside),
    })
}

/// The node at which a value is being decoded.
pub(crate) fn system() -> Result<System, ScopeError> {
    SCOPES.with_borrow(|scopes| match scopes.last() {
        Some(Scope::Decoding { system, .. } | Scope::Tracing { system }) => Ok(system.clone()),
        _ => Err(ScopeError::Outside),
    })
}

/// The node that has sent the value that is being decoded.
pub(crate) fn sender() -> Result<NodeId, ScopeError> {
    SCOPES.with_borrow(|scopes| match scopes.last() {
        Some(Scope::Decoding { from, .. }) => Ok(*from),
        Some(Scope::Tracing { system }) => Ok(system.node()),
        _ => Err(ScopeError::Outside),
    })
}

pub(super) fn encode_failure(error: &CodecError) -> Failure {
    Failure::may_have_run(Cause::CannotEncode(error.to_string()))
}
