//! Starts children, learns of their ends, and does what [`Restarts`] decides.
//!
//! A child is whatever a [`ChildSpec`] starts: an actor on this node or on another. Where it runs is
//! decided anew at each start, which is how a lost node's children move to another one.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::strategy::{Action, Restart, Restarts, Supervision};
use crate::{Error, Result, System, id::ActorAddr, remote::End, watch::Down};

/// Children that were told to stop have so long before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a child is started, and when it is started again.
pub struct ChildSpec {
    name: String,
    restart: Restart,
    start: Box<dyn Fn(u32) -> BoxFuture<'static, Result<ActorAddr>> + Send + Sync>,
}

impl ChildSpec {
    /// A child under a name of its own. `start` gets the number of starts before this one and
    /// returns the actor that it started.
    pub fn new<F>(
        name: impl Into<String>,
        restart: Restart,
        start: impl Fn(u32) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ActorAddr>> + Send + 'static,
    {
        ChildSpec { name: name.into(), restart, start: Box::new(move |n| start(n).boxed()) }
    }
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec")
            .field("name", &self.name)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

/// What happened to a child, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ChildEvent {
    /// It is up; `starts` counts those before this one.
    Started {
        /// Its name.
        child: String,
        /// Where it is.
        actor: ActorAddr,
        /// How often it had been started before.
        starts: u32,
    },
    /// It ended.
    Down {
        /// Its name.
        child: String,
        /// Where it was.
        actor: ActorAddr,
        /// Why.
        down: Down,
    },
    /// It could not be started; it is tried again as the limits allow.
    StartFailed {
        /// Its name.
        child: String,
        /// Why.
        why: String,
    },
    /// The limits were exceeded: all children are stopped, and the supervisor ends.
    GaveUp {
        /// Which limit, and which child's failure was one too many.
        why: String,
    },
}

/// Where each child is, by name, in the order of the specification.
type Places = Arc<Mutex<Vec<(String, Option<ActorAddr>)>>>;

/// A running supervisor. Dropping it stops its children.
pub struct Supervisor {
    stop: CancellationToken,
    places: Places,
    ended: watch::Receiver<bool>,
}

impl Supervisor {
    /// Starts the children and waits until each is up for the first time. What happens afterwards
    /// is told to `events`.
    ///
    /// # Errors
    /// If the supervision gives up before all children are up: what the last one's start said.
    pub async fn start(
        system: &System,
        supervision: Supervision,
        children: Vec<ChildSpec>,
        events: mpsc::UnboundedSender<ChildEvent>,
    ) -> Result<Self> {
        let stop = CancellationToken::new();
        let places: Arc<Mutex<_>> =
            Arc::new(Mutex::new(children.iter().map(|c| (c.name.clone(), None)).collect()));
        let first = if children.is_empty() { FirstStart::Up } else { FirstStart::Pending };
        let (up, all_up) = watch::channel(first);
        let (end, ended) = watch::channel(false);
        let restarts = Restarts::new(
            supervision,
            children.iter().map(|child| child.restart),
            Box::new(system.env().seeds.stream("supervisor")),
        );
        let run = Run {
            system: system.clone(),
            restarts,
            children: children
                .into_iter()
                .map(|spec| State { spec, starts: 0, actor: None, doomed: false, tried: false })
                .collect(),
            places: places.clone(),
            events,
            up,
            end,
            starting: FuturesUnordered::new(),
            watches: FuturesUnordered::new(),
        };
        let supervisor = Supervisor { stop: stop.clone(), places, ended };
        system.env().spawner.spawn(run.run(stop));
        let mut all_up = all_up;
        let outcome = all_up.wait_for(|state| !matches!(state, FirstStart::Pending)).await;
        match outcome.as_deref() {
            Ok(FirstStart::Failed(why)) => Err(Error::other(why.clone())),
            Ok(_) => Ok(supervisor),
            Err(_) => Err(Error::other("the node ended while children were being started")),
        }
    }

    /// Where a child is now; `None` while it is not up.
    pub fn place(&self, child: &str) -> Option<ActorAddr> {
        let places = self.places.lock().unwrap_or_else(|poison| poison.into_inner());
        places.iter().find(|(name, _)| name == child).and_then(|(_, actor)| *actor)
    }

