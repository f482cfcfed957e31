//! The leader's clock for leases, as a state machine: time and events in, lapsed grants out.
//!
//! A lease's holder and the leader count its time each by its own monotonic clock, and never
//! compare the two. The [time](LeaseTime) is the same for both: nobody is answered, and no voter
//! heeds another, who was started with another one.
//!
//! * The holder counts from the moment when it *sent* the request that the leader granted, and
//!   stops a [tenth](LeaseTime::margin) before the end.
//! * The leader counts from the moment when it *received* the request, which is later. It answers a
//!   renewal only after a majority of voters has confirmed, after the renewal arrived, that it is
//!   still the leader.
//! * A leader that has just been elected gives every lease the whole time anew.
//!
//! So at most one holder believes in a lease at any time (LE-1). A lease is granted anew only after
//! the log says that the former grant lapsed or was released, and only a leader says so. If it is
//! the leader that answered the last renewal, it waited for the whole time since it received that
//! renewal, and the holder's time began before. If it is another leader, elected later: a majority
//! of voters voted for it, and a majority confirmed the former leader when the renewal had arrived
//! there. At least one voter did both, first confirmed and then voted (having voted, it would not
//! have confirmed any more). So the new leader was elected after the renewal was sent, and it waits
//! for the whole time from then on. An old leader that is cut off can't get a confirmation: it
//! renews nothing, and what it would let lapse never gets into the log.
//!
//! This asks of the clocks that they run equally fast to within that tenth. A machine that sleeps (a
//! suspended laptop, a paused virtual one) may stop its clock: there a holder may believe too long,
//! and fences are what is left. That is what generations are for.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::state::Grant;

/// How long a lease lasts that is not renewed, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseTime(pub(super) Duration);

impl LeaseTime {
    /// It is renewed so often.
    pub(super) fn renewal(self) -> Duration {
        self.0 / 4
    }

    /// A renewal is asked for so long, then anew: by then there may be another leader.
    pub(super) fn patience(self) -> Duration {
        self.0 / 2
    }

    /// Its holder stops so long before its end.
    pub(super) fn margin(self) -> Duration {
        self.0 / 10
    }

    /// How long its holder may believe in it that asked for it, or renewed it, at `sent`.
    pub(super) fn until(self, sent: Instant) -> Instant {
        sent + self.0 - self.margin()
    }
}

/// A look at the clock that comes so much too late means that this thread stood still.
const STALL: Duration = Duration::from_millis(250);

/// When a lease that is held would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timer {
    generation: u64,
    ends: Instant,
}

/// The timers of a leader, from its election on.
#[derive(Debug)]
pub(super) struct Timers {
    time: LeaseTime,
    timers: BTreeMap<String, Timer>,
    looked: Instant,
}

impl Timers {
    /// A leader that was elected at `now` begins to count.
    pub(super) fn begin(now: Instant, time: LeaseTime) -> Self {
        Timers { time, timers: BTreeMap::new(), looked: now }
    }

    /// A grant was renewed by a request that arrived at `received`, and leadership was confirmed
    /// after that.
    pub(super) fn renewed(&mut self, lease: &str, generation: u64, received: Instant) {
        if let Some(timer) = self.timers.get_mut(lease)
            && timer.generation == generation
        {
            timer.ends = timer.ends.max(received + self.time.0);
        }
    }

    /// Compares with the leases that the log says are held; gives those grants whose time is over.
    /// What is not known yet gets the whole time from `now`. Called every now and then, `every` at
    /// the latest.
    pub(super) fn look(
        &mut self,
        leases: &BTreeMap<String, Grant>,
        now: Instant,
        every: Duration,
    ) -> Vec<(String, u64)> {
        // While this thread stood still, renewals could not be heard: they may wait at the door.
        let late = now.saturating_duration_since(self.looked + every);
        let grace = if late > STALL { late } else { Duration::ZERO };
        self.looked = now;
        self.timers.retain(|lease, timer| {
            leases.get(lease).is_some_and(|grant| grant.generation == timer.generation)
        });
        let mut lapsed = Vec::new();
        for (lease, grant) in leases {
            let whole = Timer { generation: grant.generation, ends: now + self.time.0 };
            let timer = self.timers.entry(lease.clone()).or_insert(whole);
            timer.ends += grace;
            if timer.ends <= now {
                lapsed.push((lease.clone(), grant.generation));
            }
        }
        lapsed
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
