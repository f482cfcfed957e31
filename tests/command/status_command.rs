//! The `footlight` command: nodes that find each other, and `status` about them.

use footlight::{cluster::processes::Processes, runtime::NodeId};
use serde_json::Value;

use crate::command::*;
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_tells_of_all_members_and_what_became_of_them() {
    let state = tempfile::tempdir().unwrap();
    let (state, processes) = (state.path(), Processes::new());
    let (_seed, seed, addr) = start(&processes, state, &["--listen", "127.0.0.1:0"]).await;
    let worker = [
        "--seed", &addr, "--role", "worker", "--role", "cache", "--label", "zone=a", "--gpus", "2",
    ];
    let (node, id, node_addr) = start(&processes, state, &worker).await;
    let (other, other_id, _) = start(&processes, state, &["--seed", &addr]).await;

    let is = |states: [&str; 3]| {
        let mut all: Vec<_> = [&seed, &id, &other_id]
            .into_iter()
            .zip(states)
            .map(|(id, state)| (id.clone(), state.to_owned()))
            .collect();
        all.sort();
        all
    };
    for asked in [&addr, &node_addr] {
        until("all see all", async || members(&json(state, asked)) == is(["up", "up", "up"])).await;
    }
    let told = json(state, &addr);
    assert_eq!(told["node"], seed.as_str());
    let member = told["members"].as_array().unwrap().iter().find(|m| m["id"] == id.as_str());
    let member = member.unwrap();
    assert_eq!(member["address"], node_addr.as_str());
    assert_eq!(member["roles"], serde_json::json!(["worker", "cache"]));
    assert_eq!(member["resources"]["gpus"].as_array().unwrap().len(), 2, "{member}");
    assert_eq!(member["free"]["gpus"].as_array().unwrap().len(), 2, "{member}");
    assert!(member["age_seconds"].as_u64().unwrap() < LONG.as_secs(), "{member}");
    assert_eq!(member["labels"]["zone"], "a");
    assert!(member["load"]["cpu"].as_f64().unwrap() >= 0.0, "{member}");
    assert_eq!((&member["load"]["actors"], &member["load"]["in_hand"]), (&0.into(), &0.into()));
    let own = |name: &Value| ["cluster.node", "cluster.groups"].contains(&name.as_str().unwrap());
    assert!(!member["hosts"].as_array().unwrap().iter().any(own), "{member}");
    assert!(member["incarnation"].as_u64().unwrap() > 0);
    assert_eq!(id.parse::<NodeId>().unwrap().to_string(), id, "16 digits");

    // For people: a line for each, and whoever asks is no member.
    let table = status(state, &addr, &[]);
    for (heading, value) in
        [("ADDRESS", node_addr.as_str()), ("STATE", "up"), ("ROLES", "worker,cache"), ("GPUS", "2")]
    {
        assert_eq!(cell(&table, &id, heading), value, "{table}");
    }
    let age = cell(&table, &id, "AGE");
    let seconds = age.strip_suffix(" s").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds < LONG.as_secs()), "{age}: {table}");
    assert!(table.contains("3 up; as seen by node"), "{table}");

    // Which actors run where: each node has its own ones, and any node tells of all.
    let told = footlight("actors", state, &node_addr, &["--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let nodes = told["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3, "{told}");
    for node in nodes {
        let actors = node["actors"].as_array().unwrap();
        assert!(actors.iter().any(|actor| actor["type"] == "cluster.node"), "{told}");
    }
    let table = footlight("actors", state, &addr, &["--type", "cluster.node"]);
    assert!(table.contains("3 actors on 3 nodes"), "{table}");
    let table = footlight("actors", state, &addr, &["--here", "--type", "cluster.node"]);
    assert!(table.contains("1 actors on 1 nodes") && table.contains(&seed), "{table}");

    // One is asked to end, one is killed.
    node.terminate();
    assert!(node.wait(LONG).await.unwrap().success());
    other.kill();
    until("they are gone, each in its way", async || {
        members(&json(state, &addr)) == is(["up", "left", "down"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_and_another_made_to_leave_from_the_command_line() {
    let state = tempfile::tempdir().unwrap();
    let (state, processes) = (state.path(), Processes::new());
    let (_seed, seed, addr) = start(&processes, state, &["--listen", "127.0.0.1:0"]).await;
    let (drained, id, _) = start(&processes, state, &["--seed", &addr]).await;
    let (left, other_id, other) = start(&processes, state, &["--seed", &addr]).await;
    until("all are known", async || members(&json(state, &addr)).len() == 3).await;

    let drain = |node: &str| {
        let output = run(&["drain", node, "--node", &addr, "--state", state.to_str().unwrap()]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    };
    let (done, told) = drain(&id);
    assert!(done && told.contains(&format!("node {id} has left")), "{told}");
    assert!(drained.wait(LONG).await.unwrap().success());
    let (done, told) = drain(&id);
    assert!(!done && told.contains("is gone already (left)"), "{told}");
    let (done, told) = drain("nonsense");
    assert!(!done && told.contains("`nonsense` is no node"), "{told}");

    // `leave` asks the node itself, and comes back when it has left: whoever looks then finds it so.
    let told = footlight("leave", state, &other, &[]);
    assert_eq!(told.trim_end(), format!("node {other_id} has left"));
    let mut expected = [(&seed, "up"), (&id, "left"), (&other_id, "left")]
        .map(|(id, state)| (id.clone(), state.to_owned()));
    expected.sort();
    assert_eq!(members(&json(state, &addr)), expected);
    assert!(left.wait(LONG).await.unwrap().success());
}
