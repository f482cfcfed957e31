//! Bad input to the program of the demo ends it with one clear line and a non-zero code, soon and
//! without a process left.
#![cfg(feature = "torch")]

#[path = "support/example.rs"]
mod example;

use std::{
    fs, net::UdpSocket, os::unix::process::ExitStatusExt, path::Path, process::Command,
    time::Duration,
};

use example::*;

/// The longest that a refusal may take, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn refused(args: &[&str]) -> Outcome {
    refusal(Run::start(args))
}

fn refusal(mut run: Run) -> Outcome {
    let outcome = run.outcome();
    assert!(outcome.took < SOON, "{outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    outcome
}

#[track_caller]
fn says(outcome: &Outcome, parts: &[&str]) {
    let error = outcome.error();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

/// A run on a data set with one file changed.
fn with_data(change: impl FnOnce(&Path)) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 100, 20);
    change(dir.path());
    let data = dir.path().to_str().unwrap();
    refused(&["--data", data, "--epochs", "1", "--workers", "1", "--servers", "1"])
}

#[test]
fn data_that_is_not_there_is_named_with_the_command_that_gets_it() {
    let outcome = refused(&["--data", "/no/such/folder"]);
    says(&outcome, &["t10k-images-idx3-ubyte", "/no/such/folder", "cargo xtask setup", "--data"]);
    let outcome = with_data(|dir| fs::remove_file(dir.join(labels_name("train"))).unwrap());
    says(&outcome, &["there is no train-labels-idx1-ubyte"]);
}

#[test]
fn wrong_data_files_are_named_with_what_is_wrong() {
    // In both parts: the test part is read by the program itself, the other one by another process.
    for split in ["t10k", "train"] {
        let outcome = with_data(|dir| {
            let path = dir.join(images_name(split));
            let mut whole = fs::read(&path).unwrap();
            whole.truncate(1000);
            fs::write(&path, whole).unwrap();
        });
        says(&outcome, &[&images_name(split), "is cut short: it has 1000 bytes"]);

        let outcome = with_data(|dir| {
            let images = idx(0x0d03, &[20, 28, 28], &[0; 20 * 784]);
            fs::write(dir.join(images_name(split)), images).unwrap();
        });
        says(&outcome, &[&images_name(split), "is no IDX file of images", "0x00000d03"]);

        let outcome = with_data(|dir| {
            let path = dir.join(labels_name(split));
            let mut labels = fs::read(&path).unwrap();
            labels[8 + 5] = 10;
            fs::write(&path, labels).unwrap();
        });
        says(&outcome, &[&labels_name(split), "label 10 of sample 5 is not one of the 10 classes"]);

        let outcome = with_data(|dir| {
            fs::write(dir.join(labels_name(split)), idx(0x0801, &[3], &[0, 1, 2])).unwrap();
        });
        says(&outcome, &[&images_name(split), "3 labels", "do not belong together"]);
    }
}

#[test]
fn images_of_another_size_than_the_model_s_are_refused() {
    let outcome = with_data(|dir| {
        fs::write(dir.join(images_name("t10k")), idx(0x0803, &[20, 8, 8], &[0; 20 * 64])).unwrap();
    });
    says(&outcome, &["the test samples are u8 8×8, and the model `lenet5` takes u8 28×28"]);
    let outcome = with_data(|dir| {
        fs::write(dir.join(images_name("train")), idx(0x0803, &[100, 8, 8], &[0; 6400])).unwrap();
    });
    says(&outcome, &["the training samples are u8 8×8, and the model `lenet5` takes u8 28×28"]);
}

