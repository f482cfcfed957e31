//! The members of the cluster, as this node sees them.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use footlight_runtime::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use crate::{membership::MemberId, transport::handshake::NodeRecord};

/// Events that a slow listener may be behind before it misses some.
const EVENTS: usize = 1024;

/// A node as another one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// Where it takes connections.
    pub address: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Which life of the node this is.
    pub incarnation: Incarnation,
    /// What it is for: `server`, `worker`, …
    pub roles: Vec<String>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Where it answers over HTTP, if it does.
    pub http: Option<SocketAddr>,
    /// The actor types that it can host.
    pub actors: Vec<String>,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MemberState {
    /// Membership knows it; it has not told about itself yet, so nothing is placed there.
    Joining,
    /// It is there.
    Up,
    /// It does not answer; it is declared down soon, or answers.
    Suspect,
    /// It has left of its own will.
    Left,
    /// It was declared down.
    Down,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Joining => "joining",
            MemberState::Up => "up",
            MemberState::Suspect => "suspect",
            MemberState::Left => "left",
            MemberState::Down => "down",
        })
    }
}

impl Member {
    pub(crate) fn of(record: &NodeRecord, state: MemberState) -> Self {
        Member {
            id: record.node,
            address: record.addr,
            state,
            incarnation: record.incarnation,
            roles: record.roles.clone(),
            labels: record.labels.clone(),
            http: record.http,
            actors: record.catalog.actors.keys().cloned().collect(),
        }
    }

    fn bare(id: MemberId) -> Self {
        Member {
            id: id.node,
            address: id.addr,
            state: MemberState::Joining,
            incarnation: id.incarnation,
            roles: Vec::new(),
            labels: BTreeMap::new(),
            http: None,
            actors: Vec::new(),
        }
    }

    /// Whether actors may be placed there.
    pub fn is_up(&self) -> bool {
        self.state == MemberState::Up
    }
}

/// A change in the cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A member is up and has told about itself.
    Up(Member),
    /// A member does not answer.
    Suspect(Member),
    /// A member has left of its own will.
    Left(Member),
    /// A member was declared down.
    Down(Member),
}

#[derive(Debug)]
pub(crate) struct View {
    members: Mutex<BTreeMap<NodeId, Entry>>,
    events: broadcast::Sender<ClusterEvent>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    /// Whether the node has told about itself.
    recorded: bool,
    /// When it left or was declared down.
    gone_since: Option<Instant>,
}

impl View {
    pub(crate) fn new() -> Self {
        View {
            members: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Entry>> {
        self.members.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The other members, those that have gone included, by id.
    pub(crate) fn others(&self) -> Vec<Member> {
        self.lock().values().map(|entry| entry.member.clone()).collect()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ClusterEvent> {
        self.events.subscribe()
    }

    /// Told after each change.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Forgets those that have been gone for longer than `after`.
    pub(crate) fn forget_gone(&self, after: Duration) {
        let now = Instant::now();
        self.lock().retain(|_, entry| {
            entry.gone_since.is_none_or(|since| now.duration_since(since) < after)
        });
    }

    /// Membership says that a member is up; `record` is what it has told about itself, if it has.
    pub(crate) fn up(&self, id: MemberId, record: Option<NodeRecord>) {
        let record = record.filter(|record| record.incarnation == id.incarnation);
        let member = match &record {
            Some(record) => Member::of(record, MemberState::Up),
            None => Member::bare(id),
        };
        let entry = Entry { member: member.clone(), recorded: record.is_some(), gone_since: None };
        self.lock().insert(id.node, entry);
        if member.is_up() {
            let _ = self.events.send(ClusterEvent::Up(member));
        }
        self.changed.send_replace(());
    }

    /// A node has told about itself.
    pub(crate) fn record(&self, record: &NodeRecord) {
        let mut members = self.lock();
        let Some(entry) = members.get_mut(&record.node) else { return };
        if entry.member.incarnation != record.incarnation || entry.recorded {
            return;
        }
        entry.recorded = true;
        let state = match entry.member.state {
            MemberState::Joining => MemberState::Up,
            other => other,
        };
        entry.member = Member::of(record, state);
        if entry.member.is_up() {
            let _ = self.events.send(ClusterEvent::Up(entry.member.clone()));
        }
        drop(members);
        self.changed.send_replace(());
    }

    /// A member's state has changed.
    pub(crate) fn set(&self, id: MemberId, state: MemberState) {
        let mut members = self.lock();
        let Some(entry) = members.get_mut(&id.node) else { return };
        if entry.member.incarnation != id.incarnation || entry.member.state == state {
            return;
        }
        entry.member.state = match state {
            MemberState::Up if !entry.recorded => MemberState::Joining,
            other => other,
        };
        let member = entry.member.clone();
        let event = match member.state {
            MemberState::Suspect => Some(ClusterEvent::Suspect(member)),
            MemberState::Left => Some(ClusterEvent::Left(member)),
            MemberState::Down => Some(ClusterEvent::Down(member)),
            MemberState::Up => Some(ClusterEvent::Up(member)),
            MemberState::Joining => None,
        };
        if matches!(state, MemberState::Left | MemberState::Down) {
            entry.gone_since = Some(Instant::now());
        }
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
        drop(members);
        self.changed.send_replace(());
    }
}
