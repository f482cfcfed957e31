//! Where actors run, how their ends are told, and who starts them again.

#[path = "../support/mod.rs"]
mod support;

mod ends_told_apart;
mod escalation;
mod links;
mod owned_by;
mod placement;
mod resources;
mod supervised_across_a_cut;
mod supervised_across_nodes;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}
