//! What a cluster knows of its nodes: who joins, leaves, falls silent, comes back, or is cut off.

#[path = "../support/stranger.rs"]
mod stranger;
#[path = "../support/mod.rs"]
mod support;

mod groups;
mod halves_merge;
mod join_and_call;
mod load;
mod node_drains;
mod node_frozen;
mod node_killed;
mod old_life_refused;
mod other_version_refused;
mod partition_heals;
mod partition_one_way;
mod three_nodes_in_one_process;
mod unreachable;
mod watches_bounded;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}