    /// Stops the children, the last one first, and waits until they have ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Waits until the supervisor has ended: its limits were exceeded, or no child is left.
    pub async fn ended(&mut self) {
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

enum FirstStart {
    Pending,
    Up,
    Failed(String),
}

struct State {
    spec: ChildSpec,
    starts: u32,
    actor: Option<ActorAddr>,
    /// Told to stop while it was still starting.
    doomed: bool,
    /// It was up, or failed to start and is not tried again.
    tried: bool,
}

type Starting = BoxFuture<'static, (usize, Result<ActorAddr>)>;
type Watching = BoxFuture<'static, (usize, ActorAddr, Down)>;

struct Run {
    system: System,
    restarts: Restarts,
    children: Vec<State>,
    places: Places,
    events: mpsc::UnboundedSender<ChildEvent>,
    up: watch::Sender<FirstStart>,
    end: watch::Sender<bool>,
    starting: FuturesUnordered<Starting>,
    watches: FuturesUnordered<Watching>,
}

impl Run {
    async fn run(mut self, stop: CancellationToken) {
        let first = self.restarts.start();
        self.perform(first);
        // Without a child that runs or starts, nothing can happen any more.
        while !(self.restarts.has_given_up() || self.watches.is_empty() && self.starting.is_empty())
        {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((index, actor, down)) = self.watches.next() => self.down(index, actor, down),
                Some((index, outcome)) = self.starting.next() => self.started(index, outcome),
            }
        }
        self.stop_all().await;
        self.end.send_replace(true);
    }

    fn tell(&self, event: ChildEvent) {
        let _ = self.events.send(event);
    }

    fn set_place(&mut self, index: usize, actor: Option<ActorAddr>) {
        self.children[index].actor = actor;
        let mut places = self.places.lock().unwrap_or_else(|poison| poison.into_inner());
        places[index].1 = actor;
    }

    fn started(&mut self, index: usize, outcome: Result<ActorAddr>) {
        let child = &mut self.children[index];
        let name = child.spec.name.clone();
        let actions = match outcome {
            Ok(actor) => {
                let starts = child.starts;
                child.starts += 1;
                child.tried = true;
                let doomed = std::mem::take(&mut child.doomed);
                self.set_place(index, Some(actor));
                let watch = self.system.watch(actor);
                self.watches.push(watch.map(move |down| (index, actor, down)).boxed());
                self.tell(ChildEvent::Started { child: name, actor, starts });
                if doomed {
                    self.system.end(actor, End::Stop);
                }
                self.restarts.child_started(Instant::now(), index)
            }
            Err(error) => {
                child.doomed = false;
                child.tried |= child.spec.restart == Restart::Temporary;
                let why = error.to_string();
                tracing::warn!(child = name, why, "a child could not be started");
                self.tell(ChildEvent::StartFailed { child: name.clone(), why: why.clone() });
                let actions = self.restarts.start_failed(Instant::now(), index);
                if self.restarts.has_given_up() {
                    self.up.send_if_modified(|state| {
                        let pending = matches!(state, FirstStart::Pending);
                        if pending {
                            *state = FirstStart::Failed(format!("{name}: {why}"));
                        }
                        pending
                    });
                }
                actions
            }
        };
        if self.children.iter().all(|child| child.tried) {
            self.up.send_if_modified(|state| {
                let pending = matches!(state, FirstStart::Pending);
                if pending {
                    *state = FirstStart::Up;
                }
                pending
            });
        }
        self.perform(actions);
    }

    fn down(&mut self, index: usize, actor: ActorAddr, down: Down) {
        let child = self.children[index].spec.name.clone();
        tracing::info!(child, %actor, %down, "a child ended");
        self.set_place(index, None);
        let normal = down.is_normal();
        self.tell(ChildEvent::Down { child, actor, down });
        let actions = self.restarts.child_down(Instant::now(), index, normal);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(index) => match self.children[index].actor {
                    Some(actor) => self.system.end(actor, End::Stop),
                    None => self.children[index].doomed = true,
                },
                Action::StartAfter { index, delay } => {
                    let child = &self.children[index];
                    let start = (child.spec.start)(child.starts);
                    self.starting.push(
                        async move {
                            tokio::time::sleep(delay).await;
                            (index, start.await)
                        }
                        .boxed(),
                    );
                }
                Action::Escalate { reason } => {
                    let child = &self.children[reason.child].spec.name;
                    let why = format!("{child}: {reason}");
                    tracing::error!(why, "a supervisor gives up");
                    self.tell(ChildEvent::GaveUp { why });
                }
            }
        }
    }

    /// Stops what is up, the last one first, each after the one before has ended.
    async fn stop_all(&mut self) {
        // A start under way may yet bring an actor into the world: it is waited for and stopped.
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.starting.is_empty() {
            match tokio::time::timeout_at(deadline, self.starting.next()).await {
                Ok(Some((index, Ok(actor)))) => {
                    self.set_place(index, Some(actor));
                    let watch = self.system.watch(actor);
                    self.watches.push(watch.map(move |down| (index, actor, down)).boxed());
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        for index in (0..self.children.len()).rev() {
            let Some(actor) = self.children[index].actor else { continue };
            self.system.end(actor, End::Stop);
            let ended = async {
                while self.children[index].actor.is_some() {
                    let Some((index, actor, down)) = self.watches.next().await else { return };
                    let child = self.children[index].spec.name.clone();
                    self.set_place(index, None);
                    self.tell(ChildEvent::Down { child, actor, down });
                }
            };
            if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
                self.system.end(actor, End::Kill);
            }
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
