//! What is wrong with the input is told in one clear line, and never by a panic.

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
};

use footlight::cluster::processes::{ProcessSpec, Processes};

use crate::{command::FOOTLIGHT, support::*};

/// Runs the command, which must fail with one line; returns that line.
fn fails(state: &Path, args: &[&str]) -> String {
    let (code, error) = run(state, args);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    error
}

fn run(state: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(FOOTLIGHT)
        .args(args)
        .env("FOOTLIGHT_STATE", state)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    assert!(!error.contains("panicked") && !error.contains("backtrace"), "{error}");
    (output.status.code(), error)
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

/// A socket that answers nothing.
fn deaf() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[test]
fn a_seed_at_which_nobody_answers_is_given_up_after_the_stated_time() {
    let state = tempfile::tempdir().unwrap();
    let (_socket, deaf) = deaf();
    let (deaf, closed) = (deaf.to_string(), free_addr().to_string());
    for seed in [&deaf, &closed] {
        let error = fails(state.path(), &["node", "--seed", seed, "--join-timeout", "1"]);
        contains(&error, &["no seed answered within 1s", seed, "Start the seed first"]);
        let error = fails(state.path(), &["status", "--node", seed, "--timeout", "1"]);
        contains(&error, &["no node answered within 1s", seed]);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let state = tempfile::tempdir().unwrap();
    let (_socket, taken) = deaf();
    let error = fails(state.path(), &["node", "--listen", &taken.to_string()]);
    contains(&error, &[&taken.to_string(), "in use"]);
}

#[test]
fn an_address_that_is_none_is_named_with_an_example() {
    let state = tempfile::tempdir().unwrap();
    for (args, given) in [
        (&["node", "--listen", "here"][..], "here"),
        (&["node", "--listen", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (&["node", "--listen", "127.0.0.1:0", "--seed", "there"], "there"),
        (&["node", "--listen", "127.0.0.1:0", "--seed", "127.0.0.1:port"], "127.0.0.1:port"),
        (&["status", "--node", "there"], "there"),
    ] {
        let error = fails(state.path(), args);
        contains(&error, &[&format!("`{given}` is no address"), "for example 127.0.0.1:7400"]);
    }
}

#[test]
fn an_unknown_option_or_value_is_named_in_one_line_and_no_command_gets_the_usage() {
    let state = tempfile::tempdir().unwrap();
    for (args, named) in [
        (&["node", "--lisen", "127.0.0.1:0"][..], "--lisen"),
        (&["node", "--label", "zone"], "KEY=VALUE"),
        (&["node", "--http", "there"], "--http"),
        (&["node", "--join-timeout", "0"], "--join-timeout"),
        (&["status"], "--node"),
        (&["nodes"], "nodes"),
    ] {
        let (code, error) = run(state.path(), args);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
        contains(&error, &[named, "see --help"]);
    }
    let (code, page) = run(state.path(), &[]);
    assert_eq!(code, Some(2), "{page}");
    contains(&page, &["Usage", "status", "--help"]);
}

#[test]
fn a_node_does_not_listen_off_loopback_with_keys_that_nobody_else_has() {
    let state = tempfile::tempdir().unwrap();
    let fresh = state.path().join("fresh");
    let error = fails(&fresh, &["node", "--listen", "0.0.0.0:0"]);
    contains(&error, &["refusing to listen on 0.0.0.0:0", "--state DIR"]);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = fails(&file.join("below"), &["node", "--listen", "127.0.0.1:0"]);
    contains(&error, &[&file.display().to_string()]);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_told_apart_and_so_is_a_taken_identity() {
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let processes = Processes::new();
    let spec = ProcessSpec::program("seed", FOOTLIGHT)
        .args(["node", "--listen", &free_addr().to_string(), "--state"])
        .args([state.path()]);
    let seed = processes.start(spec).await.unwrap();
    let line = seed.wait_line("node ", LONG).await.unwrap();
    let addr = line.split(' ').nth(4).unwrap().to_owned();

    let error = fails(other.path(), &["status", "--node", &addr, "--timeout", "1"]);
    contains(&error, &[&addr, "certificates", "state directory"]);
    let listen = ["--listen", "127.0.0.1:0"];
    let error = fails(
        other.path(),
        &["node", listen[0], listen[1], "--seed", &addr, "--join-timeout", "1"],
    );
    contains(&error, &[&addr, "certificates", "state directory"]);

    let error = fails(state.path(), &["node", "--listen", &addr]);
    contains(&error, &["another running node", &addr]);
    // The seed is none the worse for it.
    assert!(seed.is_running());
}
