//! The loop of one supervisor: tells [`Restarts`] what happened and does what it says.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    child::{Attempt, ChildEvent, ChildSpec},
    strategy::{Action, Ending, Restart, Restarts},
    supervisor::{Outcome, Place, Places, two_of_one_name},
};
use crate::{Error, Result, System, context::panic_text, id::ActorAddr, remote::End, watch::Down};

/// Children that were told to stop have so long before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

pub(super) enum FirstStart {
    Pending,
    Up,
    Failed(String),
}

/// What a running supervisor is asked for.
pub(super) enum Command {
    Add(ChildSpec, oneshot::Sender<Result<()>>),
    /// Answered when the child has ended.
    Remove(String, oneshot::Sender<Result<()>>),
}

struct State {
    spec: ChildSpec,
    /// Attempts to start it so far, failed ones too.
    starts: u32,
    /// Calls off the start that waits for its back-off; one that is under way may heed it.
    call_off: CancellationToken,
    actor: Option<ActorAddr>,
    was_up: bool,
    /// Told to stop while it was still starting.
    doomed: bool,
    /// It was up, or failed to start and is not tried again.
    tried: bool,
    /// It is no longer wanted; told when it is down.
    removed: Vec<oneshot::Sender<Result<()>>>,
}

impl State {
    fn new(spec: ChildSpec) -> Self {
        State {
            spec,
            starts: 0,
            call_off: CancellationToken::new(),
            actor: None,
            was_up: false,
            doomed: false,
            tried: false,
            removed: Vec::new(),
        }
    }
}

/// How a child that was up was seen to go.
enum Gone {
    Ended(Down),
    Lost(String),
}

/// The outcome of a start; none if it was called off before it began.
type Starting = BoxFuture<'static, (usize, Option<Result<ActorAddr>>)>;
type Stopping = BoxFuture<'static, (usize, ActorAddr)>;
type Watching = BoxFuture<'static, (usize, ActorAddr, Gone)>;

pub(super) struct Run {
    system: System,
    restarts: Restarts,
    children: BTreeMap<usize, State>,
    places: Places,
    events: mpsc::UnboundedSender<ChildEvent>,
    up: watch::Sender<FirstStart>,
    starting: FuturesUnordered<Starting>,
    watches: FuturesUnordered<Watching>,
    /// Ready when a child that was told to stop has had its time.
    patience: FuturesUnordered<Stopping>,
    /// Why the supervisor gave up.
    outcome: Outcome,
}

impl Run {
    pub(super) fn new(
        system: System,
        restarts: Restarts,
        children: Vec<ChildSpec>,
        places: Places,
        events: mpsc::UnboundedSender<ChildEvent>,
        up: watch::Sender<FirstStart>,
    ) -> Self {
        Run {
            system,
            restarts,
            children: children.into_iter().map(State::new).enumerate().collect(),
            places,
            events,
            up,
            starting: FuturesUnordered::new(),
            watches: FuturesUnordered::new(),
            patience: FuturesUnordered::new(),
            outcome: Ok(()),
        }
    }

