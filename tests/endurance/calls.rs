//! Callers that call whatever tally there is, at a steady rate, and write down how each call ended.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use footlight::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Outcome, Tally};

/// How long a call may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// How much later it may tell how it ended, on a busy machine.
const GRACE: Duration = Duration::from_secs(2);
/// So long is waited for a call that does not end at all.
const NEVER: Duration = Duration::from_secs(60);
/// So often a caller looks anew whom there is to call.
const LOOK: Duration = Duration::from_secs(1);
/// Whoever gets no processor for so long stood still.
const STILL: Duration = Duration::from_millis(120);

/// Measures for how long this process stood still in all: frozen, or without a processor.
#[derive(Clone)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn start() -> io::Result<Self> {
        let still = Arc::new(AtomicU64::new(0));
        let pulse = Pulse(still.clone());
        thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            loop {
                let before = Instant::now();
                thread::sleep(Duration::from_millis(20));
                if Arc::strong_count(&still) == 1 {
                    return;
                }
                let took = before.elapsed();
                if took > STILL {
                    still.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
                }
            }
        })?;
        Ok(pulse)
    }

    fn still(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Calls at `per_second` until told to stop; then waits for the calls under way.
///
/// `life` tells this process's calls from those of all others.
pub(crate) async fn call(
    node: Node,
    life: u32,
    per_second: u32,
    account: PathBuf,
    stop: CancellationToken,
) -> Result<()> {
    let account = Arc::new(Mutex::new(support::append(&account)?));
    let write = move |line: String| {
        let mut account = account.lock().expect("no writer has panicked");
        account.write_all(line.as_bytes())
    };
    let pulse = Pulse::start()?;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
    // After a standstill it goes on as before, and does not make up for it.
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut tallies, mut looked) = (Vec::new(), None::<Instant>);
    let mut calls = Vec::new();
    for counter in 0u32.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = pace.tick() => {}
        }
        if looked.is_none_or(|looked| looked.elapsed() > LOOK) {
            tallies = node.find::<Tally>().await;
            looked = Some(Instant::now());
        }
        let count = tallies.len().max(1);
        let Some(tally) = tallies.get(counter as usize * 7919 % count).cloned() else { continue };
        let number = u64::from(life) << 32 | u64::from(counter);
        write(format!("begun {number}\n"))?;
        let (write, pulse) = (write.clone(), pulse.clone());
        calls.push(tokio::spawn(async move {
            let (began, before) = (Instant::now(), pulse.still());
            let outcome = support::call_tally(&tally, number, PATIENCE, NEVER).await;
            let took = began.elapsed();
            if took > PATIENCE + GRACE {
                // The pulse may not have noticed yet that all stood still.
                tokio::time::sleep(2 * STILL).await;
            }
            let own = took.saturating_sub(pulse.still() - before);
            let outcome = match outcome {
                None => "never".to_owned(),
                Some(_) if own > PATIENCE + GRACE => format!("late {}", own.as_millis()),
                Some(Outcome::Answered) => "answered".to_owned(),
                Some(Outcome::NotSent(why)) => format!("not_sent {why}"),
                Some(Outcome::MayHaveRun(why)) => format!("may_have_run {why}"),
            };
            write(format!("ended {number} {outcome}\n"))
        }));
        if calls.len() > 1000 {
            calls.retain(|call| !call.is_finished());
        }
    }
    for call in calls {
        call.await.map_err(|error| Error::other(error.to_string()))??;
    }
    Ok(())
}

/// What the callers know.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) calls: BTreeMap<u64, Outcome>,
    /// Begun by a process that ended before it could say how they ended.
    pub(crate) unfinished: usize,
    pub(crate) breaches: Vec<String>,
}

impl Account {
    /// Adds what one life of a caller wrote. One that lived on has seen the end of all its calls.
    pub(crate) fn read(&mut self, account: &Path, lived_on: bool) -> io::Result<()> {
        let mut begun = BTreeMap::new();
        for line in fs::read_to_string(account)?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = words.get(1).and_then(|word| word.parse::<u64>().ok());
            match (words.as_slice(), number) {
                (["begun", _], Some(number)) => drop(begun.insert(number, false)),
                (["ended", _, how @ ..], Some(number)) => {
                    begun.insert(number, true);
                    match how {
                        ["answered"] => drop(self.calls.insert(number, Outcome::Answered)),
                        ["not_sent", why] => {
                            self.calls.insert(number, Outcome::NotSent((*why).to_owned()));
                        }
                        ["may_have_run", why] => {
                            self.calls.insert(number, Outcome::MayHaveRun((*why).to_owned()));
                        }
                        ["never"] => self.breaches.push(format!("call {number} never ended")),
                        ["late", millis] => self.breaches.push(format!(
                            "call {number} ended {millis} ms after it began, with a deadline of {} ms",
                            PATIENCE.as_millis()
                        )),
                        _ => return Err(io::Error::other(format!("can't be read: {line}"))),
                    }
                }
                // The last line of a process that was killed may be cut off.
                _ if !lived_on => {}
                _ => return Err(io::Error::other(format!("can't be read: {line}"))),
            }
        }
        let open = begun.values().filter(|ended| !**ended).count();
        self.unfinished += open;
        if lived_on && open > 0 {
            self.breaches.push(format!("{open} calls of a caller that lived on have no end"));
        }
        Ok(())
    }
}
