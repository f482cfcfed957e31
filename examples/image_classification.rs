//! LeNet-5 on MNIST (or Fashion-MNIST), trained by a cluster of processes.
//!
//! ```text
//! image_classification                                   # a local cluster, the whole job, a report
//!
//! image_classification node --listen 127.0.0.1:7400      # or by hand: a seed,
//! image_classification node --seed 127.0.0.1:7400        # as many others as you like,
//! image_classification train --seed 127.0.0.1:7400       # the job,
//! image_classification serve --seed 127.0.0.1:7400       # and its model over HTTP
//! ```
//!
//! To train a model of your own, implement `Model` for it and register it beside `LeNet5`.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use footlight::{
    actors::{
        self,
        checkpoint::Checkpoints,
        consistency::Consistency,
        data::{DataSpec, IdxDataset, Split},
        model::{LeNet5, Model, ModelSpec, Models, Precision},
        parameters::optimizer::Adam,
        report::{
            JobReport,
            digits::{self, Shown, Style},
            plot::Curves,
        },
        schedule::Schedule,
        serving::{Gateway, Inference, InferenceSpec, Predict},
        training::{JobEvent, RunningJob, TrainingJob, TrainingReport, shown},
    },
    cli,
    cluster::processes::{self, LocalCluster, LocalPart, exit_with_parent},
    prelude::*,
    runtime::{
        NodeId,
        compute::{DeviceChoice, libtorch_version},
        telemetry::Counts,
        tensor::WireFormat,
    },
};

/// glibc's would give memory back to the system, and take page faults to get it again, with each buffer
/// that a socket has filled.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A command that has work for a cluster looks for it this long, unless told otherwise.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// The same within the local cluster, whose processes start all at once on a busy machine.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Trains LeNet-5 on a cluster of processes; without a command on a local one of its own.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    local: LocalArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until Ctrl-C or SIGTERM; with --seed it joins that node's cluster
    Node(NodeArgs),
    /// Train on a running cluster; the parameters stay there for `serve`
    Train {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        job: JobArgs,
        /// The same seed gives the same parameters, bit for bit
        #[arg(long, value_name = "N", default_value_t = 1)]
        job_seed: u64,
    },
    /// Take the weights of a job of a running cluster and answer over HTTP until Ctrl-C
    Serve {
        #[command(flatten)]
        node: NodeArgs,
        /// Address for HTTP
        #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
        http: SocketAddr,
        /// Where to compute: auto, cpu or cuda:N
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
    },
}

#[derive(Args, Clone)]
struct JobArgs {
    /// Folder with the four IDX files [default: the user's cache, filled by `cargo xtask setup`]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Which data set the folder holds
    #[arg(long, value_enum, default_value_t = DatasetName::Mnist)]
    dataset: DatasetName,
    /// How often all samples are gone through [default: 6 for mnist, 10 for fashion-mnist]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: Option<u64>,
    /// Workers at the same time; more of them than slots have nothing to do
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Parts of a batch, each for whichever worker is free. The parameters depend on it, and not on the workers: as many
    /// as workers are fastest, more let other workers join
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    slots: u32,
    /// Shards of the parameter server
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    servers: u32,
    /// Backups of each shard, on other servers: with one, a server may be lost without a trace in the result
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=2))]
    replicas: u32,
    /// Samples of a batch, over all workers
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=8192))]
    batch: u32,
    /// How far apart workers may be: bsp, stale:STEPS or async; only bsp gives the same bits each time
    #[arg(long, value_name = "MODE", default_value_t = Consistency::BulkSynchronous)]
    consistency: Consistency,
    /// Where the workers compute: auto, cpu or cuda:N; of a list as in cpu,cuda:1 each worker has the
    /// next one
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',', default_value = "auto")]
    devices: Vec<DeviceChoice>,
    /// How gradients and parameters travel: f32, bf16, fp16, or int8 with what it rounds off fed back (parameters go as
    /// bf16 then)
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = wire_format)]
    wire: WireFormat,
    /// In which numbers the workers compute
    #[arg(long, value_enum, default_value_t = Numbers::F32)]
    precision: Numbers,
    /// Train on the first so many samples only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Save the job's state in this folder, or below s3://BUCKET/PREFIX, for --resume; its model.safetensors is for
    /// Python too. On several machines the folder is the trainer's, so best a shared one
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Save it after so many steps each
    #[arg(long, value_name = "STEPS", default_value_t = 500, requires = "checkpoints", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Go on from the newest checkpoint, if there is one; no worker's process is killed then
    #[arg(long, requires = "checkpoints")]
    resume: bool,
}

