//! One participant's turn at a work: its sides are started, one measures, all end.

use super::side::Side;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

/// What a side may take to be up.
const UP: Duration = Duration::from_secs(60);
/// What a measurement may take.
const MEASURE: Duration = Duration::from_secs(120);
/// What rank 0 may take to end when its input has.
const END: Duration = Duration::from_secs(10);
/// The exit code of a participant that cannot do a work.
const CANNOT: i32 = 3;

/// What came of a turn.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Measured(Figures),
    /// It does not do this work, for the reason given.
    Cannot(String),
    Failed(String),
}

/// What rank 1 printed.
#[derive(Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) value: f64,
    /// Other numbers beside it.
    pub(crate) more: BTreeMap<String, f64>,
}

/// Runs rank 0, if there is one, and then rank 1. What they say on standard error goes to `logs`, as `NAME-RANK.log`.
pub(crate) fn play(
    rank0: Option<Command>,
    rank1: Command,
    logs: &Path,
    name: &str,
) -> Result<Outcome> {
    let log = |rank: u8| logs.join(format!("{name}-{rank}.log"));
    let mut server = None;
    if let Some(command) = rank0 {
        let mut side = Side::start(command, &log(0))?;
        if !side.says("ready", UP) {
            return Ok(failure(&mut side, &log(0), "was not ready", UP));
        }
        server = Some(side);
    }
    let mut client = Side::start(rank1, &log(1))?;
    let ended = client.wait(MEASURE);
    let outcome = match ended {
        Some(status) if status.success() => match figures(&client.said()) {
            Some(figures) => Outcome::Measured(figures),
            None => Outcome::Failed(format!("it printed no value (see {})", log(1).display())),
        },
        _ => failure(&mut client, &log(1), "was not done", MEASURE),
    };
    drop(client);
    if let Some(server) = server {
        server.end(END);
    }
    Ok(outcome)
}

fn failure(side: &mut Side, log: &Path, what: &str, within: Duration) -> Outcome {
    let Some(status) = side.ended() else {
        let seconds = within.as_secs();
        return Outcome::Failed(format!("it {what} after {seconds} s (see {})", log.display()));
    };
    let complaints = fs::read_to_string(log).unwrap_or_default();
    let last = complaints.lines().rev().map(str::trim).find(|line| !line.is_empty());
    if status.code() == Some(CANNOT) {
        return Outcome::Cannot(last.unwrap_or("it does not do this").to_owned());
    }
    let last = last.unwrap_or("it said nothing");
    Outcome::Failed(format!("it {what}: {last} ({status}; see {})", log.display()))
}

/// The last line that is a JSON object with a value; a library may have printed lines of its own.
fn figures(lines: &[String]) -> Option<Figures> {
    let object = |line: &String| serde_json::from_str::<Value>(line).ok();
    lines.iter().rev().filter_map(object).find_map(|object| {
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        let value = number(&object["value"])?;
        let others = object.as_object()?.iter().filter(|(name, _)| *name != "value");
        let more =
            others.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        Some(Figures { value, more })
    })
}

/// An address of this host whose port nobody uses, neither for UDP nor for TCP.
pub(crate) fn free_address(ip: IpAddr) -> Result<SocketAddr> {
    let both = || -> io::Result<SocketAddr> {
        let addr = TcpListener::bind((ip, 0))?.local_addr()?;
        UdpSocket::bind(addr)?;
        Ok(addr)
    };
    // A port that is free for the one may be taken for the other.
    let mut tries = std::iter::repeat_with(both).take(16);
    tries.find_map(Result::ok).with_context(|| format!("{ip} has no free port"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn played(rank0: Option<&str>, rank1: &str) -> Result<Outcome> {
        let folder = tempfile::tempdir()?;
        play(rank0.map(shell), shell(rank1), folder.path(), "it")
    }

    #[test]
    fn rank_1_is_measured_once_rank_0_is_ready() -> Result<()> {
        let outcome =
            played(Some("echo ready; cat"), "echo loading; echo '{\"value\": 2.5, \"p99\": 7}'")?;
        let more = BTreeMap::from([("p99".to_owned(), 7.0)]);
        assert_eq!(outcome, Outcome::Measured(Figures { value: 2.5, more }));
        Ok(())
    }

    #[test]
    fn who_cannot_says_so_on_either_side() -> Result<()> {
        let cannot = Outcome::Cannot("no such work".to_owned());
        let script = "echo no such work >&2; exit 3";
        assert_eq!(played(Some(script), "exit 1")?, cannot);
        assert_eq!(played(None, script)?, cannot);
        Ok(())
    }

    #[test]
    fn a_failure_tells_the_last_complaint() -> Result<()> {
        let Outcome::Failed(why) = played(None, "echo first >&2; echo oh dear >&2; exit 1")? else {
            anyhow::bail!("it did not fail");
        };
        assert!(why.starts_with("it was not done: oh dear (exit status: 1; see "), "{why}");
        assert!(matches!(played(None, "echo '{\"value\": 0}'")?, Outcome::Failed(_)));
        assert!(matches!(played(None, "true")?, Outcome::Failed(_)));
        Ok(())
    }

    #[test]
    fn a_free_address_can_be_bound() -> Result<()> {
        let addr = free_address(Ipv4Addr::LOCALHOST.into())?;
        TcpListener::bind(addr)?;
        Ok(())
    }
}
