//! What came of the checks: `report.json`, and a table for people.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::Name;

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// What is compared with the limit, which is the most that it may be; none if the check could not be made.
    pub(crate) value: Option<f64>,
    pub(crate) limit: f64,
    /// What the value is, and of what; or why there is none.
    pub(crate) detail: String,
    /// Other figures.
    pub(crate) more: Value,
}

impl Check {
    /// A check that could not be made.
    pub(crate) fn failed(name: Name, why: &str) -> Self {
        let (name, detail) = (name.as_str().to_owned(), why.to_owned());
        Check { name, value: None, limit: 0.0, detail, more: json!({}) }
    }

    /// Whether it is met. What is not a number meets nothing.
    pub(crate) fn is_met(&self) -> bool {
        self.value.is_some_and(|value| value <= self.limit)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "check": self.name,
            "value": self.value,
            "limit": self.limit,
            "ok": self.is_met(),
            "detail": self.detail,
            "more": self.more,
        })
    }

    pub(crate) fn from_json(line: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(line).ok()?;
        Some(Check {
            name: json["check"].as_str()?.to_owned(),
            value: json["value"].as_f64(),
            limit: json["limit"].as_f64()?,
            detail: json["detail"].as_str()?.to_owned(),
            more: json["more"].clone(),
        })
    }
}

/// All checks of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) device: String,
    pub(crate) libtorch: Option<String>,
    pub(crate) checks: Vec<Check>,
}

impl Report {
    /// Where it was made.
    pub(crate) fn head(&self) -> String {
        let libtorch = self.libtorch.as_deref().unwrap_or("of an unknown version");
        format!("Footlight {} on {}, libtorch {libtorch}", env!("CARGO_PKG_VERSION"), self.device)
    }

    /// Whether all are met, and there are some.
    pub(crate) fn is_met(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::is_met)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let report = json!({
            "footlight": env!("CARGO_PKG_VERSION"),
            "device": self.device,
            "libtorch": self.libtorch,
            "ok": self.is_met(),
            "checks": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for check in &self.checks {
            let value = check.value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3e}"));
            let verdict = if check.is_met() { "met" } else { "MISSED" };
            let Check { name, limit, detail, .. } = check;
            let _ = writeln!(table, "{name:<10}{value:>12}  ≤ {limit:<8} {verdict:<8}{detail}");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Option<f64>) -> Check {
        let (name, detail) = ("step".to_owned(), "of something".to_owned());
        Check { name, value, limit: 1e-4, detail, more: json!({ "loss": 2.5 }) }
    }

    #[test]
    fn a_check_is_met_up_to_its_limit_and_never_without_a_number() {
        assert!(check(Some(0.0)).is_met() && check(Some(1e-4)).is_met());
        for value in [Some(1.1e-4), Some(f64::NAN), None] {
            assert!(!check(value).is_met(), "{value:?}");
        }
    }

    #[test]
    fn a_check_comes_back_from_its_line() {
        for value in [Some(5e-5), None] {
            let made = check(value);
            assert_eq!(Check::from_json(&made.to_json().to_string()), Some(made));
        }
        assert_eq!(Check::from_json("no JSON"), None);
    }

    #[test]
    fn a_report_is_met_when_all_its_checks_are_and_none_is_not() {
        let report = |checks| Report { device: "cpu".into(), libtorch: None, checks };
        assert!(report(vec![check(Some(0.0))]).is_met());
        assert!(!report(vec![check(Some(0.0)), Check::failed(Name::Bits, "no memory")]).is_met());
        assert!(!report(vec![]).is_met());
        let table = report(vec![check(Some(5e-5)), check(None)]).table();
        assert!(table.contains("5.000e-5") && table.contains("MISSED"), "{table}");
    }
}
