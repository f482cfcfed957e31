//! A node of another machine is let in by a token, once, and finds its way back without one.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use footlight::{
    cluster::trust::{Role, StateDir, Token},
    prelude::*,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A node with a state directory of its own in `dir` that joins by a token.
fn by_token(dir: &Path, seed: &Node, token: &Token) -> Options {
    Options {
        state: Some(dir.to_owned()),
        token: Some(token.to_string()),
        join_timeout: Some(Duration::from_secs(10)),
        ..Options::join(seed.addr())
    }
}

/// Why a node is not let in.
async fn refused(cluster: &Cluster, options: Options) -> String {
    let error = soon(cluster.builder(options).start()).await.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_in_one_node_once_and_it_comes_back_without_one() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let (theirs, third) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = soon(seed.create_token(Role::Worker, HOUR)).await.unwrap();
    let at = Options { listen: Some(free_addr()), ..by_token(theirs.path(), &seed, &token) };

    let node = cluster.process("joiner", at.clone()).await;
    let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
    assert_eq!(soon(probe.call(Where {})).await.unwrap(), (node.id, node.process.pid()));
    // It keeps a key of its own that nobody else can read, and never got the authority's.
    assert!(theirs.path().join("ca.pem").exists() && !theirs.path().join("ca.key").exists());
    let addr = at.listen.unwrap();
    let key = theirs.path().join(format!("nodes/127.0.0.1_{}/node.key", addr.port()));
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let listed = soon(seed.tokens()).await.unwrap();
    assert_eq!((listed.len(), listed[0].used_by), (1, Some(node.id)));

    // The token is used: nobody else comes in by it, and both sides are told.
    let error = refused(&cluster, by_token(third.path(), &seed, &token)).await;
    assert!(error.contains("used already") && error.contains(&node.id.to_string()), "{error}");
    assert!(!third.path().join("ca.pem").exists(), "it has learned nothing");

    // The node itself comes back as the same, with the used token and without any.
    for token in [at.token.clone(), None] {
        node.process.kill();
        soon(node.process.wait(LONG)).await.unwrap();
        let again = cluster.process("again", Options { token, ..at.clone() }).await;
        assert_eq!(again.id, node.id);
        assert!(again.incarnation > node.incarnation);
        let probe = soon(seed.spawn::<Probe>(()).on(Placement::node(node.id))).await.unwrap();
        assert_eq!(soon(probe.call(Where {})).await.unwrap().1, again.process.pid());
        again.process.kill();
        soon(again.process.wait(LONG)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_token_is_told_and_nothing_else_is_learned() {
    let cluster = Cluster::new();
    let seed = cluster.here(Options::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let joiner = |token: &Token| by_token(&dir.path().join("joiner"), &seed, token);
    let good = soon(seed.create_token(Role::Worker, HOUR)).await.unwrap();

    // One that the cluster never made.
    let unknown = Token::new(Role::Worker, good.authority()).unwrap();
    let error = refused(&cluster, joiner(&unknown)).await;
    assert!(error.contains("knows no such token"), "{error}");
    // One that has ended.
    let short = soon(seed.create_token(Role::Worker, Duration::from_secs(1))).await.unwrap();
    let listed = soon(seed.tokens()).await.unwrap();
    let ends = listed.iter().find(|listed| listed.id == short.id()).unwrap().expires;
    until("the token ends", async || {
        SystemTime::now() > SystemTime::UNIX_EPOCH + Duration::from_secs(ends + 1)
    })
    .await;
    let error = refused(&cluster, joiner(&short)).await;
    assert!(error.contains("ended") && error.contains("token create"), "{error}");
    // One that says another role than it was made for.
    let forged: Token = good.to_string().replace("worker", "admin").parse().unwrap();
    let error = refused(&cluster, joiner(&forged)).await;
    assert!(error.contains("`worker`, not `admin`"), "{error}");
    // One that was revoked.
    let revoked = soon(seed.create_token(Role::Worker, HOUR)).await.unwrap();
    soon(seed.revoke_token(&revoked.id().as_str()[..8])).await.unwrap();
    let error = refused(&cluster, joiner(&revoked)).await;
    assert!(error.contains("knows no such token"), "{error}");
    // One of another cluster: this one can't show the authority that the token names.
    let elsewhere = StateDir::create(Some(&dir.path().join("elsewhere"))).unwrap();
    let foreign = Token::new(Role::Worker, elsewhere.anchor().unwrap().hash()).unwrap();
    let error = refused(&cluster, joiner(&foreign)).await;
    assert!(error.contains("not of the cluster that the token is for"), "{error}");
    // A worker's token for a node that wants to be a server.
    let options = Options { role: "server", ..joiner(&good) };
    let error = refused(&cluster, options).await;
    assert!(error.contains("`server`") && error.contains("role `worker`"), "{error}");
    // Garbled ones are told apart before anybody is asked.
    for (text, told) in [("FL1-worker-ABC", "3 parts"), ("secret", "FL1-")] {
        let options = Options { token: Some(text.to_owned()), ..joiner(&good) };
        let error = refused(&cluster, options).await;
        assert!(error.contains(told) && error.contains("--token"), "{error}");
    }
    // The good one was used for the node that wanted too much: its key may ask again.
    let node = soon(cluster.builder(joiner(&good)).start()).await.unwrap();
    sees_up(&seed, 2).await;
    soon(node.leave()).await.unwrap();
}
