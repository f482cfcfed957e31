//! `footlight status`: the cluster as one of its nodes sees it.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use footlight::{
    cluster::Status,
    prelude::{Member, MemberState, Node, NodeArgs},
};
use serde_json::{Value, json};

/// The options of `footlight status`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight status --node 127.0.0.1:7400
  footlight status --node 127.0.0.1:7400 --json | jq '.members[] | select(.state == \"up\").id'")]
pub(crate) struct Args {
    /// Address of any node of the cluster
    #[arg(long, value_name = "HOST:PORT")]
    node: String,
    /// Directory with the cluster's keys [default: FOOTLIGHT_STATE, or the user's state directory]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// For programs: ids as 16 hexadecimal digits, all else as it is
    #[arg(long)]
    json: bool,
    /// How long to wait for the node's answer
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value_t = 5.0)]
    timeout: f64,
}

/// A time in seconds that is worth waiting.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("give seconds, more than 0 and at most 86400".to_owned()),
    }
}

/// Asks and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let options = NodeArgs { state: args.state, ..NodeArgs::default() };
    let builder = Node::builder(options).join_timeout(Duration::from_secs_f64(args.timeout));
    let (asker, observed) = builder.observe(&args.node).await?;
    let status = asker.status_of_observed(&observed).await;
    asker.leave().await?;
    let status = status?;
    let text = if args.json { json(&status).to_string() } else { table(&status) };
    match writeln!(io::stdout(), "{text}") {
        // `status | head` is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The answer for programs. An id is a text: not every reader of JSON has numbers of 64 bits.
fn json(status: &Status) -> Value {
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| {
            json!({
                "id": member.id.to_string(),
                "address": member.address.to_string(),
                "state": member.state.to_string(),
                "incarnation": member.incarnation.0,
                "roles": member.roles,
                "labels": member.labels,
                "http": member.http.map(|addr| addr.to_string()),
                "hosts": member.actors,
            })
        })
        .collect();
    json!({
        "node": status.node.to_string(),
        "pid": status.pid,
        "members": members,
        "actors": status.actors.iter().cloned().collect::<BTreeMap<_, _>>(),
        "counts": status.counts,
    })
}

/// The answer for people.
fn table(status: &Status) -> String {
    let actors: u64 = status.actors.iter().map(|(_, count)| count).sum();
    let mut rows =
        vec![["NODE", "ADDRESS", "STATE", "AGE", "ROLES", "ACTORS"].map(str::to_owned).to_vec()];
    for member in &status.members {
        // Only the node that was asked knows what it runs.
        let here = member.id == status.node;
        rows.push(vec![
            member.id.to_string(),
            member.address.to_string(),
            member.state.to_string(),
            age(member),
            if member.roles.is_empty() { "-".to_owned() } else { member.roles.join(",") },
            if here { actors.to_string() } else { "-".to_owned() },
        ]);
    }
    let mut widths = vec![0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    let states = [
        MemberState::Up,
        MemberState::Joining,
        MemberState::Suspect,
        MemberState::Left,
        MemberState::Down,
    ];
    let counted: Vec<String> = states
        .iter()
        .map(|state| (state, status.members.iter().filter(|m| m.state == *state).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let counts = &status.counts;
    text.push_str(&format!(
        "\n{}; as seen by node {} (pid {})\nmessages: {} handled, {} sent, {} received; wire: {} B \
         sent, {} B received",
        counted.join(", "),
        status.node,
        status.pid,
        counts.messages_handled,
        counts.messages_sent,
        counts.messages_received,
        counts.wire_bytes_sent,
        counts.wire_bytes_received,
    ));
    text
}

/// How long ago this life of a node began: its incarnation is that moment, in microseconds since
/// 1970, unless the clock was set back.
fn age(member: &Member) -> String {
    let began = SystemTime::UNIX_EPOCH + Duration::from_micros(member.incarnation.0);
    match began.elapsed().map(|age| age.as_secs()) {
        Ok(age @ 0..60) => format!("{age} s"),
        Ok(age @ 60..3_600) => format!("{} min", age / 60),
        Ok(age @ 3_600..172_800) => format!("{} h", age / 3_600),
        Ok(age) => format!("{} d", age / 86_400),
        Err(_) => format!("#{}", member.incarnation.0),
    }
}
