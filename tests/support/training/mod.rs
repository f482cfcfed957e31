//! What the tests of training share: a small model of their own, a data set, and nodes that train,
//! some of them in processes of their own.
//!
//! A process is the test's own binary, started again for one test; each test program that wants
//! processes has
//!
//! ```ignore
//! #[test]
//! #[ignore = "run by the other tests in processes of its own"]
//! fn node_process() {
//!     training::play_node();
//! }
//! ```
#![allow(dead_code, reason = "each test uses a part of it")]

mod models;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use footlight::{
    actors::{
        self,
        data::DataSpec,
        model::{ModelSpec, Models},
        parameters::optimizer::Adam,
        training::{JobEvent, RunningJob, Trainer, TrainingJob, TrainingReport},
    },
    cluster::{
        processes::{Process, ProcessSpec, Processes, exit_with_parent},
        trust::Role,
    },
    prelude::*,
    runtime::{NodeId, compute::DeviceChoice},
};
use rand::{Rng, RngExt};
use tempfile::TempDir;

pub(crate) use models::*;

/// How long a test waits for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits for something that must come, and not for ever.
pub(crate) async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("it took too long")
}

/// Looks again and again until something is so: for what has no event.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let watch = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, watch).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

/// A node that a test starts in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Loader,
    Server,
    Worker,
    /// A worker's node whose binary lacks the model.
    Stranger,
    /// Has no part of its own, and may hold the trainer.
    Spare,
    /// Votes in the ledger, and hosts the trainer and no part that can't be lost.
    Voter,
}

impl Part {
    fn role(self) -> &'static str {
        match self {
            Part::Loader => "loader",
            Part::Server | Part::Voter => "server",
            Part::Worker | Part::Stranger => "worker",
            Part::Spare => "spare",
        }
    }
}

/// A cluster whose seed is in this process, with its data and keys.
pub(crate) struct Stage {
    pub(crate) seed: Node,
    /// Where the others join.
    at: String,
    pub(crate) processes: Vec<(NodeId, Process)>,
    /// What each of them plays.
    parts: Vec<Part>,
    /// What a slot takes longer in them.
    millis_a_slot: u32,
    /// Workers' nodes have certificates that let them be no more than that.
    has_tokens: bool,
    _keeper: Processes,
    dir: TempDir,
}

impl Stage {
    /// A seed in this process with these roles, and processes.
    pub(crate) async fn set(roles: &[&str], parts: &[Part]) -> Self {
        Self::begin(roles, None).await.filled(parts).await
    }

    /// As [`set`](Self::set), with workers that take so long for each slot besides.
    pub(crate) async fn slow(roles: &[&str], parts: &[Part], millis_a_slot: u32) -> Self {
        let stage = Self { millis_a_slot, ..Self::begin(roles, None).await };
        stage.filled(parts).await
    }

    /// As [`set`](Self::set), with workers' nodes that join by a token for workers.
    pub(crate) async fn with_tokens(roles: &[&str], parts: &[Part]) -> Self {
        let stage = Self { has_tokens: true, ..Self::begin(roles, None).await };
        stage.filled(parts).await
    }

    /// The seed is a process too, and submits a job of this name and so many epochs when all are there and three vote. `seed` is a node
    /// in this process that has joined it.
    pub(crate) async fn set_by_another(
        roles: &[&str],
        parts: &[Part],
        job: &str,
        epochs: u64,
    ) -> (Self, Process) {
        let dir = Self::dir();
        let keeper = Processes::new();
        let spec = ProcessSpec::this_binary("seed")
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .env("TEST_STATE", dir.path().join("keys"))
            .env("TEST_ROLE", "seed")
            .env("TEST_KNOWS_MODEL", "yes")
            .env("TEST_DATA", dir.path().join("data"))
            .env("TEST_JOB", job)
            .env("TEST_EPOCHS", epochs.to_string())
            // This one, the seed, and the parts.
            .env("TEST_NODES", (parts.len() + 2).to_string());
        let process = keeper.start(spec).await.unwrap();
        let at = process.wait_line("at ", LONG).await.unwrap()["at ".len()..].to_owned();
        let stage = Self::begin(roles, Some((dir, keeper, at))).await.filled(parts).await;
        process.wait_line("submitted", LONG).await.unwrap();
        (stage, process)
    }

