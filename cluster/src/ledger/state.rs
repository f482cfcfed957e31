//! The state machine: what the entries of the log add up to.
//!
//! It has no clock and does no I/O, and nothing in it depends on the order of a hash map: voters
//! that apply the same entries have the same state.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    LedgerId,
    command::{
        Bound, Command, Entry, Expect, Holder, Life, MAX_BYTES, MAX_KEYS, MAX_LEASES, Outcome,
        Reign, RequestId, Versioned,
    },
};

/// Most writes that one client has under way.
pub(super) const MAX_OUTCOMES: usize = 32;
/// Most clients whose writes are told apart; the one that has not written for longest is forgotten.
const MAX_CLIENTS: usize = 1024;
/// Most ledgers that are remembered as having gone up in this one.
const MAX_ABSORBED: usize = 256;

/// A lease that somebody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// Who has it.
    pub holder: Holder,
    /// Which grant this is.
    pub generation: u64,
}

/// The writes of one client that it may ask for again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Client {
    /// When it wrote last, as the number of the entry.
    last: u64,
    /// It has the answers to all writes before this one.
    answered: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

/// A key that has changed: for those who watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The state's revision after the change.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// What it is now; `None` if it is gone.
    pub now: Option<Versioned>,
}

/// What the ledger holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Counts the changes of keys. A key's version is the revision that its write made.
    revision: u64,
    /// Counts the entries.
    entries: u64,
    /// The greatest generation ever granted.
    generation: u64,
    keys: BTreeMap<String, Versioned>,
    /// Of all keys and values.
    bytes: usize,
    leases: BTreeMap<String, Grant>,
    clients: BTreeMap<Life, Client>,
    absorbed: BTreeSet<LedgerId>,
    closed: Option<LedgerId>,
}

impl State {
    /// An empty ledger. Its generations begin after `generation`: a ledger that is founded in place
    /// of a lost one begins with the time of day in microseconds, and so past the lost one's.
    pub(super) fn new(generation: u64) -> Self {
        State { generation, ..State::default() }
    }

    /// Counts the changes of keys.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The greatest generation ever granted.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// One key.
    pub(super) fn get(&self, key: &str) -> Option<&Versioned> {
        self.keys.get(key)
    }

