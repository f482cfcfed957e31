//! `target/peers/report.json`: written for programs, and read back to keep the rows that are not measured anew.

use super::limits::Values;
use super::machine::Machine;
use super::works::{Participant, Work};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Everything that was measured, in the order of the works.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

/// One work's figures.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) work: &'static Work,
    /// Medians.
    pub(crate) values: Values,
    /// What each round gave.
    pub(crate) samples: BTreeMap<String, Vec<f64>>,
    /// Medians of what a participant told besides its value.
    pub(crate) more: BTreeMap<String, Values>,
    /// Who is not in the row, and why.
    pub(crate) left_out: BTreeMap<String, String>,
    pub(crate) date: String,
    pub(crate) machine: Machine,
}

impl Report {
    /// The report of an earlier run; an empty one where there is none, or none that can be read.
    pub(crate) fn read(path: &Path) -> Self {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .map(|json| Self::from_json(&json))
                .inspect_err(|error| {
                    eprintln!("{} is not kept, as it cannot be read: {error}", path.display());
                })
                .unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::default(),
            Err(error) => {
                eprintln!("{} is not kept, as it cannot be read: {error}", path.display());
                Self::default()
            }
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.to_json())?;
        text.push('\n');
        // Whole or not at all: an interrupted run leaves the earlier report.
        let new = path.with_extension("json.new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts a row in its place, instead of an earlier one of that work.
    pub(crate) fn put(&mut self, row: Row) {
        self.rows.retain(|old| old.work.name != row.work.name);
        self.rows.push(row);
        let order = |row: &Row| super::works::WORKS.iter().position(|it| it.name == row.work.name);
        self.rows.sort_by_key(order);
    }

    fn to_json(&self) -> Value {
        json!({ "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>() })
    }

    fn from_json(json: &Value) -> Self {
        let rows = json["rows"].as_array();
        // What this version does not know is dropped.
        Self { rows: rows.into_iter().flatten().filter_map(Row::from_json).collect() }
    }
}

impl Row {
    fn to_json(&self) -> Value {
        let limits = self.work.limits.iter().map(|limit| {
            json!({ "limit": limit.to_string(), "verdict": limit.judge(&self.values).name() })
        });
        json!({
            "work": self.work.name,
            "unit": self.work.unit,
            "better": self.work.better.name(),
            "values": self.values,
            "samples": self.samples,
            "more": self.more,
            "limits": limits.collect::<Vec<_>>(),
            "left_out": self.left_out,
            "date": self.date,
            "machine": self.machine.to_json(),
        })
    }

    fn from_json(json: &Value) -> Option<Self> {
        let work = Work::named(json["work"].as_str()?)?;
        let figures = |list: &Value| {
            list.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect::<Vec<_>>())
        };
        Some(Self {
            work,
            values: by_participant(&json["values"], Value::as_f64),
            samples: by_participant(&json["samples"], figures),
            more: by_participant(&json["more"], |more| Some(by_name(more, Value::as_f64))),
            left_out: by_participant(&json["left_out"], |why| why.as_str().map(str::to_owned)),
            date: json["date"].as_str()?.to_owned(),
            machine: Machine::from_json(&json["machine"])?,
        })
    }
}

fn by_name<T>(json: &Value, read: impl Fn(&Value) -> Option<T>) -> BTreeMap<String, T> {
    let entries = json.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), read(value)?))).collect()
}

fn by_participant<T>(json: &Value, read: impl Fn(&Value) -> Option<T>) -> BTreeMap<String, T> {
    let mut all = by_name(json, read);
    all.retain(|name, _| Participant::named(name).is_some());
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(work: &str, values: &[(&str, f64)]) -> Row {
        let values: Values =
            values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Row {
            work: Work::named(work).unwrap_or(&super::super::works::WORKS[0]),
            samples: values.iter().map(|(name, value)| (name.clone(), vec![*value])).collect(),
            values,
            more: BTreeMap::new(),
            left_out: BTreeMap::new(),
            date: "2026-01-02".to_owned(),
            machine: Machine { cpu: "Some CPU".into(), cores: 2, kernel: "Linux 6.1".into() },
        }
    }

    #[test]
    fn a_report_has_the_form_that_is_agreed_on() {
        let mut report = Report::default();
        report.put(row("call_rtt", &[("footlight", 45.0), ("raw_quinn", 40.0)]));
        let json = report.to_json();
        assert_eq!(json["rows"][0]["work"], "call_rtt");
        assert_eq!(json["rows"][0]["unit"], "us");
        assert_eq!(json["rows"][0]["better"], "lower");
        assert_eq!(json["rows"][0]["values"], json!({ "footlight": 45.0, "raw_quinn": 40.0 }));
        assert_eq!(
            json["rows"][0]["limits"][0],
            json!({ "limit": "≤ 1.3 × raw_quinn", "verdict": "met" })
        );
        assert_eq!(json["rows"][0]["limits"][1]["verdict"], "open");
    }

    #[test]
    fn rows_that_are_not_measured_anew_are_kept_in_order() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("report.json");
        let mut first = Report::read(&path);
        first.put(row("local_call", &[("footlight", 1.0)]));
        let mut rtt = row("call_rtt", &[("footlight", 45.0)]);
        rtt.left_out.insert("ray".into(), "it is not there".into());
        rtt.more.insert("footlight".into(), Values::from([("p99".to_owned(), 90.0)]));
        first.put(rtt);
        first.write(&path)?;
        let mut second = Report::read(&path);
        assert_eq!(second.to_json(), first.to_json());
        second.put(row("local_call", &[("footlight", 2.0)]));
        second.put(row("casts_per_second", &[("footlight", 3.0)]));
        let names: Vec<_> = second.rows.iter().map(|row| row.work.name).collect();
        assert_eq!(names, ["call_rtt", "casts_per_second", "local_call"]);
        assert_eq!(second.rows[2].values["footlight"], 2.0);
        Ok(())
    }

    #[test]
    fn what_is_not_known_is_dropped() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("report.json");
        fs::write(&path, r#"{"rows":[{"work":"of_another_version"},{"work":"call_rtt"},7]}"#)?;
        assert!(Report::read(&path).rows.is_empty());
        fs::write(&path, "not JSON")?;
        assert!(Report::read(&path).rows.is_empty());
        Ok(())
    }
}
