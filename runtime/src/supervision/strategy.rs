//! Which children are started again when one fails: the protocol, without any I/O.
//!
//! [`Supervision`] is what a user chooses; [`Restarts`] is the state of one supervisor. It is told
//! what happened and answers with what to do; a supervisor carries that out and reports back.
//! Neither looks at a clock: the time comes with each event. The rules are those of Erlang/OTP's
//! `supervisor`, with a back-off between restarts (after ractor-supervisor), because a child of a
//! cluster often fails for a reason that takes a while to pass.
//!
//! What holds:
//!
//! - **SV-1** A permanent child is always restarted, a transient one unless it ended normally, a
//!   temporary one never. A child that fails to start counts as one that failed.
//! - **SV-2** In any span of [`Intensity::within`], at most [`Intensity::max`] failures are answered
//!   with a restart. The next one stops all children, in reverse start order, and escalates; after
//!   that nothing is done any more. A group's restart counts once.
//! - **SV-3** One-for-one touches the failed child only. One-for-all restarts every child,
//!   rest-for-one the failed child and those specified after it.
//! - **SV-4** Children of a group are stopped in reverse order of the specification, each after the
//!   one behind it is down. None is started before all that were told to stop are down.
//! - **SV-5** Children of a group are started in the order of the specification, each after the one
//!   before it is up, also the first time. One-for-one's children don't depend on one another: they
//!   are started at once.
//! - **SV-6** A transient child that ended normally is started again with its group; a temporary one
//!   that has run is not.
//! - **SV-7** The delay before a child's restart grows with each failure in a row and never exceeds
//!   [`Backoff::max`]. A child that was up for [`Backoff::reset_after`] starts from the first delay
//!   again.
//! - **SV-8** Events that make no sense in a child's state (a second end, an unknown index) change
//!   nothing.
//! - **SV-9** A lost node is no fault of its children: all that were lost with one life of one node
//!   count as one failure, and a child whose node leaves counts as none, waits for no back-off and is
//!   started again also if it is transient.
//! - **SV-10** A child that is added comes last and is started at once, or in its turn if a group's
//!   start is under way. One that is removed is stopped, and never started again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rand::Rng;
use tokio::time::Instant;

use crate::id::{Incarnation, NodeId};

mod settings;

pub use settings::{
    Backoff, Intensity, OneForAll, OneForOne, RestForOne, Restart, Strategy, Supervision,
};

/// How a child that was up has ended, as far as it matters for what comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// By itself, as planned.
    Planned,
    /// It failed, panicked or was killed.
    Failed,
    /// With this life of its node.
    NodeLost(NodeId, Incarnation),
    /// Its node leaves, and stopped it.
    NodeLeft,
}

/// What a supervisor is to do. Children are named by their place in the specification, which they
/// keep when others are removed.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// See to it that this child is down: stop it if it's up, and if it isn't up yet, call off its
    /// start or stop it as soon as it is; of several, the last one first. Then report [`Restarts::child_down`], once.
    Stop(usize),
    /// Start this child after a delay; report [`Restarts::child_started`] or
    /// [`Restarts::start_failed`].
    StartAfter {
        /// Which child.
        index: usize,
        /// How long to wait; zero means at once.
        delay: Duration,
    },
    /// Too many failures: fail, once the children that were told to stop are down.
    Escalate {
        /// What was exceeded, for the log and the supervisor's own end.
        reason: TooManyRestarts,
    },
}

/// A supervisor gave up (SV-2).
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error(
    "child {child} failed after {max} restarts within {within:?}: no more are allowed, see `at_most`"
)]
pub struct TooManyRestarts {
    /// The child whose failure was one too many.
    pub child: usize,
    /// How many restarts are allowed.
    pub max: u32,
    /// In which span.
    pub within: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It has never been told to start.
    New,
    /// It was told to start.
    Starting,
    Up {
        since: Instant,
    },
    /// It was told to stop.
    Stopping,
    /// It ended; a group's restart may start it again.
    Down,
}

struct Child {
    restart: Restart,
    phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// It was up once, or failed to start: a temporary one has had its turn.
    spent: bool,
    /// It is forgotten as soon as it is down.
    removed: bool,
}

impl Child {
    fn new(restart: Restart) -> Self {
        Child { restart, phase: Phase::New, failures: 0, spent: false, removed: false }
    }
}

/// A group's start, under way: first all that were told to stop go down, then one starts after
/// another.
struct Wave {
    left: BTreeSet<usize>,
    /// Before the first of them.
    delay: Duration,
}