    /// The keys that begin with `prefix`, in order.
    pub(super) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Versioned)> {
        let from = self.keys.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The lives that own keys.
    pub(super) fn owners(&self) -> BTreeSet<Life> {
        self.keys.values().filter_map(|key| key.owner).collect()
    }

    /// The leases that are held.
    pub(super) fn leases(&self) -> &BTreeMap<String, Grant> {
        &self.leases
    }

    /// That somebody has a lease, unless it was this write that took it.
    pub(super) fn is_held(&self, id: &RequestId, lease: &str) -> Option<Outcome> {
        let client = self.clients.get(&id.client);
        if client.is_some_and(|client| client.outcomes.contains_key(&id.number)) {
            return None;
        }
        let Grant { holder, generation } = self.leases.get(lease)?;
        Some(Outcome::Held { by: holder.clone(), generation: *generation })
    }

    /// Whether a lease is held under this generation.
    pub(super) fn holds(&self, lease: &str, generation: u64) -> bool {
        self.leases.get(lease).is_some_and(|grant| grant.generation == generation)
    }

    /// The ledger that this one goes up in, once it is closed.
    pub(super) fn closed(&self) -> Option<LedgerId> {
        self.closed
    }

    /// Whether another ledger has gone up in this one.
    pub(super) fn has_absorbed(&self, ledger: LedgerId) -> bool {
        self.absorbed.contains(&ledger)
    }

    /// Applies one entry of a leader's log; tells which keys changed.
    pub(super) fn apply(
        &mut self,
        entry: Entry,
        reign: Reign,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        self.entries += 1;
        let Some(id) = entry.id else { return self.run(entry.command, reign, changes) };
        if let Some(outcome) = self.seen(&id) {
            return outcome;
        }
        let outcome = self.run(entry.command, reign, changes);
        if let Some(client) = self.clients.get_mut(&id.client) {
            client.outcomes.insert(id.number, outcome.clone());
        }
        outcome
    }

    /// The outcome of a write that was done before, or that can't be done; else `None`, and the
    /// client has room for one more.
    fn seen(&mut self, id: &RequestId) -> Option<Outcome> {
        let entry = self.entries;
        if !self.clients.contains_key(&id.client) && self.clients.len() >= MAX_CLIENTS {
            let oldest = self.clients.iter().min_by_key(|(_, client)| client.last);
            if let Some(oldest) = oldest.map(|(life, _)| *life) {
                self.clients.remove(&oldest);
            }
        }
        let client = self.clients.entry(id.client).or_default();
        client.last = entry;
        client.answered = client.answered.max(id.answered);
        client.outcomes = client.outcomes.split_off(&client.answered);
        if id.number < client.answered {
            return Some(Outcome::Stale);
        }
        if let Some(outcome) = client.outcomes.get(&id.number) {
            return Some(outcome.clone());
        }
        (client.outcomes.len() >= MAX_OUTCOMES).then_some(Outcome::Refused(Bound::Writes))
    }

    fn run(&mut self, command: Command, now: Reign, changes: &mut Vec<Change>) -> Outcome {
        if let Some(into) = self.closed {
            return Outcome::Closed(into);
        }
        if let Err(bound) = command.check() {
            return Outcome::Refused(bound);
        }
        match command {
            Command::Nothing => Outcome::Done,
            Command::Put { key, value, expect, owner } => {
                if let Some(conflict) = self.conflict(&key, expect) {
                    return conflict;
                }
                let before = self.keys.get(&key).map(|old| key.len() + old.value.len());
                let bytes = self.bytes - before.unwrap_or(0) + key.len() + value.len();
                if bytes > MAX_BYTES || (before.is_none() && self.keys.len() >= MAX_KEYS) {
                    return Outcome::Refused(Bound::Full);
                }
                self.bytes = bytes;
                self.revision += 1;
                let now = Versioned { value, version: self.revision, owner };
                self.keys.insert(key.clone(), now.clone());
                changes.push(Change { revision: self.revision, key, now: Some(now) });
                Outcome::Written(self.revision)
            }
            Command::Delete { key, expect } => {
                if let Some(conflict) = self.conflict(&key, expect) {
                    return conflict;
                }
                self.delete(key, changes);
                Outcome::Done
            }
            Command::Acquire { lease, holder } => {
                if let Some(Grant { holder, generation }) = self.leases.get(&lease) {
                    return Outcome::Held { by: holder.clone(), generation: *generation };
                }
                if self.leases.len() >= MAX_LEASES {
                    return Outcome::Refused(Bound::Leases);
                }
                self.generation += 1;
                let grant = Grant { holder, generation: self.generation };
                self.leases.insert(lease, grant);
                Outcome::Granted(self.generation)
            }
            Command::Release { lease, generation } => {
                self.free(&lease, generation);
                Outcome::Done
            }
            Command::Lapse { reign, grants } => {
                for (lease, generation) in grants.into_iter().filter(|_| reign == now) {
                    self.free(&lease, generation);
                }
                Outcome::Done
            }
            Command::Forget(life) => {
                let over =
                    |other: &Life| other.node == life.node && other.incarnation <= life.incarnation;
                let owned =
                    self.keys.iter().filter(|(_, key)| key.owner.as_ref().is_some_and(over));
                let owned: Vec<String> = owned.map(|(key, _)| key.clone()).collect();
                for key in owned {
                    self.delete(key, changes);
                }
                self.clients.retain(|client, _| !over(client));
                Outcome::Done
            }
            Command::Close { into } => {
                self.closed = Some(into);
                Outcome::Done
            }
            Command::Absorb { from, generation, leases, all } => {
                self.generation = self.generation.max(generation);
                for lease in leases {
                    if let Some(grant) = self.leases.get(&lease)
                        && grant.generation <= generation
                    {
                        self.leases.remove(&lease);
                    }
                }
                if all && self.absorbed.len() < MAX_ABSORBED {
                    self.absorbed.insert(from);
                }
                Outcome::Done
            }
        }
    }

    fn conflict(&self, key: &str, expect: Expect) -> Option<Outcome> {
        let version = self.keys.get(key).map(|key| key.version);
        let fits = match expect {
            Expect::Any => true,
            Expect::Absent => version.is_none(),
            Expect::Version(wanted) => version == Some(wanted),
        };
        (!fits).then_some(Outcome::Conflict(version))
    }

    fn delete(&mut self, key: String, changes: &mut Vec<Change>) {
        if let Some(old) = self.keys.remove(&key) {
            self.bytes -= key.len() + old.value.len();
            self.revision += 1;
            changes.push(Change { revision: self.revision, key, now: None });
        }
    }

    fn free(&mut self, lease: &str, generation: u64) {
        if self.holds(lease, generation) {
            self.leases.remove(lease);
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
