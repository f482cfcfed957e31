//! One node of Footlight: actors, typed messages, bounded mailboxes, supervision, the wire codec,
//! tensors in messages and compute threads.
//!
//! This room knows no socket. What leaves the node goes through [`remote::Remote`], which the
//! `cluster` room implements over QUIC; what arrives enters through [`System`].
//!
//! ```text
//! ActorRef::call ──┬─ same node ── Mailbox ───────────────► Cell (ractor) ── Handler
//!                  └─ elsewhere ── codec ── Remote ─ … ─ System::deliver ──┘
//! ```
//!
//! * [`actor`], [`message`], [`context`], [`actor_ref`]: what users write and hold.
//! * [`reply`], [`stream`]: answers now, later, or as a stream.
//! * [`codec`], [`tensor`]: how values become bytes; tensors stay outside the encoded bytes.
//! * [`system`], [`registry`], [`remote`]: one node's actors, the types it can host, and the seam
//!   to other nodes.
//! * [`watch`], [`supervision`]: how an actor ends, who learns it, and what is started again.
//! * [`claim`]: what an actor's node has reserved for it.
//! * [`fence`]: the lease under which an actor of which there is only one sends.
//! * [`mod@env`]: clock, randomness and spawner come from outside, so that a node can be simulated and
//!   several can live in one process.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test is no node"))]

pub mod actor;
pub mod actor_ref;
mod cell;
pub mod claim;
pub mod codec;
#[cfg(feature = "torch")]
pub mod compute;
pub mod context;
mod ends;
mod entry;
pub mod env;
pub mod error;
pub mod fence;
pub mod id;
mod link;
mod mailbox;
pub mod message;
pub mod registry;
pub mod remote;
pub mod reply;
pub mod stream;
pub mod supervision;
pub mod system;
pub mod telemetry;
pub mod tensor;
pub mod watch;
mod work;

pub use actor::{Actor, DeferredHandler, Handler};
pub use actor_ref::ActorRef;
pub use claim::Claim;
pub use context::Context;
pub use error::{CallError, Cause, Error, Failure, Fate, Result};
pub use id::{ActorAddr, ActorId, Fence, Incarnation, NodeId};
pub use link::TooManyLinks;
pub use message::Message;
pub use reply::ReplyTo;
pub use stream::{StreamSender, Streamed};
pub use system::System;
pub use tensor::{HostTensor, WireFormat, WireTensor};
pub use watch::{Down, Watch};

#[cfg(test)]
mod tests;
