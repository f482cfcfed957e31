//! A character GPT on Shakespeare's texts, trained by a cluster of processes; then it writes.
//!
//! ```text
//! cargo run --release -p xtask -- setup --dataset shakespeare   # the texts, into the cache; or --data FILE
//! language_model                                                # a local cluster, the whole job, some lines of its own,
//!                                                               # and the same model in one process with plain tch
//! language_model --no-compare                                   # without that
//! language_model node --seed 127.0.0.1:7400                     # what the local cluster's processes are
//! ```
//!
//! Nothing here knows how gradients, parameters and samples travel: the model is an `impl Model`, the data a value.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use footlight::{
    actors::{
        self,
        data::{DataSpec, Dataset, Pass, Split, Text, order},
        model::{Model, ModelSpec, Models, Target},
        parameters::optimizer::AdamW,
        report::{plot::Curves, write_json},
        schedule::Schedule,
        serving::{Inference, InferenceSpec, Predict},
        training::{JobEvent, RunningJob, TrainingJob, shown::Shown},
    },
    cli,
    cluster::processes::{self, LocalCluster, LocalPart, exit_with_parent},
    prelude::*,
    runtime::{
        compute::{self, DeviceChoice, libtorch_version},
        tensor::DType,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tch::{
    Kind, Tensor,
    nn::{self, Init, LinearConfig, Module, OptimizerConfig},
};

/// As in the other example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The characters that are tokens: a line's end, and all of ASCII that can be seen.
const TOKENS: usize = 96;
/// Tokens that the model looks back on.
const BLOCK: usize = 64;
const LAYERS: usize = 4;
const HEADS: i64 = 4;
const WIDTH: i64 = 128;

/// The learning rate's peak, how many steps it takes there, the moments' decay, and the longest gradient.
const RATE: f64 = 1e-3;
const WARM_UP: u64 = 100;
const BETAS: (f64, f64) = (0.9, 0.99);
const DECAY: f64 = 0.1;
const CLIP: f64 = 1.0;
const SLOTS: u32 = 4;
/// The share of the text, its end, that the model is evaluated on.
const HELD_OUT: f64 = 0.02;

/// The processes of the local cluster start all at once, on a busy machine perhaps.
const START: Duration = Duration::from_secs(30);

/// Trains a character GPT (4 layers, 128 wide, 64 characters back) on a cluster of processes of its own, and lets it
/// write.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until Ctrl-C or SIGTERM; with --seed it joins that node's cluster
    Node(NodeArgs),
}

#[derive(Args)]
struct JobArgs {
    /// A text in ASCII [default: the user's cache, filled by `cargo xtask setup --dataset shakespeare`]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Steps of the training
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Windows of 64 characters in a batch, over all workers
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=4096))]
    batch: u32,
    /// Workers at the same time; the batch has 4 slots, so more than 4 have nothing to do
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4))]
    workers: u32,
    /// Shards of the parameter server
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    servers: u32,
    /// Where the workers compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// The same seed gives the same parameters, bit for bit
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Characters to write in the end
    #[arg(long, value_name = "N", default_value_t = 500)]
    write: usize,
    /// Don't train the same model in this process with plain tch afterwards, on the same windows. Without that nothing
    /// says whether the target is reached: that the losses on the held-out text differ by 0.02 at most (else the exit
    /// code is 1)
    #[arg(long)]
    no_compare: bool,
    /// Folder for report.json and loss.png
    #[arg(long, value_name = "DIR", default_value = "target/language-model")]
    output: PathBuf,
    /// Where the report goes [default: report.json in the output folder]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The validation loss may differ by so much from that of plain tch.
const TARGET: f64 = 0.02;

/// What the report has.
#[derive(Serialize)]
struct Report {
    job: &'static str,
    /// How far the validation loss may be from that of plain tch.
    target: f64,
    /// How far it is, and whether that is near enough; both null with `--no-compare`.
    reached: Option<f64>,
    ok: Option<bool>,
    steps: u64,
    batch: u32,
    workers: u32,
    servers: u32,
    /// In nats a character, on the held-out text.
    validation_loss: f64,
    /// The share of its characters that were the most probable ones.
    validation_accuracy: f64,
    seconds: f64,
    characters_per_second: f64,
    /// The same of plain tch in one process.
    plain_validation_loss: Option<f64>,
    plain_seconds: Option<f64>,
    parameters_sha256: String,
    libtorch: String,
    written: String,
}