#[derive(Args)]
struct LocalArgs {
    #[command(flatten)]
    job: JobArgs,
    /// The same seed gives the same parameters, bit for bit
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Folder for report.json and loss.png
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    output: PathBuf,
    /// Where the report goes [default: report.json in the output folder]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Don't kill a worker's process on the way
    #[arg(long)]
    no_kill: bool,
    /// Test accuracy, 0 to 1, below which the exit code is 1 [default: 0.99, fashion-mnist 0.9]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    target: Option<f64>,
    /// Print the report as JSON on standard output, and nothing else there
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1, for example 0.99".to_owned())
}

fn wire_format(text: &str) -> Result<WireFormat, String> {
    let found = WireFormat::ALL.into_iter().find(|format| format.name() == text);
    found
        .ok_or_else(|| format!("it is one of {}", WireFormat::ALL.map(WireFormat::name).join(", ")))
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Numbers {
    F32,
    Bf16,
    Fp16,
}

impl From<Numbers> for Precision {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::F32 => Precision::F32,
            Numbers::Bf16 => Precision::Bf16,
            Numbers::Fp16 => Precision::Fp16,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DatasetName {
    Mnist,
    FashionMnist,
}

impl DatasetName {
    fn name(self) -> &'static str {
        match self {
            DatasetName::Mnist => "mnist",
            DatasetName::FashionMnist => "fashion-mnist",
        }
    }

    fn classes(self) -> &'static [&'static str] {
        match self {
            DatasetName::Mnist => &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            DatasetName::FashionMnist => &[
                "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
                "bag", "boot",
            ],
        }
    }
}

impl JobArgs {
    fn dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.data {
            return Ok(std::path::absolute(dir)?);
        }
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        let cache = var("FOOTLIGHT_CACHE")
            .or_else(|| Some(var("XDG_CACHE_HOME")?.join("footlight")))
            .or_else(|| Some(var("HOME")?.join(cache).join("footlight")))
            .context("no cache directory: give --data DIR")?;
        Ok(cache.join("data").join(self.dataset.name()))
    }

    fn epochs(&self) -> u64 {
        self.epochs.unwrap_or(if self.dataset == DatasetName::Mnist { 6 } else { 10 })
    }

    fn job(&self, seed: u64) -> Result<TrainingJob> {
        let (slots, batch) = (self.slots, self.batch);
        ensure!(slots <= batch, "a batch of {batch} can't have {slots} slots: see --slots");
        let data = DataSpec::idx(self.dir()?);
        let data = match self.limit {
            Some(limit) => data.limit(limit),
            None => data,
        };
        let rate = if self.dataset == DatasetName::Mnist { 5e-3 } else { 3e-3 };
        // Each slot is a step of the optimiser then.
        let steps = if self.consistency.is_by_slot() { f64::from(self.slots) } else { 1.0 };
        let rate = rate / steps;
        let mut job = TrainingJob::new(self.dataset.name(), ModelSpec::of::<LeNet5>(), data);
        if let Some(dir) = &self.checkpoints {
            // Other processes have other working directories.
            let is_url = dir.to_str().is_some_and(|dir| dir.contains("://"));
            let at = if is_url { dir.clone() } else { std::path::absolute(dir)? };
            let checkpoints = Checkpoints::to(at);
            job = job.checkpoints(checkpoints.every_steps(self.checkpoint_every));
        }
        if self.resume {
            job = job.resume();
        }
        Ok(job
            .optimizer(Adam::new(rate).schedule(Schedule::Cosine))
            .workers(self.workers)
            .servers(self.servers)
            .replicas(self.replicas)
            .consistency(self.consistency)
            .devices(self.devices.iter().copied())
            .batch(self.batch)
            .slots(self.slots)
            .wire(self.wire)
            .precision(self.precision.into())
            .epochs(self.epochs())
            .seed(seed))
    }
}

