//! A training job as a user describes it, and what it tells.

use std::time::Duration;

use footlight_cluster::{Node, Placement};
use footlight_runtime::{ActorRef, Error, NodeId, Result, Streamed, Watch, compute::DeviceChoice};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::trainer::{AskJob, FollowJob, Trainer};
use crate::{
    data::DataSpec,
    model::ModelSpec,
    parameters::optimizer::{Adam, OptimizerSpec},
    report::progress::{Progress, Tick},
    schedule::Schedule,
    training::weights::Weights,
};

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
/// println!("{:.2} % after {:?}", report.test_accuracy * 100.0, report.elapsed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a job does nothing until it is submitted"]
pub struct TrainingJob {
    spec: JobSpec,
    trainer: Placement,
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
    /// Workers at the same time.
    pub workers: u32,
    /// Shards of the parameter server.
    pub servers: u32,
    /// Where the workers compute.
    pub device: DeviceChoice,
    /// Samples of a batch, over all workers.
    pub batch: u32,
    /// Slots of a batch: the parts that are computed one by one. The result depends on their
    /// number, and not on the number of workers; more workers than slots have nothing to do.
    pub slots: u32,
    /// How often all samples are gone through.
    pub epochs: u64,
    /// Seed of the parameters' start, of the order and of the model's own randomness.
    pub seed: u64,
    /// The node that submitted the job.
    pub submitter: NodeId,
}

impl TrainingJob {
    /// A job of 6 epochs with Adam (learning rate 5e-3, cosine), batch 128 in 4 slots, 2 workers,
    /// 2 shards, on a GPU where there is one, seed 0.
    pub fn new(name: impl Into<String>, model: ModelSpec, data: DataSpec) -> Self {
        TrainingJob {
            spec: JobSpec {
                name: name.into(),
                model,
                data,
                optimizer: Adam::new(5e-3).schedule(Schedule::Cosine).into(),
                workers: 2,
                servers: 2,
                device: DeviceChoice::Auto,
                batch: 128,
                slots: 4,
                epochs: 6,
                seed: 0,
                submitter: NodeId(0),
            },
            trainer: Placement::Here,
        }
    }

    /// The optimiser: [`Adam`] or [`Sgd`](crate::parameters::optimizer::Sgd).
    pub fn optimizer(mut self, optimizer: impl Into<OptimizerSpec>) -> Self {
        self.spec.optimizer = optimizer.into();
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
    /// Where the workers compute.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.spec.device = device;
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
    /// The seed: the same seed gives the same parameters, bit for bit, for any number of workers.
    pub fn seed(mut self, seed: u64) -> Self {
        self.spec.seed = seed;
        self
    }

    /// Where the trainer runs. Default: on the node that submits, and the job ends with it.
    pub fn trainer_on(mut self, placement: Placement) -> Self {
        self.trainer = placement;
        self
    }

    /// Starts the job.
    ///
    /// # Errors
    /// Settings that can't work, data that can't be read, no node for a part of the job.
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
            ("epochs", spec.epochs),
        ] {
            if number == 0 {
                return wrong(what, "must be at least 1");
            }
        }
        if spec.slots > spec.batch {
            return wrong("slots", "can't be more than samples of a batch");
        }
        spec.optimizer.validate().map_err(Error::other)?;
        let trainer = node.spawn::<Trainer>(spec).on(trainer).await?;
        RunningJob::follow_at(node, trainer).await
    }
}

/// What happens to a job, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JobEvent {
    /// All parts are placed; the first step begins.
    Started {
        /// Steps of the whole job.
        steps: u64,
        /// Steps of one epoch.
        steps_per_epoch: u32,
        /// Training samples.
        samples: u32,
        /// Where each shard is.
        servers: Vec<NodeId>,
        /// Where the data loader is.
        loader: NodeId,
    },
    /// A worker is up.
    WorkerUp {
        /// Its name, kept over its starts.
        worker: String,
        /// Where it is.
        node: NodeId,
        /// How often it had been started before.
        starts: u32,
        /// Where it computes: `cpu`, `cuda:0`, …
        device: String,
    },
    /// A worker is gone; what it had not finished goes to the others or to its successor.
    WorkerLost {
        /// Its name.
        worker: String,
        /// Where it was.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// A step was applied.
    Step {
        /// Steps applied so far.
        steps: u64,
        /// Samples trained on so far, over all epochs.
        samples: u64,
        /// The mean loss of the step's batch.
        loss: f32,
        /// Members of the cluster that are up.
        live_nodes: u32,
        /// Members that the cluster has had.
        nodes: u32,
    },
    /// An epoch's parameters were evaluated on the test samples.
    Evaluated {
        /// Steps applied.
        steps: u64,
        /// Share of the test samples that were classified rightly: 0 to 1.
        accuracy: f64,
        /// Their mean loss.
        loss: f64,
    },
    /// The job is done. Its parameters stay at the shards until the job is [closed](RunningJob::close).
    Done(TrainingReport),
    /// The job can't go on.
    Failed(String),
}