/// GPT-2's architecture (Radford et al., 2019), without dropout: 0.8 million parameters.
struct Gpt {
    tokens: nn::Embedding,
    places: nn::Embedding,
    blocks: Vec<Block>,
    norm: nn::LayerNorm,
    head: nn::Linear,
}

struct Block {
    norm1: nn::LayerNorm,
    attention: nn::Linear,
    project: nn::Linear,
    norm2: nn::LayerNorm,
    up: nn::Linear,
    down: nn::Linear,
}

fn linear(vs: nn::Path, from: i64, to: i64, stdev: f64) -> nn::Linear {
    let config = LinearConfig {
        ws_init: Init::Randn { mean: 0.0, stdev },
        bs_init: Some(Init::Const(0.0)),
        bias: true,
    };
    nn::linear(vs, from, to, config)
}

fn embedding(vs: nn::Path, of: usize) -> nn::Embedding {
    let ws_init = Init::Randn { mean: 0.0, stdev: 0.02 };
    nn::embedding(vs, of as i64, WIDTH, nn::EmbeddingConfig { ws_init, ..Default::default() })
}

fn norm(vs: nn::Path) -> nn::LayerNorm {
    nn::layer_norm(vs, vec![WIDTH], Default::default())
}

impl Block {
    fn new(vs: nn::Path) -> Self {
        // What is added to the residual stream twice a layer begins smaller.
        let small = 0.02 / (2.0 * LAYERS as f64).sqrt();
        Block {
            norm1: norm(&vs / "norm1"),
            attention: linear(&vs / "attention", WIDTH, 3 * WIDTH, 0.02),
            project: linear(&vs / "project", WIDTH, WIDTH, small),
            norm2: norm(&vs / "norm2"),
            up: linear(&vs / "up", WIDTH, 4 * WIDTH, 0.02),
            down: linear(&vs / "down", 4 * WIDTH, WIDTH, small),
        }
    }

    /// `x` is `[n, len, WIDTH]`; `later` is true where a token would look at one that comes after it.
    fn forward(&self, x: &Tensor, later: &Tensor) -> Tensor {
        let (n, len, _) = x.size3().expect("a stream of [n, len, WIDTH]");
        let heads = |part: &Tensor| part.view([n, len, HEADS, WIDTH / HEADS]).transpose(1, 2);
        let all = self.attention.forward(&self.norm1.forward(x));
        let parts = all.chunk(3, -1);
        let (query, key, value) = (heads(&parts[0]), heads(&parts[1]), heads(&parts[2]));
        let scale = ((WIDTH / HEADS) as f64).sqrt();
        let scores = query.matmul(&key.transpose(-2, -1)) / scale;
        let weights = scores.masked_fill(later, f64::NEG_INFINITY).softmax(-1, None::<Kind>);
        let seen = weights.matmul(&value).transpose(1, 2).reshape([n, len, WIDTH]);
        let x = x + self.project.forward(&seen);
        let wide = self.up.forward(&self.norm2.forward(&x)).gelu("tanh");
        x + self.down.forward(&wide)
    }
}

impl Model for Gpt {
    const NAME: &'static str = "character-gpt";
    // A window may be shorter than a block: the first ones that are written are.
    const INPUT: &'static [usize] = &[0];
    const INPUT_TYPE: DType = DType::I64;
    const VOCABULARY: Option<usize> = Some(TOKENS);
    const TARGET: Target = Target::Sequence;
    const CLASSES: usize = TOKENS;
    const RANDOM: bool = false;

