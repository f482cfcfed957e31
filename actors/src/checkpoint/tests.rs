use std::{collections::BTreeMap, fs, path::Path};

use footlight_runtime::{HostTensor, tensor::WireFormat};
use tempfile::TempDir;

use super::*;
use crate::{
    checkpoint::manifest::{DataOf, JobOf},
    parameters::{
        layout::Layout,
        optimizer::{Adam, Sgd},
        rule::LossScale,
    },
};

#[cfg(feature = "s3")]
#[path = "../../../tests/support/s3.rs"]
mod s3;

const MODEL_LEN: usize = 23;

fn layout_for(shards: usize) -> Layout {
    Layout::new([("bias", vec![3]), ("scale", vec![]), ("weight", vec![19])], shards).unwrap()
}

fn layout() -> Layout {
    layout_for(1)
}

fn of() -> JobOf {
    JobOf {
        job: "digits".to_owned(),
        model: "lenet".to_owned(),
        optimizer: Adam::new(1e-3).into(),
        data: DataOf { samples: 1000, sample: vec![28, 28], batch: 64, slots: 4, seed: 7 },
    }
}

fn state(steps: u64) -> JobState {
    let floats = |first: f32| (0..MODEL_LEN).map(|at| first + at as f32 / 7.0).collect();
    let mut loss_scale = LossScale::default();
    loss_scale.step(true);
    JobState {
        steps,
        taken: steps - 1,
        skipped: 1,
        loss_scale,
        params: floats(steps as f32),
        buffers: vec![("mean".to_owned(), floats(0.5)), ("square".to_owned(), floats(0.25))],
        residuals: [(0, 0.125), (3, 0.0625)]
            .map(|(slot, first)| {
                let residual = HostTensor::from_vec(floats(first), &[MODEL_LEN]).unwrap();
                (slot, residual.encoded(WireFormat::Int8))
            })
            .into(),
    }
}

/// A folder with a checkpoint after each of these steps.
async fn saved(steps: &[u64]) -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for &steps in steps {
        let written = store.save(&layout(), &of(), state(steps)).await.unwrap();
        assert!(written.bytes > 3 * 4 * MODEL_LEN as u64);
    }
    (dir, store)
}

async fn newest(store: &Store) -> Result<Option<u64>, CheckpointError> {
    Ok(store.newest(&layout(), &of()).await?.map(|state| state.steps))
}

/// The files of the checkpoint after so many steps.
fn files(dir: &TempDir, steps: u64) -> Vec<PathBuf> {
    let folder = dir.path().join(format!("step-{steps:012}"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_was_saved_is_read_again_bit_for_bit() {
    let (_dir, store) = saved(&[100]).await;
    assert_eq!(store.load(100, &layout(), &of()).await.unwrap(), state(100));
    assert_eq!(store.newest(&layout(), &of()).await.unwrap(), Some(state(100)));
    assert_eq!(store.finished().await.unwrap(), [100]);
}

#[tokio::test]
async fn a_place_without_checkpoints_has_none() {
    let (dir, store) = saved(&[]).await;
    assert_eq!(newest(&store).await, Ok(None));
    // What is not of a checkpoint is nothing to us, and stays.
    for other in ["notes.txt", "step-1/manifest.json", "step-x/y", "a/b/c/manifest.json"] {
        let other = dir.path().join(other);
        fs::create_dir_all(other.parent().unwrap()).unwrap();
        fs::write(other, "mine").unwrap();
    }
    assert_eq!(newest(&store).await, Ok(None));
    store.save(&layout(), &of(), state(5)).await.unwrap();
    store.prune(1).await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("step-1/manifest.json")).unwrap(), "mine");
    let nested = dir.path().join("deep/er");
    Store::open(&nested).await.unwrap();
    assert!(nested.is_dir());
}

/// CK-1, CK-2: a power cut may leave any part of any file.
#[tokio::test]
async fn a_checkpoint_that_is_cut_off_at_any_byte_is_not_used() {
    let (dir, store) = saved(&[100, 200]).await;
    for file in files(&dir, 200) {
        let whole = fs::read(&file).unwrap();
        for len in 0..whole.len() {
            fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(newest(&store).await, Ok(Some(100)), "{} of {len} bytes", file.display());
        }
        fs::write(&file, &whole).unwrap();
        assert_eq!(newest(&store).await, Ok(Some(200)));
        fs::remove_file(&file).unwrap();
        assert_eq!(newest(&store).await, Ok(Some(100)), "without {}", file.display());
        fs::write(&file, &whole).unwrap();
    }
}

#[tokio::test]
async fn a_checkpoint_with_another_byte_or_more_of_them_is_not_used() {
    let (dir, store) = saved(&[100, 200]).await;
    for file in &files(&dir, 200) {
        let whole = fs::read(file).unwrap();
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x10;
            fs::write(file, &other).unwrap();
            assert_eq!(newest(&store).await, Ok(Some(100)), "{} at {at}", file.display());
        }
        fs::write(file, [&whole[..], b" "].concat()).unwrap();
        assert_eq!(newest(&store).await, Ok(Some(100)));
        fs::write(file, &whole).unwrap();
    }
    assert_eq!(newest(&store).await, Ok(Some(200)));
}

