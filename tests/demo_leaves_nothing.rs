//! The demo's program does the whole job, reports it, and leaves no process, whatever happens.
#![cfg(all(feature = "torch", target_os = "linux"))]

#[path = "support/example.rs"]
mod example;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
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
    let mut program = Command::new(program(DEMO));
    // Plain characters in the terminal, whatever the tester's own can show.
    Run::of(program.args(paths.iter().chain(more)).env("LC_ALL", "C"))
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
    assert!((0.8..=1.0).contains(&number("reached")), "{report}");
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
    for way in ["sent", "received"] {
        let over = |what: &str| number(&format!("{what}_bytes_{way}"));
        // Within one host most of it goes through memory, where the kernel allows that.
        assert!(over("wire") + over("memory") > least / 2.0, "{report}");
        assert!(over("wire") > 0.0, "{report}");
    }
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
    shards_are_apart(&text);
    digits_are_drawn(&outcome.stderr);
}

/// The line that tells where the parts of the job are names a node of its own for each shard.
fn shards_are_apart(text: &str) {
    let (_, places) = text.split_once("parameters on nodes ").expect("where the shards are");
    let (shards, loader) = places.split_once(", data on node ").expect("where the loader is");
    let (first, second) = shards.split_once(" and ").expect("two shards");
    let loader = loader.lines().next().unwrap();
    for id in [first, second, loader] {
        assert!(id.len() == 16 && u64::from_str_radix(id, 16).is_ok(), "no id of a node: {id:?}");
    }
    assert!(first != second && first != loader && second != loader, "{places}");
}

/// Six test images stand in the terminal, three beside each other, each with what the model makes of it.
fn digits_are_drawn(lines: &[String]) {
    const CELL: usize = 28;
    let is_caption =
        |line: &String| line.contains(" %") && (line.contains(" ok ") || line.contains(" wrong "));
    let captions: Vec<_> = (0..lines.len()).filter(|at| is_caption(&lines[*at])).collect();
    assert_eq!(captions.len(), 2, "{lines:?}");
    for (group, at) in captions.into_iter().enumerate() {
        let cell = |line: &str, column: usize| -> String {
            line.chars().skip(column * (CELL + 2)).take(CELL).collect()
        };
        for column in 0..3 {
            // The test samples' classes follow each other.
            let label = group * 3 + column;
            let caption = cell(&lines[at], column);
            let words: Vec<&str> = caption.split_whitespace().collect();
            let (prediction, mark) = (words[0].parse::<usize>().unwrap(), words[1]);
            assert_eq!(mark == "ok", prediction == label, "{caption:?}");
            let probability: f64 = words[2].parse().unwrap();
            assert!((10.0..=100.0).contains(&probability) && words[3] == "%", "{caption:?}");
            // The square of 6×6 pixels, two rows of them in each line.
            let drawn = lines[at - CELL / 2..at].iter().map(|line| cell(line, column));
            let heavy = drawn.map(|row| row.matches(['#', '%', '@']).count()).sum::<usize>();
            assert!((12..=24).contains(&heavy), "image {label}: {lines:?}");
        }
    }
}

#[test]
fn a_job_of_one_worker_survives_its_kill_too() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut run =
        run(dir.path(), &["--workers", "1", "--epochs", "3", "--target", "0.1", "--json"]);
    let outcome = run.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["killed_pid"], report["pids"]["worker-0"]);
    assert!(report["recovered_ms"].as_f64() >= report["detected_ms"].as_f64(), "{report}");
    assert!(report["detected_ms"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn a_kill_that_nobody_had_to_recover_from_is_an_error() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // One step: the kill comes when it is done.
    let options = ["--epochs", "1", "--limit", "4", "--batch", "4", "--target", "0"];
    let mut run = run(dir.path(), &options);
    let outcome = run.outcome();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    let error = outcome.error();
    assert!(error.contains("before worker-1, which was killed, was back at work"), "{error}");
    assert!(error.contains("--epochs") && error.contains("--no-kill"), "{error}");
    let file = fs::read_to_string(dir.path().join("output/report.json")).unwrap();
    let report: Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&report["ok"], &report["recovered_ms"]), (&false.into(), &Value::Null));
    assert_eq!(report["killed_pid"], report["pids"]["worker-1"]);
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