    fn new(vs: &nn::Path) -> Self {
        Gpt {
            tokens: embedding(vs / "tokens", TOKENS),
            places: embedding(vs / "places", BLOCK),
            blocks: (0..LAYERS).map(|layer| Block::new(vs / "blocks" / layer)).collect(),
            norm: norm(vs / "norm"),
            head: linear(vs / "head", WIDTH, TOKENS as i64, 0.02),
        }
    }

    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        let (len, device) = (input.size()[1], input.device());
        let places = Tensor::arange(len, (Kind::Int64, device));
        let later = Tensor::ones([len, len], (Kind::Bool, device)).triu(1);
        let mut x = self.tokens.forward(input) + self.places.forward(&places);
        for block in &self.blocks {
            x = block.forward(&x, &later);
        }
        self.head.forward(&self.norm.forward(&x))
    }
}

/// Every character that may stand in the text: its place is its token.
fn alphabet() -> String {
    std::iter::once('\n').chain(' '..='~').collect()
}

impl JobArgs {
    fn text(&self) -> Result<PathBuf> {
        if let Some(file) = &self.data {
            // Other processes have other working directories.
            return Ok(std::path::absolute(file)?);
        }
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        let cache = var("FOOTLIGHT_CACHE")
            .or_else(|| Some(var("XDG_CACHE_HOME")?.join("footlight")))
            .or_else(|| Some(var("HOME")?.join(cache).join("footlight")))
            .context("no cache directory: give --data FILE")?;
        Ok(cache.join("data/shakespeare/shakespeare.txt"))
    }

    /// As many windows as the steps take, spread over all of the text but its end.
    fn spec(&self) -> Result<DataSpec> {
        let path = self.text()?;
        let about = fs::metadata(&path).with_context(|| {
            let path = path.display();
            format!(
                "there is no text {path}: `cargo xtask setup --dataset shakespeare` gets one, or name one with --data FILE"
            )
        })?;
        let windows = u64::from(self.steps) * u64::from(self.batch);
        let room = (about.len() as f64 * (1.0 - HELD_OUT)) as u64;
        let stride = room.saturating_sub(BLOCK as u64 + 1) / windows.max(1);
        let stride = (stride as usize).clamp(1, BLOCK * 16);
        let text = Text::at(path).alphabet(alphabet()).block(BLOCK).stride(stride);
        Ok(DataSpec::new(text).hold_out_last(HELD_OUT).limit(windows.min(u32::MAX.into()) as u32))
    }

    fn schedule(&self) -> Schedule {
        Schedule::WarmUpCosine { steps: WARM_UP.min(u64::from(self.steps) / 2) }
    }