async fn start(args: NodeArgs, join_timeout: Duration) -> footlight::prelude::Result<Node> {
    let mut models = Models::new();
    models.register::<LeNet5>().map_err(Error::other)?;
    let builder = Node::builder(args).with(actors::cast(models));
    builder.join_timeout(join_timeout).start().await
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    // All but a node ends, and says why; a node says that it waits for its seed, and goes on.
    let shown = match cli.command {
        Some(Command::Node(_)) => {
            "error,openraft=off,footlight_cluster::network::seeds=warn,\
             footlight_cluster::enroll::joiner=warn"
        }
        _ => "error,openraft=off",
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| shown.into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let work = async {
        match cli.command {
            // Nodes and seed may be started in any order.
            Some(Command::Node(args)) => Ok(processes::serve(start(args, Duration::MAX)).await?),
            Some(Command::Train { node, job, job_seed }) => train(node, job, job_seed).await,
            Some(Command::Serve { node, http, device }) => serve(node, http, device).await,
            None => local(cli.local).await,
        }
    };
    match work.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}

fn needs_seed(args: &NodeArgs) -> Result<()> {
    ensure!(!args.seeds.is_empty(), "name a node of the running cluster with --seed HOST:PORT");
    Ok(())
}

async fn train(args: NodeArgs, job: JobArgs, seed: u64) -> Result<()> {
    needs_seed(&args)?;
    let node = start(args, JOIN_TIMEOUT).await?;
    let name = job.dataset.name();
    let mut running = match RunningJob::attach(&node, name).await {
        Ok(there) if there.is_over().await? => {
            eprintln!("A finished job `{name}` is replaced.");
            there.close().await?;
            job.job(seed)?.submit(&node).await?
        }
        Ok(there) => {
            eprintln!("A job `{name}` is under way: this is how it goes.");
            there
        }
        Err(_) => job.job(seed)?.submit(&node).await?,
    };
    let report = running.wait_with_progress().await?;
    println!(
        "{}: test accuracy {:.2} % after {:.1} s; `serve` answers with it",
        job.dataset.name(),
        accuracy(&report) * 100.0,
        report.elapsed.as_secs_f64()
    );
    Ok(node.leave().await?)
}

async fn serve(args: NodeArgs, http: SocketAddr, device: DeviceChoice) -> Result<()> {
    needs_seed(&args)?;
    let node = start(args, JOIN_TIMEOUT).await?;
    let mut served = None;
    for dataset in [DatasetName::Mnist, DatasetName::FashionMnist] {
        if let Ok(job) = RunningJob::attach(&node, dataset.name()).await {
            served = Some((dataset, inference(&node, &job, 0, device).await?));
        }
    }
    let Some((dataset, inference)) = served else {
        bail!("no job of `train` holds parameters in this cluster");
    };
    let gateway = Gateway::serve(http, [(LeNet5::NAME.to_owned(), inference)]).await?;
    // Signals are caught before anybody is told.
    let ended = node.until_shutdown();
    println!(
        "{} at http://{}/v2/models/{}/infer; stop it with Ctrl-C",
        dataset.name(),
        gateway.addr(),
        LeNet5::NAME
    );
    Ok(ended.await?)
}

/// LeNet-5 tells classes, so there is one.
fn accuracy(report: &TrainingReport) -> f64 {
    report.test_accuracy.unwrap_or_default()
}

/// An inference actor on this node with a job's weights, of at least so many steps.
async fn inference(
    node: &Node,
    job: &RunningJob,
    version: u64,
    device: DeviceChoice,
) -> Result<ActorRef<Inference>> {
    let weights = job.weights().await?;
    let spec = InferenceSpec { model: ModelSpec::of::<LeNet5>(), weights, version, device };
    Ok(node.spawn::<Inference>(spec).await?)
}

/// A cluster of processes on this machine: a seed, a data loader, servers and workers.
async fn local_cluster(workers: u32, servers: u32) -> Result<LocalCluster> {
    let parts = [LocalPart::new("seed", "seed"), LocalPart::new("loader", "loader")].into_iter();
    let parts = parts.chain(LocalPart::several("server", servers));
    let parts = parts.chain(LocalPart::several("worker", workers));
    let join = async |args| start(args, LOCAL_TIMEOUT).await;
    Ok(LocalCluster::start(parts, LOCAL_TIMEOUT, join).await?)
}

/// Its processes by name, this one among them.
fn pids(cluster: &LocalCluster) -> BTreeMap<String, u32> {
    let own = ("driver".to_owned(), std::process::id());
    let others = cluster.processes().map(|(name, process, _)| (name.to_owned(), process.pid()));
    others.chain([own]).collect()
}

/// SIGKILL to a process, after so many steps of the job.
fn kill(cluster: &LocalCluster, name: &str, step: u64) -> Option<Killed> {
    let (process, node) = cluster.process(name)?;
    process.kill();
    Some(Killed::now(process.pid(), node, step))
}

/// What all nodes that are up have sent and received: over UDP, and through memory.
async fn bytes(node: &Node) -> Counts {
    let mut total = Counts::default();
    for member in node.members().iter().filter(|member| member.is_up()) {
        if let Ok(status) = node.status_of(member.id).await {
            total.wire_bytes_sent += status.counts.wire_bytes_sent;
            total.wire_bytes_received += status.counts.wire_bytes_received;
            total.memory_bytes_sent += status.counts.memory_bytes_sent;
            total.memory_bytes_received += status.counts.memory_bytes_received;
        }
    }
    total
}

/// A process that was killed with a worker in it, and what the cluster made of that.
struct Killed {
    pid: u32,
    node: NodeId,
    step: u64,
    at: Instant,
    /// The first worker that was lost with that node, and how long after the kill it was known.
    lost: Option<(String, Duration)>,
    /// That worker was started again.
    back: bool,
    /// A step was applied after that.
    recovered: Option<Duration>,
}

impl Killed {
    fn now(pid: u32, node: NodeId, step: u64) -> Self {
        Killed { pid, node, step, at: Instant::now(), lost: None, back: false, recovered: None }
    }

    /// Takes note of what happens to the job; other workers may be lost too.
    fn event(&mut self, event: &JobEvent) {
        let since = self.at.elapsed();
        match event {
            JobEvent::WorkerLost { worker, node, .. } if *node == self.node => {
                self.lost.get_or_insert_with(|| (worker.clone(), since));
            }
            JobEvent::WorkerUp { worker, .. } => {
                self.back |= self.lost.as_ref().is_some_and(|(lost, _)| lost == worker);
            }
            JobEvent::Step { .. } if self.back => {
                self.recovered.get_or_insert(since);
            }
            _ => {}
        }
    }
}

async fn local(mut args: LocalArgs) -> Result<()> {
    // The kill's moment may be past, and the first time has had one.
    args.no_kill |= args.job.resume;
    use tokio::signal::unix::{SignalKind, signal};
    // If whoever started this is gone for good, so is this.
    exit_with_parent()?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = whole_job(args) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; all processes are ended"),
        _ = terminate.recv() => bail!("told to end; all processes are ended"),
    }
}

