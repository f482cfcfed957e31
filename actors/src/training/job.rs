//! A training job as a user describes it.

use footlight_cluster::{Member, Node, Placement, singleton::SingletonPolicy};
use footlight_runtime::{Actor, Error, NodeId, Result, compute::DeviceChoice, tensor::WireFormat};
use serde::{Deserialize, Serialize};

use super::{
    residuals::JobId,
    running::{Follow, RunningJob},
    trainer::Trainer,
};
use crate::{
    checkpoint::Checkpoints,
    consistency::Consistency,
    data::DataSpec,
    model::{ModelSpec, Precision},
    parameters::{
        optimizer::{Adam, OptimizerSpec},
        rule::{NonFinite, StepRule},
    },
    schedule::Schedule,
};

/// Most backups that a shard may have.
const MAX_REPLICAS: u32 = 2;

/// A job that is being described. Every setting has a default but the data.
///
/// ```no_run
/// # use footlight_actors::{data::DataSpec, model::{LeNet5, ModelSpec}, training::TrainingJob};
/// # async fn f(node: footlight_cluster::Node) -> footlight_runtime::Result<()> {
/// let mut job = TrainingJob::new("digits", ModelSpec::of::<LeNet5>(), DataSpec::idx("data/mnist"))
///     .workers(4)
///     .servers(2)
///     .epochs(10)
///     .seed(7)
///     .submit(&node)
///     .await?;
/// let report = job.wait_with_progress().await?;
/// println!("{:.2} % after {:?}", report.test_accuracy.unwrap_or(0.0) * 100.0, report.elapsed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a job does nothing until it is submitted"]
pub struct TrainingJob {
    spec: JobSpec,
    trainer: Option<Placement>,
}

/// A job as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its name.
    pub name: String,
    /// The model, registered on every node that computes.
    pub model: ModelSpec,
    /// The data, readable at the loader's node (training part) and the trainer's (test part).
    pub data: DataSpec,
    /// How gradients become parameters.
    pub optimizer: OptimizerSpec,
    /// What is to be known of a step's whole gradient before it is applied.
    pub rule: StepRule,
    /// How far apart workers may be.
    pub consistency: Consistency,
    /// How gradients and parameters travel between workers and shards.
    pub wire: WireFormat,
    /// In which numbers workers compute.
    pub precision: Precision,
    /// In how many parts the samples of a slot go through the model, one after the other.
    pub parts: u32,
    /// Workers at the same time.
    pub workers: u32,
    /// Shards of the parameter server.
    pub servers: u32,
    /// Backups that each shard has on other nodes.
    pub replicas: u32,
    /// Where the workers compute: each the next one, and then from the first on again.
    pub devices: Vec<DeviceChoice>,
    /// Samples of a batch, over all workers.
    pub batch: u32,
    /// Slots of a batch: the parts that are computed one by one. The result depends on their
    /// number, and not on the number of workers; more workers than slots have nothing to do.
    pub slots: u32,
    /// How often all samples are gone through.
    pub epochs: u64,
    /// Seed of the parameters' start, of the order and of the model's own randomness.
    pub seed: u64,
    /// Where and how often the job's state is saved, if at all.
    pub checkpoints: Option<Checkpoints>,
    /// Whether the job goes on from its newest checkpoint.
    pub resume: bool,
    /// The node that submitted the job.
    pub submitter: NodeId,
    /// Tells jobs of one name apart that come after each other.
    pub submission: u64,
}

impl JobSpec {
    /// What is rounded off gradients is added to the next ones.
    pub(super) fn feeds_back(&self) -> bool {
        self.wire == WireFormat::Int8
    }

    /// Which of all jobs it is.
    pub fn id(&self) -> JobId {
        JobId { name: self.name.clone(), submission: self.submission }
    }

    /// After so many steps all workers wait for each other. A state that is saved is one of whole steps; where slots are
    /// applied one by one, there is none otherwise.
    pub(super) fn meeting_every(&self) -> Option<u64> {
        let checkpoints = self.checkpoints.as_ref().filter(|_| self.consistency.is_by_slot());
        checkpoints.map(Checkpoints::every)
    }
}

impl TrainingJob {
    /// A job of 6 epochs with Adam (learning rate 5e-3, cosine), batch 128 in 4 slots, 2 workers,
    /// 2 shards, on GPUs where there are some, seed 0.
    pub fn new(name: impl Into<String>, model: ModelSpec, data: DataSpec) -> Self {
        TrainingJob {
            spec: JobSpec {
                name: name.into(),
                model,
                data,
                optimizer: Adam::new(5e-3).schedule(Schedule::Cosine).into(),
                rule: StepRule::default(),
                consistency: Consistency::default(),
                wire: WireFormat::F32,
                precision: Precision::F32,
                parts: 1,
                workers: 2,
                servers: 2,
                replicas: 0,
                devices: vec![DeviceChoice::Auto],
                batch: 128,
                slots: 4,
                epochs: 6,
                seed: 0,
                checkpoints: None,
                resume: false,
                submitter: NodeId(0),
                submission: 0,
            },
            trainer: None,
        }
    }

