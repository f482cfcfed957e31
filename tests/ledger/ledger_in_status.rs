//! `footlight status` says how many voters the ledger may still lose, and not more.

use std::path::Path;

use footlight::cluster::processes::Processes;
use serde_json::{Value, json};

use crate::command::*;
use crate::support::*;

/// Waits until a node tells of so many voters, as many of them missing, and gives what it tells.
async fn told(state: &Path, node: &str, voters: usize, missing: usize) -> Value {
    let count = |list: &Value| list.as_array().map(Vec::len);
    let ledger = || json(state, node)["ledger"].clone();
    until("the voters are as wanted", async || {
        let ledger = ledger();
        (count(&ledger["voters"]), count(&ledger["missing"])) == (Some(voters), Some(missing))
    })
    .await;
    ledger()
}

/// The line about the ledger in the table.
fn line(state: &Path, node: &str) -> String {
    let table = status(state, node, &[]);
    let line = table.lines().find(|line| line.starts_with("ledger: "));
    line.unwrap_or_else(|| panic!("{table}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_what_the_ledger_bears_and_that_it_has_stopped() {
    let state = tempfile::tempdir().unwrap();
    let (state, processes) = (state.path(), Processes::new());
    let listen = free_addr().to_string();
    let first = ["--listen", &listen, "--role", "server"];
    let (_first, first_id, addr) = start(&processes, state, &first).await;

    let ledger = told(state, &addr, 1, 0).await;
    assert_eq!((&ledger["voters"], &ledger["tolerance"]), (&json!([first_id]), &json!(0)));
    assert_eq!(
        line(state, &addr),
        "ledger: 1 voter: its loss stops the ledger; 3 nodes of role server bear the loss of one"
    );

    let server = ["--seed", &addr, "--role", "server"];
    let (second, second_id, _) = start(&processes, state, &server).await;
    let (third, third_id, _) = start(&processes, state, &server).await;
    assert_eq!(told(state, &addr, 3, 0).await["tolerance"], 1);
    assert_eq!(line(state, &addr), "ledger: 3 voters: one may be lost");

    second.kill();
    let ledger = told(state, &addr, 3, 1).await;
    assert_eq!((&ledger["missing"], &ledger["tolerance"]), (&json!([second_id]), &json!(0)));
    assert_eq!(
        line(state, &addr),
        format!(
            "ledger: 3 voters, 1 of them missing: the loss of one more stops the ledger; start \
             again, or replace: {second_id}"
        )
    );

    third.kill();
    let ledger = told(state, &addr, 3, 2).await;
    assert_eq!(ledger["tolerance"], Value::Null, "{ledger}");
    let mut missing = [second_id, third_id];
    missing.sort();
    assert_eq!(
        line(state, &addr),
        format!(
            "ledger: 3 voters, 2 of them missing: it has stopped: no majority is there; start \
             again, or replace: {}",
            missing.join(", ")
        )
    );
}
