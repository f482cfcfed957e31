//! `footlight revoke`: throws a node out for good.

use footlight::{cluster::enroll::RevokeNode, runtime::NodeId};

use super::{ask::Target, print::print};

/// The options of `footlight revoke`.
#[derive(clap::Args)]
#[command(after_help = "\
All nodes end their connections with it at once and take its certificate no more; membership counts
it as down. It can't join again under its id. A node that holds ca.key can make itself another
certificate: this does not keep it out.

Example:
  footlight revoke 3f2a9c0d11e84b57 --node 10.0.0.1:7400")]
pub(crate) struct Args {
    /// The node's id, as `footlight status` shows it
    #[arg(value_name = "NODE")]
    revoked: NodeId,
    #[command(flatten)]
    target: Target,
}

/// Orders and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let note = args.target.order(RevokeNode { node: args.revoked }).await?;
    let note = note.map(|note| format!("\nbut: {note}")).unwrap_or_default();
    print(&format!("node {} is revoked{note}", args.revoked))
}
