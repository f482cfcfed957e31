//! A job's state is saved while it runs, and a job that goes on from it has the same result, bit for bit.
#![cfg(feature = "torch")]

#[path = "support/training/mod.rs"]
mod training;

use std::{
    fs,
    path::{Path, PathBuf},
};

use footlight::actors::{
    checkpoint::{Checkpoints, Manifest},
    model::Precision,
    parameters::optimizer::{Adagrad, Adam, Sgd},
    schedule::Schedule,
    training::{JobEvent, RunningJob, TrainingJob, TrainingReport},
};
use tempfile::TempDir;
use training::*;

#[test]
#[ignore = "run by the other tests in processes of its own"]
fn node_process() {
    play_node();
}

/// Steps of the jobs here.
const STEPS: u64 = 3 * STEPS_PER_EPOCH;

async fn stage() -> Stage {
    Stage::set(&["loader", "server", "worker"], &[]).await
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn run(stage: &Stage, job: TrainingJob) -> (TrainingReport, Vec<JobEvent>) {
    finish(soon(job.submit(&stage.seed)).await.unwrap()).await
}

async fn refused(stage: &Stage, job: TrainingJob) -> String {
    let error = soon(job.submit(&stage.seed)).await.expect_err("it was to be refused").to_string();
    stage.is_cleared().await;
    error
}

/// Runs a job until it has been saved after so many steps, and ends it.
async fn break_off(stage: &Stage, job: TrainingJob, at: u64) {
    let mut job = soon(job.submit(&stage.seed)).await.unwrap();
    soon(until_saved(&mut job, at)).await;
    soon(job.close()).await.unwrap();
    stage.is_cleared().await;
}

async fn until_saved(job: &mut RunningJob, at: u64) {
    loop {
        match job.next().await.unwrap() {
            Some(JobEvent::Saved { steps, .. }) if steps >= at => return,
            Some(JobEvent::NotSaved { why, .. }) => panic!("{why}"),
            event => assert!(event.is_some(), "the job has ended"),
        }
    }
}

fn saved(events: &[JobEvent]) -> Vec<u64> {
    let saved = events.iter().filter_map(|event| match event {
        JobEvent::Saved { steps, .. } => Some(*steps),
        _ => None,
    });
    saved.collect()
}

/// The steps of the checkpoints in a folder.
fn there(folder: &Path) -> Vec<u64> {
    let mut there: Vec<u64> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
        .collect();
    there.sort();
    there
}

fn of(folder: &Path, steps: u64) -> PathBuf {
    folder.join(format!("step-{steps:012}"))
}

fn began_at(events: &[JobEvent]) -> Option<u64> {
    events.iter().find_map(|event| match event {
        JobEvent::FromCheckpoint { steps, .. } => Some(*steps),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_saved_now_and_then_and_at_its_end_and_the_last_ones_are_kept() {
    let (stage, folder) = (stage().await, folder());
    let (calm, _) = run(&stage, stage.job("calm")).await;
    let checkpoints = Checkpoints::to(folder.path()).every_steps(20).keep(2);
    let (report, events) = run(&stage, stage.job("saved").checkpoints(checkpoints)).await;
    assert_eq!(report.parameters_sha256, calm.parameters_sha256, "saving changes nothing");
    let saved = saved(&events);
    assert_eq!(saved.last(), Some(&STEPS));
    assert!(saved.iter().all(|steps| steps % 20 == 0 || *steps == STEPS), "{saved:?}");
    assert!(saved.len() >= 2, "{saved:?}");
    assert_eq!(there(folder.path()), saved[saved.len() - 2..]);

    let manifest = fs::read(of(folder.path(), STEPS).join("manifest.json")).unwrap();
    let manifest = Manifest::read(&manifest).unwrap();
    assert_eq!((manifest.job.as_str(), manifest.model.as_str()), ("saved", "test.tiny"));
    assert_eq!((manifest.steps, manifest.taken, manifest.data.samples), (STEPS, STEPS, SAMPLES));
}

/// Each optimiser, with and without what shards must agree on; and whatever the number of shards and workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_job_has_the_result_of_one_that_was_never_stopped() {
    let stage = stage().await;
    type Set = fn(TrainingJob) -> TrainingJob;
    let jobs: [(&str, Set); 5] = [
        ("adam", |job| job.optimizer(Adam::new(3e-3).schedule(Schedule::Cosine))),
        ("sgd", |job| job.optimizer(Sgd::new(0.1))),
        ("momentum", |job| job.optimizer(Sgd::new(0.05).momentum(0.9)).clip_norm(0.5)),
        ("adagrad", |job| job.optimizer(Adagrad::new(0.02))),
        ("fp16", |job| job.precision(Precision::Fp16)),
    ];
    for (name, set) in jobs {
        let folder = folder();
        let job = || set(stage.job(name));
        let (calm, _) = run(&stage, job()).await;
        let checkpoints = Checkpoints::to(folder.path()).every_steps(10);
        break_off(&stage, job().checkpoints(checkpoints.clone()), 30).await;
        let other = job().checkpoints(checkpoints).resume().servers(3).workers(1);
        let (report, events) = run(&stage, other).await;
        let began = began_at(&events).expect("it goes on");
        assert!((30..STEPS).contains(&began), "{name}: {began}");
        assert_eq!(report.parameters_sha256, calm.parameters_sha256, "{name}");
        assert_eq!(report.test_accuracy, calm.test_accuracy, "{name}");
        assert_eq!((report.steps, report.samples), (calm.steps, calm.samples), "{name}");
        assert_eq!(report.skipped_steps, calm.skipped_steps, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_resumed_after_its_end_tells_its_result_and_with_more_epochs_goes_on() {
    let (stage, folder) = (stage().await, folder());
    let job = || stage.job("done").checkpoints(Checkpoints::to(folder.path())).resume();
    // Nothing is there yet.
    let (calm, events) = run(&stage, job()).await;
    assert_eq!(began_at(&events), None);
    let (again, events) = run(&stage, job()).await;
    assert_eq!(began_at(&events), Some(STEPS));
    assert_eq!(again.parameters_sha256, calm.parameters_sha256);
    assert_eq!((again.samples, again.test_accuracy), (calm.samples, calm.test_accuracy));
    let (more, _) = run(&stage, job().epochs(4)).await;
    let (whole, _) = run(&stage, stage.job("whole").epochs(4)).await;
    assert_eq!(more.parameters_sha256, whole.parameters_sha256);
    let error = refused(&stage, job().epochs(1)).await;
    assert!(error.contains("has 104 steps, and the whole job 26"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_resumed_is_refused_with_the_reason() {
    let (stage, folder) = (stage().await, folder());
    let job = || stage.job("x").epochs(1).checkpoints(Checkpoints::to(folder.path()));
    run(&stage, job()).await;
    let error = refused(&stage, job()).await;
    assert!(error.contains("there are checkpoints already"), "{error}");
    assert!(error.contains("resume the job, or choose another folder"), "{error}");
    let error = refused(&stage, job().resume().seed(8)).await;
    assert!(error.contains("is of another job: seed: 7, and here 8"), "{error}");
    let error = refused(&stage, job().resume().optimizer(Sgd::new(0.1))).await;
    assert!(error.contains("its optimiser remembers"), "{error}");
    let error = refused(&stage, stage.job("x").resume()).await;
    assert_eq!(error, "job `x`: resume needs to know where the checkpoints are");
    let error = refused(&stage, job().checkpoints(Checkpoints::to("y").every_steps(0))).await;
    assert_eq!(error, "job `x`: checkpoints must be at least a step apart");
    fs::write(of(folder.path(), STEPS_PER_EPOCH).join("model.safetensors"), "{}").unwrap();
    let error = refused(&stage, job().resume()).await;
    assert!(error.contains("no checkpoint in") && error.contains("has 2 bytes of"), "{error}");
}

/// A state that can't be written is told of, and the job goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_a_checkpoint_and_not_the_job() {
    let (stage, folder) = (stage().await, folder());
    // As root `Full` is a file system of its own: 64 KiB, less than a checkpoint.
    let Some(full) = Full::mount(folder.path()) else { return };
    let checkpoints = Checkpoints::to(full.0).every_steps(20);
    let (report, events) = run(&stage, stage.job("full").checkpoints(checkpoints)).await;
    assert_eq!(report.steps, STEPS);
    assert_eq!(saved(&events), [0u64; 0]);
    let why = events.iter().find_map(|event| match event {
        JobEvent::NotSaved { why, .. } => Some(why),
        _ => None,
    });
    let why = why.expect("it was told");
    assert!(why.starts_with("checkpoints in ") && why.contains("No space left"), "{why}");
    assert!(!why.contains('\n'), "{why}");
}

/// A file system that is full at once.
struct Full<'a>(&'a Path);

impl<'a> Full<'a> {
    /// `None` for one who may not mount; only where nothing may be left out is that an error.
    fn mount(at: &'a Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(at);
        match mount.status() {
            Ok(status) if status.success() => return Some(Full(at)),
            _ if std::env::var_os("CI").is_some() => panic!("no file system could be mounted"),
            _ => eprintln!("left out: mounting a file system needs root"),
        }
        None
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

/// By the package that is made for these files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_reads_the_model_with_every_bit() {
    let Some(packages) = safetensors_for_python() else { return };
    let (stage, folder) = (stage().await, folder());
    let job = stage.job("read").epochs(1).checkpoints(Checkpoints::to(folder.path()));
    let (report, _) = run(&stage, job).await;
    let at = of(folder.path(), STEPS_PER_EPOCH);
    let program = "
import hashlib, sys
from safetensors.numpy import load_file
model, optimizer = (load_file(f'{sys.argv[1]}/{name}.safetensors') for name in ('model', 'optimizer'))
digest = hashlib.sha256()
for name in sorted(model):
    digest.update(model[name].astype('<f4').tobytes())
    for buffer in ('mean', 'square'):
        assert optimizer[f'{name}.{buffer}'].shape == model[name].shape
assert len(optimizer) == 2 * len(model)
print(digest.hexdigest(), *model['hidden.weight'].shape)
";
    let mut python = std::process::Command::new("python3");
    let python = python.args(["-c", program]).arg(at).env("PYTHONPATH", packages);
    let read = python.output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let read = String::from_utf8(read.stdout).unwrap();
    assert_eq!(read.trim(), format!("{} 64 144", report.parameters_sha256));
}

/// Where Python finds its package of that name, which pip installs the first time. `None` without pip; only where nothing
/// may be left out is that an error.
fn safetensors_for_python() -> Option<PathBuf> {
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("safetensors-for-python");
    if packages.join("safetensors").exists() {
        return Some(packages);
    }
    let mut pip = std::process::Command::new("python3");
    let pip = pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&packages);
    match pip.args(["numpy", "safetensors"]).output() {
        Ok(done) if done.status.success() => return Some(packages),
        Ok(done) if std::env::var_os("CI").is_some() => {
            panic!("pip: {}", String::from_utf8_lossy(&done.stderr))
        }
        Err(error) if std::env::var_os("CI").is_some() => panic!("python3: {error}"),
        _ => eprintln!("left out: pip could not install Python's safetensors"),
    }
    None
}