/// The state of one supervisor: takes events, returns actions.
pub struct Restarts {
    supervision: Supervision,
    children: BTreeMap<usize, Child>,
    /// The next child to be added.
    next: usize,
    /// When failures were answered with a restart, as far back as `within`; and which node was lost
    /// if it was that.
    answered: VecDeque<(Instant, Option<(NodeId, Incarnation)>)>,
    wave: Option<Wave>,
    given_up: bool,
    rng: Box<dyn Rng + Send>,
}

impl Restarts {
    /// A supervisor of children that are specified in this order. `rng` is for the jitter.
    pub fn new(
        supervision: Supervision,
        children: impl IntoIterator<Item = Restart>,
        rng: Box<dyn Rng + Send>,
    ) -> Self {
        let children: BTreeMap<_, _> = children.into_iter().map(Child::new).enumerate().collect();
        Restarts {
            supervision,
            next: children.len(),
            children,
            answered: VecDeque::new(),
            wave: None,
            given_up: false,
            rng,
        }
    }

    /// The first start of all children; a second call does nothing.
    pub fn start(&mut self) -> Vec<Action> {
        let new = |(&index, child): (&usize, &Child)| (child.phase == Phase::New).then_some(index);
        let all: BTreeSet<usize> = self.children.iter().filter_map(new).collect();
        if self.wave.is_some() {
            return Vec::new();
        }
        if self.supervision.strategy == Strategy::OneForOne {
            return all.into_iter().map(|index| self.begin(index, Duration::ZERO)).collect();
        }
        self.wave = Some(Wave { left: all, delay: Duration::ZERO });
        self.advance()
    }

    /// One more child, behind all others (SV-10). Its index, and what to do.
    pub fn add(&mut self, restart: Restart) -> (usize, Vec<Action>) {
        let index = self.next;
        self.next += 1;
        self.children.insert(index, Child::new(restart));
        let actions = match &mut self.wave {
            _ if self.given_up => Vec::new(),
            Some(wave) => {
                wave.left.insert(index);
                Vec::new()
            }
            None => vec![self.begin(index, Duration::ZERO)],
        };
        (index, actions)
    }

    /// A child is no longer wanted (SV-10). If there is nothing to stop, it is gone already.
    pub fn remove(&mut self, index: usize) -> Vec<Action> {
        let Some(child) = self.children.get_mut(&index) else {
            return Vec::new();
        };
        child.removed = true;
        if let Some(wave) = &mut self.wave {
            wave.left.remove(&index);
        }
        match child.phase {
            Phase::Up { .. } | Phase::Starting => {
                child.phase = Phase::Stopping;
                vec![Action::Stop(index)]
            }
            Phase::Stopping => Vec::new(),
            Phase::New | Phase::Down => {
                self.children.remove(&index);
                self.advance()
            }
        }
    }

