//! Runs of the examples as a user starts them, of `image_classification`, the program of the demo, above
//! all.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Marks a run's processes: each inherits it.
const MARK: &str = "FOOTLIGHT_TEST_RUN";

/// The program of the demo.
pub(crate) const DEMO: &str = "image_classification";

/// An example's program, which cargo builds for its tests.
pub(crate) fn program(example: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let program = folder.join("examples").join(example);
    assert!(
        program.is_file(),
        "{} is not there: `cargo test` builds it, `cargo test --test …` does not; then run `cargo \
         build --examples` first",
        program.display()
    );
    program
}

/// A run under way. Whatever is left of it is ended with it.
pub(crate) struct Run {
    child: Child,
    mark: String,
    stderr: mpsc::Receiver<String>,
    seen: Vec<String>,
    stdout: Option<thread::JoinHandle<String>>,
    temporary: tempfile::TempDir,
    started: Instant,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: Vec<String>,
    pub(crate) took: Duration,
}

impl Run {
    /// Of the demo's program.
    pub(crate) fn start<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Run::of(Command::new(program(DEMO)).args(args))
    }

    /// Of a command, in surroundings of its own.
    pub(crate) fn of(command: &mut Command) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mark = format!("{}-{}", std::process::id(), temporary.path().display());
        let mut child = command
            .env(MARK, &mark)
            .env("TMPDIR", temporary.path())
            .env("FOOTLIGHT_STATE", temporary.path().join("state"))
            .env_remove("RUST_LOG")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, stderr) = mpsc::channel();
        let pipe = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            pipe.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        let mut pipe = child.stdout.take().unwrap();
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text).unwrap()
        });
        let stdout = Some(stdout);
        Run { child, mark, stderr, seen: Vec::new(), stdout, temporary, started: Instant::now() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder for the run's temporary files.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Waits for a line on standard error that contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let line = self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?}: {:?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        self::signal(self.child.id(), signal);
    }

    /// Waits for its end.
    pub(crate) fn outcome(&mut self) -> Outcome {
        let deadline = self.started + LONG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.all_stderr());
            thread::sleep(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        // The pipes close when the last process that has them is gone.
        self.gone();
        let stdout = self.stdout.take().unwrap().join().unwrap();
        while let Ok(line) = self.stderr.recv() {
            self.seen.push(line);
        }
        Outcome { status, stdout, stderr: std::mem::take(&mut self.seen), took }
    }

    fn all_stderr(&mut self) -> &[String] {
        self.seen.extend(self.stderr.try_iter());
        &self.seen
    }

    /// The run's processes that are there: those with its mark in their environment.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            // A process that has ended and waits to be reaped has no environment any more.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
    }

    /// Waits until none of its processes is there any more: nothing tells of that.
    pub(crate) fn gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "processes stay behind: {left:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends a signal to a process, if it is still there.
pub(crate) fn signal(pid: u32, signal: &str) {
    let mut kill = Command::new("kill");
    kill.args([signal, &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.processes() {
            signal(pid, "-KILL");
        }
    }
}

impl Outcome {
    /// The one line that says what was wrong; nothing else may look like an error.
    pub(crate) fn error(&self) -> &str {
        assert!(!self.status.success(), "{self:?}");
        let errors: Vec<_> = self.stderr.iter().filter(|line| line.contains("error")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        assert!(errors[0].starts_with("error: "), "{self:?}");
        let all = self.stderr.iter().map(String::as_str).chain(self.stdout.lines());
        for line in all {
            assert!(!line.contains("panicked") && !line.contains("stack backtrace"), "{self:?}");
        }
        errors[0]
    }
}

/// A data set of 28×28 images, as four IDX files: rectangles whose size and place tell the class.
pub(crate) fn write_data(dir: &Path, samples: u32, test_samples: u32) {
    fs::create_dir_all(dir).unwrap();
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for (split, count) in [("train", samples), ("t10k", test_samples)] {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for index in 0..u64::from(count) {
            let class = index % 10;
            let (left, top) = (random(4) + 2 * class, random(4) + 2 * (class * 3 % 10));
            let inside = |x, y| (left..left + 6).contains(&x) && (top..top + 6).contains(&y);
            images.extend((0..28 * 28).map(|pixel| {
                let noise = random(60) as u8;
                if inside(pixel % 28, pixel / 28) { 180 + noise } else { noise }
            }));
            labels.push(class as u8);
        }
        fs::write(dir.join(images_name(split)), idx(0x0803, &[count, 28, 28], &images)).unwrap();
        fs::write(dir.join(labels_name(split)), idx(0x0801, &[count], &labels)).unwrap();
    }
}

pub(crate) fn images_name(split: &str) -> String {
    format!("{split}-images-idx3-ubyte")
}

pub(crate) fn labels_name(split: &str) -> String {
    format!("{split}-labels-idx1-ubyte")
}

/// The content of an IDX file.
pub(crate) fn idx(magic: u32, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let header = [magic].into_iter().chain(dimensions.iter().copied());
    header.flat_map(u32::to_be_bytes).chain(data.iter().copied()).collect()
}
