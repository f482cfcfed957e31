//! Many nodes of Footlight: QUIC transport with mutual TLS, membership, remote spawn and watch.
//!
//! A [`Node`] is what a program starts. The rooms below it:
//!
//! * [`trust`]: the cluster's keys, certificates and the state directory.
//! * [`transport`]: connections, frames, lanes, credits, large tensors.
//! * [`membership`]: SWIM as a state machine.
//! * [`enroll`]: joining by a token, renewal of certificates, revocation.
//! * `gossip`: how each node's record of itself reaches all others.
//! * `network`: all that a node knows of the others, and the runtime's way to them.
//! * [`ledger`]: what must be exactly one in the cluster, agreed on by a few voters.
//! * [`names`], [`singleton`]: what stands on it.
//! * [`groups`]: actors under one name, for one of them or all; what stands on gossip alone.
//! * [`placement`], [`resources`], [`spawn`]: where actors start, and what is reserved for them.
//! * [`supervise`]: actors that keep other actors up, across nodes.
//! * [`processes`]: a local cluster of operating-system processes.
//!
//! This room knows no model and no parameter: it carries actors.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test is no node"))]

mod args;
mod builder;
mod census;
mod control;
pub mod enroll;
mod error;
mod gossip;
pub mod groups;
mod leaving;
pub mod ledger;
mod load;
pub mod membership;
pub mod names;
mod network;
mod node;
mod node_actor;
pub mod placement;
pub mod processes;
mod record;
pub mod resources;
pub mod singleton;
pub mod spawn;
pub mod supervise;
pub mod transport;
pub mod trust;

pub use args::{DEFAULT_PORT, NodeArgs, Preset};
pub use builder::{NodeBuilder, OBSERVE_TIMEOUT, Observed};
pub use census::{ActorInfo, ActorsOf, AskActors};
pub use error::ClusterError;
pub use groups::{Group, GroupChange, GroupError, Pick};
pub use leaving::DRAIN_TIMEOUT;
pub use ledger::{LedgerId, LedgerView};
pub use network::{
    events::{ClusterEvent, Events},
    view::{Member, MemberState, are_cut, cut_between},
};
pub use node::Node;
pub use node_actor::{AskStatus, Drain, Draining, NodeActor, Status};
pub use placement::Placement;
pub use record::Load;
pub use resources::{Gpu, Granted, Needs, Resources};
pub use spawn::SpawnBuilder;
pub use supervise::SupervisorRef;
pub use transport::{endpoint::Congestion, same_host::SameHost};