/// Saves a file of more than 64 MiB, which goes in parts, and reads it again.
async fn comes_back_as_it_was(at: &Path) {
    const LEN: usize = (64 << 20) / 4 + 1000;
    let store = Store::open(at).await.unwrap();
    let layout = Layout::new([("all", vec![LEN])], 2).unwrap();
    let of = JobOf { optimizer: Sgd::new(0.1).into(), ..of() };
    let params = (0..LEN).map(|at| (at % 1021) as f32).collect();
    let (buffers, residuals) = (Vec::new(), BTreeMap::new());
    let state = JobState { params, buffers, residuals, ..state(100) };
    store.save(&layout, &of, state.clone()).await.unwrap();
    assert_eq!(store.load(100, &layout, &of).await.unwrap(), state);
}

#[tokio::test]
async fn a_file_of_more_than_64_mib_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    comes_back_as_it_was(dir.path()).await;
}

/// The process of the next test: its environment says where the server is.
#[cfg(feature = "s3")]
#[tokio::test]
#[ignore = "run by the next test"]
async fn saves_in_a_bucket() {
    comes_back_as_it_was(Path::new("s3://jobs/large")).await;
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_from_a_server_that_speaks_s3() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("jobs")).unwrap();
    let server = s3::serve(dir.path()).await;
    let test = "checkpoint::tests::saves_in_a_bucket";
    let saved = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .envs(s3::env(server))
        .kill_on_drop(true)
        .output();
    let saved =
        tokio::time::timeout(std::time::Duration::from_secs(120), saved).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&saved.stdout);
    assert!(saved.status.success() && told.contains("1 passed"), "{told}");
    let written = fs::metadata(dir.path().join("jobs/large/step-000000000100/model.safetensors"));
    assert!(written.unwrap().len() > 64 << 20);
}

#[tokio::test]
async fn if_none_is_whole_that_is_an_error_and_no_new_beginning() {
    let (dir, store) = saved(&[100, 200]).await;
    for steps in [100, 200] {
        fs::remove_file(&files(&dir, steps)[1]).unwrap();
    }
    let error = newest(&store).await.unwrap_err();
    assert!(matches!(error, CheckpointError::NoneWhole { .. }));
    let told = error.to_string();
    assert!(told.contains("step-000000000200"), "{told}");
    assert!(told.ends_with("there is no model.safetensors"), "{told}");
}

