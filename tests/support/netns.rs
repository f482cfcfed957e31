//! Hosts of a test: network namespaces on one switch, which loses, cuts and slows at command.
//!
//! ```text
//!  host 1: eth0 10.0.0.1 ──┐
//!  host 2: eth0 10.0.0.2 ──┤ switch: a bridge in a namespace of its own; nft drops what passes
//!  host 3: eth0 10.0.0.3 ──┘
//! ```
//!
//! Nothing of it shows in the machine's own network, so any number of tests may run at once, with
//! the same addresses. The namespaces go with the [`Hosts`], also when a test panics; what a killed
//! run left behind is removed by the next one.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use footlight::cluster::{
    processes::ProcessSpec,
    transport::socket::{SocketError, Sockets, SystemSockets},
};

/// The port that the node of a host listens on.
const PORT: u16 = 7400;
/// The names of all namespaces begin so; then come the process's id, a number, and the host's.
const PREFIX: &str = "footlight-";

/// Hosts that reach each other, until told otherwise. They go when this does.
#[derive(Debug)]
pub(crate) struct Hosts {
    switch: String,
    hosts: Vec<Host>,
    faults: Mutex<Faults>,
}

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    namespace: String,
    ip: Ipv4Addr,
}

/// What is wrong with the network now.
#[derive(Debug, Default)]
struct Faults {
    /// Nothing passes from the first to the second.
    cut: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// So many of 100 packets are lost, each by itself.
    loss: u32,
}

impl Faults {
    fn cut_one_way(&mut self, from: &[Host], to: &[Host]) {
        for from in from {
            self.cut.extend(to.iter().map(|to| (from.ip, to.ip)));
        }
    }
}

impl Hosts {
    /// So many hosts; or none, where namespaces can't be had: then the test says so and is over.
    ///
    /// # Panics
    /// In CI (`CI=true`), where there must be namespaces, if there are none.
    pub(crate) fn new(count: u8) -> Option<Self> {
        match Self::available() {
            Ok(()) => Some(Self::make(count).expect("the hosts could not be made")),
            Err(why) => {
                let why = may_do_without(&why, in_ci()).unwrap_or_else(|why| panic!("{why}"));
                let test = thread::current().name().unwrap_or("a test").to_owned();
                // Not `eprintln!`: the harness would keep it to itself, as the test passes.
                let _ = writeln!(io::stderr(), "{test} was SKIPPED: {why}");
                None
            }
        }
    }

    /// Whether there can be hosts here, or why not.
    pub(crate) fn available() -> Result<(), String> {
        // SAFETY: a system call without arguments that only reads a number.
        if unsafe { libc::geteuid() } != 0 {
            return Err("this needs root".to_owned());
        }
        for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")] {
            let found = Command::new(program).arg("-V").stdout(Stdio::null()).status();
            if let Err(error) = found {
                return Err(format!("cannot start `{program}` ({error}): install {package}"));
            }
        }
        remove_stale();
        let probe = name("probe");
        let made = run("ip", &["netns", "add", &probe], "");
        remove(&probe);
        made
    }

    fn make(count: u8) -> Result<Self, String> {
        let faults = Mutex::default();
        let mut made = Hosts { switch: name("switch"), hosts: Vec::new(), faults };
        let switch = made.switch.clone();
        let ip = |namespace: &str, line: &str| {
            let words = ["-n", namespace].into_iter().chain(line.split(' '));
            run("ip", &words.collect::<Vec<_>>(), "")
        };
        run("ip", &["netns", "add", &switch], "")?;
        ip(&switch, "link add bridge type bridge")?;
        ip(&switch, "link set bridge up")?;
        for number in 1..=count {
            let host = Host { namespace: name(&number.to_string()), ip: [10, 0, 0, number].into() };
            run("ip", &["netns", "add", &host.namespace], "")?;
            let namespace = host.namespace.clone();
            made.hosts.push(host.clone());
            let line = format!("link add eth0 type veth peer name port{number} netns {switch}");
            ip(&namespace, &line)?;
            ip(&switch, &format!("link set port{number} master bridge up"))?;
            ip(&namespace, &format!("addr add {}/24 dev eth0", host.ip))?;
            // Each packet is lost by itself: else the kernel hands on up to ten in one piece.
            ip(&namespace, "link set eth0 gso_max_segs 1")?;
            ip(&namespace, "link set lo up")?;
            ip(&namespace, "link set eth0 up")?;
        }
        Ok(made)
    }

    /// All hosts.
    pub(crate) fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// From now on nothing that these hosts send reaches those; the other way is as it was.
    pub(crate) fn cut_one_way(&self, from: &[Host], to: &[Host]) {
        self.change(|faults| faults.cut_one_way(from, to));
    }

    /// From now on nothing passes between these hosts and those.
    pub(crate) fn cut(&self, these: &[Host], those: &[Host]) {
        self.change(|faults| {
            faults.cut_one_way(these, those);
            faults.cut_one_way(those, these);
        });
    }

    /// From now on each packet is lost with this chance of 100.
    pub(crate) fn lose(&self, percent: u32) {
        self.change(|faults| faults.loss = percent);
    }

    /// From now on everything passes.
    pub(crate) fn heal(&self) {
        self.change(|faults| *faults = Faults::default());
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.faults.lock().unwrap();
        change(&mut faults);
        // Read whole or not at all: no packet finds half the rules.
        let mut rules = String::from("add table bridge faults\nflush table bridge faults\n");
        rules += "table bridge faults { chain forward {\ntype filter hook forward priority 0;\n";
        for (from, to) in &faults.cut {
            writeln!(rules, "ip saddr {from} ip daddr {to} drop").unwrap();
        }
        if faults.loss > 0 {
            writeln!(rules, "ip protocol udp numgen random mod 100 < {} drop", faults.loss)
                .unwrap();
        }
        rules += "}\n}\n";
        run("ip", &["netns", "exec", &self.switch, "nft", "-f", "-"], &rules).unwrap();
    }

    /// From now on a host sends at most so many bits a second; what is more waits, and is lost after
    /// 50 ms.
    pub(crate) fn limit(&self, host: &Host, bits_per_second: u64) {
        let rate = format!("{bits_per_second}bit");
        let tc = ["-n", &host.namespace, "qdisc", "replace", "dev", "eth0", "root"];
        let tbf = ["tbf", "rate", &rate, "burst", "16kb", "latency", "50ms"];
        run("tc", &[&tc[..], &tbf[..]].concat(), "").unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.hosts.iter().for_each(|host| remove(&host.namespace));
        remove(&self.switch);
    }
}

