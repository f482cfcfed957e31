//! Each command of `footlight` has a help that shows how it is called.

use crate::command::says;

/// The commands that a help lists.
fn listed(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list.take_while(|line| !line.is_empty()).map(|line| line.trim_start());
    names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").collect()
}

/// Looks at the help of a command and of all that it has; gives all their names.
fn look(path: &[&str]) -> Vec<String> {
    let help = says(&[path, &["--help"]].concat());
    let text = path.join(" ");
    assert!(help.contains("\nExample"), "`footlight {text} --help` has no example:\n{help}");
    assert!(
        help.contains(&format!("footlight {text}")),
        "{text}: its example is another's: {help}"
    );
    let deeper = listed(&help).into_iter().flat_map(|name| look(&[path, &[name]].concat()));
    std::iter::once(text).chain(deeper).collect()
}

#[test]
fn every_command_has_a_help_with_an_example() {
    let all = look(&[]);
    for name in ["node", "status", "actors", "drain", "leave", "revoke", "ca create", "token list"]
    {
        assert!(all.iter().any(|found| found == name), "{name} is not among {all:?}");
    }
}

#[test]
fn the_first_help_shows_each_command_at_work() {
    let help = says(&["--help"]);
    let examples = &help[help.find("Examples:").unwrap()..];
    for name in listed(&help) {
        assert!(examples.contains(&format!("footlight {name} ")), "{name}: {examples}");
    }
    let node = says(&["node", "--help"]);
    let examples = &node[node.find("Examples:").unwrap()..];
    for option in ["--network wan", "--drain-timeout 120", "--token @"] {
        assert!(examples.contains(option), "{option}: {examples}");
    }
}
