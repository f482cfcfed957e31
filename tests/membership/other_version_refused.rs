//! Nodes that speak different versions of the protocol refuse each other, and both say why.

use std::time::Duration;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_version_is_refused_and_both_sides_name_both_versions() {
    let cluster = Cluster::new();
    let newer = Options { version: Some(7), ..Options::default() };
    let seed = cluster.process("newer", newer).await;
    let mine = Options { join_timeout: Some(Duration::from_secs(2)), ..Options::join(seed.addr) };
    let error = cluster.builder(mine).start().await.unwrap_err().to_string();
    assert!(error.contains("version 7") && error.contains("version 3"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    // The other side logs it.
    until("the other side says so too", async || {
        let log = seed.process.stderr().join("\n");
        log.contains("version 3") && log.contains("version 7")
    })
    .await;
    // It lives on.
    cluster
        .builder(Options { version: Some(7), ..Options::join(seed.addr) })
        .start()
        .await
        .unwrap();
}
