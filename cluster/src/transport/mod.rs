//! How messages travel between two nodes.
//!
//! ```text
//!            control connection (one a peer)                       bulk connections (own sockets)
//!   control  ═ credits, watches, stream flow, leaving              one stream a large tensor
//!   lanes    ═ messages and replies, by receiver                            │
//!   datagrams═ membership                                                   │
//!                 │                                                         │
//!   lane ─► frame::open ─► Inbox (order for each receiver) ◄────────────────┘
//!                              └► Session::dispatch ─► System::deliver
//! ```
//!
//! * `socket`, `endpoint`: sockets, quinn's settings, which thread drives them.
//! * `admission`: whose handshake is begun, when many want one.
//! * `handshake`: who speaks, in which version.
//! * `frame`, `lane`: frames as bytes, read and written in batches; `plain`: the headers of most.
//! * `inbox`: order for each receiver, although large tensors overtake.
//! * `window` counts credits for each receiver, `outbox` what waits for a peer.
//! * `session`: one connection between two nodes and all that is under way on it.
//! * `flow`: streams of items; `bulk`: large tensors, `assembly`: those in pieces, `follow`: how much of
//!   them may be under way; `same_host`: the same without the network.

pub(crate) mod admission;
pub(crate) mod assembly;
#[allow(clippy::disallowed_methods, reason = "its tasks run on the bulk thread, as it does")]
pub(crate) mod bulk;
pub mod endpoint;
pub(crate) mod flow;
#[allow(clippy::disallowed_methods, reason = "as `bulk`")]
pub(crate) mod follow;
pub(crate) mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod handshake;
pub(crate) mod inbox;
pub(crate) mod lane;
pub(crate) mod outbox;
mod plain;
pub mod same_host;
pub(crate) mod session;
pub mod socket;
pub(crate) mod window;