#[tokio::test]
async fn the_last_ones_are_kept_and_what_was_never_finished_goes() {
    let (dir, store) = saved(&[100, 200, 300, 400]).await;
    let there = |steps: u64| dir.path().join(format!("step-{steps:012}")).exists();
    for unfinished in [300, 400] {
        fs::remove_file(dir.path().join(format!("step-{unfinished:012}/manifest.json"))).unwrap();
    }
    store.prune(2).await.unwrap();
    assert_eq!(store.finished().await.unwrap(), [100, 200]);
    // One may be on its way.
    assert!(there(300) && there(400));
    store.save(&layout(), &of(), state(350)).await.unwrap();
    store.prune(2).await.unwrap();
    assert_eq!(store.finished().await.unwrap(), [200, 350]);
    assert!(!there(100) && !there(300) && there(400));
    // A writer that is killed leaves a file under another name.
    for (steps, stays) in [(120, false), (340, false), (360, true)] {
        let folder = dir.path().join(format!("step-{steps:012}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("model.safetensors#1"), "half").unwrap();
        store.prune(2).await.unwrap();
        assert_eq!(folder.exists(), stays, "{steps}");
    }
    assert_eq!(store.finished().await.unwrap(), [200, 350]);
    store.prune(0).await.unwrap();
    assert_eq!(store.finished().await.unwrap(), [350]);
}

/// CK-4: one that is damaged counts for none when old ones go, and is written anew.
#[tokio::test]
async fn a_damaged_checkpoint_that_was_passed_over_takes_no_whole_one_s_place() {
    let (dir, store) = saved(&[100, 200]).await;
    fs::write(&files(&dir, 200)[1], "half").unwrap();
    assert_eq!(newest(&store).await, Ok(Some(100)));
    store.discard_after(100).await.unwrap();
    assert_eq!(store.finished().await.unwrap(), [100]);
    store.save(&layout(), &of(), state(150)).await.unwrap();
    store.prune(1).await.unwrap();
    assert_eq!(newest(&store).await, Ok(Some(150)));
    store.save(&layout(), &of(), state(200)).await.unwrap();
    assert_eq!(newest(&store).await, Ok(Some(200)));
}

#[tokio::test]
async fn a_checkpoint_of_another_job_is_refused_with_what_differs() {
    let (_dir, store) = saved(&[100]).await;
    let refused = async |layout: Layout, of: JobOf| {
        let error = store.newest(&layout, &of).await.unwrap_err();
        assert!(matches!(error, CheckpointError::OtherJob { .. }), "{error}");
        error.to_string()
    };
    let error = refused(layout(), JobOf { model: "vgg".to_owned(), ..of() }).await;
    assert!(error.ends_with("it has the model `lenet`, and here `vgg`"), "{error}");
    let of_data = |data: DataOf| JobOf { data, ..of() };
    let error = refused(layout(), of_data(DataOf { batch: 128, ..of().data })).await;
    assert!(error.ends_with("samples of a batch: 64, and here 128"), "{error}");
    let error = refused(layout(), of_data(DataOf { seed: 8, ..of().data })).await;
    assert!(error.ends_with("seed: 7, and here 8"), "{error}");

    // The same name, and other parameters.
    let other = |parameters: &[(&str, Vec<usize>)]| {
        Layout::new(parameters.iter().map(|(name, shape)| (*name, shape.clone())), 1).unwrap()
    };
    let error = refused(other(&[("bias", vec![3]), ("scale", vec![]), ("weight", vec![20])]), of());
    let error = error.await;
    assert!(
        error.ends_with("`weight` is [19] in model.safetensors, and [20] in this model"),
        "{error}"
    );
    let error = refused(other(&[("bias", vec![3]), ("gain", vec![]), ("weight", vec![19])]), of());
    let error = error.await;
    assert!(error.ends_with("model.safetensors has no `gain`"), "{error}");
    let error = refused(other(&[("bias", vec![3]), ("weight", vec![19])]), of()).await;
    assert!(error.ends_with("model.safetensors has 3 tensors, and this model's has 2"), "{error}");
}

#[test]
fn the_optimiser_of_a_job_that_goes_on_remembers_the_same() {
    let fits = |optimizer| state(5).fits("here", &optimizer).map_err(|error| error.to_string());
    assert_eq!(fits(Adam::new(0.5).into()), Ok(()));
    let error = fits(Sgd::new(0.1).into()).unwrap_err();
    assert!(error.contains(r#"its optimiser remembers ["mean", "square"], and this job's []"#));
}

/// CK-3: as many shards as one likes.
#[test]
fn a_state_is_taken_apart_and_put_together_for_any_number_of_shards() {
    for shards in [1, 2, 3] {
        let layout = layout_for(shards);
        let chunks = (0..layout.chunks()).map(|chunk| state(9).chunk(&layout, chunk).unwrap());
        let chunks: Vec<_> = chunks.collect();
        let optimizer = Adam::new(1.0).into();
        // Residuals are none of the shards'.
        let expected = JobState { residuals: BTreeMap::new(), ..state(9) };
        assert_eq!(JobState::of(&layout, &optimizer, chunks.clone()).unwrap(), expected);
        let mut torn = chunks;
        torn[0].version += 1;
        let torn = JobState::of(&layout, &optimizer, torn);
        assert_eq!(torn.is_err(), layout.chunks() > 1);
    }
    assert!(state(9).chunk(&layout(), 99).is_err());
}

#[test]
fn a_state_is_saved_at_multiples_and_at_the_end() {
    let checkpoints = Checkpoints::to("x").every_steps(100);
    let due = |from| checkpoints.due(from, 250);
    assert_eq!([0, 1, 100, 101, 200].map(due), [100, 100, 100, 200, 200].map(Some));
    assert_eq!([201, 250].map(due), [Some(250); 2]);
    assert_eq!(due(251), None);
    assert_eq!(Checkpoints::to("x").due(0, 7), Some(7));
    assert_eq!(Checkpoints::to("x").every_steps(u64::MAX).due(9, 70), Some(70));
    assert!(Checkpoints::to("x").every_steps(0).validate().is_err());
    assert!(Checkpoints::to("x").keep(0).validate().is_err());
    assert!(Checkpoints::to("").validate().is_err());
    assert!(Checkpoints::to("x").validate().is_ok());
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("below")).await.unwrap_err().to_string();
    assert!(error.starts_with("checkpoints in ") && error.contains("Not a directory"), "{error}");
}
