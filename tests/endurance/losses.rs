//! The losses that a node has told, in a file: a line for each, with the node, its life, and when.

use std::time::Duration;

use footlight::runtime::{Incarnation, NodeId};

/// One line of the file.
pub(crate) fn line(node: NodeId, life: Incarnation, at: Duration) -> String {
    format!("{node} {} {}\n", life.0, at.as_micros())
}

/// What a file tells of one life of a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// When it was first declared down since a moment.
    pub(crate) since: Option<Duration>,
    /// When it was last declared down before that. That is no mistake of a node which was cut off
    /// itself: it loses all others, and finds them again, in the same lives, when it is back.
    pub(crate) before: Option<Duration>,
}

/// What `text` tells of that life, before and since `moment`.
///
/// # Errors
/// A line that is none.
pub(crate) fn told(
    text: &str,
    node: NodeId,
    life: Incarnation,
    moment: Duration,
) -> anyhow::Result<Told> {
    let head = format!("{node} {} ", life.0);
    let mut told = Told::default();
    // What is still being written has no end yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for at in whole.lines().filter_map(|line| line.strip_prefix(&head)) {
        let at = Duration::from_micros(at.parse()?);
        if at < moment {
            told.before = Some(at);
        } else if told.since.is_none() {
            told.since = Some(at);
        }
    }
    Ok(told)
}
