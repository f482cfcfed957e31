//! The data loader of a job, kept up.
//!
//! A loader holds nothing that can't be made again: the order of an epoch follows from the seed, and
//! what has been done is known by the shards. So one that is lost is started on another node and
//! begins at the first step that is not applied. Slots that were on their way are computed twice
//! then, and a shard takes each of them once.

use std::time::Duration;

use footlight_cluster::{Node, Placement};
use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Error, Result,
    supervision::{ChildEvent, ChildSpec, OneForOne, Restart, Supervisor},
};
use tokio::sync::mpsc;

use super::{
    event::JobEvent,
    job::JobSpec,
    log::Log,
    parts::{Placed, nodes_for},
};
use crate::data::{
    DataLoader, LoaderSpec,
    loader::{Describe, Description},
};

/// More ends and failed starts than this within [`RESTARTS_WITHIN`], and there is no loader to be
/// had. With the back-off that is half a minute of failed starts: enough for the only node that has
/// the data to come back.
const RESTARTS: u32 = 10;
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);

/// The data loader of a job. Dropping it stops the loader.
pub(super) struct Feed {
    /// What happens to the loader, in order: to be handed to [`Feed::event`].
    pub(super) events: mpsc::UnboundedReceiver<ChildEvent>,
    /// The loader as of the events that were taken note of.
    pub(super) loader: ActorRef<DataLoader>,
    /// Why it ended or could not be started, the last time.
    last_failure: String,
    _supervisor: Supervisor,
}

/// Starts a loader that hands out what comes after so many steps.
pub(super) async fn load(
    spec: &JobSpec,
    node: &Node,
    owner: ActorAddr,
    committed: u64,
) -> Result<(ActorRef<DataLoader>, Description)> {
    let at = nodes_for(&node.members(), spec.submitter, "loader", DataLoader::NAME)?;
    let loader = LoaderSpec {
        data: spec.data.clone(),
        seed: spec.seed,
        batch: spec.batch,
        slots: spec.slots,
        epochs: spec.epochs,
        committed,
        consistency: spec.consistency,
        slots_stay: spec.feeds_back(),
        meeting_every: spec.meeting_every(),
        owner,
    };
    let loader = node.spawn::<DataLoader>(loader).on(Placement::any_of(at)).await?;
    let data = loader.call(Describe).await?;
    Ok((loader, data))
}

impl Feed {
    /// Keeps a job's loader up, beginning with `first`; or with one of its own, if the job is taken
    /// over and its loader has gone with the trainer before.
    ///
    /// # Errors
    /// If no loader can be started.
    pub(super) async fn start(
        job: &Placed,
        first: Option<ActorRef<DataLoader>>,
        owner: ActorAddr,
    ) -> Result<Self> {
        let (told, mut events) = mpsc::unbounded_channel();
        let supervision = OneForOne::new().at_most(RESTARTS, RESTARTS_WITHIN);
        let (spec, weights, node, known) =
            (job.spec.clone(), job.weights.clone(), job.node.clone(), job.data.clone());
        let first = first.map(|first| first.addr());
        let child = ChildSpec::new("loader", Restart::Permanent, move |attempt| {
            let (spec, weights, node) = (spec.clone(), weights.clone(), node.clone());
            let known = known.clone();
            async move {
                if let Some(first) = first.filter(|_| attempt.number == 0) {
                    return Ok(first);
                }
                let applied = weights.applied().await?;
                let (loader, data) = load(&spec, &node, owner, applied).await?;
                if data != known {
                    loader.stop();
                    return Err(Error::other(format!(
                        "the data on node {} is not what the job began with: {data}, and it was {known}",
                        loader.addr().node
                    )));
                }
                Ok(loader.addr())
            }
        });
        let system = job.node.system();
        let supervisor = Supervisor::start(system, supervision, vec![child], told).await?;
        let loader = loop {
            match events.recv().await {
                Some(ChildEvent::Started { actor, .. }) => break actor,
                Some(_) => {}
                None => return Err(Error::other("the node ended while the loader was started")),
            }
        };
        Ok(Feed {
            events,
            loader: ActorRef::at(loader, system),
            last_failure: String::new(),
            _supervisor: supervisor,
        })
    }

    /// Takes note of an event; says whether there is another loader now.
    ///
    /// # Errors
    /// If no loader can be kept up.
    pub(super) fn event(&mut self, event: ChildEvent, log: &Log) -> Result<bool> {
        match event {
            ChildEvent::Started { actor, .. } => {
                self.loader = ActorRef::at(actor, self.loader.system());
                log.tell(JobEvent::LoaderUp { node: actor.node });
                return Ok(true);
            }
            ChildEvent::Down { actor, down, .. } => {
                let why = down.to_string();
                self.last_failure = format!("it ended on node {}: {why}", actor.node);
                log.tell(JobEvent::LoaderLost { node: actor.node, why });
            }
            ChildEvent::StartFailed { why, .. } => {
                tracing::warn!(why, "the data loader could not be started");
                self.last_failure = why;
            }
            ChildEvent::GaveUp { .. } => {
                let (last, within) = (&self.last_failure, RESTARTS_WITHIN.as_secs());
                return Err(Error::other(format!(
                    "the data loader can't be kept up, it failed more than {RESTARTS} times within \
                     {within} s; the last time: {last}"
                )));
            }
            _ => {}
        }
        Ok(false)
    }
}
