//! Certificates are renewed while nodes run, and nobody notices; a node that fails to renew its own is
//! shut out when it has ended (TR-7); and all that goes on when the first node is gone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use footlight::{
    cluster::{enroll::CreateToken, trust::Role},
    prelude::*,
    runtime::NodeId,
};

use crate::command::FOOTLIGHT;
use crate::steady::Steady;
use crate::support::*;

/// As short as a busy machine bears: a certificate is renewed at some half of it.
const LIFE: Duration = Duration::from_secs(8);
const HOUR: Duration = Duration::from_secs(3_600);

fn short_lived(options: Options) -> Options {
    Options { life: Some(LIFE), ..options }
}

/// A node with a state directory of its own.
fn by_token(dir: &Path, token: impl ToString, options: Options) -> Options {
    let (state, token) = (Some(dir.to_owned()), Some(token.to_string()));
    short_lived(Options { state, token, ..options })
}

/// How often a node has renewed its certificate, and how many connections with members it has had.
async fn renewals(here: &Node, node: NodeId) -> (u64, u64) {
    let status = soon(here.status_of(node)).await.unwrap();
    (status.certificate.unwrap().renewals, status.connections)
}

async fn all_renewals(here: &Node, nodes: &[NodeId]) -> Vec<(u64, u64)> {
    futures::future::join_all(nodes.iter().map(|node| renewals(here, *node))).await
}