    /// Runs until the supervisor is stopped, gives up, or has no child left; with `stays` it lives
    /// on without children.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        mut commands: mpsc::UnboundedReceiver<Command>,
        stays: bool,
    ) -> Outcome {
        let first = self.restarts.start();
        self.perform(first);
        loop {
            // Without a child that runs or starts, nothing can happen any more.
            let idle = self.watches.is_empty() && self.starting.is_empty();
            if self.restarts.has_given_up() || idle && !stays {
                break;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((index, actor, gone)) = self.watches.next() => self.gone(index, actor, gone),
                Some((index, outcome)) = self.starting.next() => match outcome {
                    Some(outcome) => self.started(index, outcome),
                    None => self.called_off(index),
                },
                Some((index, actor)) = self.patience.next() => self.out_of_patience(index, actor),
                Some(command) = commands.recv() => self.command(command),
            }
        }
        self.stop_all().await;
        self.outcome
    }

    fn tell(&self, event: ChildEvent) {
        let _ = self.events.send(event);
    }

    fn set_place(&mut self, index: usize, actor: Option<ActorAddr>) {
        if let Some(child) = self.children.get_mut(&index) {
            child.actor = actor;
        }
        if let Some(place) = self.places.lock().get_mut(&index) {
            place.actor = actor;
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add(spec, done) => {
                if self.places.has(&spec.name) {
                    let _ = done.send(Err(two_of_one_name(&spec.name)));
                    return;
                }
                let (index, actions) = self.restarts.add(spec.restart);
                self.places.lock().insert(index, Place { name: spec.name.clone(), actor: None });
                self.children.insert(index, State::new(spec));
                let _ = done.send(Ok(()));
                self.perform(actions);
            }
            Command::Remove(name, done) => {
                let found = self.children.iter_mut().find(|(_, child)| child.spec.name == name);
                let Some((&index, child)) = found else {
                    let why = format!("there is no child called `{name}`");
                    let _ = done.send(Err(Error::other(why)));
                    return;
                };
                child.removed.push(done);
                let actions = self.restarts.remove(index);
                self.perform(actions);
                self.forget_removed(index);
            }
        }
    }

    /// Forgets a child that was removed and is down.
    fn forget_removed(&mut self, index: usize) {
        let gone = |child: &State| !child.removed.is_empty() && !self.restarts.knows(index);
        if self.children.get(&index).is_some_and(gone)
            && let Some(child) = self.children.remove(&index)
        {
            self.places.lock().remove(&index);
            child.removed.into_iter().for_each(|done| drop(done.send(Ok(()))));
            self.tell_if_all_tried();
        }
    }

    fn started(&mut self, index: usize, outcome: Result<ActorAddr>) {
        let Some(child) = self.children.get_mut(&index) else { return };
        let name = child.spec.name.clone();
        let starts = child.starts;
        child.starts = starts.saturating_add(1);
        let actions = match outcome {
            Ok(actor) => {
                child.tried = true;
                child.was_up = true;
                let doomed = std::mem::take(&mut child.doomed);
                self.set_place(index, Some(actor));
                self.watch(index, actor);
                self.tell(ChildEvent::Started { child: name, actor, starts });
                if doomed {
                    self.stop(index, actor);
                }
                self.restarts.child_started(Instant::now(), index)
            }
            Err(_) if child.call_off.is_cancelled() => return self.called_off(index),
            Err(error) => {
                child.doomed = false;
                child.tried |= child.spec.restart == Restart::Temporary;
                let why = error.to_string();
                tracing::warn!(child = name, why, "a child could not be started");
                self.tell(ChildEvent::StartFailed { child: name.clone(), why: why.clone() });
                let actions = self.restarts.start_failed(Instant::now(), index);
                if self.restarts.has_given_up() {
                    self.settle(FirstStart::Failed(format!("{name}: {why}")));
                }
                actions
            }
        };
        self.tell_if_all_tried();
        self.perform(actions);
        self.forget_removed(index);
    }

    fn tell_if_all_tried(&self) {
        if self.children.values().all(|child| child.tried) {
            self.settle(FirstStart::Up);
        }
    }

    /// The outcome of the first start, once.
    fn settle(&self, outcome: FirstStart) {
        self.up.send_if_modified(|state| {
            let pending = matches!(state, FirstStart::Pending);
            if pending {
                *state = outcome;
            }
            pending
        });
    }

    /// A child that was told to stop before its start began is down as it is.
    fn called_off(&mut self, index: usize) {
        if let Some(child) = self.children.get_mut(&index) {
            child.doomed = false;
        }
        let actions = self.restarts.start_failed(Instant::now(), index);
        self.perform(actions);
        self.forget_removed(index);
    }

    fn watch(&mut self, index: usize, actor: ActorAddr) {
        let lost = self.children.get(&index).and_then(|child| child.spec.lost.clone());
        let watch = self.system.watch(actor);
        self.watches.push(match lost {
            None => watch.map(move |down| (index, actor, Gone::Ended(down))).boxed(),
            Some(lost) => async move {
                let gone = tokio::select! {
                    biased;
                    down = watch => Gone::Ended(down),
                    why = lost(actor) => Gone::Lost(why),
                };
                (index, actor, gone)
            }
            .boxed(),
        });
    }

    fn stop(&mut self, index: usize, actor: ActorAddr) {
        self.system.end(actor, End::Stop);
        self.patience.push(tokio::time::sleep(STOP_PATIENCE).map(move |()| (index, actor)).boxed());
    }

    /// Others of its group wait for the end of a child that does not stop.
    fn out_of_patience(&mut self, index: usize, actor: ActorAddr) {
        let Some(child) = self.children.get(&index) else { return };
        if child.actor == Some(actor) {
            tracing::warn!(child = child.spec.name, %actor, "a child did not stop and is killed");
            self.system.end(actor, End::Kill);
        }
    }

    fn gone(&mut self, index: usize, actor: ActorAddr, gone: Gone) {
        let how = self.note_gone(index, actor, gone);
        let actions = self.restarts.child_down(Instant::now(), index, how);
        self.perform(actions);
        self.forget_removed(index);
    }

    fn note_gone(&mut self, index: usize, actor: ActorAddr, gone: Gone) -> Ending {
        let child = self.children.get(&index);
        let child = child.map(|child| child.spec.name.clone()).unwrap_or_default();
        self.set_place(index, None);
        match gone {
            Gone::Ended(down) => {
                tracing::info!(child, %actor, %down, "a child ended");
                let how = match &down {
                    Down::Stopped => Ending::Planned,
                    Down::NodeLeft(_) => Ending::NodeLeft,
                    Down::NodeLost(node) => Ending::NodeLost(*node, actor.incarnation),
                    _ => Ending::Failed,
                };
                self.tell(ChildEvent::Down { child, actor, down });
                how
            }
            Gone::Lost(why) => {
                tracing::warn!(child, %actor, why, "a child is given up");
                self.system.end(actor, End::Stop);
                self.tell(ChildEvent::Abandoned { child, actor, why });
                Ending::NodeLost(actor.node, actor.incarnation)
            }
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(index) => {
                    let Some(child) = self.children.get_mut(&index) else { continue };
                    match child.actor {
                        Some(actor) => self.stop(index, actor),
                        None => {
                            child.doomed = true;
                            child.call_off.cancel();
                        }
                    }
                }
                Action::StartAfter { index, delay } => self.start_after(index, delay),
                Action::Escalate { reason } => {
                    let child = self.children.get(&reason.child);
                    let child = child.map(|child| child.spec.name.as_str()).unwrap_or_default();
                    let why = format!("{child}: {reason}");
                    tracing::error!(why, "a supervisor gives up");
                    self.outcome = Err(why.clone());
                    self.tell(ChildEvent::GaveUp { why });
                }
            }
        }
    }

    fn start_after(&mut self, index: usize, delay: Duration) {
        let Some(child) = self.children.get_mut(&index) else { return };
        child.call_off = CancellationToken::new();
        let called_off = child.call_off.clone();
        let start = child.spec.start.clone();
        let attempt =
            Attempt { number: child.starts, was_up: child.was_up, called_off: called_off.clone() };
        self.starting.push(
            async move {
                tokio::select! {
                    biased;
                    () = called_off.cancelled() => return (index, None),
                    () = tokio::time::sleep(delay) => {}
                }
                let start = AssertUnwindSafe(async { start(attempt).await });
                let outcome = start.catch_unwind().await.unwrap_or_else(|panic| {
                    let why = panic_text(&*panic);
                    Err(Error::other(format!("its start panicked: {why}")))
                });
                (index, Some(outcome))
            }
            .boxed(),
        );
    }

    /// Stops what is up, the last one first, each after the one before has ended.
    async fn stop_all(&mut self) {
        self.children.values().for_each(|child| child.call_off.cancel());
        // A start under way may yet bring an actor into the world: it is waited for and stopped.
        let deadline = Instant::now() + STOP_PATIENCE;
        while !self.starting.is_empty() {
            match tokio::time::timeout_at(deadline, self.starting.next()).await {
                Ok(Some((index, Some(Ok(actor))))) => {
                    self.set_place(index, Some(actor));
                    self.watch(index, actor);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let order: Vec<usize> = self.children.keys().rev().copied().collect();
        for index in order {
            let up = |run: &Run| run.children.get(&index).and_then(|child| child.actor);
            let Some(actor) = up(self) else { continue };
            self.system.end(actor, End::Stop);
            let ended = async {
                while up(self).is_some() {
                    let Some((index, actor, gone)) = self.watches.next().await else { return };
                    self.note_gone(index, actor, gone);
                }
            };
            if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
                self.system.end(actor, End::Kill);
            }
        }
        // Those who wait for the end of a child that they took away.
        for child in self.children.values_mut() {
            child.removed.drain(..).for_each(|done| drop(done.send(Ok(()))));
        }
    }
}
