//! Footlight: an actor-based distributed runtime for machine learning.
//!
//! Parameter-server, worker, data-loader and inference actors exchange typed messages over QUIC,
//! supervise one another, and compute with libtorch. You write a binary that links this crate,
//! start that binary on every node with a seed's address, and spawn actors from Rust.
//!
//! ```
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
//! /// A node on loopback that hosts greeters; without seeds it is one itself.
//! async fn start(keys: &std::path::Path, seeds: Vec<String>) -> Result<Node> {
//!     let listen = Some("127.0.0.1:0".into());
//!     Node::builder(NodeArgs { listen, seeds, state: Some(keys.into()), ..Default::default() })
//!         .register::<Greeter>(|greeter| greeter.handles::<Greet>())
//!         .start().await
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     // Two nodes of one program; mostly each is a process of its own.
//!     let keys = tempfile::tempdir()?;
//!     let seed = start(keys.path(), vec![]).await?;
//!     let node = start(keys.path(), vec![seed.addr().to_string()]).await?;
//!
//!     let greeter = node.spawn::<Greeter>(()).on(Placement::seed()).await?;
//!     assert_eq!(greeter.addr().node, seed.id());
//!     let answer = greeter.call(Greet { name: "Ada".into() }).await?;
//!     println!("{answer}");
//! #   assert_eq!(answer, "hello Ada, number 1");
//!     node.leave().await?;
//!     seed.leave().await
//! }
//! ```
//!
//! It prints `hello Ada, number 1`. The same in two processes is `examples/hello.rs`.
//!
//! What is promised, and which test shows it, stands in `docs/guarantees.md`; how it is built, in
//! `docs/architecture.md`.
//!
//! * [`runtime`]: one node: actors, messages, supervision, tensors in messages.
//! * [`cluster`]: many nodes: transport, trust, membership, placement.
//! * [`actors`]: the cast: parameter server, worker, data loader, trainer, inference.
//! * [`cli`]: a program's options, and its last line when something is wrong.

pub mod cli;

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

/// The README's programs: they are compiled with the examples of the documentation.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// And the guide's.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/data.md")]
struct DataGuide;
