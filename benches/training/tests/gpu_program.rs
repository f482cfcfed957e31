//! The program that checks a GPU, on the processor: what it says there is not about GPUs, but how it says it is the same.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// MNIST's files with so many samples that are made up.
fn data(train: u32, test: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (split, samples) in [("train", train), ("t10k", test)] {
        let pixels = (0..samples * 784).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8);
        let axes = [samples.to_be_bytes(), 28u32.to_be_bytes(), 28u32.to_be_bytes()].concat();
        let images: Vec<u8> = [0, 0, 8, 3].into_iter().chain(axes).chain(pixels).collect();
        fs::write(folder.path().join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        let classes = (0..samples).map(|at| (at * 7 % 10) as u8);
        let labels = [0, 0, 8, 1].into_iter().chain(samples.to_be_bytes()).chain(classes);
        let labels: Vec<u8> = labels.collect();
        fs::write(folder.path().join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    folder
}

fn check(data: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_footlight-gpu"));
    program.arg("--data").arg(data).arg("--report").arg(data.join("report.json"));
    program.args(arguments).output().unwrap()
}

fn report(data: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(data.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_step_agrees_and_two_runs_give_the_same_bits_on_the_processor() {
    let data = data(4096, 256);
    let said = check(data.path(), &["--device", "cpu", "--only", "step,bits"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let table = String::from_utf8(said.stdout).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    let report = report(data.path());
    assert_eq!((&report["device"], &report["ok"]), (&"cpu".into(), &true.into()), "{report}");
    for (at, name) in ["step", "bits"].into_iter().enumerate() {
        let check = &report["checks"][at];
        assert_eq!(check["check"], name);
        assert_eq!((&check["value"], &check["ok"]), (&0.0.into(), &true.into()), "{check}");
    }
}

#[test]
fn the_overhead_is_measured_and_a_limit_that_is_missed_is_an_exit_code() {
    let data = data(192, 1);
    let small = ["--device", "cpu", "--only", "overhead", "--model", "lenet"];
    let said = check(
        data.path(),
        &[&small[..], &["--batch", "64", "--steps", "1", "--rounds", "1"]].concat(),
    );
    let report = report(data.path());
    let check = &report["checks"][0];
    // So small a model is all overhead: the limit is not for it.
    let value = check["value"].as_f64().unwrap_or_else(|| panic!("{report}"));
    assert_eq!(check["ok"], value <= 0.03);
    assert_eq!(said.status.code(), Some(if value <= 0.03 { 0 } else { 1 }));
    let more = &check["more"];
    let ratio =
        more["seconds_job"][0].as_f64().unwrap() / more["seconds_plain"][0].as_f64().unwrap();
    assert!((ratio - 1.0 - value).abs() < 1e-9, "{report}");
}

#[test]
fn what_cannot_be_checked_is_missed_and_says_why() {
    let data = data(64, 1);
    let said = check(data.path(), &["--device", "cpu", "--only", "bits"]);
    assert_eq!(said.status.code(), Some(1));
    let report = report(data.path());
    assert_eq!((&report["ok"], &report["checks"][0]["value"]), (&false.into(), &().into()));
    let complaint = String::from_utf8(said.stderr).unwrap();
    assert!(complaint.contains("has 64 samples of Train, and 4096 are needed"), "{complaint}");
}

#[test]
fn a_gpu_that_is_not_there_and_data_that_is_not_are_told_in_one_line() {
    let data = data(1, 1);
    for (folder, device, why) in [
        (data.path(), "cuda:99", "error: no device cuda:99: "),
        (Path::new("/no/such/folder"), "cpu", "error: --data /no/such/folder is not a folder"),
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_footlight-gpu"));
        let said = program.arg("--data").arg(folder).args(["--device", device]).output().unwrap();
        let complaint = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1));
        assert!(complaint.starts_with(why) && complaint.lines().count() == 1, "{complaint}");
    }
}
