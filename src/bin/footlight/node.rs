//! `footlight node`: a node until a signal ends it.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use footlight::{
    actors,
    prelude::{MemberState, Node, NodeArgs},
};

/// The options of `footlight node`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight node --listen 127.0.0.1:7400
  footlight node --listen 127.0.0.1:0 --seed 127.0.0.1:7400 --role worker
  footlight node --listen 10.0.0.2:7400 --seed 10.0.0.1:7400 --state DIR --token @worker.token
  footlight node --listen 10.8.0.2:7400 --seed 10.8.0.1:7400 --state DIR --network wan
  footlight node --seed 127.0.0.1:7400 --role worker --drain-timeout 120

Nodes of one machine and user find each other's keys by themselves. A node of another machine joins by
a token that `footlight token create` has made there; from then on DIR holds what it needs, and the
token is used up. The first node of a cluster that other machines reach has a state directory in which
`footlight ca create` has made the authority. `--network` must be the same on all nodes.")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Answer over HTTP at this loopback address: GET /v2/health/live and /v2/health/ready
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<SocketAddr>,
}

/// Runs the node. A seed is looked for until one answers; the log says that it is waited for.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut builder = Node::builder(args.node).with(actors::stagehands);
    // Before the node: the others are told an address that answers.
    let gateway = match args.http {
        Some(addr) => Some(http(addr).await?),
        None => None,
    };
    if let Some((_, addr)) = &gateway {
        builder = builder.http(*addr);
    }
    let node = builder.start().await?;
    let up = node.members().iter().filter(|member| member.state == MemberState::Up).count();
    let line =
        format!("node {} up at {} (pid {}, {up} up)", node.id(), node.addr(), std::process::id());
    // Signals are caught from here on: whoever reads the line may send one at once.
    let shutdown = node.until_shutdown();
    // Whoever started the node may not read what it says: that ends no node.
    let _ = writeln!(io::stdout(), "{line}");
    Ok(shutdown.await?)
}

/// Answers over HTTP as long as the first of the pair lives. A node of this command has no models:
/// it tells that it is alive, and that it has none.
#[cfg(feature = "torch")]
async fn http(addr: SocketAddr) -> anyhow::Result<(actors::serving::Gateway, SocketAddr)> {
    let gateway = actors::serving::Gateway::serve(addr, []).await?;
    let addr = gateway.addr();
    Ok((gateway, addr))
}

#[cfg(not(feature = "torch"))]
async fn http(_: SocketAddr) -> anyhow::Result<((), SocketAddr)> {
    anyhow::bail!("--http: this `footlight` was built without the feature `torch`")
}
