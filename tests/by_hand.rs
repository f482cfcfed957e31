//! Nodes started by hand, as the README says: a cluster, a job on it, and its model over HTTP. And the
//! tests that the example has of its own: cargo builds it for other tests as the program that it is, and
//! then runs none of its tests.
#![cfg(feature = "torch")]

#[path = "support/example.rs"]
mod example;
#[path = "../examples/image_classification.rs"]
#[allow(dead_code, reason = "its tests are run, and not itself")]
mod image_classification;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use example::*;
use footlight::{
    actors::training::RunningJob,
    cluster::processes::{Process, ProcessSpec, Processes},
    prelude::*,
};
use serde_json::{Value, json};

/// What a person has: a state directory, and terminals.
struct Hand {
    state: tempfile::TempDir,
    terminals: Processes,
}

impl Hand {
    async fn start(&self, args: &[&str]) -> Process {
        let spec = ProcessSpec::program(args.join(" "), program(DEMO))
            .args(args.iter().copied())
            .env("FOOTLIGHT_STATE", self.state.path());
        self.terminals.start(spec).await.unwrap()
    }

    /// A node that is up, and its address.
    async fn node(&self, args: &[&str]) -> (Process, String) {
        let node = self.start(&[&["node"], args].concat()).await;
        let line = node.wait_line("node ", LONG).await.unwrap();
        let addr = line.rsplit(' ').next().unwrap().to_owned();
        (node, addr)
    }
}

/// One sample of the test data, as whoever asks would read it.
fn sample(data: &Path) -> Vec<u8> {
    let images = std::fs::read(data.join(images_name("t10k"))).unwrap();
    images[16..16 + 28 * 28].to_vec()
}

fn ask(url: &str, body: &Value) -> Value {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

fn status(state: &Path, node: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_footlight"));
    command.args(["status", "--json", "--node", node, "--state"]).arg(state);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_started_by_hand_trains_a_job_and_serves_its_model() {
    let data = tempfile::tempdir().unwrap();
    write_data(data.path(), 2_000, 200);
    let hand = Hand { state: tempfile::tempdir().unwrap(), terminals: Processes::new() };
    let (seed, addr) = hand.node(&["--listen", "127.0.0.1:0"]).await;
    let (_server, _) = hand.node(&["--seed", &addr, "--role", "server"]).await;
    let (_loader, _) = hand.node(&["--seed", &addr, "--role", "loader"]).await;
    let (_worker, last) = hand.node(&["--seed", &addr, "--role", "worker"]).await;

    let folder = data.path().to_str().unwrap();
    let options = ["--data", folder, "--epochs", "2", "--job-seed", "7", "--device", "cpu"];
    let train = hand.start(&[&["train", "--seed", &addr], &options[..]].concat()).await;
    let line = train.wait_line("mnist: test accuracy ", LONG).await.unwrap();
    assert!(line.ends_with("; `serve` answers with it"), "{line}");
    assert!(train.wait(LONG).await.unwrap().success());

    // The job is the cluster's now, with the seed that was given.
    let args = NodeArgs {
        seeds: vec![addr.clone()],
        state: Some(hand.state.path().to_owned()),
        ..NodeArgs::default()
    };
    let node = Node::builder(args).join_timeout(LONG).start().await.unwrap();
    let spec = RunningJob::attach(&node, "mnist").await.unwrap().spec().await.unwrap();
    assert_eq!((spec.seed, spec.epochs), (7, 2));
    node.leave().await.unwrap();

    let serve = hand.start(&["serve", "--seed", &addr, "--http", "127.0.0.1:0"]).await;
    let line = serve.wait_line("mnist at ", LONG).await.unwrap();
    let url = line.strip_prefix("mnist at ").unwrap().split(';').next().unwrap().to_owned();
    assert!(url.ends_with("/v2/models/lenet5/infer"), "{line}");
    let input = json!({
        "name": "images", "datatype": "UINT8", "shape": [1, 28, 28], "data": sample(data.path())
    });
    let question = json!({ "inputs": [input] });
    let answer = tokio::task::spawn_blocking(move || ask(&url, &question)).await.unwrap();
    let output = &answer["outputs"][0];
    assert_eq!(output["shape"], json!([1, 10]), "{answer}");
    let sure: Vec<f64> = serde_json::from_value(output["data"].clone()).unwrap();
    assert!((sure.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{answer}");

    // Any node tells of all: the four, and the one that serves. On a busy machine one may be a suspect for a moment.
    let deadline = Instant::now() + LONG;
    loop {
        let told = status(hand.state.path(), &last);
        let members = told["members"].as_array().unwrap();
        if members.iter().filter(|member| member["state"] == "up").count() == 5 {
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for process in [&serve, &seed] {
        process.terminate();
        assert!(process.wait(LONG).await.unwrap().success());
    }
}
