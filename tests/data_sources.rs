//! Jobs learn from tables, texts, tokens in a file and a source of their own what there is to learn, and with the same
//! bits whatever the number of workers; data that is wrong ends them with one line.
//!
//! One node has loader, shards and trainer, another one in this process the workers, so that samples cross the network.
#![cfg(feature = "torch")]

#[path = "support/s3.rs"]
mod s3;

use std::{env, fmt::Write, fs, path::Path, time::Duration};

use footlight::{
    actors::{
        self,
        data::{
            Csv, Custom, CustomSource, DataError, DataSpec, Draws, Field, Prefetch, Sample, Source,
            Sources, Split, Text, Tokens, Transform,
        },
        model::{Model, ModelSpec, Models, Target},
        parameters::optimizer::{Adam, Sgd},
        training::{JobEvent, TrainingJob, TrainingReport},
    },
    cluster::processes::{ProcessSpec, Processes},
    prelude::*,
    runtime::{compute::DeviceChoice, tensor::DType},
};
use rand::Rng;
use tch::{
    Tensor,
    nn::{self, Module},
};
use tempfile::TempDir;

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(60);

async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

/// Three classes from two columns.
struct Classes(nn::Linear);

impl Model for Classes {
    const NAME: &'static str = "test.classes";
    const INPUT: &'static [usize] = &[2];
    const INPUT_TYPE: DType = DType::F32;
    const CLASSES: usize = 3;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Classes(nn::linear(vs / "out", 2, 3, Default::default()))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        self.0.forward(input)
    }
}

/// A number from two columns.
struct Line(nn::Linear);

impl Model for Line {
    const NAME: &'static str = "test.line";
    const INPUT: &'static [usize] = &[2];
    const INPUT_TYPE: DType = DType::F32;
    const TARGET: Target = Target::Values(&[1]);
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Line(nn::linear(vs / "out", 2, 1, Default::default()))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        self.0.forward(input)
    }
}

const VOCABULARY: usize = 7;

/// Tells the token that follows each token.
struct Bigram(nn::Embedding);

impl Model for Bigram {
    const NAME: &'static str = "test.bigram";
    const INPUT: &'static [usize] = &[0];
    const INPUT_TYPE: DType = DType::I64;
    const VOCABULARY: Option<usize> = Some(VOCABULARY);
    const TARGET: Target = Target::Sequence;
    const CLASSES: usize = VOCABULARY;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        let (tokens, config) = (VOCABULARY as i64, Default::default());
        Bigram(nn::embedding(vs / "next", tokens, tokens, config))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        self.0.forward(input)
    }
}

/// Points of a plane: `y = 2 a - b + 1`.
struct Plane {
    samples: usize,
    trap: Option<usize>,
}

impl Source for Plane {
    fn len(&self) -> usize {
        self.samples
    }

    fn input(&self) -> Field {
        Field::new(DType::F32, &[2])
    }

    fn target(&self) -> Field {
        Field::new(DType::F32, &[1])
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        if self.trap == Some(index) {
            return Err(DataError::custom(Self::NAME, format!("sample {index} is a trap")));
        }
        let (a, b) = ((index % 16) as f32 / 8.0 - 1.0, (index / 16 % 16) as f32 / 8.0 - 1.0);
        let array = |values: Vec<f32>| {
            let len = values.len();
            HostTensor::from_vec(values, &[len]).map_err(|e| DataError::custom(Self::NAME, e))
        };
        Ok(Sample { input: array(vec![a, b])?, target: array(vec![2.0 * a - b + 1.0])? })
    }
}

impl CustomSource for Plane {
    const NAME: &'static str = "test.plane";
    type Args = (usize, Option<usize>);

    fn open((samples, trap): Self::Args, _: Split) -> Result<Self, DataError> {
        Ok(Plane { samples, trap })
    }
}

/// Shakes the inputs a little, by chance.
struct Shake;

impl Transform for Shake {
    const NAME: &'static str = "test.shake";
    type Args = ();

    fn new((): ()) -> Result<Self, DataError> {
        Ok(Shake)
    }

