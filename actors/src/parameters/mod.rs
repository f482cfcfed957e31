//! The parameter server: one flat space of parameters, cut into chunks, spread over shards.
//!
//! * [`layout`]: which parameter lies where, and which shard has which chunk.
//! * [`optimizer`]: SGD, Adam, AdamW and Adagrad on a chunk's floats.
//! * [`rule`]: what must be known of the whole gradient first: clipping, and what is not finite.
//! * [`gate`]: how the shards come to one verdict under such a rule; [`square_sum`]: the norm of all together.
//! * [`shard`]: the protocol of one shard, without I/O: slots in, versions out.
//! * [`server`]: the actor around a shard; [`message`]: what it is told and asked.
//! * [`replication`]: how a shard is kept on several nodes.

pub mod gate;
pub mod layout;
pub mod message;
pub mod optimizer;
pub mod replication;
pub mod rule;
pub mod server;
pub mod shard;
pub mod square_sum;

pub use server::{ParameterServer, ShardSpec};
