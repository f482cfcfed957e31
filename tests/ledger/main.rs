//! What a cluster agrees on: voters and their state on disk, names, singletons.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/mod.rs"]
mod support;

mod authority_key;
mod keys_and_leases;
mod ledger_in_status;
mod ledger_leader_frozen;
mod ledger_voters;
mod names;
mod singleton_moves;
mod singleton_partition;
mod voters_killed;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}
