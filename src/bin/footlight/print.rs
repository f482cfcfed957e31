//! Answers on standard output.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

/// Prints a text. That nobody reads to its end, as in `status | head`, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Rows as lines, each column as wide as its widest cell.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A length of time, roughly.
pub(crate) fn short(age: Duration) -> String {
    match age.as_secs() {
        age @ 0..60 => format!("{age} s"),
        age @ 60..3_600 => format!("{} min", age / 60),
        age @ 3_600..172_800 => format!("{} h", age / 3_600),
        age => format!("{} d", age / 86_400),
    }
}

/// A moment in seconds since 1970, as seen from now, roughly.
pub(crate) fn moment(unix_s: u64) -> String {
    let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s);
    match moment.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", short(left)),
        Err(ago) => format!("{} ago", short(ago.duration())),
    }
}
