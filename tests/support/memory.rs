//! What the system keeps for a process.

use std::fs;

/// What the system keeps for a process: resident memory in KiB, and open files.
pub(crate) fn kept_for(pid: u32) -> (u64, usize) {
    (memory(pid, "VmRSS:"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// The most resident memory that a process has had, in KiB.
pub(crate) fn most_kept_for(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    kib.trim().trim_end_matches(" kB").parse().unwrap()
}
