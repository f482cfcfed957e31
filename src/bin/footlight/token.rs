//! `footlight token`: join tokens, by which nodes of other machines are let in.

use std::time::Duration;

use footlight::cluster::{
    enroll::{CreateToken, ListTokens, RevokeToken, TokenInfo},
    trust::{Role, parse_lifetime},
};
use serde_json::json;

use super::{
    ask::Target,
    print::{aligned, moment, print},
};

/// The options of `footlight token`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight token create --node 127.0.0.1:7400 --role worker --ttl 30m
  footlight token list --node 127.0.0.1:7400
  footlight token revoke 3f2a9c0d --node 127.0.0.1:7400")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a token and print it: it lets in one node, once
    #[command(after_help = "\
The token is shown once and kept nowhere. Hand it to the new node by a file or its environment, not
where others can read it.

Example:
  footlight token create --node 10.0.0.1:7400 --role worker --ttl 30m > worker.token
  footlight node --listen 10.0.0.2:7400 --seed 10.0.0.1:7400 --state DIR --token @worker.token

What the roles may do: an observer asks; a worker is a member that hosts actors; a server may also
start and end actors on other nodes and hold the ledger; an admin may also make tokens, and revoke
and drain nodes.")]
    Create(Create),
    /// List the tokens: those that can be used, were used, or have ended in the last day
    #[command(after_help = "\
The tokens themselves are kept nowhere: an id lets nobody in.

Examples:
  footlight token list --node 127.0.0.1:7400
  footlight token list --node 127.0.0.1:7400 --json | jq '.tokens[] | select(.used_by == null).id'")]
    List(List),
    /// Make a token invalid; nodes that it has let in stay
    #[command(after_help = "\
Example:
  footlight token revoke 3f2a9c0d --node 127.0.0.1:7400

To throw out the node that it has let in, use `footlight revoke NODE`.")]
    Revoke(Revoke),
}

#[derive(clap::Args)]
struct Create {
    #[command(flatten)]
    target: Target,
    /// What the node that joins may do: worker, server, observer or admin
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// How long the token is valid, for example 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_lifetime, default_value = "1h")]
    ttl: Duration,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    target: Target,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Revoke {
    /// Its id, or the first 8 characters or more of it
    id: String,
    #[command(flatten)]
    target: Target,
}

/// Asks and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Create(Create { target, role, ttl }) => {
            let token = target.order(CreateToken { role, ttl }).await?;
            print(&token)
        }
        Command::List(List { target, json }) => {
            let tokens = target.order(ListTokens).await?;
            print(&if json { as_json(&tokens) } else { table(&tokens) })
        }
        Command::Revoke(Revoke { id, target }) => {
            let token = target.order(RevokeToken { id }).await?;
            let used = match token.used_by {
                Some(node) => format!("; node {node}, which it has let in, stays"),
                None => String::new(),
            };
            print(&format!("token {} is revoked{used}", token.id))
        }
    }
}

fn as_json(tokens: &[TokenInfo]) -> String {
    let tokens: Vec<_> = tokens
        .iter()
        .map(|token| {
            json!({
                "id": token.id.as_str(),
                "role": token.role.name(),
                "made_unix_s": token.made,
                "expires_unix_s": token.expires,
                "used_by": token.used_by.map(|node| node.to_string()),
            })
        })
        .collect();
    json!({ "tokens": tokens }).to_string()
}

fn table(tokens: &[TokenInfo]) -> String {
    let mut rows = vec![["ID", "ROLE", "ENDS", "USED BY"].map(str::to_owned).to_vec()];
    for token in tokens {
        rows.push(vec![
            // Enough to tell them apart, and to revoke one.
            token.id.as_str().chars().take(16).collect(),
            token.role.name().to_owned(),
            moment(token.expires),
            token.used_by.map_or_else(|| "-".to_owned(), |node| node.to_string()),
        ]);
    }
    aligned(&rows).trim_end().to_owned()
}
