//! Starts children, learns of their ends, and does what [`Restarts`] decides.
//!
//! A child is whatever a [`ChildSpec`] starts: an actor on this node or on another. Where it runs is
//! decided anew at each start, which is how a lost node's children move to another one.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    child::{ChildError, ChildEvent, ChildSpec},
    run::{Command, FirstStart, Run},
    strategy::{Restarts, Supervision},
};
use crate::{Error, Result, System, id::ActorAddr};

/// Where each child of a supervisor is. Cheap to clone; shows what is so now.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<BTreeMap<usize, Place>>>);

#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) actor: Option<ActorAddr>,
}

impl Places {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Place>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Where a child is now; `None` while it is not up, or if there is none of this name.
    pub fn of(&self, child: &str) -> Option<ActorAddr> {
        let places = self.lock();
        places.values().find(|place| place.name == child).and_then(|place| place.actor)
    }

    /// All children by name, in the order of the specification.
    pub fn all(&self) -> Vec<(String, Option<ActorAddr>)> {
        self.lock().values().map(|place| (place.name.clone(), place.actor)).collect()
    }

    pub(super) fn has(&self, child: &str) -> bool {
        self.lock().values().any(|place| place.name == child)
    }
}

/// Why a supervisor has ended: it was stopped or has no child left, or this was too much.
pub(super) type Outcome = std::result::Result<(), String>;

/// A running supervisor. Dropping it stops its children.
pub struct Supervisor {
    stop: CancellationToken,
    commands: mpsc::UnboundedSender<Command>,
    places: Places,
    ended: watch::Receiver<Option<Outcome>>,
}

impl Supervisor {
    /// Starts the children and waits until each is up for the first time. What happens afterwards
    /// is told to `events`.
    ///
    /// # Errors
    /// If two children have one name, or if the supervision gives up before all children are up:
    /// what the last one's start said.
    pub async fn start(
        system: &System,
        supervision: Supervision,
        children: Vec<ChildSpec>,
        events: mpsc::UnboundedSender<ChildEvent>,
    ) -> Result<Self> {
        let places = Places::default();
        for (index, child) in children.iter().enumerate() {
            if places.has(&child.name) {
                return Err(ChildError::Taken(child.name.clone()).into());
            }
            let place = Place { name: child.name.clone(), actor: None };
            places.lock().insert(index, place);
        }
        let stop = CancellationToken::new();
        let first = if children.is_empty() { FirstStart::Up } else { FirstStart::Pending };
        let (up, mut all_up) = watch::channel(first);
        let (end, ended) = watch::channel(None);
        let (commands, commanded) = mpsc::unbounded_channel();
        // A stream of its own, or the supervisors of a node would all wait in step.
        let stream = format!("supervisor {}", system.fresh_number());
        let restarts = Restarts::new(
            supervision,
            children.iter().map(|child| child.restart),
            Box::new(system.env().seeds.stream(&stream)),
        );
        let run = Run::new(system.clone(), restarts, children, places.clone(), events, up);
        // From here on: whoever drops this drops the children.
        let supervisor = Supervisor { stop: stop.clone(), commands, places, ended };
        system.env().spawner.spawn(async move {
            let outcome = run.run(stop, commanded, supervision.stays).await;
            end.send_replace(Some(outcome));
        });
        let failed = {
            let outcome = all_up.wait_for(|state| !matches!(state, FirstStart::Pending)).await;
            match outcome.as_deref() {
                Ok(FirstStart::Failed(why)) => why.clone(),
                Ok(_) => return Ok(supervisor),
                Err(_) => {
                    let why = "the node ended while children were being started";
                    return Err(Error::other(why));
                }
            }
        };
        // Whoever tries again finds none of them left.
        let _ = supervisor.ended().await;
        Err(Error::other(failed))
    }

    /// Where a child is now; `None` while it is not up.
    pub fn place(&self, child: &str) -> Option<ActorAddr> {
        self.places.of(child)
    }

    /// Where all children are, now and later.
    pub fn places(&self) -> Places {
        self.places.clone()
    }

    /// Adds a child behind all others and waits until it is up.
    ///
    /// # Errors
    /// If there is a child of this name, or the supervisor has ended; or if its start fails: then it
    /// is not added, and that counts as nobody's failure.
    pub fn add(
        &self,
        child: ChildSpec,
    ) -> impl Future<Output = Result<ActorAddr, ChildError>> + Send + use<> {
        self.command(move |done| Command::Add(child, done))
    }

    /// Takes a child away: stops it, if it is up, and waits until it has ended.
    ///
    /// # Errors
    /// If there is no child of this name, or the supervisor has ended.
    pub fn remove(
        &self,
        child: &str,
    ) -> impl Future<Output = Result<(), ChildError>> + Send + use<> {
        let child = child.to_owned();
        self.command(move |done| Command::Remove(child, done))
    }

    fn command<R, F>(
        &self,
        command: F,
    ) -> impl Future<Output = Result<R, ChildError>> + Send + use<R, F>
    where
        R: Send,
        F: FnOnce(oneshot::Sender<Result<R, ChildError>>) -> Command,
    {
        let (done, outcome) = oneshot::channel();
        let _ = self.commands.send(command(done));
        async move { outcome.await.unwrap_or(Err(ChildError::Ended)) }
    }

    /// Stops the children, the last one first, and waits until they have ended.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.ended().await;
    }

    /// Waits until the supervisor has ended: it was stopped, its limits were exceeded, or no child
    /// is left.
    ///
    /// # Errors
    /// If its limits were exceeded: by which child.
    pub fn ended(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(why))) => Err(Error::other(why.clone())),
                // The node ended, and its tasks with it.
                Ok(_) | Err(_) => Ok(()),
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("places", &self.places).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
