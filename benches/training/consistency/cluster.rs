//! A cluster of processes on this machine.

use std::time::Duration;

use footlight::{
    actors::{self, model::Models},
    cluster::processes::{self, LocalCluster, LocalPart},
    prelude::*,
};

use crate::model::{WAIT, Waiting};

/// What all nodes may take to find each other.
const UP: Duration = Duration::from_secs(60);

/// A seed, a loader, two servers, and a worker for each of these times that it waits in a slot.
pub(crate) async fn start(waits: &[Duration]) -> Result<LocalCluster> {
    let parts = [LocalPart::new("seed", "seed"), LocalPart::new("loader", "loader")].into_iter();
    let workers = waits.iter().enumerate().map(|(number, wait)| {
        let worker = LocalPart::new(format!("worker-{number}"), "worker");
        worker.env(WAIT, wait.as_micros().to_string())
    });
    let parts = parts.chain(LocalPart::several("server", 2)).chain(workers);
    LocalCluster::start(parts, UP, join).await
}

async fn join(args: NodeArgs) -> Result<Node> {
    let mut models = Models::new();
    models.register::<Waiting>().map_err(Error::other)?;
    let builder = Node::builder(args).with(actors::cast(models));
    builder.join_timeout(UP).start().await
}

/// One of those processes.
pub(crate) async fn serve(args: NodeArgs) -> Result<()> {
    processes::serve(join(args)).await
}
