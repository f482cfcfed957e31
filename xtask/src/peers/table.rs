//! The figures for people: on the terminal, and as a table of the documentation.

use super::limits::{Limit, Verdict, ratio};
use super::machine::Machine;
use super::report::{Report, Row};
use super::works::Participant;
use std::fmt::Write;

/// One row for the terminal: a figure a line, and below them the limits.
pub(crate) fn plain(row: &Row) -> String {
    let mut text = format!("{}, {}\n", row.work.name, measure(row));
    for (who, value) in figures(row) {
        let ratio = if who == Participant::Footlight { None } else { ratio(&row.values, who) };
        let ratio = ratio.map(|ratio| format!("  × {}", figure(ratio))).unwrap_or_default();
        let _ = writeln!(text, "  {:<14}{:>11}{ratio}", who.name(), figure(value));
    }
    for limit in row.work.limits {
        let _ = writeln!(text, "  {}", judged(*limit, row));
    }
    for (who, why) in &row.left_out {
        let _ = writeln!(text, "  without {who}: {why}");
    }
    text
}

/// All rows as Markdown: a table for each machine and day, mostly one.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    let mut rest: Vec<&Row> = report.rows.iter().collect();
    while let Some(first) = rest.first().copied() {
        let same = |row: &&Row| row.date == first.date && row.machine == first.machine;
        let (group, other): (Vec<_>, Vec<_>) = rest.into_iter().partition(same);
        rest = other;
        if !text.is_empty() {
            text.push('\n');
        }
        let Machine { cpu, cores, kernel } = &first.machine;
        let _ = writeln!(text, "{} (UTC), {cpu}, {cores} cores, {kernel}:\n", first.date);
        text.push_str("| work | footlight | others (× : footlight divided by it) | must show |\n");
        text.push_str("| --- | --- | --- | --- |\n");
        for row in &group {
            let _ = writeln!(text, "{}", markdown_row(row));
        }
        for row in &group {
            for (who, why) in &row.left_out {
                let _ = write!(text, "\n`{}` without {who}: {}\n", row.work.name, escaped(why));
            }
        }
    }
    text
}

fn markdown_row(row: &Row) -> String {
    let own = row.values.get(Participant::Footlight.name());
    let others = figures(row).filter(|(who, _)| *who != Participant::Footlight);
    let others = others.map(|(who, value)| {
        let ratio = ratio(&row.values, who);
        let ratio = ratio.map(|ratio| format!(" (× {})", figure(ratio))).unwrap_or_default();
        format!("{} {}{ratio}", who.name(), figure(value))
    });
    format!(
        "| `{}`, {} | {} | {} | {} |",
        row.work.name,
        measure(row),
        own.map_or_else(|| "–".to_owned(), |own| figure(*own)),
        or_dash(others.collect()),
        or_dash(row.work.limits.iter().map(|limit| judged(*limit, row)).collect()),
    )
}

fn or_dash(lines: Vec<String>) -> String {
    if lines.is_empty() { "–".to_owned() } else { lines.join("<br>") }
}

fn measure(row: &Row) -> String {
    let unit = if row.work.unit == "us" { "µs" } else { row.work.unit };
    format!("{unit}, {} is better", row.work.better.name())
}

/// The figures in the order of the participants.
fn figures(row: &Row) -> impl Iterator<Item = (Participant, f64)> {
    let value = move |who: &Participant| Some((*who, *row.values.get(who.name())?));
    row.work.participants.iter().filter_map(value)
}

fn judged(limit: Limit, row: &Row) -> String {
    match limit.judge(&row.values) {
        Verdict::Met(by) => format!("{limit}: met ({})", figure(by)),
        Verdict::Missed(by) => format!("{limit}: missed ({})", figure(by)),
        Verdict::Open => format!("{limit}: open"),
    }
}

/// What would end a cell or a line of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A number with three digits that count, or all of its whole part.
pub(crate) fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    grouped(&format!("{value:.decimals$}"))
}

/// Commas between the thousands.
pub(crate) fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::row;
    use super::*;

    #[test]
    fn a_figure_has_the_digits_that_count() {
        let shown = [0.0123, 0.05, 0.8, 1.128, 45.16, 99.96, 790.4, 1_234_567.8];
        assert_eq!(
            shown.map(figure),
            ["0.012", "0.050", "0.80", "1.13", "45.2", "100", "790", "1,234,568"]
        );
        assert_eq!(grouped("400000"), "400,000");
        assert_eq!(grouped("-123456.25"), "-123,456.25");
    }

    #[test]
    fn the_terminal_gets_figures_ratios_and_limits() {
        let mut row = row("call_rtt", &[("footlight", 45.0), ("raw_quinn", 30.0), ("ray", 900.0)]);
        row.left_out.insert("monarch".into(), "it is not there".into());
        assert_eq!(
            plain(&row),
            "call_rtt, µs, lower is better\n\
             \x20 footlight            45.0\n\
             \x20 raw_quinn            30.0  × 1.50\n\
             \x20 ray                   900  × 0.050\n\
             \x20 ≤ 1.3 × raw_quinn: missed (1.50)\n\
             \x20 ≤ 0.2 × ray: met (0.050)\n\
             \x20 ≤ 0.2 × monarch: open\n\
             \x20 without monarch: it is not there\n"
        );
    }

    #[test]
    fn rows_of_another_day_get_a_table_of_their_own() {
        let mut report = Report::default();
        report.put(row("casts_per_second", &[("footlight", 2e6), ("raw_quinn", 4e6)]));
        let mut old = row("local_call", &[("ractor", 1.0)]);
        old.date = "2025-12-31".into();
        old.left_out.insert("footlight".into(), "a|b".into());
        report.put(old);
        assert_eq!(
            markdown(&report),
            "2026-01-02 (UTC), Some CPU, 2 cores, Linux 6.1:\n\n\
             | work | footlight | others (× : footlight divided by it) | must show |\n\
             | --- | --- | --- | --- |\n\
             | `casts_per_second`, 1/s, higher is better | 2,000,000 | raw_quinn 4,000,000 (× 0.50) | ≥ 1,200,000: met (2,000,000) |\n\
             \n2025-12-31 (UTC), Some CPU, 2 cores, Linux 6.1:\n\n\
             | work | footlight | others (× : footlight divided by it) | must show |\n\
             | --- | --- | --- | --- |\n\
             | `local_call`, µs, lower is better | – | ractor 1.00 | ≤ 1.5 × ractor: open |\n\
             \n`local_call` without footlight: a\\|b\n"
        );
    }
}
