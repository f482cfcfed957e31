//! What the tests of the actors share: one node without a cluster.

use std::time::Duration;

use footlight_runtime::{
    Actor, Context, Incarnation, NodeId, Result, System, env::Env, registry::Types,
};

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(20);

pub(crate) async fn system() -> System {
    System::start(NodeId(1), Incarnation(1), Types::default(), Env::system().unwrap())
        .await
        .unwrap()
}

/// Waits for something that must come, and not for ever.
pub(crate) async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

/// Whom the others serve.
pub(crate) struct Owner;

impl Actor for Owner {
    type Args = ();
    const NAME: &'static str = "test.owner";

    async fn start(_: (), _: &Context<Self>) -> Result<Self> {
        Ok(Owner)
    }
}