impl Host {
    /// Where its node listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        (self.ip, PORT).into()
    }

    /// Sockets of this host, for a node of this process.
    pub(crate) fn sockets(&self) -> Arc<dyn Sockets> {
        Arc::new(HostSockets { namespace: self.namespace.clone() })
    }

    /// A program that runs on this host and comes to an end.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// A program, to be started on this host.
    pub(crate) fn program(&self, name: &str, program: &str) -> ProcessSpec {
        // `ip` replaces itself with the program: it is the same process, and ends with its parent.
        ProcessSpec::program(name, "ip").args(["netns", "exec", &self.namespace, program])
    }

    /// This test's binary, to be started on this host.
    pub(crate) fn this_binary(&self, name: &str) -> ProcessSpec {
        ProcessSpec::program(name, "ip")
            .args(["netns", "exec", &self.namespace])
            .args([env::current_exe().unwrap()])
    }
}

/// Whether this is a run in CI (`CI=true`), where nothing may be left out in silence.
pub(crate) fn in_ci() -> bool {
    env::var("CI").as_deref() == Ok("true")
}

/// Says that there are no hosts, and why.
///
/// # Errors
/// The same, in CI.
pub(crate) fn may_do_without(why: &str, ci: bool) -> Result<String, String> {
    match ci {
        true => Err(format!("no network namespaces, and CI=true says that there must be: {why}")),
        false => Ok(format!("no network namespaces: {why}")),
    }
}

/// A socket belongs to the namespace of the thread that opens it, whoever uses it later.
#[derive(Debug)]
struct HostSockets {
    namespace: String,
}

impl Sockets for HostSockets {
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn quinn::Runtime,
    ) -> Result<Arc<dyn quinn::AsyncUdpSocket>, SocketError> {
        let io = |source| SocketError::Io { addr, source };
        let open = || {
            let file = fs::File::open(format!("/run/netns/{}", self.namespace)).map_err(io)?;
            // SAFETY: changes where this thread opens its next sockets, and nothing else.
            match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => SystemSockets::new().bind(addr, runtime),
                _ => Err(io(io::Error::last_os_error())),
            }
        };
        // On a thread of its own, which ends with it.
        thread::scope(|scope| scope.spawn(open).join().unwrap())
    }
}

/// A name for a namespace that nobody else has.
fn name(of: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{of}", std::process::id())
}

/// Runs a program that has nothing to say unless it fails.
fn run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let failed = |why: String| format!("`{program} {}`: {why}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    // A program that reads nothing may be gone.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn remove(namespace: &str) {
    let _ = run("ip", &["netns", "del", namespace], "");
}

/// Removes what runs left behind that were killed.
fn remove_stale() {
    let Ok(namespaces) = fs::read_dir("/run/netns") else { return };
    for namespace in namespaces.flatten() {
        let Ok(name) = namespace.file_name().into_string() else { continue };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            remove(&name);
        }
    }
}
