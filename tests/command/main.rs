//! The programs, as somebody at a terminal meets them.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/example.rs"]
mod example;
#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod hello;
mod help_has_examples;
mod node_http;
mod nothing_skipped_in_ci;
mod status_command;
