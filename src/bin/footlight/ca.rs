//! `footlight ca`: the certificate authority of a new cluster.

use std::path::PathBuf;

use footlight::cluster::trust::StateDir;

use super::print::print;

/// The options of `footlight ca`.
#[derive(clap::Args)]
#[command(after_help = "\
On one machine nothing of this is needed: the first node makes an authority by itself, and other nodes
of the same user find it.

Example:
  footlight ca create --state DIR")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make the certificate authority of a new cluster, for its first node
    #[command(after_help = "\
A node listens where other machines reach it only with credentials: the first one with an authority
that was made for it, the others with a token of that cluster.

Example:
  footlight ca create --state DIR
  footlight node --listen 10.0.0.1:7400 --state DIR

DIR/ca.key makes certificates for the cluster: it stays on this machine, and with the ledger's
voters.")]
    Create(Create),
}

#[derive(clap::Args)]
struct Create {
    /// Directory to put it in [default: FOOTLIGHT_STATE, or the user's state directory]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Makes and prints.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Command::Create(Create { state }) = args.command;
    let state = StateDir::create(state.as_deref())?;
    let path = state.path().display();
    match state.anchor().map(|anchor| anchor.hash()) {
        Some(hash) if state.existed_before() => {
            anyhow::bail!("{path} holds an authority already: {hash}")
        }
        Some(hash) => print(&format!("the authority {hash} is in {path}")),
        None => anyhow::bail!("{path} belongs to another cluster, which it joined by a token"),
    }
}
