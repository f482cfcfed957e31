//! Two hosts with a slow link between them: network namespaces, one end of a virtual cable in each.
//!
//! ```text
//!  host 0: eth0 10.0.0.1 ── 2 Gbit/s each way ── host 1: eth0 10.0.0.2
//! ```
//!
//! Nothing of it shows in the machine's own network, and the namespaces go with the [`Link`].

use crate::tools;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{self, Command};

/// The names of the namespaces begin so; then come this process's id and the host's number.
const PREFIX: &str = "footlight-peers-";
/// What passes each way. A burst is several packets of the largest size that the kernel hands on in one piece, as a
/// network card's offload would take them; more than 20 ms of traffic does not fit into the queue and is lost.
const LIMIT: &str = "tbf rate 2gbit burst 256kb latency 20ms";

/// The link, until it is dropped.
pub(crate) struct Link {
    hosts: [String; 2],
}

impl Link {
    /// Makes it. It needs root, and says so.
    pub(crate) fn make() -> Result<Self> {
        ensure!(tools::is_root(), "a link between two network namespaces needs root");
        remove_stale();
        let name = |number| format!("{PREFIX}{}-{number}", process::id());
        let link = Self { hosts: [name(0), name(1)] };
        let [first, second] = &link.hosts;
        for host in &link.hosts {
            run("ip", &format!("netns add {host}"))?;
        }
        run("ip", &format!("-n {first} link add eth0 type veth peer name eth0 netns {second}"))?;
        for (host, number) in link.hosts.iter().zip(0..) {
            run("ip", &format!("-n {host} addr add {}/24 dev eth0", ip(number)))?;
            run("ip", &format!("-n {host} link set lo up"))?;
            run("ip", &format!("-n {host} link set eth0 up"))?;
            run("tc", &format!("-n {host} qdisc replace dev eth0 root {LIMIT}"))?;
        }
        Ok(link)
    }

    /// The program as it is started on one of the hosts.
    pub(crate) fn on(&self, host: u8, program: &Command) -> Command {
        let [first, second] = &self.hosts;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", if host == 0 { first } else { second }]);
        command.arg(program.get_program()).args(program.get_args());
        let set = program.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(set);
        // Libraries that would otherwise guess.
        command.env("GLOO_SOCKET_IFNAME", "eth0").env("TP_SOCKET_IFNAME", "eth0");
        command
    }
}

/// A host's address.
pub(crate) fn ip(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host + 1).into()
}

impl Drop for Link {
    fn drop(&mut self) {
        self.hosts.iter().for_each(|host| drop(run("ip", &format!("netns del {host}"))));
    }
}

/// Runs a program that has nothing to say unless it fails.
fn run(program: &str, words: &str) -> Result<()> {
    let output = Command::new(program)
        .args(words.split(' '))
        .output()
        .with_context(|| format!("cannot start `{program}`: install iproute2"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {words}` failed: {}", why.trim());
    }
    Ok(())
}

/// Removes what a killed run left behind.
fn remove_stale() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = run("ip", &format!("netns del {name}"));
        }
    }
}
