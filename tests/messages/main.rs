//! What travels between nodes: messages, streams and tensors, from friends and from others.

#[path = "../support/steady.rs"]
mod steady;
#[path = "../support/stranger.rs"]
mod stranger;
#[path = "../support/mod.rs"]
mod support;

mod bad_neighbour;
mod bad_peer;
mod order_with_large_tensors;
mod same_host;
mod schemas;
mod streams;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}