    fn job(&self) -> Result<TrainingJob> {
        let optimizer = AdamW::new(RATE).betas(BETAS.0, BETAS.1).weight_decay(DECAY);
        Ok(TrainingJob::new("language-model", ModelSpec::of::<Gpt>(), self.spec()?)
            .optimizer(optimizer.schedule(self.schedule()))
            .clip_norm(CLIP)
            .batch(self.batch)
            .slots(SLOTS)
            .epochs(1)
            .workers(self.workers)
            .servers(self.servers)
            .device(self.device)
            .seed(self.seed))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "error,openraft=off".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let work = async {
        match cli.command {
            Some(Command::Node(args)) => Ok(processes::serve(start(args)).await?),
            None => tokio::select! {
                done = local(cli.job) => done,
                _ = tokio::signal::ctrl_c() => bail!("interrupted; all processes are ended"),
            },
        }
    };
    match work.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}

async fn start(args: NodeArgs) -> footlight::prelude::Result<Node> {
    let mut models = Models::new();
    models.register::<Gpt>().map_err(Error::other)?;
    Node::builder(args).with(actors::cast(models)).join_timeout(START).start().await
}

async fn local(args: JobArgs) -> Result<()> {
    // If whoever started this is gone for good, so is this.
    exit_with_parent()?;
    // Before any process is started: a wrong text is told at once.
    let spec = args.spec()?;
    let data = tokio::task::spawn_blocking(move || {
        Ok::<_, actors::data::DataError>((spec.open(Split::Train)?, spec.open(Split::Test)?))
    });
    let (train, test) = data.await??;
    let windows = u64::from(args.steps) * u64::from(args.batch);
    ensure!(
        train.len() as u64 == windows,
        "the text has {} windows, and {} steps of {} take {windows}: let it be fewer (--steps)",
        train.len(),
        args.steps,
        args.batch
    );
    eprintln!(
        "Starting a cluster of processes: a seed, a data loader, {} servers, {} workers.",
        args.servers, args.workers
    );
    let parts = [LocalPart::new("seed", "seed"), LocalPart::new("loader", "loader")].into_iter();
    let parts = parts.chain(LocalPart::several("server", args.servers));
    let parts = parts.chain(LocalPart::several("worker", args.workers));
    let cluster = LocalCluster::start(parts, START, start).await?;
    let mut running = args.job()?.submit(cluster.node()).await?;
    let mut shown = Shown::new(1);
    let mut curves =
        Curves { title: "A character GPT on Shakespeare".to_owned(), ..Curves::default() };
    let follow = running.follow(|event| {
        shown.event(event);
        match event {
            JobEvent::Started { steps_per_epoch, .. } => curves.steps_per_epoch = *steps_per_epoch,
            JobEvent::Step { steps, loss, .. } => curves.losses.push((*steps, *loss)),
            _ => {}
        }
    });
    let trained = follow.await?;
    let seconds = trained.elapsed.as_secs_f64();
    let written = write(cluster.node(), &running, trained.steps, &args).await?;
    running.close().await?;
    cluster.leave().await?;

    let characters = trained.samples * BLOCK as u64;
    println!(
        "validation loss {:.4} after {} steps, {seconds:.1} s, {:.0} characters/s\n\n{written}\n",
        trained.test_loss,
        trained.steps,
        characters as f64 / seconds.max(1e-3)
    );
    let plain = match args.no_compare {
        true => None,
        false => {
            eprintln!("The same model in one process with plain tch:");
            let (schedule, seed, batch) = (args.schedule(), args.seed, args.batch);
            let work = move || plain(&train, &test, schedule, seed, batch);
            let (loss, took) = tokio::task::spawn_blocking(work).await??;
            println!(
                "plain tch in one process: validation loss {loss:.4} after {:.1} s",
                took.as_secs_f64()
            );
            Some((loss, took))
        }
    };
    let reached = plain.map(|(loss, _)| (loss - trained.test_loss).abs());
    let report = Report {
        job: "language_model",
        target: TARGET,
        reached,
        ok: reached.map(|apart| apart <= TARGET),
        steps: trained.steps,
        batch: args.batch,
        workers: args.workers,
        servers: args.servers,
        validation_loss: trained.test_loss,
        validation_accuracy: trained.test_accuracy.unwrap_or_default(),
        seconds,
        characters_per_second: characters as f64 / seconds.max(1e-3),
        plain_validation_loss: plain.map(|(loss, _)| loss),
        plain_seconds: plain.map(|(_, took)| took.as_secs_f64()),
        parameters_sha256: trained.parameters_sha256,
        libtorch: libtorch_version().unwrap_or_else(|| "unknown".to_owned()),
        written,
    };
    curves.subtitle = format!(
        "{} workers, {} shards, batch {}: validation loss {:.3} after {seconds:.1} s",
        args.workers, args.servers, args.batch, trained.test_loss
    );
    let (plot, file) = (args.output.join("loss.png"), args.report.clone());
    let file = file.unwrap_or_else(|| args.output.join("report.json"));
    curves.write_png(&plot)?;
    write_json(&report, &file)?;
    if let Some(apart) = reached {
        println!("the losses are {apart:.4} apart; the target is {TARGET} at most");
    }
    println!("report and plot: {}, {}", file.display(), plot.display());
    ensure!(report.ok != Some(false), "the losses are more than {TARGET} apart");
    Ok(())
}

/// Lets an inference actor with the job's weights say which character comes next, again and again. Of its
/// probabilities those that are small get smaller still (a temperature of 0.8).
async fn write(node: &Node, job: &RunningJob, steps: u64, args: &JobArgs) -> Result<String> {
    let weights = job.weights().await?;
    let (model, device) = (ModelSpec::of::<Gpt>(), DeviceChoice::Cpu);
    let spec = InferenceSpec { model, weights, version: steps, device };
    let inference = node.spawn::<Inference>(spec).await?;
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut tokens = vec![0i64]; // a line's end
    while tokens.len() <= args.write {
        let seen = tokens[tokens.len().saturating_sub(BLOCK)..].to_vec();
        let shape = [1, seen.len()];
        let samples = HostTensor::from_vec(seen, &shape)?;
        let said = inference.call(Predict { samples }).await?.map_err(anyhow::Error::msg)?;
        let all = said.probabilities.as_slice::<f32>()?;
        let last = &all[all.len() - TOKENS..];
        let weights: Vec<f64> = last.iter().map(|one| f64::from(*one).powf(1.0 / 0.8)).collect();
        let mut left = random.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        tokens.push(chosen.unwrap_or(TOKENS - 1) as i64);
    }
    let characters: Vec<char> = alphabet().chars().collect();
    Ok(tokens[1..].iter().filter_map(|token| characters.get(*token as usize)).collect())
}

/// The same model on the same windows in the same order, with nothing of Footlight but that: libtorch's variables,
/// loss and optimiser. Gives the validation loss and how long the training took.
fn plain(
    train: &Dataset,
    test: &Dataset,
    schedule: Schedule,
    seed: u64,
    batch: u32,
) -> Result<(f64, Duration)> {
    let vs = nn::VarStore::new(tch::Device::Cpu);
    tch::manual_seed(seed as i64);
    let model = Gpt::new(&vs.root());
    let optimizer =
        nn::AdamW { beta1: BETAS.0, beta2: BETAS.1, wd: DECAY, eps: 1e-8, amsgrad: false };
    let mut optimizer = optimizer.build(&vs, RATE)?;
    let tensors = |data: &Dataset, indices: &[u32]| -> Result<(Tensor, Tensor)> {
        let batch = data.batch(indices.iter().copied(), Pass { seed, epoch: 0 })?;
        let tensor = |of: &HostTensor| of.to_tensor(compute::Device::Cpu);
        Ok((tensor(&batch.inputs)?, tensor(&batch.targets)?))
    };
    let loss = |inputs: &Tensor, targets: &Tensor| {
        let scores = model.forward(inputs, true);
        scores.flatten(0, 1).cross_entropy_for_logits(&targets.flatten(0, 1))
    };
    let windows = order(seed, 0, train.len() as u32);
    let steps = windows.chunks(batch as usize);
    let (begun, total) = (Instant::now(), steps.len() as u64);
    for (step, indices) in (0..).zip(steps) {
        let (inputs, targets) = tensors(train, indices)?;
        optimizer.set_lr(RATE * schedule.factor(step, total));
        let loss = loss(&inputs, &targets);
        optimizer.backward_step_clip_norm(&loss, CLIP);
        if (step + 1) % 200 == 0 {
            eprintln!("  step {} of {total}, loss {:.3}", step + 1, loss.double_value(&[]));
        }
    }
    let took = begun.elapsed();
    let _no_grad = tch::no_grad_guard();
    let all: Vec<u32> = (0..test.len() as u32).collect();
    let mut sum = 0.0;
    for indices in all.chunks(256) {
        let (inputs, targets) = tensors(test, indices)?;
        sum += loss(&inputs, &targets).double_value(&[]) * indices.len() as f64;
    }
    Ok((sum / all.len() as f64, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_stands_in_another_s_way() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_token_sees_what_comes_after_it() {
        let vs = nn::VarStore::new(tch::Device::Cpu);
        let model = Gpt::new(&vs.root());
        let parameters: usize = vs.variables().values().map(Tensor::numel).sum();
        assert!((800_000..840_000).contains(&parameters), "{parameters}");
        let scores =
            |tokens: &[i64]| model.forward(&Tensor::from_slice(tokens).unsqueeze(0), false);
        let (one, other) = (scores(&[1, 2, 3, 4]), scores(&[1, 2, 9, 9]));
        assert_eq!(one.size(), [1, 4, TOKENS as i64]);
        let apart = (one - other).abs().amax([0, 2], false);
        assert_eq!(apart.double_value(&[1]), 0.0);
        assert!(apart.double_value(&[2]) > 0.0);
    }

    #[test]
    fn every_character_has_its_token() {
        assert_eq!(alphabet().chars().count(), TOKENS);
        assert!(alphabet().is_ascii());
    }
}