#[test]
fn options_that_mean_nothing_are_refused_before_anything_is_started() {
    for (args, part) in [
        (&["--no-such-option"][..], "--no-such-option"),
        (&["--workers", "0"], "--workers"),
        (&["--servers", "0"], "--servers"),
        (&["--servers", "65"], "--servers"),
        (&["--target", "nan"], "--target"),
        (&["--target", "1.5"], "--target"),
        (&["--target=-0.1"], "--target"),
        (&["--limit", "0"], "--limit"),
        (&["--epochs", "0"], "--epochs"),
        (&["--batch", "0"], "--batch"),
        (&["--slots", "0"], "--slots"),
        (&["--slots", "65"], "--slots"),
        (&["--epochs", "-1"], "-1"),
        (&["--seed", "one"], "one"),
        (&["--dataset", "cifar"], "cifar"),
        (&["--device", "gpu"], "gpu"),
        (&["--target", "much"], "much"),
        (&["node", "--workers", "2"], "--workers"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let outcome = refused(args);
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
        assert_eq!(outcome.stderr.len(), 1, "{outcome:?}");
        says(&outcome, &[part, "see --help"]);
    }
}

#[test]
fn more_slots_than_samples_of_a_batch_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 100, 20);
    let outcome = refused(&["--data", dir.path().to_str().unwrap(), "--batch", "3"]);
    assert_eq!(outcome.stderr.len(), 1, "before anything is started: {outcome:?}");
    says(&outcome, &["a batch of 3 can't have 4 slots: see --slots"]);
}

#[test]
fn a_process_of_the_cluster_that_does_not_start_is_told_in_one_line_with_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 100, 20);
    let mut program = Command::new(program(DEMO));
    program.arg("--data").arg(dir.path());
    // Only nodes take tokens, so it is the processes of the cluster that find it wrong.
    let outcome = refusal(Run::of(program.env("FOOTLIGHT_TOKEN", "nonsense")));
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    says(&outcome, &["process seed ended", "before the line", "error: the join token"]);
    assert_eq!(outcome.stderr.last().unwrap(), outcome.error(), "{outcome:?}");
}

#[test]
fn a_device_that_is_not_there_ends_the_job_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 100, 20);
    let data = dir.path().to_str().unwrap();
    says(&refused(&["--data", data, "--device", "cuda:77"]), &["no device cuda:77"]);
    // Of a list each worker has its own; the others must not be done before it has failed.
    let endless = ["--epochs", "10000", "--no-kill"];
    let list = ["--data", data, "--device", "cpu,cuda:77"];
    let outcome = refused(&[&list[..], &endless].concat());
    says(&outcome, &["worker-1 can't be started", "no device cuda:77"]);
}

#[test]
fn commands_that_need_a_cluster_say_so_and_a_seed_that_does_not_answer_is_named() {
    says(&refused(&["train"]), &["--seed HOST:PORT"]);
    says(&refused(&["serve"]), &["--seed HOST:PORT"]);
    says(&refused(&["train", "--seed", "nonsense"]), &["nonsense"]);
    // A socket that takes packets and never answers, so that nobody else has the port meanwhile.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed = silent.local_addr().unwrap().to_string();
    // At the same time: each waits as long as it says.
    let runs = [&["train"][..], &["serve"], &["node", "--join-timeout", "1"]];
    let runs = runs.map(|args| Run::start(args.iter().chain(&["--seed", &seed])));
    for (run, waited) in runs.into_iter().zip(["15s", "15s", "1s"]) {
        let waited = format!("no seed answered within {waited}: {seed}: nobody answers");
        says(&refusal(run), &[&waited]);
    }
}

#[test]
fn a_node_that_waits_for_its_seed_says_so_and_goes_on() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed = silent.local_addr().unwrap().to_string();
    let programs = [program(DEMO), env!("CARGO_BIN_EXE_footlight").into()];
    for mut run in programs.map(|path| Run::of(Command::new(path).args(["node", "--seed", &seed])))
    {
        let line = run.wait_for("no seed answers");
        assert!(line.contains(&seed) && line.contains("goes on calling"), "{line}");
        run.signal("-TERM");
        let outcome = run.outcome();
        // It had not given up by itself.
        assert_eq!(outcome.status.signal(), Some(15), "{outcome:?}");
        assert_eq!(outcome.stdout, "", "{outcome:?}");
    }
}

#[test]
fn a_port_that_is_taken_and_a_folder_that_cannot_be_written_are_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    says(&refused(&["node", "--listen", &address]), &[&address]);

    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), 100, 20);
    let data = dir.path().to_str().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let output = file.join("report");
    let mut run = Run::start(["--data", data, "--output", output.to_str().unwrap()]);
    says(&run.outcome(), &[output.to_str().unwrap()]);
}
