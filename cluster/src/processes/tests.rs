//! Real processes: this test binary, started again for one test that plays the child.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use super::{
    process::{KEPT_OUTPUT, Shared},
    *,
};

const PART: &str = "FOOTLIGHT_TEST_PART";
const LONG: Duration = Duration::from_secs(30);

/// The child's test, as the harness names it.
fn child_test() -> String {
    let path = module_path!();
    format!("{}::plays_the_child", path.split_once("::").map_or(path, |(_, path)| path))
}

fn child(part: &str) -> ProcessSpec {
    ProcessSpec::this_binary(part)
        .args(["--exact", "--ignored", "--nocapture"])
        .args([child_test()])
        .env(PART, part)
}

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn plays_the_child() {
    let Ok(part) = env::var(PART) else { return };
    assert!(exit_with_parent().unwrap());
    // The harness has begun a line.
    println!();
    match part.as_str() {
        "ready" => {
            println!("not yet");
            println!("ready 1");
            println!("ready 2");
            park();
        }
        "busy" => {
            println!("ready");
            loop {
                std::hint::spin_loop();
            }
        }
        "fails" => {
            eprintln!("the seed does not answer");
            std::process::exit(3);
        }
        "chatty" => {
            for line in 0..100_000 {
                eprintln!("line {line}");
            }
            println!("{}", "x".repeat(3 * KEPT_OUTPUT));
            println!("ready");
            park();
        }
        "parent" => {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let processes = Processes::new();
            let pids = runtime.block_on(async {
                let busy = processes.start(child("busy")).await.unwrap();
                let frozen = processes.start(child("ready")).await.unwrap();
                for process in [&busy, &frozen] {
                    process.wait_line("ready", LONG).await.unwrap();
                }
                if cfg!(target_os = "linux") {
                    frozen.freeze();
                }
                [busy.pid(), frozen.pid()]
            });
            println!("children {} {}", pids[0], pids[1]);
            park();
        }
        other => panic!("no part {other}"),
    }
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Whether a process that is not our child runs (a zombie that init has yet to reap does not).
fn runs(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

/// Waits for the end of a process that is not our child: there is no event to wait for.
async fn gone(pid: u32) {
    let start = Instant::now();
    while runs(pid) {
        assert!(start.elapsed() < LONG, "process {pid} stayed behind");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_line_is_waited_for_and_each_is_seen_once() {
    let processes = Processes::new();
    let process = processes.start(child("ready")).await.unwrap();
    assert_eq!(process.wait_line("ready", LONG).await.unwrap(), "ready 1");
    assert_eq!(process.wait_line("ready", LONG).await.unwrap(), "ready 2");
    let late = process.wait_line("ready", Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(late, ProcessError::Late { .. }), "{late}");
}

#[tokio::test]
async fn a_child_that_fails_early_is_reported_with_its_status_and_last_words() {
    let processes = Processes::new();
    let process = processes.start(child("fails")).await.unwrap();
    let error = process.wait_line("ready", LONG).await.unwrap_err().to_string();
    assert!(error.contains("exit status: 3"), "{error}");
    assert!(error.contains("the seed does not answer"), "{error}");
    assert_eq!(process.wait(LONG).await.unwrap().code(), Some(3));
    assert!(!process.is_running());
    process.kill(); // of what has ended: nothing
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let error = Processes::new().start(ProcessSpec::program("x", "/no/such")).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot start process x (/no/such)"), "{error}");
}

#[tokio::test]
async fn output_without_end_neither_blocks_the_child_nor_fills_the_memory() {
    let processes = Processes::new();
    let process = processes.start(child("chatty")).await.unwrap();
    process.wait_line("ready", LONG).await.unwrap();
    // The two streams are read side by side: the last line may be on its way.
    let last = |shared: &Shared| {
        let stderr = lock(&shared.stderr);
        stderr.lines.back().is_some_and(|line| line == "line 99999").then_some(())
    };
    process.until(LONG, last).await.unwrap();
    for output in [&process.0.stdout, &process.0.stderr] {
        let output = lock(output);
        let bytes: usize = output.lines.iter().map(|line| line.len() + 1).sum();
        assert_eq!(bytes, output.bytes);
        assert!(bytes <= KEPT_OUTPUT, "{bytes}");
    }
}

#[tokio::test]
async fn a_frozen_process_stands_still_goes_on_when_thawed_and_can_be_killed_frozen() {
    let processes = Processes::new();
    let process = processes.start(child("ready")).await.unwrap();
    process.wait_line("ready", LONG).await.unwrap();
    process.freeze();
    process.terminate(); // is kept until it goes on
    assert!(process.wait(Duration::from_millis(50)).await.is_err());
    process.thaw();
    assert_eq!(process.wait(LONG).await.unwrap().signal(), Some(libc::SIGTERM));

    let process = processes.start(child("ready")).await.unwrap();
    process.freeze();
    process.kill();
    assert_eq!(process.wait(LONG).await.unwrap().signal(), Some(libc::SIGKILL));
}

#[tokio::test]
async fn the_end_of_processes_ends_and_reaps_them_all() {
    let processes = Processes::new();
    let busy = processes.start(child("busy")).await.unwrap();
    let frozen = processes.start(child("ready")).await.unwrap();
    busy.wait_line("ready", LONG).await.unwrap();
    frozen.freeze();
    drop(processes);
    assert!(!busy.is_running() && !frozen.is_running());
    assert!(!runs(busy.pid()) && !runs(frozen.pid()));
}

#[tokio::test]
async fn children_of_a_parent_that_is_killed_end_also_when_they_are_busy_or_frozen() {
    let processes = Processes::new();
    let parent = processes.start(child("parent")).await.unwrap();
    let line = parent.wait_line("children ", LONG).await.unwrap();
    let pids: Vec<u32> = line.split(' ').skip(1).map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| runs(*pid)));
    parent.kill();
    for pid in pids {
        gone(pid).await;
    }
}

#[test]
fn a_busy_child_ends_when_its_input_does_without_the_kernel_s_help() {
    // Started without `Processes`, so without PR_SET_PDEATHSIG.
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", &child_test()])
        .env(PART, "busy")
        .env(EXIT_WITH_PARENT, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"));
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(PARENT_GONE));
}
