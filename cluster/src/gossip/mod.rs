//! How each node's record reaches all others: a state machine without socket, clock or thread.
//!
//! ```text
//! own changes, what peers tell, the time ──> Gossip ──> (to whom, what) to send, records to show
//! ```
//!
//! A changed record goes to every peer that there is a connection with, at most ten times a second.
//! Besides, once a second a node compares what it knows with one peer, chosen at random: a digest
//! goes out (which records, in which version), newer records come back, and a request for those that
//! the peer lacks. So news gets around a cut between two nodes, and nothing that a connection lost on
//! its way stays lost.
//!
//! What a user of [`Gossip`] may rely on (the tests cite these):
//! - **GO-1** Of each node the newest life's newest version counts; an older one never takes its
//!   place, however it comes.
//! - **GO-2** What others tell of a node counts only for the life that membership knows as up: nobody
//!   can bring a past life back, or make up a later one. What the node tells itself, over its own
//!   connection, counts also before membership knows of it.
//! - **GO-3** A node that hears of a record of its own that it has not told (a newer version) tells a
//!   newer one. So what was made up in its name is gone as soon as it hears of it.
//! - **GO-4** Records of nodes that are no members are forgotten, and nothing grows with what peers
//!   send.
//! - **GO-5** As long as the connections that are there hold all members together, all of them know
//!   each other's newest records some seconds after the last change.

#[cfg(test)]
mod simulation;

use std::{collections::BTreeMap, mem, ops::Bound, sync::Arc, time::Duration};

use footlight_runtime::{Incarnation, NodeId};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::record::{Record, RecordTooLarge};

/// A changed record is told at most this often.
const PUSH_PERIOD: Duration = Duration::from_millis(100);

/// One peer is compared with this often.
const ROUND: Duration = Duration::from_secs(1);

/// Most lines of a digest: what fits into one frame. With more records, the next round goes on
/// where this one ended.
const MAX_DIGEST: usize = 1024;

/// Most records that are sent, or asked for, because of one digest or one request.
const MAX_ANSWER: usize = 64;

/// A record of a node that is no member (yet) is kept for so many rounds.
const PATIENCE: u32 = 30;

/// Something for a peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Telling {
    Record(Arc<Record>),
    Digest(Digest),
    Want(Vec<NodeId>),
}

/// Which records a node knows, in which version, of all nodes from `first` to `last`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) first: NodeId,
    pub(crate) last: NodeId,
    /// Sorted by node.
    pub(crate) known: Vec<(NodeId, Incarnation, u64)>,
}

/// To whom, and what.
pub(crate) type Send = (NodeId, Telling);

/// Another node's record, as it is known here.
#[derive(Debug)]
struct Held {
    record: Arc<Record>,
    /// For how many rounds its node has been no member.
    strange: u32,
}

/// All records that one node knows, and what it has to do to spread them.
#[derive(Debug)]
pub(crate) struct Gossip {
    own: Arc<Record>,
    held: BTreeMap<NodeId, Held>,
    /// The other members that are up, each in its present life.
    up: BTreeMap<NodeId, Incarnation>,
    rng: ChaCha8Rng,
    /// There is a change that was not told yet.
    untold: bool,
    /// The next change may be told from here on.
    push_from: Instant,
    next_round: Instant,
    /// Up to where the latest digest told.
    told_up_to: Option<NodeId>,
}

impl Gossip {
    /// Knows its own record only.
    pub(crate) fn new(own: Record, rng: &mut impl Rng, now: Instant) -> Self {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let mut rng = ChaCha8Rng::from_seed(seed);
        let next_round = now + ROUND.mul_f64(rng.random());
        Gossip {
            own: Arc::new(own),
            held: BTreeMap::new(),
            up: BTreeMap::new(),
            rng,
            untold: false,
            push_from: now,
            next_round,
            told_up_to: None,
        }
    }

    /// What this node tells of itself.
    pub(crate) fn own(&self) -> &Arc<Record> {
        &self.own
    }

    /// What is known of another node.
    pub(crate) fn record(&self, node: NodeId) -> Option<&Arc<Record>> {
        self.held.get(&node).map(|held| &held.record)
    }

