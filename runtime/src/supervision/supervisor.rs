//! Starts children, learns of their ends, and does what [`Restarts`] decides.
//!
//! A child is whatever a [`ChildSpec`] starts: an actor on this node or on another. Where it runs is
//! decided anew at each start, which is how a lost node's children move to another one.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    child::{ChildEvent, ChildSpec},
    strategy::{Action, Restart, Restarts, Supervision},
};
use crate::{Error, Result, System, context::panic_text, id::ActorAddr, remote::End, watch::Down};

/// Children that were told to stop have so long before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

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
            children: children.into_iter().map(State::new).collect(),
            places: places.clone(),
            events,
            up,
            end,
            starting: FuturesUnordered::new(),
            watches: FuturesUnordered::new(),
            patience: FuturesUnordered::new(),
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
    /// Attempts to start it so far, failed ones too.
    starts: u32,
    /// Calls off the start that waits for its back-off; without effect once it is under way.
    call_off: CancellationToken,
    actor: Option<ActorAddr>,
    /// Told to stop while it was still starting.
    doomed: bool,
    /// It was up, or failed to start and is not tried again.
    tried: bool,
}

impl State {
    fn new(spec: ChildSpec) -> Self {
        let call_off = CancellationToken::new();
        State { spec, starts: 0, call_off, actor: None, doomed: false, tried: false }
    }
}

/// The outcome of a start; none if it was called off before it began.
type Starting = BoxFuture<'static, (usize, Option<Result<ActorAddr>>)>;
type Stopping = BoxFuture<'static, (usize, ActorAddr)>;
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
    /// Ready when a child that was told to stop has had its time.
    patience: FuturesUnordered<Stopping>,
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
                Some((index, outcome)) = self.starting.next() => match outcome {
                    Some(outcome) => self.started(index, outcome),
                    None => self.called_off(index),
                },
                Some((index, actor)) = self.patience.next() => self.out_of_patience(index, actor),
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
        let starts = child.starts;
        child.starts = starts.saturating_add(1);
        let actions = match outcome {
            Ok(actor) => {
                child.tried = true;
                let doomed = std::mem::take(&mut child.doomed);
                self.set_place(index, Some(actor));
                let watch = self.system.watch(actor);
                self.watches.push(watch.map(move |down| (index, actor, down)).boxed());
                self.tell(ChildEvent::Started { child: name, actor, starts });
                if doomed {
                    self.stop(index, actor);
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

    /// A child that was told to stop before its start began is down as it is.
    fn called_off(&mut self, index: usize) {
        self.children[index].doomed = false;
        let actions = self.restarts.start_failed(Instant::now(), index);
        self.perform(actions);
    }

    fn stop(&mut self, index: usize, actor: ActorAddr) {
        self.system.end(actor, End::Stop);
        self.patience.push(tokio::time::sleep(STOP_PATIENCE).map(move |()| (index, actor)).boxed());
    }

    /// Others of its group wait for the end of a child that does not stop.
    fn out_of_patience(&mut self, index: usize, actor: ActorAddr) {
        let child = &self.children[index];
        if child.actor == Some(actor) {
            tracing::warn!(child = child.spec.name, %actor, "a child did not stop and is killed");
            self.system.end(actor, End::Kill);
        }
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
                    Some(actor) => self.stop(index, actor),
                    None => {
                        self.children[index].doomed = true;
                        self.children[index].call_off.cancel();
                    }
                },
                Action::StartAfter { index, delay } => {
                    let child = &mut self.children[index];
                    child.call_off = CancellationToken::new();
                    let call_off = child.call_off.clone();
                    let (start, starts) = (child.spec.start.clone(), child.starts);
                    self.starting.push(
                        async move {
                            tokio::select! {
                                biased;
                                () = call_off.cancelled() => return (index, None),
                                () = tokio::time::sleep(delay) => {}
                            }
                            let start = AssertUnwindSafe(async { start(starts).await });
                            let outcome = start.catch_unwind().await.unwrap_or_else(|panic| {
                                let why = panic_text(&*panic);
                                Err(Error::other(format!("its start panicked: {why}")))
                            });
                            (index, Some(outcome))
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
        self.children.iter().for_each(|child| child.call_off.cancel());
        // A start under way may yet bring an actor into the world: it is waited for and stopped.
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.starting.is_empty() {
            match tokio::time::timeout_at(deadline, self.starting.next()).await {
                Ok(Some((index, Some(Ok(actor))))) => {
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
