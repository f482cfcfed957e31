//! On what machine, and when: a figure says nothing without.

use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::thread;
use time::OffsetDateTime;

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: u64,
    pub(crate) kernel: String,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().as_deref().and_then(model);
        let uname = Command::new("uname").arg("-sr").output();
        let kernel = uname.ok().map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
        Self {
            cpu: cpu.unwrap_or_else(|| format!("an unnamed {}", std::env::consts::ARCH)),
            cores: thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            kernel: kernel.unwrap_or_else(|| std::env::consts::OS.to_owned()),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "cpu": self.cpu, "cores": self.cores, "kernel": self.kernel })
    }

    pub(crate) fn from_json(json: &Value) -> Option<Self> {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        Some(Self { cpu: text("cpu")?, cores: json["cores"].as_u64()?, kernel: text("kernel")? })
    }
}

/// The processor's name in `/proc/cpuinfo`, which some architectures do not give.
fn model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Today in UTC.
pub(crate) fn today() -> String {
    OffsetDateTime::now_utc().date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_read_from_the_kernel() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t: fpu\n";
        assert_eq!(model(text).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(model("processor : 0\n"), None);
    }

    #[test]
    fn a_machine_comes_back_from_json() {
        let here = Machine::here();
        assert_eq!(Machine::from_json(&here.to_json()), Some(here));
        assert_eq!(Machine::from_json(&json!({ "cpu": "x" })), None);
    }

    #[test]
    fn a_date_is_year_month_day() {
        let date = today();
        assert!(date.len() == 10 && date.as_bytes()[4] == b'-', "{date}");
    }
}