    /// Changes what this node tells of itself. Gives the record before, if it is another now.
    pub(crate) fn tell(
        &mut self,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Arc<Record>>, RecordTooLarge> {
        let mut next = Record::clone(&self.own);
        change(&mut next);
        if next == *self.own {
            return Ok(None);
        }
        next.version = self.own.version.saturating_add(1);
        next.check()?;
        self.untold = true;
        Ok(Some(mem::replace(&mut self.own, Arc::new(next))))
    }

    /// A member is up, in this life.
    pub(crate) fn up(&mut self, node: NodeId, incarnation: Incarnation) {
        self.up.insert(node, incarnation);
        if let Some(held) = self.held.get_mut(&node) {
            held.strange = 0;
            if held.record.incarnation < incarnation {
                self.held.remove(&node);
            }
        }
    }

    /// A life of a node is over.
    pub(crate) fn gone(&mut self, node: NodeId, incarnation: Incarnation) {
        if self.up.get(&node).is_some_and(|up| *up <= incarnation) {
            self.up.remove(&node);
        }
        if self.record(node).is_some_and(|record| record.incarnation <= incarnation) {
            self.held.remove(&node);
        }
    }

    /// Heeds a record that `from` has told, in the life that its connection belongs to, and gives it
    /// back if it is news.
    pub(crate) fn heed(
        &mut self,
        from: NodeId,
        life: Incarnation,
        mut record: Record,
    ) -> Option<Arc<Record>> {
        let node = record.node;
        if node == self.own.node {
            self.outbid(record.incarnation, record.version);
            return None;
        }
        let known = self.record(node);
        let (counts, news) = if node == from {
            let older = known.is_some_and(|known| known.is_newer_than(&record));
            (record.incarnation == life, !older && known.is_none_or(|known| **known != record))
        } else {
            let up = self.up.get(&node) == Some(&record.incarnation);
            (up, known.is_none_or(|known| record.is_newer_than(known)))
        };
        let is_over = self.up.get(&node).is_some_and(|up| record.incarnation < *up);
        if !counts || !news || is_over {
            return None;
        }
        if !record.load.cpu.is_finite() {
            record.load.cpu = 0.0;
        }
        let record = Arc::new(record);
        self.held.insert(node, Held { record: record.clone(), strange: 0 });
        Some(record)
    }

    /// Others know a record of this node: if it is newer than what was told, something was made up.
    fn outbid(&mut self, incarnation: Incarnation, version: u64) {
        if incarnation == self.own.incarnation && version > self.own.version {
            Arc::make_mut(&mut self.own).version = version.saturating_add(1);
            self.untold = true;
        }
    }

    /// Answers a digest: with what is newer here, and with the wish for what is newer there.
    pub(crate) fn compare(&mut self, from: NodeId, digest: Digest) -> Vec<Send> {
        let mut there = BTreeMap::new();
        for (node, incarnation, version) in digest.known {
            if node == self.own.node {
                self.outbid(incarnation, version);
            }
            there.insert(node, (incarnation, version));
        }
        let newer_there: Vec<NodeId> = there
            .iter()
            .filter(|(node, (incarnation, version))| {
                self.up.get(node) == Some(incarnation)
                    && self.record(**node).is_none_or(|known| {
                        (*incarnation, *version) > (known.incarnation, known.version)
                    })
            })
            .map(|(node, _)| *node)
            .take(MAX_ANSWER)
            .collect();
        if digest.first > digest.last {
            return Vec::new();
        }
        let range = (Bound::Included(digest.first), Bound::Included(digest.last));
        let here = self.held.range(range).map(|(_, held)| &held.record);
        let own = Some(&self.own).filter(|own| (digest.first..=digest.last).contains(&own.node));
        let mut sends: Vec<Send> = here
            .chain(own)
            // The node itself knows best.
            .filter(|record| record.node != from)
            .filter(|record| {
                there
                    .get(&record.node)
                    .is_none_or(|there| (record.incarnation, record.version) > *there)
            })
            .take(MAX_ANSWER)
            .map(|record| (from, Telling::Record(record.clone())))
            .collect();
        if !newer_there.is_empty() {
            sends.push((from, Telling::Want(newer_there)));
        }
        sends
    }

    /// Answers a peer that wants records.
    pub(crate) fn answer(&self, from: NodeId, wanted: &[NodeId]) -> Vec<Send> {
        let wanted = wanted.iter().take(MAX_ANSWER);
        let records = wanted.filter_map(|node| {
            if *node == self.own.node { Some(&self.own) } else { self.record(*node) }
        });
        records.map(|record| (from, Telling::Record(record.clone()))).collect()
    }

    /// When [`at`](Self::at) wants to be called, unless something happens before.
    pub(crate) fn next_due(&self) -> Instant {
        if self.untold { self.push_from.min(self.next_round) } else { self.next_round }
    }

    /// What there is to send at a time; `peers` are those that there is a connection with.
    pub(crate) fn at(&mut self, now: Instant, peers: &[NodeId]) -> Vec<Send> {
        let mut sends = Vec::new();
        if self.untold && self.push_from <= now {
            self.untold = false;
            self.push_from = now + PUSH_PERIOD;
            sends.extend(peers.iter().map(|peer| (*peer, Telling::Record(self.own.clone()))));
        }
        if self.next_round <= now {
            self.next_round = now + ROUND;
            self.forget_strangers();
            if !peers.is_empty() {
                let peer = peers[self.rng.random_range(0..peers.len())];
                sends.push((peer, Telling::Digest(self.digest())));
            }
        }
        sends
    }

    fn forget_strangers(&mut self) {
        let up = &self.up;
        self.held.retain(|node, held| {
            if !up.contains_key(node) {
                held.strange += 1;
            }
            held.strange < PATIENCE
        });
    }

    /// The records that are known, of up to [`MAX_DIGEST`] nodes.
    fn digest(&mut self) -> Digest {
        let mut all: BTreeMap<NodeId, &Record> =
            self.held.iter().map(|(node, held)| (*node, &*held.record)).collect();
        all.insert(self.own.node, &self.own);
        let first = match self.told_up_to {
            Some(NodeId(last)) if all.range(NodeId(last.saturating_add(1))..).next().is_some() => {
                NodeId(last.saturating_add(1))
            }
            _ => NodeId(0),
        };
        let known: Vec<_> = all
            .range(first..)
            .take(MAX_DIGEST)
            .map(|(node, record)| (*node, record.incarnation, record.version))
            .collect();
        let last = match known.last() {
            Some((last, _, _)) if known.len() == MAX_DIGEST => *last,
            _ => NodeId(u64::MAX),
        };
        self.told_up_to = Some(last).filter(|last| *last != NodeId(u64::MAX));
        Digest { first, last, known }
    }
}
