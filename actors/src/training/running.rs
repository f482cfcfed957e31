//! A job that runs, as who has submitted or found it sees it.

use std::time::Duration;

use footlight_cluster::{Node, singleton::SingletonState};
use footlight_runtime::{ActorRef, Error, Result, Streamed};
use futures::StreamExt;
use tokio::time::Instant;

use super::{
    event::{JobEvent, TrainingReport},
    job::JobSpec,
    shown::Shown,
    trainer::{AskJob, AskOver, AskWeights, DismissParts, FollowJob, Trainer},
    weights::Weights,
};
use crate::owner::ADOPTION;

/// The name of a job's trainer among the cluster's singletons.
const SINGLETONS: &str = "job/";

/// A job that runs, or has run and still holds its parameters.
#[derive(Debug)]
pub struct RunningJob {
    job: Follow,
    /// Its trainer as of the events that are being read.
    trainer: ActorRef<Trainer>,
    events: Streamed<JobEvent>,
    /// The last event has been read.
    ended: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Follow {
    node: Node,
    pub(super) singleton: String,
}

/// A trainer is called again after this, while its successor is on its way.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A trainer has so long to let the parts of its job go.
const DISMISS: Duration = Duration::from_secs(10);

impl Follow {
    pub(super) fn new(node: &Node, job: &str) -> Self {
        Follow { node: node.clone(), singleton: format!("{SINGLETONS}{job}") }
    }

    /// The trainer and its events from the first on, waiting for a trainer that is on its way; and, for so long, for a
    /// ledger that does not answer.
    async fn events(&self, patience: Duration) -> Result<(ActorRef<Trainer>, Streamed<JobEvent>)> {
        let mut answered = Instant::now();
        loop {
            let found = match self.node.find_singleton(&self.singleton).await {
                Err(error) if answered.elapsed() < patience => {
                    tracing::warn!(%error, "where the job's trainer is can't be known now");
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
                found => found?,
            };
            answered = Instant::now();
            match found {
                SingletonState::Running { actor, .. } => {
                    let trainer = ActorRef::<Trainer>::at(actor, self.node.system());
                    match trainer.call(FollowJob).await {
                        Ok(events) => return Ok((trainer, events)),
                        // It has gone meanwhile, or is not reachable now: there is news soon.
                        Err(error) => tracing::debug!(%error, "the trainer does not answer"),
                    }
                }
                SingletonState::Waiting => {}
                SingletonState::Failed(why) => return Err(Error::other(why)),
                _ => {
                    let why = "the job was closed, or its trainer ended, before it was done";
                    return Err(Error::other(why));
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

impl RunningJob {
    pub(super) async fn begin(job: Follow) -> Result<Self> {
        let (trainer, events) = job.events(Duration::ZERO).await?;
        Ok(RunningJob { job, trainer, events, ended: false })
    }

    /// Finds a job of this cluster by its name: one that runs, or is done and still holds its
    /// parameters.
    ///
    /// # Errors
    /// If there is none; the names of those there are.
    pub async fn attach(node: &Node, name: &str) -> Result<Self> {
        let jobs = Self::names(node).await?;
        if jobs.iter().any(|job| job == name) {
            return RunningJob::begin(Follow::new(node, name)).await;
        }
        let there = if jobs.is_empty() { "none".to_owned() } else { jobs.join(", ") };
        Err(Error::other(format!("there is no job `{name}` in this cluster; there are: {there}")))
    }

    /// The names of the cluster's jobs, sorted.
    ///
    /// # Errors
    /// If the ledger can't be reached.
    pub async fn names(node: &Node) -> Result<Vec<String>> {
        let singletons = node.singletons().await?;
        let names = singletons.iter().filter_map(|s| s.name.strip_prefix(SINGLETONS));
        Ok(names.map(str::to_owned).collect())
    }

    /// Whether the job is done or has failed, as far as its trainer has told by now.
    ///
    /// # Errors
    /// If its trainer is gone.
    pub async fn is_over(&self) -> Result<bool> {
        Ok(self.trainer.call(AskOver).await?)
    }

    /// What the job is.
    ///
    /// # Errors
    /// If its trainer is gone.
    pub async fn spec(&self) -> Result<JobSpec> {
        Ok(self.trainer.call(AskJob).await?)
    }

    /// The next event; `None` after the last one. When the trainer's node is lost, the events go on
    /// with [`JobEvent::Resumed`], also when the ledger's voters are away for up to a minute.
    ///
    /// # Errors
    /// If the job ended without saying so: it was closed, or can't be taken up again.
    pub async fn next(&mut self) -> Result<Option<JobEvent>> {
        if self.ended {
            return Ok(None);
        }
        if let Some(Ok(event)) = self.events.next().await {
            self.ended = matches!(event, JobEvent::Done(_) | JobEvent::Failed(_));
            return Ok(Some(event));
        }
        // The job's parts wait for a trainer as long.
        (self.trainer, self.events) = self.job.events(ADOPTION).await?;
        match self.events.next().await {
            // What the new trainer begins with is known already.
            Some(Ok(JobEvent::Started { .. })) => {}
            Some(Ok(event)) => return Ok(Some(event)),
            _ => {}
        }
        Ok(Some(JobEvent::Resumed { trainer: self.trainer.addr().node }))
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
        Err(Error::other("the job's last event was read before"))
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
    /// If its trainer is gone.
    pub async fn weights(&self) -> Result<Weights> {
        Ok(self.trainer.call(AskWeights).await?)
    }

    /// Ends the job and lets its parameters go.
    ///
    /// # Errors
    /// If the ledger can't be reached: then the job goes on.
    pub async fn close(self) -> Result<()> {
        if let Err(error) = self.trainer.call_within(DismissParts, DISMISS).await {
            // They end by themselves when no trainer comes.
            tracing::warn!(%error, "the parts of the job could not be dismissed");
        }
        self.job.node.end_singleton(&self.job.singleton).await
    }
}
