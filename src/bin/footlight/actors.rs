//! `footlight actors`: which actors run where.

use footlight::cluster::{ActorsOf, AskActors};
use serde_json::json;

use super::{
    ask::Target,
    print::{aligned, print},
};

/// The options of `footlight actors`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight actors --node 127.0.0.1:7400
  footlight actors --node 127.0.0.1:7400 --type training.worker
  footlight actors --node 127.0.0.1:7400 --json | jq '.nodes[].actors[].type'")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Only actors of this type
    #[arg(long = "type", value_name = "NAME")]
    kind: Option<String>,
    /// Only those of the node that is asked
    #[arg(long)]
    here: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let question = AskActors { kind: args.kind, everywhere: !args.here };
    let nodes = args.target.ask(question).await?;
    print(&if args.json { json(&nodes) } else { table(&nodes) })
}

fn json(nodes: &[ActorsOf]) -> String {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|of| match &of.actors {
            Ok(actors) => json!({
                "node": of.node.to_string(),
                "actors": actors
                    .iter()
                    .map(|actor| json!({ "id": actor.id.0, "type": actor.kind }))
                    .collect::<Vec<_>>(),
            }),
            Err(why) => json!({ "node": of.node.to_string(), "error": why }),
        })
        .collect();
    json!({ "nodes": nodes }).to_string()
}

fn table(nodes: &[ActorsOf]) -> String {
    let mut rows = vec![["NODE", "ACTOR", "TYPE"].map(str::to_owned).to_vec()];
    let (mut found, mut silent) = (0, 0);
    for of in nodes {
        match &of.actors {
            Ok(actors) => {
                found += actors.len();
                rows.extend(actors.iter().map(|actor| {
                    vec![of.node.to_string(), actor.id.0.to_string(), actor.kind.clone()]
                }));
            }
            Err(why) => {
                silent += 1;
                rows.push(vec![of.node.to_string(), "?".to_owned(), why.clone()]);
            }
        }
    }
    let mut text = aligned(&rows);
    text.push_str(&format!("\n{found} actors on {} nodes", nodes.len() - silent));
    if silent > 0 {
        text.push_str(&format!("; {silent} nodes did not answer"));
    }
    text
}