    fn dir() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["keys", "data", "orders"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        write_data(&dir.path().join("data"), SAMPLES, TEST_SAMPLES);
        dir
    }

    /// The node in this process, which may join another.
    async fn begin(roles: &[&str], other: Option<(TempDir, Processes, String)>) -> Self {
        let (dir, keeper, at) = match other {
            Some((dir, keeper, at)) => (dir, keeper, Some(at)),
            None => (Self::dir(), Processes::new(), None),
        };
        let args = NodeArgs {
            listen: Some("127.0.0.1:0".to_owned()),
            state: Some(dir.path().join("keys")),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            seeds: at.clone().into_iter().collect(),
            ..NodeArgs::default()
        };
        let seed = start(args, true).await.unwrap();
        let at = at.unwrap_or_else(|| seed.addr().to_string());
        let (processes, parts) = (Vec::new(), Vec::new());
        Stage {
            seed,
            at,
            processes,
            parts,
            millis_a_slot: 0,
            has_tokens: false,
            _keeper: keeper,
            dir,
        }
    }

    async fn filled(mut self, parts: &[Part]) -> Self {
        let before = self.seed.members().iter().filter(|member| member.is_up()).count();
        let stage = &mut self;
        for &part in parts {
            stage.launch(part).await;
        }
        let mut up = Vec::new();
        for (_, process) in &stage.processes {
            let line = process.wait_line("up ", LONG).await.unwrap();
            up.push(line["up ".len()..].parse().unwrap());
        }
        stage.processes.iter_mut().zip(up).for_each(|(process, id)| process.0 = id);
        let nodes = parts.len() + before;
        stage
            .seed
            .wait_for_members(LONG, |members| members.iter().filter(|m| m.is_up()).count() == nodes)
            .await
            .unwrap();
        self
    }

    async fn launch(&mut self, part: Part) {
        let name = format!("{}-{}", part.role(), self.processes.len());
        let spec = ProcessSpec::this_binary(name)
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .env("TEST_STATE", self.dir.path().join("keys"))
            .env("TEST_ORDERS", self.dir.path().join("orders"))
            .env("TEST_SEED", &self.at)
            .env("TEST_ROLE", part.role())
            .env("TEST_KNOWS_MODEL", if matches!(part, Part::Stranger) { "no" } else { "yes" })
            .env("TEST_TRAINERS_ONLY", if matches!(part, Part::Voter) { "yes" } else { "no" });
        // Otherwise as the environment says.
        let spec = match self.millis_a_slot {
            0 => spec,
            millis => spec.env("TEST_MILLIS_A_SLOT", millis.to_string()),
        };
        let spec = match part {
            Part::Worker if self.has_tokens => {
                let token = self.seed.create_token(Role::Worker, LONG).await.unwrap();
                let state = self.dir.path().join(format!("keys-{}", self.processes.len()));
                spec.env("TEST_STATE", state).env("TEST_TOKEN", token.to_string())
            }
            _ => spec,
        };
        let process = self._keeper.start(spec).await.unwrap();
        self.processes.push((NodeId(0), process));
        self.parts.push(part);
    }

    /// Starts another process; returns when its node is up.
    pub(crate) async fn add(&mut self, part: Part) {
        self.launch(part).await;
        let (id, process) = self.processes.last_mut().expect("it was just started");
        let line = process.wait_line("up ", LONG).await.unwrap();
        *id = line["up ".len()..].parse().unwrap();
    }

    /// One of the processes that run, and what it plays.
    pub(crate) fn random_process(&self, random: &mut impl Rng) -> (Part, &Process) {
        let all = self.parts.iter().zip(&self.processes);
        let running: Vec<_> = all.filter(|(_, (_, process))| process.is_running()).collect();
        let (part, (_, process)) = running[random.random_range(0..running.len())];
        (*part, process)
    }

    /// What another node is started with that has no part of its own.
    pub(crate) fn joiner_args(&self) -> NodeArgs {
        NodeArgs {
            seeds: vec![self.seed.addr().to_string()],
            state: Some(self.dir.path().join("keys")),
            roles: vec!["client".to_owned()],
            ..NodeArgs::default()
        }
    }

