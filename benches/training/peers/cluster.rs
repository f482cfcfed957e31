//! A cluster of processes on this machine, as the training example starts it.

use std::time::Duration;

use footlight::{
    actors::{
        self,
        model::{LeNet5, Models},
    },
    cluster::processes::{self, LocalCluster, LocalPart},
    prelude::*,
};

/// What all nodes may take to find each other.
const UP: Duration = Duration::from_secs(60);

/// A seed and these other parts.
pub(crate) async fn start(parts: impl IntoIterator<Item = LocalPart>) -> Result<LocalCluster> {
    let seed = LocalPart::new("seed", "seed");
    LocalCluster::start([seed].into_iter().chain(parts), UP, join).await
}

async fn join(args: NodeArgs) -> Result<Node> {
    builder(args)?.join_timeout(UP).start().await
}

/// One of those processes.
pub(crate) async fn serve(args: NodeArgs) -> Result<()> {
    processes::serve(join(args)).await
}

/// A node with the whole cast.
pub(crate) fn builder(args: NodeArgs) -> Result<NodeBuilder> {
    let mut models = Models::new();
    models.register::<LeNet5>().map_err(Error::other)?;
    Ok(Node::builder(args).with(actors::cast(models)))
}