    /// A child is up.
    pub fn child_started(&mut self, now: Instant, index: usize) -> Vec<Action> {
        let Some(child) = self.children.get_mut(&index) else {
            return Vec::new();
        };
        match child.phase {
            Phase::Starting => {
                child.spent = true;
                child.phase = Phase::Up { since: now };
                self.advance()
            }
            Phase::Stopping => {
                // It came up while it was told to stop, and is still on its way down.
                child.spent = true;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A child could not be started.
    pub fn start_failed(&mut self, now: Instant, index: usize) -> Vec<Action> {
        let Some(child) = self.children.get_mut(&index) else {
            return Vec::new();
        };
        match child.phase {
            Phase::Starting => {
                child.spent = true;
                self.ended(now, index, Ending::Failed)
            }
            Phase::Stopping => self.ended(now, index, Ending::Failed),
            _ => Vec::new(),
        }
    }

    /// A child that was up, or had been told to stop, is down.
    pub fn child_down(&mut self, now: Instant, index: usize, how: Ending) -> Vec<Action> {
        match self.children.get(&index).map(|child| child.phase) {
            Some(Phase::Up { .. } | Phase::Stopping) => self.ended(now, index, how),
            _ => Vec::new(),
        }
    }

    /// Whether the limit was exceeded: all that is left is to go down.
    pub fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether there is such a child: one that was removed is none any more once it is down.
    pub fn knows(&self, index: usize) -> bool {
        self.children.contains_key(&index)
    }

    /// Whether a child was told to stop and is not down yet.
    pub fn is_stopping(&self, index: usize) -> bool {
        self.children.get(&index).is_some_and(|child| child.phase == Phase::Stopping)
    }

    fn ended(&mut self, now: Instant, index: usize, how: Ending) -> Vec<Action> {
        let Some(child) = self.children.get_mut(&index) else {
            return Vec::new();
        };
        let was = std::mem::replace(&mut child.phase, Phase::Down);
        if child.removed {
            self.children.remove(&index);
            return self.advance();
        }
        if self.given_up {
            return Vec::new();
        }
        let again = match child.restart {
            Restart::Permanent => true,
            Restart::Transient => how != Ending::Planned,
            Restart::Temporary => false,
        };
        if was == Phase::Stopping || !again {
            return self.advance();
        }
        if let Phase::Up { since } = was
            && now.saturating_duration_since(since) >= self.supervision.backoff.reset_after
        {
            child.failures = 0;
        }
        let delay = if how == Ending::NodeLeft {
            Duration::ZERO
        } else {
            let before = child.failures;
            child.failures = before.saturating_add(1);
            if !self.may_restart(now, how) {
                return self.give_up(index);
            }
            self.supervision.backoff.delay(before, &mut *self.rng)
        };
        match self.supervision.strategy {
            Strategy::OneForOne => vec![self.begin(index, delay)],
            Strategy::OneForAll => self.restart_from(0, delay),
            Strategy::RestForOne => self.restart_from(index, delay),
        }
    }

    /// Notes one more restart, unless that would be one too many (SV-2) or it counts already (SV-9).
    fn may_restart(&mut self, now: Instant, how: Ending) -> bool {
        let Intensity { max, within } = self.supervision.intensity;
        while self
            .answered
            .front()
            .is_some_and(|&(at, _)| now.saturating_duration_since(at) >= within)
        {
            self.answered.pop_front();
        }
        let lost = match how {
            Ending::NodeLost(node, incarnation) => Some((node, incarnation)),
            _ => None,
        };
        if lost.is_some() && self.answered.iter().any(|(_, counted)| *counted == lost) {
            return true;
        }
        let allowed = self.answered.len() < max as usize;
        if allowed {
            self.answered.push_back((now, lost));
        }
        allowed
    }

    fn give_up(&mut self, child: usize) -> Vec<Action> {
        self.given_up = true;
        self.wave = None;
        let Intensity { max, within } = self.supervision.intensity;
        let mut actions = self.stop_from(0);
        actions.push(Action::Escalate { reason: TooManyRestarts { child, max, within } });
        actions
    }

    /// Restarts the group from `first` on. It takes in what is left of a start under way: whoever
    /// fails during one stands before all that it has yet to start.
    fn restart_from(&mut self, first: usize, delay: Duration) -> Vec<Action> {
        let again =
            |child: &Child| !child.removed && (child.restart != Restart::Temporary || !child.spent);
        let behind = self.children.range(first..);
        let left = behind.filter(|(_, child)| again(child)).map(|(&index, _)| index).collect();
        let mut actions = self.stop_from(first);
        self.wave = Some(Wave { left, delay });
        actions.extend(self.advance());
        actions
    }

    /// Tells those to stop that are up or on their way, the last one first (SV-4).
    fn stop_from(&mut self, first: usize) -> Vec<Action> {
        let behind = self.children.range_mut(first..).rev();
        behind
            .filter_map(|(&index, child)| {
                let phase = &mut child.phase;
                matches!(phase, Phase::Up { .. } | Phase::Starting).then(|| {
                    *phase = Phase::Stopping;
                    Action::Stop(index)
                })
            })
            .collect()
    }

    /// The next start of a group, if nothing has to happen before it (SV-4, SV-5).
    fn advance(&mut self) -> Vec<Action> {
        let busy = |child: &Child| matches!(child.phase, Phase::Stopping | Phase::Starting);
        let Some(wave) = &mut self.wave else {
            return Vec::new();
        };
        if self.children.values().any(busy) {
            return Vec::new();
        }
        let delay = std::mem::take(&mut wave.delay);
        match wave.left.pop_first() {
            Some(index) => vec![self.begin(index, delay)],
            None => {
                self.wave = None;
                Vec::new()
            }
        }
    }

    fn begin(&mut self, index: usize, delay: Duration) -> Action {
        if let Some(child) = self.children.get_mut(&index) {
            child.phase = Phase::Starting;
        }
        Action::StartAfter { index, delay }
    }
}

#[cfg(test)]
mod tests;