/// A finished job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Share of the test samples that were classified rightly: 0 to 1.
    pub test_accuracy: f64,
    /// Their mean loss.
    pub test_loss: f64,
    /// Steps applied.
    pub steps: u64,
    /// Samples trained on, over all epochs.
    pub samples: u64,
    /// From the first slot handed out to the last step applied.
    pub elapsed: Duration,
    /// SHA-256 of the final parameters' bytes (`f32`, little-endian, sorted by name), in hex.
    pub parameters_sha256: String,
}

/// A job that runs, or has run and still holds its parameters.
#[derive(Debug)]
pub struct RunningJob {
    trainer: ActorRef<Trainer>,
    events: Streamed<JobEvent>,
    /// The trainer's end.
    end: Option<Watch>,
    node: Node,
}

/// When the events have ended, the news of the trainer's end is waited for so long.
const END_PATIENCE: Duration = Duration::from_secs(5);

impl RunningJob {
    async fn follow_at(node: &Node, trainer: ActorRef<Trainer>) -> Result<Self> {
        let end = Some(node.watch(&trainer));
        let events = trainer.call(FollowJob).await?;
        Ok(RunningJob { trainer, events, end, node: node.clone() })
    }

    /// Finds a job of this cluster by its name: one that runs, or is done and still holds its
    /// parameters.
    ///
    /// # Errors
    /// If there is none; the names of those there are.
    pub async fn attach(node: &Node, name: &str) -> Result<Self> {
        let mut names = Vec::new();
        for trainer in node.find::<Trainer>().await {
            let Ok(spec) = trainer.call(AskJob).await else { continue };
            if spec.name == name {
                return RunningJob::follow_at(node, trainer).await;
            }
            names.push(spec.name);
        }
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Error::other(format!("there is no job `{name}` in this cluster; there are: {there}")))
    }

    /// What the job is.
    ///
    /// # Errors
    /// If its trainer is gone.
    pub async fn spec(&self) -> Result<JobSpec> {
        Ok(self.trainer.call(AskJob).await?)
    }

    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// If the trainer's node is lost.
    pub async fn next(&mut self) -> Result<Option<JobEvent>> {
        self.events.next().await.transpose().map_err(Error::other)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Why the job failed.
    pub async fn wait(&mut self) -> Result<TrainingReport> {
        self.follow(|_| {}).await
    }

    /// Waits for the end and tells of each event on the way.
    ///
    /// # Errors
    /// Why the job failed.
    pub async fn follow(&mut self, mut tell: impl FnMut(&JobEvent)) -> Result<TrainingReport> {
        while let Some(event) = self.next().await? {
            tell(&event);
            match event {
                JobEvent::Done(report) => return Ok(report),
                JobEvent::Failed(why) => return Err(Error::other(why)),
                _ => {}
            }
        }
        let end = self.end.take().map(|end| tokio::time::timeout(END_PATIENCE, end));
        let why = match futures::future::OptionFuture::from(end).await {
            Some(Ok(down)) => format!(": {down}"),
            _ => String::new(),
        };
        Err(Error::other(format!("the trainer ended before the job was done{why}")))
    }

    /// Waits for the end with a progress bar on standard error.
    ///
    /// # Errors
    /// Why the job failed.
    pub async fn wait_with_progress(&mut self) -> Result<TrainingReport> {
        let mut shown = Shown::new(self.spec().await?.epochs);
        self.follow(|event| shown.event(event)).await
    }

    /// Where the job's parameters are.
    ///
    /// # Errors
    /// If the job has not begun yet, or its trainer is gone.
    pub async fn weights(&self) -> Result<Weights> {
        let weights = self.trainer.call(super::trainer::AskWeights).await?;
        weights.ok_or_else(|| Error::other("the job has no parameters yet"))
    }

    /// Ends the job and lets its parameters go.
    pub async fn close(self) {
        let watch = self.node.watch(&self.trainer);
        self.trainer.stop();
        watch.await;
    }
}

/// Shows a job's events on standard error.
#[derive(Debug)]
pub struct Shown {
    epochs: u64,
    progress: Option<Progress>,
}

impl Shown {
    /// Shows a job of so many epochs.
    pub fn new(epochs: u64) -> Self {
        Shown { epochs, progress: None }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &JobEvent) {
        if let JobEvent::Started { steps_per_epoch, .. } = event {
            self.progress = Some(Progress::new(self.epochs, u64::from(*steps_per_epoch)));
        }
        let Some(progress) = &mut self.progress else { return };
        match event {
            JobEvent::Step { steps, samples, loss, live_nodes, nodes } => {
                progress.update(&Tick {
                    steps: *steps,
                    loss: *loss,
                    samples: *samples,
                    live_nodes: *live_nodes as usize,
                    nodes: *nodes as usize,
                });
            }
            JobEvent::WorkerUp { worker, node, starts, .. } if *starts > 0 => {
                progress.note(&format!("{worker} is started again, on node {node}"));
            }
            JobEvent::WorkerLost { worker, node, why } => {
                progress.note(&format!("{worker} on node {node} is gone: {why}"));
            }
            JobEvent::Evaluated { accuracy, .. } => {
                progress.note(&format!("  test accuracy {:.2} %", accuracy * 100.0));
            }
            _ => {}
        }
    }

    /// Shows a line of the caller's.
    pub fn note(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None => eprintln!("{text}"),
        }
    }
}
