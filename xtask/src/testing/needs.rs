//! Programs that a test needs from the machine.

use crate::tools::Programs;
use std::io::{self, Write};
use std::{env, thread};

/// Whether a program is not here: then the test says so and is over.
///
/// With `CI=true` it fails instead, for a check that nobody runs is none.
pub(crate) fn lacks(program: &str) -> bool {
    if Programs::here().find(program).is_some() {
        return false;
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "this test needs {program}");
    let test = thread::current().name().unwrap_or("a test").to_owned();
    // Not `eprintln!`: the harness would keep it to itself, as the test passes.
    let _ = writeln!(io::stderr(), "{test} was SKIPPED: there is no {program} here");
    true
}
