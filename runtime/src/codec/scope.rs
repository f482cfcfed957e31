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
    Outside,
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
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::Outside) };
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

/// Restores the surrounding scope, also when serde's code panics.
struct Restore(Option<Scope>);

impl Restore {
    fn enter(scope: Scope) -> Self {
        Restore(Some(SCOPE.with(|cell| cell.replace(scope))))
    }
    fn leave(mut self) -> Scope {
        let outer = self.0.take().unwrap_or(Scope::Outside);
        SCOPE.with(|cell| cell.replace(outer))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(outer) = self.0.take() {
            SCOPE.with(|cell| cell.replace(outer));
        }
    }
}

pub(super) fn encoding<R>(work: impl FnOnce() -> R) -> (R, Encoded) {
    let scope = Restore::enter(Scope::Encoding { segments: Vec::new(), streams: Vec::new() });
    let result = work();
    match scope.leave() {
        Scope::Encoding { segments, streams } => {
            (result, Encoded { body: Bytes::new(), segments, streams })
        }
        _ => (result, Encoded::default()),
    }
}

pub(super) fn decoding<R>(parcel: Parcel, work: impl FnOnce() -> R) -> R {
    let _scope = Restore::enter(Scope::Decoding {
        segments: parcel.segments.into_iter().map(Some).collect(),
        streams: parcel.streams.into_iter().map(Some).collect(),
        system: parcel.system,
        from: parcel.from,
    });
    work()
}

/// Runs `work` while a type's shape is traced with made-up values.
pub(crate) fn tracing<R>(system: &System, work: impl FnOnce() -> R) -> R {
    let _scope = Restore::enter(Scope::Tracing { system: system.clone() });
    work()
}

/// Whether the values are made up to find out a type's shape.
pub(crate) fn is_tracing() -> bool {
    SCOPE.with_borrow(|scope| matches!(scope, Scope::Tracing { .. }))
}

/// Lays a tensor's bytes beside the body; the index stands in the body.
pub(crate) fn put_segment(data: Bytes) -> Result<u32, ScopeError> {
    SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Encoding { segments, .. } => {
            segments.push(data);
            Ok(segments.len() as u32 - 1)
        }
        _ => Err(ScopeError::Outside),
    })
}

/// Takes the bytes that came beside the body under this index, once.
pub(crate) fn take_segment(index: u32) -> Result<Bytes, ScopeError> {
    SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Decoding { segments, .. } => segments
            .get_mut(index as usize)
            .and_then(Option::take)
            .ok_or(ScopeError::Missing(index)),
        _ => Err(ScopeError::Outside),
    })
}

pub(crate) fn put_stream(stream: OutgoingStream) -> Result<u32, ScopeError> {
    SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Encoding { streams, .. } => {
            streams.push(stream);
            Ok(streams.len() as u32 - 1)
        }
        _ => Err(ScopeError::Outside),
    })
}

pub(crate) fn take_stream(index: u32) -> Result<IncomingStream, ScopeError> {
    SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Decoding { streams, .. } => {
            streams.get_mut(index as usize).and_then(Option::take).ok_or(ScopeError::Missing(index))
        }
        _ => Err(ScopeError::Outside),
    })
}

/// The node at which a value is being decoded.
pub(crate) fn system() -> Result<System, ScopeError> {
    SCOPE.with_borrow(|scope| match scope {
        Scope::Decoding { system, .. } | Scope::Tracing { system } => Ok(system.clone()),
        _ => Err(ScopeError::Outside),
    })
}

/// The node that has sent the value that is being decoded.
pub(crate) fn sender() -> Result<NodeId, ScopeError> {
    SCOPE.with_borrow(|scope| match scope {
        Scope::Decoding { from, .. } => Ok(*from),
        Scope::Tracing { system } => Ok(system.node()),
        _ => Err(ScopeError::Outside),
    })
}

pub(super) fn encode_failure(error: &CodecError) -> Failure {
    Failure::may_have_run(Cause::CannotEncode(error.to_string()))
}
