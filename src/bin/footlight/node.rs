//! `footlight node`: a node until a signal ends it.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use footlight::{
    cluster::{JOIN_TIMEOUT, NodeBuilder},
    prelude::{MemberState, Node, NodeArgs},
};

/// The options of `footlight node`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight node --listen 127.0.0.1:7400
  footlight node --listen 127.0.0.1:0 --seed 127.0.0.1:7400 --role worker

Nodes of one machine and user find each other's keys by themselves. To listen where other machines
reach it, name a state directory that holds the cluster's ca.pem and ca.key.")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Answer over HTTP at this address
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<SocketAddr>,
    /// How long to look for a seed before giving up
    #[arg(long, value_name = "SECONDS", value_parser = super::status::seconds,
          default_value_t = JOIN_TIMEOUT.as_secs_f64())]
    join_timeout: f64,
}

/// Runs the node.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let builder = Node::builder(args.node);
    let builder = builder.join_timeout(Duration::from_secs_f64(args.join_timeout));
    let node = match args.http {
        Some(addr) => with_http(builder, addr),
        None => builder,
    }
    .start()
    .await?;
    let up = node.members().iter().filter(|member| member.state == MemberState::Up).count();
    let line =
        format!("node {} up at {} (pid {}, {up} up)", node.id(), node.addr(), std::process::id());
    // Whoever started the node may not read what it says: that ends no node.
    let _ = writeln!(io::stdout(), "{line}");
    node.until_shutdown().await?;
    Ok(())
}

/// Where the node answers over HTTP.
fn with_http(builder: NodeBuilder, addr: SocketAddr) -> NodeBuilder {
    builder.http(addr)
}