    fn apply(&self, sample: Sample, draws: &mut Draws) -> Result<Sample, DataError> {
        let wrong = |error| DataError::custom(Self::NAME, error);
        let mut values = sample.input.as_slice::<f32>().map_err(wrong)?.to_vec();
        for value in &mut values {
            *value += (f64::from(draws.next_u32()) / f64::from(u32::MAX) - 0.5) as f32 * 0.01;
        }
        let input = HostTensor::from_vec(values, sample.input.shape()).map_err(wrong)?;
        Ok(Sample { input, ..sample })
    }
}

/// Two nodes, and a folder for data.
struct Stage {
    seed: Node,
    _workers: Node,
    dir: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let start = async |roles: &[&str], seeds: Vec<String>| {
            let mut models = Models::new();
            models.register::<Classes>().unwrap().register::<Line>().unwrap();
            models.register::<Bigram>().unwrap();
            let mut sources = Sources::new();
            sources.source::<Plane>().unwrap().transform::<Shake>().unwrap();
            let args = NodeArgs {
                listen: Some("127.0.0.1:0".to_owned()),
                state: Some(dir.path().join("keys")),
                roles: roles.iter().map(|&role| role.to_owned()).collect(),
                seeds,
                ..NodeArgs::default()
            };
            let builder = Node::builder(args).with(actors::cast(models));
            builder.with(actors::sources(sources)).join_timeout(LONG).start().await.unwrap()
        };
        let seed = start(&["loader", "server"], Vec::new()).await;
        let workers = start(&["worker"], vec![seed.addr().to_string()]).await;
        let both = |members: &[Member]| members.iter().filter(|member| member.is_up()).count() == 2;
        seed.wait_for_members(LONG, both).await.unwrap();
        Stage { seed, _workers: workers, dir }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Trains with so many workers.
    async fn train(&self, job: &TrainingJob, workers: u32) -> TrainingReport {
        let mut job = soon(job.clone().workers(workers).submit(&self.seed)).await.unwrap();
        let report = soon(job.wait()).await.unwrap();
        soon(job.close()).await.unwrap();
        report
    }

    /// Trains with one worker and with two, for the same bits.
    async fn train_both(&self, job: TrainingJob) -> TrainingReport {
        let one = self.train(&job, 1).await;
        let two = self.train(&job, 2).await;
        assert_eq!(two.parameters_sha256, one.parameters_sha256);
        assert_eq!((two.test_loss, two.test_accuracy), (one.test_loss, one.test_accuracy));
        one
    }

