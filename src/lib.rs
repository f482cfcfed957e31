//! Footlight: an actor-based distributed runtime for machine learning.
//!
//! Parameter-server, worker, data-loader and inference actors exchange typed messages over QUIC,
//! supervise one another, and compute with libtorch. You write a binary that links this crate,
//! start that binary on every node with a seed's address, and spawn actors from Rust.
//!
//! ```no_run
//! use footlight::prelude::*;
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet { name: String }
//! impl Message for Greet { type Reply = String; const NAME: &'static str = "hello.greet"; }
//!
//! struct Greeter { greeted: u64 }
//!
//! impl Actor for Greeter {
//!     type Args = ();
//!     const NAME: &'static str = "hello.greeter";
//!     async fn start(_: (), _: &Context<Self>) -> Result<Self> { Ok(Greeter { greeted: 0 }) }
//! }
//!
//! impl Handler<Greet> for Greeter {
//!     async fn handle(&mut self, greet: Greet, _: &Context<Self>) -> String {
//!         self.greeted += 1;
//!         format!("hello {}, number {}", greet.name, self.greeted)
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<()> {
//! let node = Node::builder(NodeArgs { seeds: vec!["127.0.0.1:7400".into()], ..Default::default() })
//!     .register::<Greeter>(|g| g.handles::<Greet>())
//!     .start().await?;
//! let greeter = node.spawn::<Greeter>(()).on(Placement::seed()).await?;
//! println!("{}", greeter.call(Greet { name: "Ada".into() }).await?);
//! node.leave().await
//! # }
//! ```
//!
//! What is promised, and which test shows it, stands in `docs/guarantees.md`; how it is built, in
//! `docs/architecture.md`.
//!
//! * [`runtime`]: one node: actors, messages, supervision, tensors in messages.
//! * [`cluster`]: many nodes: transport, trust, membership, placement.
//! * [`actors`]: the cast: parameter server, worker, data loader, trainer, inference.

pub use footlight_actors as actors;
pub use footlight_cluster as cluster;
pub use footlight_runtime as runtime;

/// What a program usually needs.
pub mod prelude {
    pub use footlight_cluster::{
        ClusterEvent, Events, Group, Member, MemberState, Node, NodeArgs, NodeBuilder, Pick,
        Placement, SupervisorRef,
    };
    pub use footlight_runtime::{
        Actor, ActorRef, CallError, Cause, Context, DeferredHandler, Down, Error, Fate, Handler,
        HostTensor, Message, ReplyTo, Result, StreamSender, Streamed, WireFormat, WireTensor,
        supervision::{ChildEvent, OneForAll, OneForOne, RestForOne, Restart},
    };
    pub use serde::{Deserialize, Serialize};
}