    /// Such a node in this process.
    pub(crate) async fn joiner(&self) -> Node {
        start(self.joiner_args(), true).await.unwrap()
    }

    /// The process of a node.
    pub(crate) fn process(&self, node: NodeId) -> &Process {
        &self.processes.iter().find(|(id, _)| *id == node).expect("it has a process").1
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A job on the stage's data; it computes on the processor.
    pub(crate) fn job(&self, name: &str) -> TrainingJob {
        job_on(&self.data(), name)
    }

    /// Lays an order out for whichever model takes it first.
    pub(crate) fn order(&self, order: Order) {
        fs::write(order.file(&self.dir.path().join("orders")), "").unwrap();
    }

    /// Lets models go on that hold.
    pub(crate) fn let_go(&self) {
        fs::write(self.dir.path().join("orders").join("go"), "").unwrap();
    }

    pub(crate) fn has_order(&self, order: Order) -> bool {
        order.file(&self.dir.path().join("orders")).exists()
    }

    /// The process whose model holds.
    pub(crate) async fn holding(&self) -> (NodeId, &Process) {
        // Those that were killed before don't count.
        let running = self.processes.iter().filter(|(_, process)| process.is_running());
        let waits = running.map(|(id, process)| {
            Box::pin(
                async move { process.wait_line("holding", LONG).await.map(|_| (*id, process)) },
            )
        });
        futures::future::select_ok(waits).await.expect("a model holds").0
    }

    /// Waits until no node has a part of a job any more.
    pub(crate) async fn is_cleared(&self) {
        use actors::{data::DataLoader, parameters::ParameterServer, training::Worker};
        until("the end of all parts of the job", async || {
            self.seed.find::<Worker>().await.is_empty()
                && self.seed.find::<ParameterServer>().await.is_empty()
                && self.seed.find::<DataLoader>().await.is_empty()
        })
        .await;
    }
}

fn job_on(data: &Path, name: &str) -> TrainingJob {
    TrainingJob::new(name, ModelSpec::of::<Tiny>(), DataSpec::idx(data))
        .optimizer(Adam::new(3e-3))
        .device(DeviceChoice::Cpu)
        .batch(BATCH)
        .epochs(3)
        .seed(7)
}

/// Follows a job to its end and keeps what happened.
pub(crate) async fn finish(mut job: RunningJob) -> (TrainingReport, Vec<JobEvent>) {
    let mut events = Vec::new();
    let report = soon(job.follow(|event| events.push(event.clone()))).await.unwrap();
    job.close().await.unwrap();
    (report, events)
}

/// Follows a job until so many steps are done.
pub(crate) async fn until_step(job: &mut RunningJob, wanted: u64) {
    soon(async {
        loop {
            match job.next().await.unwrap() {
                Some(JobEvent::Step { steps, .. }) if steps >= wanted => return,
                event => assert!(event.is_some(), "the job has ended"),
            }
        }
    })
    .await;
}

/// After the loss of a shard is declared, its backup has so long to take over.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// Follows a job until the backup of a lost shard has taken over; gives where it is.
pub(crate) async fn taken_over(job: &mut RunningJob, shard: u32) -> NodeId {
    let mut declared = None;
    soon(async {
        loop {
            match job.next().await.unwrap() {
                Some(JobEvent::ShardLost { shard: lost, why, .. }) if lost == shard => {
                    assert!(!why.is_empty());
                    declared = Some(Instant::now());
                }
                Some(JobEvent::ShardUp { shard: up, node }) if up == shard => {
                    let took = declared.expect("it was lost before").elapsed();
                    println!("taken over {took:?} after the loss was declared");
                    assert!(took < TAKE_OVER, "{took:?}");
                    return node;
                }
                Some(JobEvent::Failed(why)) => panic!("the job has failed: {why}"),
                event => assert!(event.is_some(), "the job has ended"),
            }
        }
    })
    .await
}

/// Follows a job until a shard has another backup; gives where it is.
pub(crate) async fn backup_up(job: &mut RunningJob, shard: u32) -> NodeId {
    soon(async {
        loop {
            match job.next().await.unwrap() {
                Some(JobEvent::BackupUp { shard: whole, node }) if whole == shard => return node,
                Some(JobEvent::Failed(why)) => panic!("the job has failed: {why}"),
                event => assert!(event.is_some(), "the job has ended"),
            }
        }
    })
    .await
}

/// Follows a job to its failure, which is told in one line.
pub(crate) async fn failure(mut job: RunningJob) -> String {
    let error = soon(job.wait()).await.expect_err("the job was to fail").to_string();
    assert!(!error.contains('\n'), "more than a line: {error}");
    error
}

pub(crate) async fn start(args: NodeArgs, knows_model: bool) -> Result<Node> {
    builder(args, knows_model)?.start().await
}

pub(crate) fn builder(args: NodeArgs, knows_model: bool) -> Result<NodeBuilder> {
    let models = models(knows_model)?;
    Ok(Node::builder(args).with(actors::cast(models)).join_timeout(LONG))
}

fn models(known: bool) -> Result<Models> {
    let mut models = Models::new();
    if known {
        models.register::<Tiny>().map_err(Error::other)?;
        models.register::<Counter>().map_err(Error::other)?;
    }
    Ok(models)
}

/// A node that hosts trainers, and none of the other parts of a job.
async fn start_for_trainers(args: NodeArgs) -> Result<Node> {
    use actors::training::trainer::{
        AskJob, AskOver, AskWeights, DismissParts, FollowJob, ResidualIsLost, UnfitData,
    };
    let builder = Node::builder(args).extension(Arc::new(models(true)?));
    let builder = builder.register::<Trainer>(|trainer| {
        trainer
            .handles::<FollowJob>()
            .handles::<AskJob>()
            .handles::<AskOver>()
            .handles::<AskWeights>()
            .handles::<DismissParts>()
            .handles::<UnfitData>()
            .handles::<ResidualIsLost>()
    });
    builder.join_timeout(LONG).start().await
}

/// Waits until the ledger bears the loss of a voter.
pub(crate) async fn three_voters(node: &Node) {
    voters(node, 3).await;
}

/// Waits until so many vote in the ledger, and all of them are there.
pub(crate) async fn voters(node: &Node, count: usize) {
    until("there are as many voters", async || {
        node.ledger().status().is_some_and(|ledger| {
            ledger.voters.len() == count && ledger.missing.is_empty() && ledger.leader.is_some()
        })
    })
    .await;
}

/// Submits a job for which a stage [was set](Stage::set_by_another). Its trainer is on a spare node.
async fn submit_when_all_are_there(node: &Node, job: &str) {
    let number = |name: &str| env::var(name).unwrap().parse::<u64>().unwrap();
    let nodes = number("TEST_NODES") as usize;
    let all = |members: &[Member]| members.iter().filter(|m| m.is_up()).count() == nodes;
    node.wait_for_members(LONG, all).await.unwrap();
    three_voters(node).await;
    let job = job_on(Path::new(&env::var("TEST_DATA").unwrap()), job).epochs(number("TEST_EPOCHS"));
    let job = job.trainer_on(Placement::role("spare")).submit(node).await.unwrap();
    println!("\nsubmitted");
    // Who has submitted a job need not follow it.
    drop(job);
}

/// The life of a process that plays a node: see the module.
pub(crate) fn play_node() {
    let Ok(state) = env::var("TEST_STATE") else { return };
    assert!(exit_with_parent().unwrap());
    let args = NodeArgs {
        listen: Some("127.0.0.1:0".to_owned()),
        seeds: env::var("TEST_SEED").into_iter().collect(),
        state: Some(state.into()),
        roles: vec![env::var("TEST_ROLE").unwrap()],
        token: env::var("TEST_TOKEN").ok().map(|token| token.parse().unwrap()),
        ..NodeArgs::default()
    };
    let is_set = |name| env::var(name).is_ok_and(|value| value == "yes");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let node = match is_set("TEST_TRAINERS_ONLY") {
            true => start_for_trainers(args).await,
            false => start(args, is_set("TEST_KNOWS_MODEL")).await,
        };
        let node = node.unwrap();
        // The harness has begun a line.
        println!("\nup {}", node.id());
        if let Ok(job) = env::var("TEST_JOB") {
            println!("\nat {}", node.addr());
            submit_when_all_are_there(&node, &job).await;
        }
        node.until_shutdown().await.unwrap();
    });
}
