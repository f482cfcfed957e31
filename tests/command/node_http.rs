//! `footlight node --http`: a node of the plain command that tells over HTTP that it is alive.
#![cfg(feature = "torch")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use footlight::cluster::processes::{ProcessSpec, Processes};
use serde_json::Value;

use crate::{
    command::{FOOTLIGHT, json},
    support::*,
};

/// The first line of the answer.
fn get(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

fn members(state: &Path, node: &str) -> Vec<Value> {
    json(state, node)["members"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_answers_health_checks_where_the_cluster_is_told_that_it_does() {
    let state = tempfile::tempdir().unwrap();
    let (state, processes) = (state.path(), Processes::new());
    let start = async |args: &[&str]| {
        let spec = ProcessSpec::program(args.join(" "), FOOTLIGHT)
            .args(["node", "--listen", "127.0.0.1:0", "--state"])
            .args([state])
            .args(args.iter().copied());
        let process = processes.start(spec).await.unwrap();
        let line = process.wait_line("node ", LONG).await.unwrap();
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        (process, words[1].clone(), words[4].clone())
    };
    let (_seed, seed, seed_addr) = start(&[]).await;
    let (node, id, _) = start(&["--seed", &seed_addr, "--http", "127.0.0.1:0"]).await;

    // Asked of the other one: all know it.
    let http = |id: &str| {
        let members = members(state, &seed_addr);
        members.into_iter().find(|member| member["id"] == id).map(|member| member["http"].clone())
    };
    until("the node is known", async || http(&id).is_some()).await;
    assert_eq!(http(&seed), Some(Value::Null));
    let at = http(&id).unwrap().as_str().expect("an address").to_owned();
    assert!(at.starts_with("127.0.0.1:") && !at.ends_with(":0"), "{at}");
    for route in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(get(&at, route), "HTTP/1.1 200 OK");
    }
    assert_eq!(get(&at, "/v2/models/any"), "HTTP/1.1 404 Not Found");

    node.terminate();
    assert!(node.wait(LONG).await.unwrap().success());
}

#[test]
fn an_http_address_that_is_taken_or_open_to_others_is_one_line() {
    let state = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (addr, says) in [
        (taken.as_str(), format!("cannot serve HTTP on {taken}")),
        ("0.0.0.0:0", "0.0.0.0:0 is not loopback".to_owned()),
    ] {
        let mut command = Command::new(FOOTLIGHT);
        command.args(["node", "--listen", "127.0.0.1:0", "--http", addr, "--state"]);
        let output = command.arg(state.path()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]), "{error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
        assert!(error.contains(&says), "{error}");
    }
}