async fn whole_job(args: LocalArgs) -> Result<()> {
    let job = &args.job;
    let mnist = job.dataset == DatasetName::Mnist;
    let target = args.target.unwrap_or(if mnist { 0.99 } else { 0.9 });
    // Before any process is started: wrong data is told at once.
    let test = IdxDataset::open(job.dir()?, Split::Test)?;
    let description = job.job(args.seed)?;
    eprintln!(
        "Starting a cluster of processes: a seed, a data loader, {} servers, {} workers.",
        job.servers, job.workers
    );
    let cluster = local_cluster(job.workers, job.servers.max(job.replicas + 1)).await?;
    let mut running = description.submit(cluster.node()).await?;

    let mut shown = shown::Shown::new(job.epochs());
    let mut curves = Curves { target: Some(target), ..Curves::default() };
    let mut killed: Option<Killed> = None;
    let mut kill_at = None;
    // Samples of a job that is resumed.
    let mut before = 0;
    let victim = format!("worker-{}", job.workers - 1);
    let mut devices = BTreeMap::new();
    let trained = running
        .follow(|event| {
            shown.event(event);
            if let Some(killed) = &mut killed {
                killed.event(event);
            }
            match event {
                JobEvent::Started { steps, steps_per_epoch, servers, loader, .. } => {
                    let servers: Vec<_> = servers.iter().map(NodeId::to_string).collect();
                    let servers = servers.join(" and ");
                    shown.note(&format!("parameters on nodes {servers}, data on node {loader}"));
                    curves.steps_per_epoch = *steps_per_epoch;
                    // In the middle of the second epoch, or of the only one.
                    let epoch = u64::from(*steps_per_epoch);
                    let first = if *steps > epoch { epoch } else { 0 };
                    kill_at = (!args.no_kill).then_some(first + epoch / 2);
                }
                JobEvent::FromCheckpoint { samples, .. } => before = *samples,
                JobEvent::WorkerUp { worker, device, .. } => {
                    devices.insert(worker.clone(), device.clone());
                }
                JobEvent::Step { steps, loss, .. } => {
                    curves.losses.push((*steps, *loss));
                    if kill_at.is_some_and(|at| *steps >= at) {
                        kill_at = None;
                        killed = kill(&cluster, &victim, *steps);
                        if let Some(Killed { pid, .. }) = killed {
                            let struck = format!("SIGKILL to {victim} (pid {pid}) at step {steps}");
                            shown.note(&struck);
                        }
                    }
                }
                JobEvent::Evaluated { steps, accuracy: Some(accuracy), .. } => {
                    curves.accuracies.push((*steps, *accuracy));
                }
                _ => {}
            }
        })
        .await?;

    let killed = killed.as_ref();
    let samples = trained.samples - before;
    let report =
        finish(&args, target, &cluster, &running, &trained, samples, killed, curves, devices);
    let report = report.await?;
    answer(&args, &cluster, &running, &trained, &test).await?;
    running.close().await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    ensure!(
        report.reached >= target,
        "the test accuracy is {:.2} %, and {:.2} % were asked for",
        report.reached * 100.0,
        target * 100.0
    );
    ensure!(
        report.ok,
        "the training ended before {victim}, which was killed, was back at work: let it be longer \
         (--epochs), or give --no-kill"
    );
    Ok(cluster.leave().await?)
}

