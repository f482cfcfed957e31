//! The table in `docs/performance.md`, between two marks.

use super::report::Report;
use super::table;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- peers: begin -->";
const END: &str = "<!-- peers: end -->";

/// Puts the report's table into the page.
pub(crate) fn update(page: &Path, report: &Report) -> Result<()> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = replaced(&text, &table::markdown(report)).with_context(|| {
        format!("{} has no line `{BEGIN}` with `{END}` after it: put them back", page.display())
    })?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(text: &str, block: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text.get(begin..)?.find(END)?;
    Some(format!("{}\n\n{}\n\n{}", text.get(..begin)?, block.trim(), text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = "# Page\n\n<!-- peers: begin -->\n\nold\n\n<!-- peers: end -->\n\nMore.\n";
        let new = replaced(page, "a table\n").unwrap_or_default();
        assert_eq!(new, page.replace("old", "a table"));
        // Again, with the same: nothing grows.
        assert_eq!(replaced(&new, "a table\n"), Some(new));
    }

    #[test]
    fn a_page_without_its_marks_is_refused() {
        assert_eq!(replaced("no marks", "x"), None);
        assert_eq!(replaced("<!-- peers: end --> <!-- peers: begin -->", "x"), None);
    }
}
