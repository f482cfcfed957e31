//! The command `footlight`: nodes that it runs, and what it answers.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    path::Path,
    process::{Command, Output},
};

use footlight::cluster::processes::{Process, ProcessSpec, Processes};
use serde_json::Value;

use crate::support::{LONG, netns::Host};

pub(crate) const FOOTLIGHT: &str = env!("CARGO_BIN_EXE_footlight");

/// A node of this command, its id, and where it listens, once it is up.
pub(crate) async fn start(
    processes: &Processes,
    state: &Path,
    args: &[&str],
) -> (Process, String, String) {
    up(processes, ProcessSpec::program(args.join(" "), FOOTLIGHT), state, args).await
}

/// The same for a program that is to be started on some host.
pub(crate) async fn up(
    processes: &Processes,
    program: ProcessSpec,
    state: &Path,
    args: &[&str],
) -> (Process, String, String) {
    let spec = program.args(["node", "--state"]).args([state]).args(args.iter().copied());
    let node = processes.start(spec).await.unwrap();
    let line = node.wait_line("node ", LONG).await.unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!((words[2], words[3]), ("up", "at"), "{line}");
    (node, words[1].to_owned(), words[4].to_owned())
}

/// What a run of the command came to.
pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(FOOTLIGHT).args(args).env_remove("RUST_LOG").output().unwrap()
}

/// What it says if all goes well, which it must.
pub(crate) fn says(args: &[&str]) -> String {
    said(args, run(args))
}

/// The same on some host.
pub(crate) fn says_on(host: &Host, args: &[&str]) -> String {
    let output = host.command(FOOTLIGHT).args(args).env_remove("RUST_LOG").output().unwrap();
    said(args, output)
}

fn said(args: &[&str], output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line with which it fails, which it must.
pub(crate) fn fails(args: &[&str]) -> String {
    let output = run(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{args:?}: {error}");
    error
}

/// What a command that asks a node says.
pub(crate) fn footlight(command: &str, state: &Path, node: &str, more: &[&str]) -> String {
    let asked = [command, "--node", node, "--state", state.to_str().unwrap()];
    says(&[&asked, more].concat())
}

pub(crate) fn status(state: &Path, node: &str, more: &[&str]) -> String {
    footlight("status", state, node, more)
}

pub(crate) fn json(state: &Path, node: &str) -> Value {
    serde_json::from_str(&status(state, node, &["--json"])).unwrap()
}

/// (id, state) of all members, sorted.
pub(crate) fn members(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let members = status["members"].as_array().unwrap().iter();
    let mut members: Vec<_> = members.map(|m| (text(&m["id"]), text(&m["state"]))).collect();
    members.sort();
    members
}

/// What stands in the table in a node's line, under a heading.
pub(crate) fn cell<'a>(table: &'a str, node: &str, heading: &str) -> &'a str {
    let mut lines = table.lines();
    let head = lines.next().unwrap();
    let row = lines.find(|line| line.starts_with(node)).unwrap_or_else(|| panic!("{table}"));
    let begin = head.find(heading).unwrap_or_else(|| panic!("no {heading}: {table}"));
    // Two blanks at least part two columns, and a cell has no two in a row.
    row[begin..].split("  ").next().unwrap()
}