/// Writes report.json and loss.png and prints the summary.
#[allow(clippy::too_many_arguments)]
async fn finish(
    args: &LocalArgs,
    target: f64,
    cluster: &LocalCluster,
    running: &RunningJob,
    trained: &TrainingReport,
    samples: u64,
    killed: Option<&Killed>,
    mut curves: Curves,
    devices: BTreeMap<String, String>,
) -> Result<JobReport> {
    let spec = running.spec().await?;
    let millis = |time: Duration| time.as_millis() as u64;
    let recovered = killed.and_then(|killed| killed.recovered);
    // A training that nothing happened to shows nothing.
    let survived = args.no_kill || recovered.is_some();
    let bytes = bytes(cluster.node()).await;
    let seconds = trained.elapsed.as_secs_f64();
    let report = JobReport {
        job: "image_classification".to_owned(),
        ok: survived && accuracy(trained) >= target,
        dataset: args.job.dataset.name().to_owned(),
        target,
        reached: accuracy(trained),
        epochs: spec.epochs,
        seconds,
        samples_per_second: samples as f64 / seconds.max(1e-3),
        pids: pids(cluster),
        killed_pid: killed.map(|killed| killed.pid),
        detected_ms: killed.and_then(|killed| Some(millis(killed.lost.as_ref()?.1))),
        recovered_ms: recovered.map(millis),
        wire_bytes_sent: bytes.wire_bytes_sent,
        wire_bytes_received: bytes.wire_bytes_received,
        memory_bytes_sent: bytes.memory_bytes_sent,
        memory_bytes_received: bytes.memory_bytes_received,
        libtorch: libtorch_version().unwrap_or_else(|| "unknown".to_owned()),
        devices,
    };
    curves.title = format!("LeNet-5 on {}", report.dataset);
    curves.subtitle = format!(
        "{} workers, {} shards, batch {}: {:.2} % in {seconds:.1} s",
        spec.workers,
        spec.servers,
        spec.batch,
        report.reached * 100.0
    );
    if let Some(killed) = killed {
        curves.marks.push((killed.step, "a worker is killed".to_owned()));
    }
    let file = args.report.clone().unwrap_or_else(|| args.output.join("report.json"));
    report.write(&file)?;
    curves.write_png(args.output.join("loss.png"))?;

    let mut lines = vec![
        format!(
            "{}: test accuracy {:.2} % after {} epochs, {seconds:.1} s, {:.0} samples/s",
            report.dataset,
            report.reached * 100.0,
            report.epochs,
            report.samples_per_second
        ),
        format!(
            "{} processes sent {:.1} MB to one another, encrypted, and {:.1} MB straight from memory",
            report.pids.len(),
            report.wire_bytes_sent as f64 / 1e6,
            report.memory_bytes_sent as f64 / 1e6
        ),
    ];
    if let (Some(pid), Some(detected), Some(recovered)) =
        (report.killed_pid, report.detected_ms, report.recovered_ms)
    {
        lines.push(format!(
            "worker process {pid} was killed: declared down after {detected} ms, training went on \
             after {recovered} ms"
        ));
    }
    lines.push(format!(
        "report and plot: {}, {}",
        file.display(),
        args.output.join("loss.png").display()
    ));
    say(args, &format!("\n{}\n", lines.join("\n")));
    Ok(report)
}

