//! The authority's key is told to the ledger's voters and to nobody else: not to a server that is
//! none, nor to one that was.

use std::time::Duration;

use footlight::{
    cluster::{
        ledger::{Expect, LedgerError},
        trust::Role,
    },
    prelude::*,
    runtime::NodeId,
};

use crate::support::*;

/// Where the ledger keeps it.
const KEY: &str = "ca";
/// A key that all servers may read, and that a list or a watch of the other one tells as well.
const BESIDE: &str = "ca and more";

/// Waits until these nodes vote, and all of them know it.
async fn voters(nodes: &[&Node]) {
    let wanted: Vec<NodeId> = nodes.iter().map(|node| node.id()).collect();
    see_voters(nodes, &wanted).await;
}

/// Whether a node reads the key.
async fn reads(node: &Node) -> bool {
    match soon(node.ledger().get(KEY)).await {
        Ok(key) => key.is_some(),
        Err(LedgerError::Forbidden(why)) => {
            assert!(why.contains("only its voters read the key `ca`"), "{why}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_reads_the_authority_s_key_while_it_votes_and_not_before_or_after() {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let first = cluster.here(Options { role: "server", ..Options::default() }).await;
    let joins = async |name: &str, role| {
        let token = soon(first.create_token(role, Duration::from_secs(3_600))).await.unwrap();
        Options {
            // It comes back as the same node.
            listen: Some(free_addr()),
            state: Some(dir.path().join(name)),
            token: Some(token.to_string()),
            ..Options::join(first.addr())
        }
    };
    let server = async |name| Options { role: "server", ..joins(name, Role::Server).await };
    let again = server("one").await;
    let one = cluster.here(again.clone()).await;
    let two = cluster.here(server("two").await).await;
    voters(&[&first, &one, &two]).await;
    let three = cluster.here(server("three").await).await;
    let admin = cluster.here(joins("admin", Role::Admin).await).await;
    for node in [&three, &admin] {
        sees_up(node, 5).await;
    }
    soon(first.ledger().put(BESIDE, "", Expect::Any, None)).await.unwrap();

    // Those who vote may issue certificates, and need it. The fourth server does not vote, and nor
    // does who may do everything else.
    for voter in [&first, &one, &two] {
        until("the key is in the ledger", async || reads(voter).await).await;
    }
    for node in [&three, &admin] {
        assert!(!reads(node).await);
    }
    // Nobody gets it in passing, not even a voter.
    for node in [&three, &two] {
        for prefix in ["", KEY] {
            let listed = soon(node.ledger().list(prefix)).await.unwrap();
            let listed: Vec<_> = listed.iter().map(|(key, _)| key.as_str()).collect();
            assert!(listed.contains(&BESIDE) && !listed.contains(&KEY), "{listed:?}");
            let mut watch = node.ledger().watch(prefix);
            let (told, _) = soon(watch.next()).await.unwrap();
            assert_eq!(told, BESIDE, "it would come first");
        }
    }

    // A voter that leaves is replaced. When it comes back it has no vote, and no key.
    let id = one.id();
    soon(one.leave()).await.unwrap();
    voters(&[&first, &two, &three]).await;
    assert!(reads(&three).await);
    let one = cluster.here(again).await;
    assert_eq!(one.id(), id);
    sees_up(&one, 5).await;
    voters(&[&first, &two, &three]).await;
    assert!(!reads(&one).await);
}
