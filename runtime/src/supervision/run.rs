//! The loop of one supervisor: tells [`Restarts`] what happened and does what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    child::{Attempt, ChildError, ChildEvent, ChildSpec, STOP_PATIENCE},
    strategy::{Action, Ending, Restart, Restarts, TooManyRestarts},
    supervisor::{Outcome, Place, Places},
};
use crate::{Error, Result, System, context::panic_text, id::ActorAddr, remote::End, watch::Down};

/// A child that was killed has so long to be gone before the next one is stopped: one that never
/// awaits can't be killed, nor can one whose node is out of reach.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

pub(super) enum FirstStart {
    Pending,
    Up,
    Failed(String),
}

/// What a running supervisor is asked for.
pub(super) enum Command {
    /// Answered when the child is up, or could not be started.
    Add(ChildSpec, oneshot::Sender<Result<ActorAddr, ChildError>>),
    /// Answered when the child has ended.
    Remove(String, oneshot::Sender<Result<(), ChildError>>),
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
    /// It was added, and is up for nobody yet: told what becomes of its first start.
    added: Option<oneshot::Sender<Result<ActorAddr, ChildError>>>,
    /// It is no longer wanted.
    removed: bool,
    /// Told when it is down.
    removers: Vec<oneshot::Sender<Result<(), ChildError>>>,
    /// How it ended, or why it could not be started, the last time.
    last: String,
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
            added: None,
            removed: false,
            removers: Vec::new(),
            last: String::new(),
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
    /// Children that are to stop, and the one whose end is awaited now: each is told when the one
    /// behind it is down.
    to_stop: BTreeSet<usize>,
    stopping: Option<usize>,
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
            to_stop: BTreeSet::new(),
            stopping: None,
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
                    let _ = done.send(Err(ChildError::Taken(spec.name)));
                    return;
                }
                let (index, actions) = self.restarts.add(spec.restart);
                self.places.lock().insert(index, Place { name: spec.name.clone(), actor: None });
                let child = State { added: Some(done), ..State::new(spec) };
                self.children.insert(index, child);
                self.perform(actions);
            }
            Command::Remove(name, done) => {
                let found = self.children.iter_mut().find(|(_, child)| child.spec.name == name);
                let Some((&index, child)) = found else {
                    let _ = done.send(Err(ChildError::Unknown(name)));
                    return;
                };
                child.removed = true;
                child.removers.push(done);
                let actions = self.restarts.remove(index);
                // It waits for no other one.
                match actions[..] {
                    [Action::Stop(index)] => self.tell_to_stop(index),
                    _ => self.perform(actions),
                }
                self.forget_removed(index);
            }
        }
    }

    /// Forgets a child that was removed and is down.
    fn forget_removed(&mut self, index: usize) {
        let gone = |child: &State| child.removed && !self.restarts.knows(index);
        if self.children.get(&index).is_some_and(gone)
            && let Some(child) = self.children.remove(&index)
        {
            self.places.lock().remove(&index);
            child.removers.into_iter().for_each(|done| drop(done.send(Ok(()))));
            if let Some(adder) = child.added {
                let _ = adder.send(Err(ChildError::Removed(child.spec.name)));
            }
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
                if let Some(adder) = child.added.take_if(|_| !child.removed) {
                    let _ = adder.send(Ok(actor));
                }
                self.set_place(index, Some(actor));
                self.watch(index, actor);
                self.tell(ChildEvent::Started { child: name, actor, starts });
                if doomed {
                    self.to_stop.insert(index);
                }
                self.restarts.child_started(Instant::now(), index)
            }
            Err(_) if child.call_off.is_cancelled() => return self.called_off(index),
            Err(error) => {
                child.doomed = false;
                child.tried |= child.spec.restart == Restart::Temporary;
                let why = error.to_string();
                tracing::warn!(child = name, why, "a child could not be started");
                child.last = why.clone();
                let adder = child.added.take();
                // What never was up is no failure of those that are.
                child.removed |= adder.is_some();
                self.tell(ChildEvent::StartFailed { child: name.clone(), why: why.clone() });
                if let Some(adder) = adder {
                    let _ = self.restarts.remove(index);
                    let _ = adder.send(Err(ChildError::NotStarted { child: name, why }));
                }
                self.restarts.start_failed(Instant::now(), index)
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
                    () = (lost.when)(actor) => Gone::Lost((lost.end)(actor).await),
                };
                (index, actor, gone)
            }
            .boxed(),
        });
    }

    fn stop(&mut self, index: usize, actor: ActorAddr) {
        self.system.end(actor, End::Stop);
        let within = self.stop_within(index);
        self.patience.push(tokio::time::sleep(within).map(move |()| (index, actor)).boxed());
    }

    fn stop_within(&self, index: usize) -> Duration {
        self.children.get(&index).map_or(STOP_PATIENCE, |child| child.spec.stop_within)
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
        self.set_place(index, None);
        let Some(state) = self.children.get_mut(&index) else { return Ending::Failed };
        let child = state.spec.name.clone();
        state.last = match &gone {
            Gone::Ended(down) => down.to_string(),
            Gone::Lost(why) => why.clone(),
        };
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
                // One that is not up has nothing to stop: there is nothing to wait for.
                Action::Stop(index) if !self.is_up(index) => self.tell_to_stop(index),
                Action::Stop(index) => drop(self.to_stop.insert(index)),
                Action::StartAfter { index, delay } => self.start_after(index, delay),
                Action::Escalate { reason } => {
                    let TooManyRestarts { child, max, within } = reason;
                    let child = self.children.get(&child);
                    let (name, last) = child
                        .map(|child| (child.spec.name.as_str(), child.last.as_str()))
                        .unwrap_or_default();
                    // The cause comes last: of a supervisor that gave up it is such a text again.
                    let why = format!(
                        "gave up on `{name}` (at most {max} restarts in {within:?}): {last}"
                    );
                    tracing::error!(why, "a supervisor gives up");
                    self.outcome = Err(why.clone());
                    self.settle(FirstStart::Failed(why.clone()));
                    self.tell(ChildEvent::GaveUp { why });
                }
            }
        }
        self.stop_next();
    }

    /// Tells the last one to stop of those that are to, once the one before it is down.
    fn stop_next(&mut self) {
        while self.stopping.is_none_or(|index| !self.restarts.is_stopping(index)) {
            self.stopping = self.to_stop.pop_last();
            let Some(index) = self.stopping else { return };
            if self.restarts.is_stopping(index) {
                self.tell_to_stop(index);
            }
        }
    }

    fn tell_to_stop(&mut self, index: usize) {
        let Some(child) = self.children.get_mut(&index) else { return };
        match child.actor {
            Some(actor) => self.stop(index, actor),
            None => {
                child.doomed = true;
                child.call_off.cancel();
            }
        }
    }

    fn is_up(&self, index: usize) -> bool {
        self.children.get(&index).is_some_and(|child| child.actor.is_some())
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
            let up = self.children.get(&index).and_then(|child| child.actor);
            let Some(actor) = up else { continue };
            self.system.end(actor, End::Stop);
            let patience = self.stop_within(index);
            if tokio::time::timeout(patience, self.until_down(index)).await.is_err() {
                self.system.end(actor, End::Kill);
                let _ = tokio::time::timeout(KILL_PATIENCE, self.until_down(index)).await;
            }
        }
        // Those who wait for the end of a child that they took away.
        for child in self.children.values_mut() {
            child.removers.drain(..).for_each(|done| drop(done.send(Ok(()))));
        }
    }

    async fn until_down(&mut self, index: usize) {
        while self.is_up(index) {
            let Some((index, actor, gone)) = self.watches.next().await else { return };
            self.note_gone(index, actor, gone);
        }
    }
}