/// Lets an inference actor classify some test images, in the terminal and over HTTP.
async fn answer(
    args: &LocalArgs,
    cluster: &LocalCluster,
    running: &RunningJob,
    trained: &TrainingReport,
    test: &actors::data::Images,
) -> Result<()> {
    const SHOWN: u32 = 6;
    let inference = inference(cluster.node(), running, trained.steps, DeviceChoice::Cpu).await?;
    let some: Vec<u32> = (0..SHOWN.min(test.len() as u32)).collect();
    let (pixels, labels) = test.gather(&some)?;
    let shape = [labels.len(), test.rows(), test.cols()];
    let samples = HostTensor::from_vec(pixels.clone(), &shape)?;
    let predicted = inference.call(Predict { samples }).await?.map_err(anyhow::Error::msg)?;
    let probabilities = predicted.probabilities.as_slice::<f32>()?;
    let classes = probabilities.len() / labels.len();
    let images: Vec<Shown> = pixels
        .chunks(test.rows() * test.cols())
        .zip(probabilities.chunks(classes))
        .zip(&labels)
        .map(|((pixels, row), label)| {
            let (prediction, probability) = best(row);
            Shown { pixels, label: Some(usize::from(*label)), prediction, probability }
        })
        .collect();
    let terminal =
        if args.json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    let style = Style::detect(|name| std::env::var(name).ok(), terminal);
    let names = args.job.dataset.classes();
    say(args, &digits::draw(&images, test.cols(), names, style, digits::WIDTH));

    let gateway =
        Gateway::serve("127.0.0.1:0".parse()?, [(LeNet5::NAME.to_owned(), inference)]).await?;
    let (pixels, label) = test.sample(0)?;
    let shape = [1, test.rows(), test.cols()];
    let row = ask_over_http(gateway.addr(), pixels, &shape).await?;
    let (prediction, probability) = best(&row);
    say(
        args,
        &format!(
            "over HTTP, POST http://{}/v2/models/{}/infer: the first one is {} ({:.1} %), really {}",
            gateway.addr(),
            LeNet5::NAME,
            names[prediction],
            probability * 100.0,
            names[usize::from(label)]
        ),
    );
    Ok(())
}

