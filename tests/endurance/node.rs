//! A node in a process of its own: hosts what there is to host, calls others all the time, computes,
//! and writes down whom it saw lost.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use footlight::{
    cluster::{NodeBuilder, transport::socket::Sockets},
    prelude::*,
};
use tokio_util::sync::CancellationToken;

use crate::{beat, calls, detect};

/// A node of the run.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    node: NodeArgs,
    /// Tells this life's calls from those of all others.
    #[arg(long, default_value_t = 0)]
    life: u32,
    /// Calls in a second.
    #[arg(long, default_value_t = 0, requires = "account")]
    calls: u32,
    /// Where it writes how its calls ended.
    #[arg(long)]
    account: Option<PathBuf>,
    /// Where it writes whom it saw lost, and when.
    #[arg(long)]
    losses: Option<PathBuf>,
    /// Threads that train a network for nothing.
    #[arg(long, default_value_t = 0)]
    computing: usize,
}

/// A node with all that the run needs.
pub(crate) fn builder(args: NodeArgs, sockets: Option<Arc<dyn Sockets>>) -> NodeBuilder {
    let builder = Node::builder(args).with(beat::register);
    match sockets {
        Some(sockets) => builder.sockets(sockets),
        None => builder,
    }
}

/// The options of a node at an address.
pub(crate) fn args(
    state: PathBuf,
    listen: SocketAddr,
    seeds: &[SocketAddr],
    role: &str,
) -> NodeArgs {
    NodeArgs {
        listen: Some(listen.to_string()),
        seeds: seeds.iter().map(SocketAddr::to_string).collect(),
        state: Some(state),
        roles: vec![role.to_owned()],
        ..NodeArgs::default()
    }
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,openraft=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let node = builder(options.node, None).start().await.context("the node can't start")?;
    let line = format!("up {} {} {}", node.id(), node.incarnation().0, node.addr());
    if let Some(losses) = options.losses {
        detect::note_losses(&node, &losses)?;
    }
    let _computing = detect::compute(options.computing).await?;
    let account = options.account.filter(|_| options.calls > 0);
    let caller = account.map(|account| {
        let stop = CancellationToken::new();
        let calls = calls::call(node.clone(), options.life, options.calls, account, stop);
        tokio::spawn(async move {
            if let Err(error) = calls.await {
                tracing::error!(%error, "the caller has ended");
            }
        })
    });
    let shutdown = node.until_shutdown();
    println!("{line}");
    shutdown.await?;
    if let Some(caller) = caller {
        caller.abort();
    }
    Ok(())
}
