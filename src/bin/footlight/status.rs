//! `footlight status`: the cluster as one of its nodes sees it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use footlight::{
    cluster::{AskStatus, Resources, Status, ledger::LedgerStatus},
    prelude::{Member, MemberState},
    runtime::NodeId,
};
use serde_json::{Value, json};

use super::{
    ask::Target,
    print::{aligned, moment, print, short},
};

/// The options of `footlight status`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  footlight status --node 127.0.0.1:7400
  footlight status --node 127.0.0.1:7400 --json | jq '.members[] | select(.state == \"up\").id'")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// For programs: ids as 16 hexadecimal digits, all else as it is
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let status = args.target.ask(AskStatus).await?;
    print(&if args.json { json(&status).to_string() } else { table(&status) })
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
                "resources": resources(&member.resources),
                "free": resources(&member.free),
                "load": {
                    "cpu": member.load.cpu,
                    "actors": member.load.actors,
                    "in_hand": member.load.in_hand,
                },
                "groups": groups(member),
                "unreachable": ids(&member.unreachable),
                "age_seconds": age(member).map(|age| age.as_secs()),
                "voter": status.ledger.iter().any(|ledger| ledger.voters.contains(&member.id)),
            })
        })
        .collect();
    json!({
        "node": status.node.to_string(),
        "pid": status.pid,
        "members": members,
        "actors": status.actors.iter().cloned().collect::<BTreeMap<_, _>>(),
        "counts": status.counts,
        "certificate": status.certificate.map(|certificate| json!({
            "role": certificate.role.name(),
            "expires_unix_s": certificate.expires,
            "renewals": certificate.renewals,
        })),
        "connections": status.connections,
        "ledger": status.ledger.as_ref().map(|ledger| json!({
            "voters": ids(&ledger.voters),
            "missing": ids(&ledger.missing),
            // How many more may be lost; null: it has stopped.
            "tolerance": ledger.tolerance(),
            "leader": ledger.leader.map(|leader| leader.to_string()),
            "term": ledger.term,
        })),
    })
}

fn ids(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(NodeId::to_string).collect()
}

/// How many actors of a node are in which group.
fn groups(member: &Member) -> BTreeMap<&str, usize> {
    member.groups.iter().map(|(name, part)| (name.as_str(), part.actors.len())).collect()
}

fn resources(resources: &Resources) -> Value {
    json!({
        "cpus": resources.cpus,
        "gpus": resources
            .gpus
            .iter()
            .map(|gpu| json!({
                "index": gpu.index,
                "name": gpu.name,
                "memory_bytes": gpu.memory_bytes,
            }))
            .collect::<Vec<_>>(),
        "custom": resources.custom,
    })
}

fn is_there(member: &Member) -> bool {
    !matches!(member.state, MemberState::Left | MemberState::Down)
}

/// How the ledger is, and what to do if it bears no loss.
fn told_of(ledger: &LedgerStatus) -> String {
    let cure = match (ledger.tolerance(), &ledger.missing[..]) {
        (None | Some(0), missing @ [_, ..]) => {
            format!("; start again, or replace: {}", ids(missing).join(", "))
        }
        (Some(0), []) => "; 3 nodes of role server bear the loss of one".to_owned(),
        _ => String::new(),
    };
    format!("\nledger: {ledger}{cure}")
}

/// The answer for people.
fn table(status: &Status) -> String {
    let columns = [
        "NODE",
        "ADDRESS",
        "STATE",
        "AGE",
        "INCARNATION",
        "ROLES",
        "CPUS",
        "GPUS",
        "LOAD",
        "ACTORS",
        "LEDGER",
    ];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    let ledger = status.ledger.as_ref();
    for member in &status.members {
        let there = is_there(member);
        let dash = || "-".to_owned();
        let of = |free: usize, all: usize| match there {
            true if free == all => all.to_string(),
            true => format!("{free}/{all}"),
            false => "-".to_owned(),
        };
        let (free, all) = (&member.free, &member.resources);
        rows.push(vec![
            member.id.to_string(),
            member.address.to_string(),
            member.state.to_string(),
            if there { age(member).map_or_else(dash, short) } else { dash() },
            member.incarnation.0.to_string(),
            if member.roles.is_empty() { dash() } else { member.roles.join(",") },
            of(free.cpus as usize, all.cpus as usize),
            of(free.gpus.len(), all.gpus.len()),
            if there { format!("{:.2}", member.load.cpu) } else { dash() },
            if there { member.load.actors.to_string() } else { dash() },
            match ledger {
                Some(ledger) if ledger.leader == Some(member.id) && there => "leader".to_owned(),
                Some(ledger) if ledger.voters.contains(&member.id) => "voter".to_owned(),
                _ => dash(),
            },
        ]);
    }
    let mut text = aligned(&rows);
    let states = [
        MemberState::Up,
        MemberState::Joining,
        MemberState::Suspect,
        MemberState::Leaving,
        MemberState::Left,
        MemberState::Down,
    ];
    let counted: Vec<String> = states
        .iter()
        .map(|state| (state, status.members.iter().filter(|m| m.state == *state).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    for member in status.members.iter().filter(|member| is_there(member)) {
        for other in &member.unreachable {
            text.push_str(&format!("\n{} cannot reach {other}", member.id));
        }
    }
    text.push_str(&ledger.map_or_else(|| "\nledger: no voter is up".to_owned(), told_of));
    let counts = &status.counts;
    text.push_str(&format!(
        "\n{}; as seen by node {} (pid {})\nmessages: {} handled, {} sent, {} received; wire: {} B \
         sent, {} B received; within the host: {} B sent, {} B received",
        counted.join(", "),
        status.node,
        status.pid,
        counts.messages_handled,
        counts.messages_sent,
        counts.messages_received,
        counts.wire_bytes_sent,
        counts.wire_bytes_received,
        counts.memory_bytes_sent,
        counts.memory_bytes_received,
    ));
    if let Some(certificate) = status.certificate {
        text.push_str(&format!(
            "\ncertificate: role {}, ends {}, renewed {} times; {} connections with members so far",
            certificate.role,
            moment(u64::try_from(certificate.expires).unwrap_or(0)),
            certificate.renewals,
            status.connections,
        ));
    }
    text
}

/// How long ago this life of a node began: its incarnation is that moment, in microseconds since
/// 1970, unless the clock was set back.
fn age(member: &Member) -> Option<Duration> {
    let began = SystemTime::UNIX_EPOCH + Duration::from_micros(member.incarnation.0);
    began.elapsed().ok()
}
