//! Which requests to start an actor a node has had: a state machine without clock or I/O.
//!
//! A connection may break while an answer is on its way; then the one who asked does not know
//! whether the actor runs. It asks again under the same number, or abandons the request.
//!
//! - **SP-1** However often a request comes, at most one actor is started for it, and all who ask are
//!   told of that one.
//! - **SP-2** Once a request is abandoned, no actor lives for it: not one that was started, nor one
//!   that is starting, nor one that is asked for afterwards.
//! - **SP-3** At most [`MOST_STARTING`] are starting; of those that are done, the latest
//!   [`MOST_DONE`] are known, and none for longer than [`REMEMBERED`].

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use footlight_runtime::ActorAddr;
use tokio::time::Instant;

use super::message::{Refusal, RequestId};

/// Most actors that a node starts at once for others.
pub(super) const MOST_STARTING: usize = 4096;
/// Most requests that are remembered when they are done.
const MOST_DONE: usize = 8192;
/// A request is remembered so long after it is done: longer than anyone asks again.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);
/// Most that wait for the same request: those of earlier connections have nobody behind them.
const MOST_WAITING: usize = 8;

pub(super) type Outcome = Result<ActorAddr, Refusal>;

enum Request<W> {
    Starting { waiting: VecDeque<W> },
    Done(Outcome),
    Abandoned,
}

/// The requests of one node; `W` is whoever waits for an answer.
pub(super) struct Requests<W> {
    known: HashMap<RequestId, Request<W>>,
    starting: usize,
    /// Those that are done or abandoned, by when.
    done: VecDeque<(Instant, RequestId)>,
}

/// What to do about a request.
#[derive(Debug, PartialEq)]
pub(super) enum Begin<W> {
    /// It is new: start the actor, and report when that is [finished](Requests::finish).
    Start,
    /// It is under way: who waits is told then.
    Wait,
    /// It is to be answered with this.
    Answer(W, Outcome),
}

/// What to do about an abandoned one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// Nothing: it has started no actor.
    Nothing,
    /// Its start is under way, and may be called off. It is to be reported all the same.
    CallOff,
    /// Its actor is to end.
    End(ActorAddr),
}

impl<W> Default for Requests<W> {
    fn default() -> Self {
        Requests { known: HashMap::new(), starting: 0, done: VecDeque::new() }
    }
}

impl<W> Requests<W> {
    /// Somebody asks.
    pub(super) fn begin(&mut self, now: Instant, id: RequestId, who: W) -> Begin<W> {
        self.forget(now);
        match self.known.get_mut(&id) {
            Some(Request::Starting { waiting }) => {
                if waiting.len() >= MOST_WAITING {
                    waiting.pop_front();
                }
                waiting.push_back(who);
                Begin::Wait
            }
            Some(Request::Done(outcome)) => Begin::Answer(who, outcome.clone()),
            Some(Request::Abandoned) => Begin::Answer(who, Err(Refusal::Abandoned)),
            None if self.starting >= MOST_STARTING => Begin::Answer(who, Err(Refusal::Busy)),
            None => {
                self.starting += 1;
                self.known.insert(id, Request::Starting { waiting: VecDeque::from([who]) });
                Begin::Start
            }
        }
    }

    /// A start has come to its end. Gives who is to be told, or, if nobody wants it any more, the
    /// actor that is to end.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        id: RequestId,
        outcome: Outcome,
    ) -> Result<VecDeque<W>, Option<ActorAddr>> {
        let Some(Request::Starting { .. }) = self.known.get(&id) else {
            self.starting = self.starting.saturating_sub(1);
            return Err(outcome.ok());
        };
        self.starting = self.starting.saturating_sub(1);
        // What this node can't take now it may take when it is asked again.
        let again = outcome.as_ref().is_err_and(Refusal::is_of_this_node);
        let before = if again {
            self.known.remove(&id)
        } else {
            self.done.push_back((now, id));
            self.known.insert(id, Request::Done(outcome))
        };
        self.forget(now);
        match before {
            Some(Request::Starting { waiting }) => Ok(waiting),
            _ => Ok(VecDeque::new()),
        }
    }

    /// Nobody wants what this request asks for.
    pub(super) fn abandon(&mut self, now: Instant, id: RequestId) -> Abandoned {
        let before = self.known.insert(id, Request::Abandoned);
        if !matches!(before, Some(Request::Done(_) | Request::Abandoned)) {
            self.done.push_back((now, id));
        }
        self.forget(now);
        match before {
            Some(Request::Starting { .. }) => Abandoned::CallOff,
            Some(Request::Done(Ok(actor))) => Abandoned::End(actor),
            _ => Abandoned::Nothing,
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, id)) = self.done.front().copied()
            && (self.done.len() > MOST_DONE || now.duration_since(at) > REMEMBERED)
        {
            self.done.pop_front();
            self.known.remove(&id);
        }
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
