//! Joining by a token with nothing but the command: an authority, a first node, a token, a second
//! node, which has a state directory of its own, as on a machine of its own.

use std::{fs, path::Path};

use footlight::cluster::processes::Processes;
use serde_json::{Value, json};

use crate::command::*;
use crate::support::{netns::Hosts, *};

/// The tokens, as `footlight token list --json` tells of them.
fn tokens(state: &Path, node: &str) -> Vec<Value> {
    let listed = says(&["token", "list", "--node", node, "--state", &text(state), "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    listed["tokens"].as_array().unwrap().clone()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_by_a_token_and_another_one_is_revoked() {
    let (dir, processes) = (tempfile::tempdir().unwrap(), Processes::new());
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let made = says(&["ca", "create", "--state", &text(&ours)]);
    assert!(made.contains("the authority") && ours.join("ca.key").exists(), "{made}");
    let again = fails(&["ca", "create", "--state", &text(&ours)]);
    assert!(again.contains("holds an authority already"), "{again}");

    let listen = free_addr().to_string();
    let first = ["--listen", &listen, "--role", "server"];
    let (_first, _, addr) = start(&processes, &ours, &first).await;
    let create = ["token", "create", "--node", &addr, "--state", &text(&ours)];
    let worker = ["--role", "worker", "--ttl", "1m"];
    let token = says(&[&create[..], &worker].concat());
    assert!(
        token.starts_with("FL1-worker-") && token.lines().count() == 1,
        "one token, and no more"
    );

    // As a user hands it over: in a file.
    let file = dir.path().join("worker.token");
    fs::write(&file, &token).unwrap();
    let at_file = format!("@{}", text(&file));
    let joins = ["--seed", &addr, "--role", "worker", "--token", &at_file];
    let (_second, id, _) = start(&processes, &theirs, &joins).await;
    assert!(theirs.join("ca.pem").exists() && !theirs.join("ca.key").exists());
    until("both are up", async || {
        let up = members(&json(&ours, &addr));
        up.len() == 2 && up.contains(&(id.clone(), "up".to_owned()))
    })
    .await;
    let listed = tokens(&ours, &addr);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["role"], &listed[0]["used_by"]), (&json!("worker"), &json!(id)));
    let left =
        listed[0]["expires_unix_s"].as_u64().unwrap() - listed[0]["made_unix_s"].as_u64().unwrap();
    assert_eq!(left, 60);

    // Another one, which is revoked before anybody has used it: it lets nobody in.
    let token = says(&[&create[..], &worker].concat());
    let listed = tokens(&ours, &addr);
    let unused = listed.iter().find(|token| token["used_by"].is_null()).unwrap();
    let unused = &unused["id"].as_str().unwrap()[..8];
    let table = says(&["token", "list", "--node", &addr, "--state", &text(&ours)]);
    assert_eq!((cell(&table, unused, "ROLE"), cell(&table, unused, "USED BY")), ("worker", "-"));
    let revoke = ["token", "revoke", unused, "--node", &addr, "--state", &text(&ours)];
    let told = says(&revoke);
    assert!(told.contains("is revoked") && !told.contains("let in"), "{told}");
    assert!(tokens(&ours, &addr).iter().all(|token| !token["used_by"].is_null()));
    fs::write(&file, &token).unwrap();
    let third = dir.path().join("third");
    let refused = fails(&[
        "node",
        "--listen",
        "127.0.0.1:0",
        "--seed",
        &addr,
        "--state",
        &text(&third),
        "--token",
        &at_file,
        "--join-timeout",
        "10",
    ]);
    assert!(refused.contains("token"), "{refused}");
    assert!(!third.join("ca.pem").exists(), "it has learned nothing");
    assert_eq!(members(&json(&ours, &addr)).len(), 2);
}

/// As README.md shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_machine_joins_by_a_token() {
    let Some(hosts) = Hosts::new(2) else { return };
    let [one, two] = hosts.all() else { panic!("two hosts") };
    let (dir, processes) = (tempfile::tempdir().unwrap(), Processes::new());
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    says_on(one, &["ca", "create", "--state", &text(&ours)]);
    let (seed, listen) = (one.addr().to_string(), two.addr().to_string());
    let first = ["--listen", &seed, "--role", "server"];
    let (_first, ..) = up(&processes, one.program("first", FOOTLIGHT), &ours, &first).await;
    let asks = ["--node", &seed, "--state", &text(&ours)];
    let create = ["token", "create", "--role", "worker", "--ttl", "30m"];
    let file = dir.path().join("worker.token");
    fs::write(&file, says_on(one, &[&create[..], &asks].concat())).unwrap();

    let at_file = format!("@{}", text(&file));
    let joins = ["--listen", &listen, "--seed", &seed, "--role", "worker", "--token", &at_file];
    let program = two.program("second", FOOTLIGHT);
    let (second, id, addr) = up(&processes, program, &theirs, &joins).await;
    assert_eq!(addr, listen);
    // Both see both; and the second comes back without a token.
    until("both see both", async || {
        [&seed, &listen].into_iter().all(|node| {
            let asks = ["status", "--json", "--node", node, "--state", &text(&ours)];
            members(&serde_json::from_str(&says_on(one, &asks)).unwrap()).len() == 2
        })
    })
    .await;
    second.kill();
    second.wait(LONG).await.unwrap();
    let joins = ["--listen", &listen, "--seed", &seed, "--role", "worker"];
    let program = two.program("second again", FOOTLIGHT);
    let (_second, again, _) = up(&processes, program, &theirs, &joins).await;
    assert_eq!(again, id);
}