fn best(row: &[f32]) -> (usize, f32) {
    let best = row.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    best.unwrap_or((0, 0.0))
}

/// What any HTTP client would do; `curl` serves as well.
async fn ask_over_http(addr: SocketAddr, pixels: &[u8], shape: &[usize]) -> Result<Vec<f32>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let body = serde_json::json!({
        "inputs": [{ "name": "images", "datatype": "UINT8", "shape": shape, "data": pixels }]
    })
    .to_string();
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let head = format!(
        "POST /v2/models/{}/infer HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        LeNet5::NAME,
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "the gateway answered: {body}");
    let answer: serde_json::Value = serde_json::from_str(body)?;
    Ok(serde_json::from_value(answer["outputs"][0]["data"].clone())?)
}

/// For people: on standard output, unless that is for the report.
fn say(args: &LocalArgs, text: &str) {
    if args.json { eprintln!("{text}") } else { println!("{text}") }
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
    fn a_job_has_its_own_seed_beside_that_of_the_cluster_and_its_list_of_devices() {
        let words = "_ train --seed 127.0.0.1:7400 --job-seed 7 --device cpu,cuda:1";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        let Some(Command::Train { node, job, job_seed }) = cli.command else { panic!("no train") };
        assert_eq!((node.seeds, job_seed), (vec!["127.0.0.1:7400".to_owned()], 7));
        assert_eq!(job.devices, [DeviceChoice::Cpu, DeviceChoice::Cuda(1)]);
        let cli = Cli::try_parse_from(["_", "--seed", "7"]).unwrap();
        assert_eq!((cli.local.seed, &cli.local.job.devices[..]), (7, &[DeviceChoice::Auto][..]));
    }

    fn lost(worker: &str, node: u64) -> JobEvent {
        let (worker, node) = (worker.to_owned(), NodeId(node));
        JobEvent::WorkerLost { worker, node, why: "was lost".to_owned() }
    }

    fn up(worker: &str, node: u64) -> JobEvent {
        let (worker, node) = (worker.to_owned(), NodeId(node));
        JobEvent::WorkerUp { worker, node, starts: 1, device: "cpu".to_owned() }
    }

    fn step(steps: u64) -> JobEvent {
        JobEvent::Step {
            steps,
            samples: steps,
            loss: 1.0,
            norm: None,
            skipped: false,
            live_nodes: 6,
            nodes: 7,
        }
    }

    #[test]
    fn only_what_becomes_of_the_killed_worker_counts_and_what_is_known_first_stays() {
        let mut killed = Killed::now(7, NodeId(2), 10);
        // Another worker comes and goes.
        for event in [lost("worker-0", 1), up("worker-0", 1), step(11)] {
            killed.event(&event);
        }
        assert_eq!((&killed.lost, killed.back, killed.recovered), (&None, false, None));
        killed.event(&lost("worker-1", 2));
        let known = killed.lost.clone();
        assert_eq!(known.as_ref().map(|(worker, _)| worker.as_str()), Some("worker-1"));
        for event in [lost("worker-0", 1), lost("worker-2", 2), up("worker-0", 1), step(12)] {
            killed.event(&event);
        }
        assert_eq!((&killed.lost, killed.back, killed.recovered), (&known, false, None));
        killed.event(&up("worker-1", 1));
        killed.event(&step(13));
        let recovered = killed.recovered;
        assert!(recovered.is_some() && recovered >= known.map(|(_, after)| after));
        killed.event(&step(14));
        assert_eq!(killed.recovered, recovered);
    }
}
