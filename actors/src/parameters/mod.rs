//! The parameter server: one flat space of parameters, cut into chunks, spread over shards.
//!
//! * [`layout`]: which parameter lies where, and which shard has which chunk.
//! * [`optimizer`]: SGD and Adam on a chunk's floats.
//! * [`shard`]: the protocol of one shard, without I/O: slots in, versions out.
//! * [`server`]: the actor around a shard.

pub mod layout;
pub mod optimizer;
pub mod server;
pub mod shard;

pub use server::{ParameterServer, ShardSpec};
