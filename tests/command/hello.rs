//! The first program that a newcomer reads does what the README says.

use std::{net::UdpSocket, process::Command};

use footlight::cluster::processes::{ProcessSpec, Processes};

use crate::example::*;

fn hello() -> Command {
    Command::new(program("hello"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_says_hello_through_the_other() {
    let state = tempfile::tempdir().unwrap();
    let processes = Processes::new();
    let spec = ProcessSpec::program("seed", program("hello"))
        .args(["--listen", "127.0.0.1:0"])
        .env("FOOTLIGHT_STATE", state.path());
    let seed = processes.start(spec).await.unwrap();
    let line = seed.wait_line("seed at ", LONG).await.unwrap();
    let addr =
        line.strip_prefix("seed at ").unwrap().strip_suffix("; stop it with Ctrl-C").unwrap();

    let mut other = hello();
    other.args(["--seed", addr, "--state"]).arg(state.path());
    let outcome = tokio::task::spawn_blocking(move || Run::of(&mut other).outcome()).await.unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(outcome.stdout, "hello Ada, number 1\n", "{outcome:?}");
    assert!(outcome.stderr.is_empty(), "{outcome:?}");

    seed.terminate();
    assert!(seed.wait(LONG).await.unwrap().success());
}

#[test]
fn it_gives_up_a_seed_at_which_nobody_answers_and_says_so() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed = silent.local_addr().unwrap().to_string();
    let outcome = Run::of(hello().args(["--seed", &seed])).outcome();
    assert_eq!((outcome.status.code(), outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
    let [line] = &outcome.stderr[..] else { panic!("one line: {outcome:?}") };
    assert!(line.contains(&format!("no seed answered within 15s: {seed}")), "{line}");
}

#[test]
fn it_is_short() {
    let lines = include_str!("../../examples/hello.rs").lines().count();
    assert!(lines < 60, "{lines} lines");
}