    /// The optimiser: one of [`optimizer`](crate::parameters::optimizer).
    pub fn optimizer(mut self, optimizer: impl Into<OptimizerSpec>) -> Self {
        self.spec.optimizer = optimizer.into();
        self
    }
    /// How far apart workers may be: bulk synchronous (the default, the only mode that gives the same bits each time),
    /// bounded staleness, or asynchronous. Which one to choose when: docs/choosing.md.
    ///
    /// An asynchronous job has no whole gradient, so it can't clip by the norm, leave steps out or compute in fp16, and
    /// its shards have no backups; to save its state, its workers wait for each other.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.spec.consistency = consistency;
        self
    }
    /// Scales gradients down to this norm, over all parameters, where they are longer (PyTorch's `clip_grad_norm_`).
    /// Default: they stay as they are. Costs a round trip between the shards in each step.
    pub fn clip_norm(mut self, norm: f64) -> Self {
        self.spec.rule = self.spec.rule.clip_norm(norm);
        self
    }
    /// What becomes of a step whose gradient is not finite. Default: it stops the job. Leaving steps out costs a round
    /// trip between the shards in each step.
    pub fn non_finite(mut self, non_finite: NonFinite) -> Self {
        self.spec.rule = self.spec.rule.non_finite(non_finite);
        self
    }
    /// How gradients and parameters travel between workers and shards: f32 (the default), or bf16 or fp16, which halve
    /// what crosses the network. The shards sum and keep f32 all the same; workers compute with rounded parameters.
    ///
    /// int8 halves what gradients take once more, and parameters travel as bf16. What is rounded off a slot's gradient
    /// is added to its next one ([error feedback](crate::training::residuals)), which takes memory: for each slot two
    /// bytes a parameter, four in a job that is saved, where it is computed, and as much on another node, to which
    /// a copy goes in each step. It needs the bulk synchronous mode, and can't be had with fp16 on the worker. If both
    /// nodes are lost at once, that shows in the job's result, and it tells of it
    /// ([`JobEvent::ResidualLost`](super::JobEvent::ResidualLost)).
    pub fn wire(mut self, wire: WireFormat) -> Self {
        self.spec.wire = wire;
        self
    }
    /// In which numbers workers compute: f32 (the default), bf16, or fp16 with a loss that is scaled as PyTorch's
    /// `GradScaler` does it. The shards keep f32 masters. fp16 leaves out steps whose gradient is not finite, as
    /// [`non_finite`](Self::non_finite) says, 100 in a row at most if it says nothing.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.spec.precision = precision;
        self
    }
    /// Accumulates gradients: the samples of a slot go through the model in so many parts, one after the other, and
    /// their gradients' sum is pushed. For batches that do not fit into a device's memory. Default 1.
    pub fn accumulate(mut self, parts: u32) -> Self {
        self.spec.parts = parts;
        self
    }
    /// Workers at the same time.
    pub fn workers(mut self, workers: u32) -> Self {
        self.spec.workers = workers;
        self
    }
    /// Shards of the parameter server, on different nodes if there are enough.
    pub fn servers(mut self, servers: u32) -> Self {
        self.spec.servers = servers;
        self
    }

    /// Backups that each shard has on other nodes, 0 to 2. Default 0: the job ends if a shard is lost, and goes on from
    /// its last [checkpoint](Self::checkpoints) if it is submitted again. With one, a shard may be lost at any time
    /// without a trace in the result; each step costs the time that its sum takes to the backup.
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.spec.replicas = replicas;
        self
    }
    /// Where the workers compute, all alike.
    pub fn device(self, device: DeviceChoice) -> Self {
        self.devices([device])
    }
    /// Where each worker computes: worker *i* has entry *i* mod the list's length. `Auto` gives the
    /// workers of one machine its GPUs in turn.
    pub fn devices(mut self, devices: impl IntoIterator<Item = DeviceChoice>) -> Self {
        self.spec.devices = devices.into_iter().collect();
        self
    }
    /// Samples of a batch, over all workers.
    pub fn batch(mut self, batch: u32) -> Self {
        self.spec.batch = batch;
        self
    }
    /// Slots of a batch: at most so many workers compute at the same time.
    pub fn slots(mut self, slots: u32) -> Self {
        self.spec.slots = slots;
        self
    }
    /// How often all samples are gone through.
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.spec.epochs = epochs;
        self
    }
    /// Saves the job's state now and then, for [`resume`](Self::resume), and its model for whoever wants it. Default: nothing
    /// is saved.
    pub fn checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.spec.checkpoints = Some(checkpoints);
        self
    }
    /// Goes on from the newest checkpoint that is whole; from the start if there is none yet. The result is that of a job
    /// that was never stopped, bit for bit, whatever the number of workers and of shards. Without this a job is refused
    /// whose folder has checkpoints already.
    pub fn resume(mut self) -> Self {
        self.spec.resume = true;
        self
    }
    /// The seed: the same seed gives the same parameters, bit for bit, for any number of workers.
    pub fn seed(mut self, seed: u64) -> Self {
        self.spec.seed = seed;
        self
    }

    /// Where the trainer may run. Default: on a node of role `server` if there is one that hosts it,
    /// else on any that does.
    pub fn trainer_on(mut self, placement: Placement) -> Self {
        self.trainer = Some(placement);
        self
    }

    /// Starts the job. From here on the cluster holds it: it goes on when this process and its node
    /// are gone, and [`RunningJob::attach`] finds it again.
    ///
    /// # Errors
    /// Settings that can't work, data that can't be read, no node for a part of the job, another job
    /// of this name.
    pub async fn submit(self, node: &Node) -> Result<RunningJob> {
        let TrainingJob { mut spec, trainer } = self;
        spec.submitter = node.id();
        let wrong =
            |what: &str, why: &str| Err(Error::other(format!("job `{}`: {what} {why}", spec.name)));
        for (what, number) in [
            ("workers", u64::from(spec.workers)),
            ("servers", u64::from(spec.servers)),
            ("batch", u64::from(spec.batch)),
            ("slots", u64::from(spec.slots)),
            ("parts of a slot", u64::from(spec.parts)),
            ("epochs", spec.epochs),
        ] {
            if number == 0 {
                return wrong(what, "must be at least 1");
            }
        }
        if spec.replicas > MAX_REPLICAS {
            return wrong("replicas", "can't be more than 2");
        }
        if let Some(Err(why)) = spec.checkpoints.as_ref().map(Checkpoints::validate) {
            return wrong("checkpoints", why);
        }
        if spec.resume && spec.checkpoints.is_none() {
            return wrong("resume", "needs to know where the checkpoints are");
        }
        if spec.devices.is_empty() {
            return wrong("devices", "must be at least one");
        }
        if spec.slots > spec.batch {
            return wrong("slots", "can't be more than samples of a batch");
        }
        if spec.feeds_back() && !spec.consistency.is_exact() {
            return wrong(
                "wire format int8",
                "needs the bulk synchronous mode: each gradient takes what was rounded off the step before",
            );
        }
        if spec.feeds_back() && spec.precision == Precision::Fp16 {
            return wrong(
                "wire format int8",
                "can't be had with fp16, whose gradients are scaled otherwise from step to step: choose bf16 or f32",
            );
        }
        if let Err(error) = spec.data.validate() {
            return wrong("data:", &error.to_string());
        }
        spec.optimizer.validate().map_err(Error::other)?;
        spec.rule.validate().map_err(Error::other)?;
        if spec.precision == Precision::Fp16 {
            spec.rule = spec.rule.scale_loss();
        }
        spec.consistency.validate().map_err(Error::other)?;
        if spec.consistency.is_by_slot() {
            if spec.rule.is_global() {
                return wrong(
                    "the asynchronous mode",
                    "has no whole gradient to clip or to leave out, and so no fp16 either: choose another",
                );
            }
            if spec.replicas > 0 {
                return wrong(
                    "the asynchronous mode",
                    "has no backups of shards: choose another, or no replicas and checkpoints",
                );
            }
        }
        spec.submission = node.unique_number();
        let trainer = trainer.unwrap_or_else(|| trainer_place(&node.members()));
        let job = Follow::new(node, &spec.name);
        if RunningJob::names(node).await?.contains(&spec.name) {
            let why = "already: attach to it, close it, or choose another name";
            return wrong("there is one of this name", why);
        }
        node.singleton::<Trainer>(&job.singleton, spec)
            .on(trainer)
            .policy(SingletonPolicy::UntilItEnds)
            .start()
            .await?;
        RunningJob::begin(job).await
    }
}

/// A trainer belongs where it is not in the way of what it trains.
fn trainer_place(members: &[Member]) -> Placement {
    let serves = |member: &Member| {
        member.is_up()
            && member.roles.iter().any(|role| role == "server")
            && member.actors.iter().any(|hosted| hosted == Trainer::NAME)
    };
    if members.iter().any(serves) { Placement::role("server") } else { Placement::anywhere() }
}
