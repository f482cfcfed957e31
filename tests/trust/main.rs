//! Who may join, what each may ask, and how certificates come and go.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/steady.rs"]
mod steady;
#[path = "../support/stranger.rs"]
mod stranger;
#[path = "../support/mod.rs"]
mod support;

mod certificates_rotate;
mod joins_by_token;
mod revoked;
mod roles;
mod token_command;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    support::play_node();
}
