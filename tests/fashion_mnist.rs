//! The demo's other data set is judged by a measure of its own.
#![cfg(all(feature = "torch", target_os = "linux"))]

#[path = "support/example.rs"]
mod example;

use std::fs;

use example::*;
use serde_json::Value;

#[test]
fn fashion_mnist_is_asked_for_90_percent() {
    let dir = tempfile::tempdir().unwrap();
    let (data, output) = (dir.path().join("data"), dir.path().join("output"));
    write_data(&data, 100, 20);
    let (data, output_arg) = (data.to_str().unwrap(), output.to_str().unwrap());
    let few = ["--epochs=1", "--workers=1", "--servers=1", "--no-kill"];
    let asked = ["--dataset", "fashion-mnist", "--data", data, "--output", output_arg];
    let outcome = Run::start(asked.iter().chain(&few)).outcome();
    // Nothing is learnt from a hundred pictures; what counts is the measure.
    let error = outcome.error();
    assert!(error.ends_with("and 90.00 % were asked for"), "{error}");
    let report = fs::read_to_string(output.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["dataset"], &report["target"]), (&"fashion-mnist".into(), &0.9.into()));
}
