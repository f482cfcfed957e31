//! The demo's program does the whole job, reports it, and leaves no process, whatever happens.
#![cfg(all(feature = "torch", target_os = "linux"))]

#[path = "support/example.rs"]
mod example;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use example::*;
use serde_json::Value;

/// Each run keeps every core busy: of two at a time, a node might be too late to look alive.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run on a data set of the test's own, with its report in `dir`.
fn run(dir: &Path, more: &[&str]) -> Run {
    let (data, output) = (dir.join("data"), dir.join("output"));
    write_data(&data, 8_000, 500);
    let paths = ["--data", data.to_str().unwrap(), "--output", output.to_str().unwrap()];
    Run::start(paths.iter().chain(more))
}

/// Endless training, in the middle of which somebody strikes: after a worker was killed and before
/// the cluster knows of it, when it has most on its hands.
fn struck(strike: impl FnOnce(&Run)) -> (Outcome, Vec<String>) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut run = run(dir.path(), &["--epochs", "10000"]);
    run.wait_for("SIGKILL to worker-1 (pid ");
    assert!(run.processes().len() >= 6, "seed, loader, two servers, a worker, the program itself");
    strike(&run);
    let outcome = run.outcome();
    assert!(!dir.path().join("output").join("report.json").exists());
    (outcome, left_in(run.temporary()))
}

fn left_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_whole_run_trains_through_a_kill_reports_and_leaves_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // So long that the kill falls in the middle also where the steps are fast.
    let mut run = run(dir.path(), &["--epochs", "3", "--target", "0.8", "--json"]);
    let pid = run.pid();
    let outcome = run.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(left_in(run.temporary()), Vec::<String>::new());

    let output = dir.path().join("output");
    let report: Value = serde_json::from_str(&outcome.stdout).expect("nothing but the report");
    let file = fs::read_to_string(output.join("report.json")).unwrap();
    assert_eq!(report, serde_json::from_str::<Value>(&file).unwrap());
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert_eq!((&report["ok"], &report["dataset"]), (&true.into(), &"mnist".into()));
    assert_eq!((number("epochs"), number("target")), (3.0, 0.8));
    assert!((0.8..=1.0).contains(&number("test_accuracy")), "{report}");
    assert!(number("seconds") > 0.0 && number("seconds") < outcome.took.as_secs_f64());
    let speed = 24_000.0 / number("seconds");
    assert!((number("samples_per_second") / speed - 1.0).abs() < 0.01, "{report}");

    let pids: BTreeMap<String, u32> = serde_json::from_value(report["pids"].clone()).unwrap();
    let names: Vec<_> = pids.keys().map(String::as_str).collect();
    let expected = ["driver", "loader", "seed", "server-0", "server-1", "worker-0", "worker-1"];
    assert_eq!(names, expected);
    let distinct: std::collections::BTreeSet<_> = pids.values().collect();
    assert!(distinct.len() == 7 && pids.values().all(|pid| *pid > 0), "{report}");
    assert_eq!(pids["driver"], pid);
    assert_eq!(number("killed_pid"), f64::from(pids["worker-1"]));
    assert!(number("detected_ms") > 0.0, "{report}");
    assert!(number("recovered_ms") >= number("detected_ms"), "{report}");
    assert!(number("recovered_ms") < number("seconds") * 1e3, "{report}");
    // Each worker pulls and pushes all parameters at least once a step.
    let least = 3.0 * 62.0 * 2.0 * 61_706.0 * 4.0;
    assert!(number("wire_bytes_sent") > least / 2.0, "{report}");
    assert!(number("wire_bytes_received") > least / 2.0, "{report}");
    assert!(report["libtorch"].as_str().unwrap().starts_with("2."), "{report}");
    let devices: BTreeMap<String, String> =
        serde_json::from_value(report["devices"].clone()).unwrap();
    assert_eq!(devices.keys().collect::<Vec<_>>(), ["worker-0", "worker-1"]);

    let picture = fs::read(output.join("loss.png")).unwrap();
    assert_eq!(picture[..8], *b"\x89PNG\r\n\x1a\n");
    let side = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (1280, 720));

    let text = outcome.stderr.join("\n");
    assert!(text.contains(" is started again, on node "), "{text}");
    assert!(text.contains("over HTTP, POST http://127.0.0.1:"), "{text}");
}

#[test]
fn a_missed_accuracy_is_an_error_and_leaves_a_report_and_nothing_else() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut run =
        run(dir.path(), &["--epochs", "1", "--limit", "400", "--no-kill", "--target", "1.0"]);
    let outcome = run.outcome();
    assert_eq!(outcome.status.code(), Some(1));
    let error = outcome.error();
    assert!(error.starts_with("error: the test accuracy is "), "{error}");
    assert!(error.ends_with("and 100.00 % were asked for"), "{error}");
    assert_eq!(left_in(run.temporary()), Vec::<String>::new());
    let file = fs::read_to_string(dir.path().join("output/report.json")).unwrap();
    let report: Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&report["ok"], &report["killed_pid"]), (&false.into(), &Value::Null));
}

#[test]
fn ctrl_c_and_sigterm_end_everything() {
    for signal in ["-INT", "-TERM"] {
        let (outcome, left) = struck(|run| run.signal(signal));
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(outcome.error().ends_with("; all processes are ended"), "{outcome:?}");
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn a_ctrl_c_to_the_whole_group_ends_everything_as_in_a_terminal() {
    // A terminal signals all processes of the group; these ones are asked to leave on their own.
    let (outcome, left) = struck(|run| {
        for pid in run.processes() {
            // One of them may have ended on account of another meanwhile.
            signal(pid, "-INT");
        }
    });
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    outcome.error();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_sigkill_of_the_parent_ends_everything() {
    // `outcome` waits until none of its processes is left.
    let (outcome, _) = struck(|run| run.signal("-KILL"));
    assert_eq!(outcome.status.signal(), Some(9));
}
