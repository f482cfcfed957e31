//! Many nodes of Footlight: QUIC transport with mutual TLS, membership, remote spawn and watch.
//!
//! A [`Node`] is what a program starts. The rooms below it:
//!
//! * [`trust`]: the cluster's keys, certificates and the state directory.
//! * [`transport`]: connections, frames, lanes, credits, large tensors.
//! * [`membership`]: SWIM as a state machine.
//! * `network`: all that a node knows of the others, and the runtime's way to them.
//! * [`placement`], [`supervise`]: where actors start, and start again.
//! * [`processes`]: a local cluster of operating-system processes.
//!
//! This room knows no model and no parameter: it carries actors.

mod args;
mod builder;
mod control;
mod error;
pub mod membership;
mod network;
mod node;
mod node_actor;
pub mod placement;
pub mod processes;
pub mod supervise;
pub mod transport;
pub mod trust;

pub use args::{DEFAULT_PORT, NodeArgs};
pub use builder::{JOIN_TIMEOUT, NodeBuilder, Observed};
pub use error::ClusterError;
pub use network::view::{ClusterEvent, Member, MemberState};
pub use node::{Node, SpawnBuilder};
pub use node_actor::{AskStatus, NodeActor, Status};
pub use placement::Placement;