    /// Why a job is refused or fails.
    async fn fails(&self, job: TrainingJob) -> String {
        let error = match soon(job.submit(&self.seed)).await {
            Err(error) => error,
            Ok(mut job) => {
                let error = soon(job.wait()).await.expect_err("it was to fail");
                // Its trainer has ended by itself.
                let _ = soon(job.close()).await;
                error
            }
        };
        let text = error.to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn job<M: Model>(data: DataSpec) -> TrainingJob {
    TrainingJob::new("learns", ModelSpec::of::<M>(), data)
        .optimizer(Adam::new(0.05))
        .device(DeviceChoice::Cpu)
        .batch(20)
        .seed(3)
}

/// Three clouds of points, whose class is a name.
fn table() -> String {
    let mut text = "a,b,kind\n".to_owned();
    let mut state = 9u64;
    let mut noise = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    for row in 0..330 {
        let (a, b, kind) = [(10.0, 0.1, "low"), (14.0, 0.4, "mid"), (10.0, 0.7, "high")][row % 3];
        writeln!(text, "{},{},{kind}", a + 2.0 * noise(), b + 0.2 * noise()).unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_learns_from_a_table_with_the_same_bits_for_one_worker_and_two() {
    let stage = Stage::set().await;
    let table = Csv::at(stage.file("t.csv", table())).label("kind").names(["low", "mid", "high"]);
    let data = DataSpec::new(table).hold_out(0.1).normalise([11.3, 0.4], [2.0, 0.25]);
    let report = stage.train_both(job::<Classes>(data)).await;
    assert_eq!(report.samples, 6 * 297);
    assert!(report.test_accuracy > Some(0.95), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_learns_which_token_follows_which_with_the_same_bits_for_one_worker_and_two() {
    let stage = Stage::set().await;
    // Each token is followed by the next one, and 0 by either 1 or 4: one bit of chance in 7 or 4 tokens.
    let mut state = 1u32;
    let mut tokens: Vec<u16> = Vec::new();
    for _ in 0..1000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        tokens.extend([0].into_iter().chain(if state >> 31 == 0 { 1..7 } else { 4..7 }));
    }
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let tokens = Tokens::u16(stage.file("tokens", bytes)).block(16).vocabulary(VOCABULARY as u32);
    let data = DataSpec::new(tokens).hold_out_last(0.2);
    let report = stage.train_both(job::<Bigram>(data).epochs(25)).await;
    // One token in 5.5 has an entropy of ln 2, and the others none.
    let entropy = std::f64::consts::LN_2 / 5.5;
    assert!((report.test_loss - entropy).abs() < 0.03, "{} {entropy}", report.test_loss);
    assert!(report.test_accuracy > Some(0.85), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_learns_from_lines_of_unequal_length_that_are_padded() {
    let stage = Stage::set().await;
    let lines: String =
        (0..300).map(|line| format!("{}\n", &"abcabcabcabcabc"[..2 + line % 9])).collect();
    let text = Text::at(stage.file("t.txt", lines)).lines();
    let data = DataSpec::new(text).hold_out(0.1).pad_to_longest(0.0);
    let report = stage.train_both(job::<Bigram>(data.clone())).await;
    assert!(report.test_loss < 0.6, "{report:?}");
    // However the padding is done.
    let to = stage.train(&job::<Bigram>(data.pad_to(10, 0.0)), 2).await;
    assert!((to.test_loss - report.test_loss).abs() < 1e-4, "{to:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_learns_from_a_source_and_a_random_transform_of_the_user_s_own_whatever_is_prefetched()
 {
    let stage = Stage::set().await;
    let plane = DataSpec::new(Custom::of::<Plane>(&(256, None)).unwrap());
    let shaken = plane.clone().transform::<Shake>(&()).unwrap();
    let of = |data| job::<Line>(data).optimizer(Sgd::new(0.3)).epochs(8);
    let report = stage.train_both(of(shaken.clone())).await;
    assert!(report.test_loss < 1e-3 && report.test_accuracy.is_none(), "{report:?}");
    let none = shaken.prefetch(Prefetch { slots: 0, bytes: 0 });
    let same = stage.train(&of(none), 2).await;
    assert_eq!(same.parameters_sha256, report.parameters_sha256);
    let still = stage.train(&of(plane), 2).await;
    assert_ne!(still.parameters_sha256, report.parameters_sha256, "nothing was shaken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_wrong_ends_the_job_with_one_line_that_says_what() {
    let stage = Stage::set().await;
    let csv = |name: &str, text: &str| Csv::at(stage.file(name, text));
    let plane = |trap| DataSpec::new(Custom::of::<Plane>(&(64, trap)).unwrap());
    let tokens = |name: &str, values: &[u16]| {
        let bytes: Vec<u8> = values.iter().flat_map(|token| token.to_le_bytes()).collect();
        DataSpec::new(Tokens::u16(stage.file(name, bytes)).block(2)).hold_out_last(0.5)
    };
    let rows = "a,b,y\n1,2,0\n1,2,1\n1,2,2\n1,2,3\n";
    for (job, parts) in [
        (
            job::<Classes>(DataSpec::new(csv("a", rows).label("y"))),
            &["say which samples are for evaluating"][..],
        ),
        (
            job::<Classes>(DataSpec::new(csv("b", "").label("y")).hold_out(0.5)),
            &["b holds no sample"],
        ),
        (
            job::<Classes>(DataSpec::new(csv("c", rows).label("y").classes(3)).hold_out(0.5)),
            &["c, line 5, column \"y\": \"3\" is not one of the 3 classes 0..3"],
        ),
        // Nobody said how many classes there are but the model.
        (
            job::<Classes>(
                DataSpec::new(csv("d", rows).label("y"))
                    .test(csv("e", "a,b,y\n1,2,0\n").label("y")),
            ),
            &["label 3 is not one of the 3 classes"],
        ),
        (
            job::<Line>(DataSpec::new(csv("f", rows).label("y")).hold_out(0.5)),
            &["the test targets are i64, and the model `test.line` learns f32 1"],
        ),
        (
            job::<Bigram>(DataSpec::new(csv("g", rows).label("y")).hold_out(0.5)),
            &["the test samples are f32 2, and the model `test.bigram` takes i64 ?"],
        ),
        (
            job::<Bigram>(tokens("h", &[0, 1, 2])),
            &["h has 2 tokens for this part, and a window of 2 takes 3"],
        ),
        (job::<Bigram>(tokens("i", &[0, 1, 99, 0, 1, 2])), &["99 is not one of the "]),
        (
            job::<Bigram>(
                DataSpec::new(Text::at(stage.file("l", "ab\nabc\n")).lines()).hold_out(0.5),
            ),
            &["say how they are padded"],
        ),
        (job::<Line>(plane(Some(5))), &["test.plane: sample 5 is a trap"]),
        (
            job::<Line>(DataSpec::new(Tokens::u16(Path::new("/no/such/file"))).hold_out(0.5)),
            &["cannot read /no/such/file: "],
        ),
    ] {
        let told = stage.fails(job).await;
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in {told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_that_can_t_be_read_in_training_fails_the_job_with_its_source_s_word() {
    let stage = Stage::set().await;
    // Not among those that are evaluated.
    let data = DataSpec::new(Custom::of::<Plane>(&(64, Some(5))).unwrap()).hold_out_last(0.1);
    let mut running = soon(job::<Line>(data).submit(&stage.seed)).await.unwrap();
    let mut lost = 0;
    let followed = running.follow(|event| {
        lost += u32::from(matches!(event, JobEvent::WorkerLost { .. }));
    });
    let failed = soon(followed).await.unwrap_err().to_string();
    assert_eq!(failed, "test.plane: sample 5 is a trap");
    assert_eq!(lost, 0, "no worker was started again in vain");
}

/// Opens data in an object store: run by the next test in a process whose environment says how to reach it.
#[test]
#[ignore = "run by the other tests in processes of its own"]
fn reads_objects() {
    if env::var_os("TEST_OBJECTS").is_none() {
        return;
    }
    let open = |what: &str, data: DataSpec| match data.open(Split::Train) {
        Ok(data) => println!("\n{what} {data:?}"),
        Err(error) => println!("\n{what} {error}"),
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let all = tokio::task::spawn_blocking(move || {
            open(
                "csv:",
                DataSpec::new(
                    Csv::at("s3://data/set/t.csv").label("kind").names(["low", "mid", "high"]),
                )
                .hold_out(0.1),
            );
            open(
                "tokens:",
                DataSpec::new(Tokens::u16("s3://data/set/tokens").block(9)).hold_out_last(0.5),
            );
            open("idx:", DataSpec::idx("s3://data/set/mnist"));
            open(
                "missing:",
                DataSpec::new(Csv::at("s3://data/set/no.csv").label("kind")).hold_out(0.1),
            );
            open("nowhere:", DataSpec::idx("s3://data/nowhere"));
        });
        all.await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_an_object_store_is_read_as_that_in_a_folder() {
    let (keeper, dir) = (Processes::new(), tempfile::tempdir().unwrap());
    let set = dir.path().join("data/set");
    fs::create_dir_all(set.join("mnist")).unwrap();
    fs::write(set.join("t.csv"), table()).unwrap();
    fs::write(set.join("tokens"), [0u8; 400]).unwrap();
    let images = [&[0u8, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3][..], &[7; 6]].concat();
    fs::write(set.join("mnist/train-images-idx3-ubyte"), images).unwrap();
    fs::write(set.join("mnist/train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 9, 0]).unwrap();
    let server = s3::serve(dir.path()).await;
    let mut spec = ProcessSpec::this_binary("reader")
        .args(["--exact", "reads_objects", "--ignored", "--nocapture"])
        .env("TEST_OBJECTS", "yes");
    for (name, value) in s3::env(server) {
        spec = spec.env(name, value);
    }
    let reader = keeper.start(spec).await.unwrap();
    for line in [
        "csv: Dataset(297 samples: f32 2 → i64)",
        "tokens: Dataset(11 samples: i64 9 → i64 9)",
        "idx: Dataset(2 samples: u8 1×3 → u8)",
        "missing: cannot read s3://data/set/no.csv: there is nothing of that name",
    ] {
        let what = line.split_inclusive(' ').next().unwrap();
        assert_eq!(reader.wait_line(what, LONG).await.unwrap(), line);
    }
    let told = reader.wait_line("nowhere: ", LONG).await.unwrap();
    assert!(told.contains("there is no train-images-idx3-ubyte (nor"), "{told}");
}
