//! What needs several hosts may be left out on a developer's machine, and never in CI.

use crate::support::netns::may_do_without;

#[test]
fn without_namespaces_a_run_fails_in_ci_and_says_so_elsewhere() {
    let told = may_do_without("this needs root", false).unwrap();
    let error = may_do_without("this needs root", true).unwrap_err();
    for text in [told, error] {
        assert!(
            text.contains("no network namespaces") && text.contains("this needs root"),
            "{text}"
        );
    }
}

#[test]
fn the_entry_of_ci_says_that_it_is_ci() {
    let entry = include_str!("../../.ci/run");
    let set = entry.lines().position(|line| line == "export CI=true");
    let begins = entry.lines().position(|line| line == "cargo xtask ci");
    assert!(set.is_some() && set < begins, "{entry}");
}
