//! A node that is revoked is out at once, on all members, and stays out (TR-8).

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use footlight::{cluster::trust::Role, prelude::*, runtime::NodeId};

use crate::{command::FOOTLIGHT, support::*};

const HOUR: Duration = Duration::from_secs(3_600);

fn footlight(state: &Path, args: &[&str]) -> String {
    let output = Command::new(FOOTLIGHT)
        .args(args)
        .env("FOOTLIGHT_STATE", state)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Why a node does not start.
async fn fails(cluster: &Cluster, name: &str, options: Options) -> String {
    let process = cluster.launch(name, options).await;
    let failed = process.wait_line("failed ", LONG).await.unwrap();
    soon(process.wait(LONG)).await.unwrap();
    failed
}

fn is_gone(members: &[Member], node: NodeId) -> bool {
    members.iter().any(|member| member.id == node && member.state.is_gone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_worker_is_out_on_all_members_and_does_not_come_back() {
    let cluster = Cluster::new();
    let here = cluster.here(Options::default()).await;
    let peer = cluster.process("peer", Options::join(here.addr())).await;
    // One that is down while it happens.
    let away = Options { listen: Some(free_addr()), ..Options::join(here.addr()) };
    let absent = cluster.process("absent", away.clone()).await;
    let theirs = tempfile::tempdir().unwrap();
    let token = soon(here.create_token(Role::Worker, HOUR)).await.unwrap();
    let listen = Some(free_addr());
    let state = Some(theirs.path().to_owned());
    let mine = Options { listen, state, ..Options::join(here.addr()) };
    let with = |token: &dyn ToString| Options { token: Some(token.to_string()), ..mine.clone() };
    let worker = cluster.process("worker", with(&token)).await;
    let probe = soon(here.spawn::<Probe>(()).on(Placement::node(worker.id))).await.unwrap();
    one_view(&here, 4, LONG).await;
    absent.process.kill();
    soon(absent.process.wait(LONG)).await.unwrap();
    sees_down(&here, 1).await;

    // A call is under way when it happens.
    let held = tokio::spawn({
        let probe = probe.clone();
        async move { probe.call(Hold {}).await }
    });
    until("the call is there", async || soon(probe.call(Held {})).await.unwrap() == 1).await;
    let (id, asked) = (worker.id.to_string(), peer.addr.to_string());
    let told = footlight(cluster.state(), &["revoke", &id, "--node", &asked]);
    assert_eq!(told.trim(), format!("node {id} is revoked"));
    // Those who wait for it are told, and nobody calls it any more.
    let error = soon(held).await.unwrap().unwrap_err();
    println!("a call under way: {error}");
    until("all members count it as gone", async || {
        let asked = soon(here.status_of(peer.id)).await.unwrap();
        is_gone(&asked.members, worker.id) && is_gone(&here.members(), worker.id)
    })
    .await;
    let error = soon(probe.call(Where {})).await.unwrap_err();
    assert!(matches!(error.cause(), footlight::runtime::Cause::NodeLost(_)), "{error}");
    for log in ["the node was revoked and is kept out"] {
        until(log, async || peer.process.stderr().join("\n").contains(log)).await;
    }
    // It has learned it too, and ends with an error that says so.
    let status = soon(worker.process.wait(LONG)).await.unwrap();
    let log = worker.process.stderr().join("\n");
    assert!(!status.success() && log.contains("was revoked"), "{status}: {log}");

    // Nor can it come back: not with its certificate, nor with another token for the same key.
    let failed = fails(&cluster, "again", mine.clone()).await;
    assert!(failed.contains("this node was revoked") && failed.contains("new token"), "{failed}");
    let token = soon(here.create_token(Role::Worker, HOUR)).await.unwrap();
    let failed = fails(&cluster, "with a token", with(&token)).await;
    assert!(failed.contains("this node was revoked"), "{failed}");
    let home = theirs.path().join(format!("nodes/127.0.0.1_{}", worker.addr.port()));
    let (key, certificate) = (home.join("node.key"), home.join("node.pem"));
    let kept = (fs::read(&key).unwrap(), fs::read(&certificate).unwrap());
    fs::remove_file(&certificate).unwrap();
    let failed = fails(&cluster, "without its certificate", with(&token)).await;
    assert!(failed.contains(&format!("node {id} was revoked")), "{failed}");

    // The node that was down meanwhile hears of it, and keeps it out by itself.
    let absent = cluster.process("back", away).await;
    until("it hears of it", async || {
        absent.process.stderr().join("\n").contains("the node was revoked and is kept out")
    })
    .await;
    fs::write(&certificate, &kept.1).unwrap();
    let at_absent = Options { seeds: vec![absent.addr], ..mine.clone() };
    let failed = fails(&cluster, "by the absent one", at_absent).await;
    assert!(failed.contains("this node was revoked"), "{failed}");

    // What the error says helps: as another node it may join.
    fs::remove_file(&certificate).unwrap();
    fs::remove_file(&key).unwrap();
    let other = cluster.process("another", with(&token)).await;
    assert_ne!(other.id, worker.id);
    // The old key stays worthless.
    let stolen = tempfile::tempdir().unwrap();
    let home = stolen.path().join("nodes/127.0.0.1_0");
    fs::create_dir_all(&home).unwrap();
    fs::copy(theirs.path().join("ca.pem"), stolen.path().join("ca.pem")).unwrap();
    fs::write(home.join("node.key"), &kept.0).unwrap();
    fs::write(home.join("node.pem"), &kept.1).unwrap();
    fs::set_permissions(home.join("node.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let state = Some(stolen.path().to_owned());
    let failed = fails(&cluster, "a copy", Options { state, ..Options::join(here.addr()) }).await;
    assert!(failed.contains("this node was revoked"), "{failed}");
}