/// Waits until each node has renewed its certificate so many times more.
async fn renewed(here: &Node, nodes: &[NodeId], times: u64) {
    let before = all_renewals(here, nodes).await;
    until(&format!("all have renewed their certificates {times} times"), async || {
        let now = all_renewals(here, nodes).await;
        now.iter().zip(&before).all(|((now, _), (before, _))| *now >= before + times)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_rotations_on_every_node_break_no_connection_and_fail_no_call() {
    let cluster = Cluster::new();
    let here = cluster.here(short_lived(Options::default())).await;
    let theirs = tempfile::tempdir().unwrap();
    let token = soon(here.create_token(Role::Server, HOUR)).await.unwrap();
    let join = || Options::join(here.addr());
    // Two that hold the authority's key, and one that has to ask.
    let nodes = [
        cluster.process("a", short_lived(join())).await,
        cluster.process("b", short_lived(join())).await,
        cluster.process("c", by_token(theirs.path(), token, join())).await,
    ];
    let view = one_view(&here, 4, LONG).await;
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let steady = Steady::begin(&here, &ids).await;
    // Large tensors too: they have connections of their own.
    let mut mirrors = Vec::new();
    for id in &ids {
        mirrors.push(soon(here.spawn::<Probe>(()).on(Placement::node(*id))).await.unwrap());
    }
    let tensor = HostTensor::from_vec(vec![0.5f32; 1 << 20], &[1 << 20]).unwrap();
    let mirrored = async || {
        for mirror in &mirrors {
            let back = soon(mirror.call(Mirror { tensor: tensor.clone() })).await.unwrap();
            assert_eq!(back, tensor);
        }
    };
    mirrored().await;
    let everybody: Vec<NodeId> = ids.iter().copied().chain([here.id()]).collect();
    let before = all_renewals(&here, &everybody).await;
    for _ in 0..3 {
        renewed(&here, &everybody, 1).await;
        mirrored().await;
    }
    let after = all_renewals(&here, &everybody).await;
    println!("(renewals, connections): {before:?}, then {after:?}");
    for ((renewed, now), (renewed_before, connections)) in after.iter().zip(&before) {
        assert!(renewed - renewed_before >= 3);
        assert_eq!(now, connections, "a connection was made anew");
    }
    steady.end().await;
    assert_eq!(one_view(&here, 4, LONG).await, view);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_to_renew_is_shut_out_when_its_certificate_has_ended() {
    let cluster = Cluster::new();
    let here = cluster.here(short_lived(Options::default())).await;
    let peer = cluster.process("peer", short_lived(Options::join(here.addr()))).await;
    let theirs = tempfile::tempdir().unwrap();
    let token = soon(here.create_token(Role::Worker, HOUR)).await.unwrap();
    let listen = Some(free_addr());
    let options = Options { listen, ..by_token(theirs.path(), token, Options::join(here.addr())) };
    let node = cluster.process("node", options.clone()).await;
    let probe = soon(here.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    // It renews until its key is gone.
    renewed(&here, &[node.id], 1).await;
    let mut events = here.events();
    let home = home(theirs.path());
    let key = fs::read(home.join("node.key")).unwrap();
    fs::remove_file(home.join("node.key")).unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap().0, node.id);
    event(&mut events, |event| matches!(event, ClusterEvent::Down(m) if m.id == node.id)).await;
    assert!(probe.call(Where {}).await.is_err());
    // All of them have shut it out, and say why; it knows itself.
    until("the other member says so", async || {
        peer.process.stderr().join("\n").contains("its certificate has ended")
    })
    .await;
    until("it says so itself", async || {
        let log = node.process.stderr().join("\n");
        log.contains("could not be renewed") && log.contains("has ended and was not renewed")
    })
    .await;
    // It was the certificate, not the node: that one runs.
    assert!(node.process.is_running());
    node.process.kill();
    soon(node.process.wait(LONG)).await.unwrap();

    // With its key back it still has no certificate to show, and the error says what it takes.
    fs::write(home.join("node.key"), key).unwrap();
    set_private(&home.join("node.key"));
    let without = Options { token: None, ..options.clone() };
    let process = cluster.launch("without", without).await;
    let failed = process.wait_line("failed ", LONG).await.unwrap();
    assert!(failed.contains("ended") && failed.contains("give a new token"), "{failed}");
    let token = soon(here.create_token(Role::Worker, HOUR)).await.unwrap();
    let again = Options { token: Some(token.to_string()), ..options };
    assert_eq!(cluster.process("again", again).await.id, node.id);
}

fn set_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Where the one node of a state directory keeps its key.
fn home(state: &Path) -> PathBuf {
    let nodes = fs::read_dir(state.join("nodes")).unwrap();
    let homes = nodes.map(|entry| entry.unwrap().path());
    let homes: Vec<PathBuf> = homes.filter(|dir| dir.join("node.key").exists()).collect();
    let [home] = &homes[..] else { panic!("{homes:?}") };
    home.clone()
}

/// Asks a node by the `footlight` command; its answer, or its error.
fn status(state: &Path, node: &str, token: Option<&str>) -> std::result::Result<String, String> {
    let mut command = Command::new(FOOTLIGHT);
    command.args(["status", "--json", "--node", node]).env("FOOTLIGHT_STATE", state);
    if let Some(token) = token {
        command.env("FOOTLIGHT_TOKEN", token);
    }
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_s_certificate_is_renewed_while_it_is_used_and_no_longer() {
    let cluster = Cluster::new();
    let here = cluster.here(short_lived(Options::default())).await;
    let token = soon(here.create_token(Role::Observer, HOUR)).await.unwrap().to_string();
    let (theirs, node) = (tempfile::tempdir().unwrap(), here.addr().to_string());
    let asked = status(theirs.path(), &node, Some(&token)).unwrap();
    assert!(asked.contains(&here.id().to_string()), "{asked}");
    let certificate = theirs.path().join("nodes/asker/node.pem");
    let mut shown = fs::read(&certificate).unwrap();
    for _ in 0..2 {
        until("it is renewed", async || {
            status(theirs.path(), &node, None).unwrap();
            fs::read(&certificate).unwrap() != shown
        })
        .await;
        shown = fs::read(&certificate).unwrap();
    }
    // Nobody uses it for its whole life.
    let over = SystemTime::now() + LIFE + Duration::from_secs(2);
    until("it has ended", async || SystemTime::now() > over).await;
    let error = status(theirs.path(), &node, None).unwrap_err();
    assert!(error.contains("ended") && error.contains("give a new token"), "{error}");
    let token = soon(here.create_token(Role::Observer, HOUR)).await.unwrap().to_string();
    status(theirs.path(), &node, Some(&token)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_issued_and_renewed_after_the_first_node_is_gone_for_good() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let first = short_lived(Options { role: "server", ..Options::default() });
    let first = cluster.process("first", first).await;
    // The tokens of the others are made by the first node.
    let (asker, observed) =
        cluster.builder(Options::default()).observe(&first.addr.to_string()).await.unwrap();
    let mut tokens = Vec::new();
    for role in [Role::Server, Role::Server, Role::Admin] {
        let order = CreateToken { role, ttl: HOUR };
        let mut made = Err(String::new());
        until("a token is made", async || {
            made = soon(observed.actor(&asker).call(CreateToken { ..order })).await.unwrap();
            made.is_ok()
        })
        .await;
        tokens.push(made.unwrap());
    }
    soon(asker.leave()).await.unwrap();
    let server = |name: &str, token: &String| {
        let options = Options { role: "server", ..Options::join(first.addr) };
        by_token(&dir.path().join(name), token, options)
    };
    let one = cluster.process("one", server("one", &tokens[0])).await;
    let two = cluster.process("two", server("two", &tokens[1])).await;
    let admin = by_token(&dir.path().join("admin"), &tokens[2], Options::join(first.addr));
    let here = cluster.here(admin).await;
    for voter in [&one, &two] {
        until("each voter holds the authority's key", async || {
            let log = voter.process.stderr().join("\n");
            log.contains("this node can issue certificates from now on")
        })
        .await;
    }
    sees_up(&here, 4).await;

    // It is gone for good, and its key with it.
    first.process.kill();
    soon(first.process.wait(LONG)).await.unwrap();
    fs::remove_dir_all(cluster.state()).unwrap();
    sees_down(&here, 1).await;

    // New nodes are let in: by a voter, and by a node that is none and passes their requests on.
    let mut joined = Vec::new();
    for (name, at) in [("three", one.addr), ("four", here.addr())] {
        let token = soon(here.create_token(Role::Worker, HOUR)).await.unwrap();
        let options = by_token(&dir.path().join(name), token, Options::join(at));
        joined.push(cluster.process(name, options).await.id);
    }
    sees_up(&here, 5).await;
    // And all go on renewing: the voters, the admin and the new ones.
    let everybody: Vec<NodeId> = [one.id, two.id, here.id()].into_iter().chain(joined).collect();
    renewed(&here, &everybody, 2).await;
    sees_up(&here, 5).await;
}
