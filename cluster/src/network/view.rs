//! The members of the cluster, as this node sees them.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use footlight_runtime::{Incarnation, NodeId, System};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use super::events::{ClusterEvent, Events};
use crate::{
    Node,
    groups::GroupPart,
    ledger::{LedgerView, Told, VOTER_ROLE},
    membership::MemberId,
    record::{Load, Record},
    resources::Resources,
};

/// Events that a slow listener may be behind before it misses some.
const EVENTS: usize = 1024;

/// A node as another one sees it: how it is, and the latest that it has told of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// All that it has to compute with.
    pub resources: Resources,
    /// What of it is not reserved.
    pub free: Resources,
    /// How much it has to do.
    pub load: Load,
    /// The members that it can't hold a connection with, though membership counts them in.
    pub unreachable: Vec<NodeId>,
    /// Its actors in groups, by the group's name.
    pub groups: BTreeMap<String, GroupPart>,
    /// The ledger that it knows, if any.
    pub ledger: Option<LedgerView>,
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
    /// It is there, and drains: it finishes what it has to do and takes nothing new.
    Leaving,
    /// It has left of its own will.
    Left,
    /// It was declared down.
    Down,
}

impl MemberState {
    /// Whether the node is no member any more.
    pub fn is_gone(self) -> bool {
        matches!(self, MemberState::Left | MemberState::Down)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Joining => "joining",
            MemberState::Up => "up",
            MemberState::Suspect => "suspect",
            MemberState::Leaving => "leaving",
            MemberState::Left => "left",
            MemberState::Down => "down",
        })
    }
}

impl Member {
    pub(crate) fn of(record: &Record, state: MemberState) -> Self {
        Member {
            id: record.node,
            address: record.addr,
            state,
            incarnation: record.incarnation,
            roles: record.roles.clone(),
            labels: record.labels.clone(),
            http: record.http,
            actors: record.actors.clone(),
            resources: record.resources.clone(),
            free: record.free.clone(),
            load: record.load,
            unreachable: record.unreachable.clone(),
            groups: record.groups.clone(),
            ledger: record.ledger.clone(),
        }
    }

    /// This node as it sees itself.
    pub(crate) fn own(record: &Record) -> Self {
        Member::of(record, if record.leaving { MemberState::Leaving } else { MemberState::Up })
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
            resources: Resources::default(),
            free: Resources::default(),
            load: Load::default(),
            unreachable: Vec::new(),
            groups: BTreeMap::new(),
            ledger: None,
        }
    }

    /// Whether actors may be placed there.
    pub fn is_up(&self) -> bool {
        self.state == MemberState::Up
    }
}

/// Whether two members can't reach each other, as one of them tells; though both may be [up](Member::is_up), as others
/// reach them.
pub fn are_cut(members: &[Member], one: NodeId, other: NodeId) -> bool {
    let tells = |from: NodeId, to: NodeId| {
        members.iter().any(|member| member.id == from && member.unreachable.contains(&to))
    };
    tells(one, other) || tells(other, one)
}

/// Ready when two members have been [cut](are_cut) from each other for so long, as this node knows it. Never if the node
/// ends before.
pub async fn cut_between(system: &System, one: NodeId, other: NodeId, patience: Duration) {
    let Some(mut changes) = Node::of(system).map(|node| node.changes()) else {
        return std::future::pending().await;
    };
    let mut since = None;
    loop {
        changes.mark_unchanged();
        let cut = match Node::of(system) {
            Some(node) => are_cut(&node.members(), one, other),
            None => return std::future::pending().await,
        };
        since = cut.then(|| since.unwrap_or_else(Instant::now));
        let changed = match since {
            Some(since) => {
                // What comes from a peer may be too long to be added to anything.
                let over = tokio::time::sleep(patience.saturating_sub(since.elapsed()));
                tokio::select! {
                    biased;
                    changed = changes.changed() => changed,
                    () = over => return,
                }
            }
            None => changes.changed().await,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
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
    /// What membership says.
    standing: Standing,
    /// What the node has told about itself.
    record: Option<Arc<Record>>,
    /// When it left or was declared down.
    gone_since: Option<Instant>,
}

/// What membership says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Up,
    Suspect,
    Left,
    Down,
}

impl Entry {
    fn state(&self) -> MemberState {
        match (self.standing, &self.record) {
            (Standing::Left, _) => MemberState::Left,
            (Standing::Down, _) => MemberState::Down,
            (Standing::Suspect, _) => MemberState::Suspect,
            (Standing::Up, None) => MemberState::Joining,
            (Standing::Up, Some(record)) if record.leaving => MemberState::Leaving,
            (Standing::Up, Some(_)) => MemberState::Up,
        }
    }

    /// Makes the member what standing and record say; the event, if that changed it.
    fn refresh(&mut self) -> Option<ClusterEvent> {
        let state = self.state();
        let before = (self.member.state, self.member.clone());
        match &self.record {
            Some(record) => self.member = Member::of(record, state),
            None => self.member.state = state,
        }
        let member = || self.member.clone();
        match state {
            _ if before.0 == state => {
                (before.1 != self.member).then(|| ClusterEvent::Changed(member()))
            }
            MemberState::Joining => Some(ClusterEvent::Joining(member())),
            MemberState::Up => Some(ClusterEvent::Up(member())),
            MemberState::Suspect => Some(ClusterEvent::Suspect(member())),
            MemberState::Leaving => Some(ClusterEvent::Leaving(member())),
            MemberState::Left => Some(ClusterEvent::Left(member())),
            MemberState::Down => Some(ClusterEvent::Down(member())),
        }
    }
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

    /// Shows each of the other members, by id; `look` must not ask for members itself.
    pub(crate) fn each(&self, look: impl FnMut(&Member)) {
        self.lock().values().map(|entry| &entry.member).for_each(look);
    }

    /// Another type than this one that a group is of, as other members tell.
    pub(crate) fn other_kind(&self, group: &str, kind: &str) -> Option<String> {
        let members = self.lock();
        let there = members.values().filter(|entry| !entry.member.state.is_gone());
        let mut kinds = there.filter_map(|entry| Some(&entry.member.groups.get(group)?.kind));
        kinds.find(|found| *found != kind).cloned()
    }

    /// The present life of a member that is not gone.
    pub(crate) fn life(&self, node: NodeId) -> Option<Incarnation> {
        let members = self.lock();
        let member = &members.get(&node)?.member;
        (!member.state.is_gone()).then_some(member.incarnation)
    }

    /// The latest life of another node that is known, and how it is.
    pub(crate) fn standing(&self, node: NodeId) -> Option<(Incarnation, MemberState)> {
        let members = self.lock();
        let member = &members.get(&node)?.member;
        Some((member.incarnation, member.state))
    }

    /// What the other members tell of the ledger, by id.
    pub(crate) fn ledgers(&self) -> Vec<Told> {
        let is_server = |record: &Arc<Record>| record.roles.iter().any(|role| role == VOTER_ROLE);
        let told = |Entry { member, record, .. }: &Entry| Told {
            node: member.id,
            state: member.state,
            server: record.as_ref().map(is_server),
            ledger: member.ledger.clone(),
        };
        self.lock().values().map(told).collect()
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events::new(self.events.subscribe())
    }

    /// Told after each change.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Forgets those that have been gone for longer than `after`, and of the others all but the
    /// `most` that went last.
    pub(crate) fn forget_gone(&self, now: Instant, after: Duration, most: usize) {
        let mut members = self.lock();
        members.retain(|_, entry| {
            entry.gone_since.is_none_or(|since| now.saturating_duration_since(since) < after)
        });
        let gone = members.iter().filter_map(|(id, entry)| Some((entry.gone_since?, *id)));
        let mut gone: Vec<_> = gone.collect();
        if gone.len() > most {
            gone.sort_unstable();
            for (_, id) in &gone[..gone.len() - most] {
                members.remove(id);
            }
        }
    }

    /// Membership says that a member is up; `record` is what it has told about itself, if it has.
    pub(crate) fn up(&self, id: MemberId, record: Option<Arc<Record>>) {
        let mut members = self.lock();
        let mut entry = Entry {
            member: Member::bare(id),
            standing: Standing::Up,
            record: record.filter(|record| record.incarnation == id.incarnation),
            gone_since: None,
        };
        let event = entry.refresh().unwrap_or_else(|| ClusterEvent::Joining(entry.member.clone()));
        members.insert(id.node, entry);
        let _ = self.events.send(event);
        drop(members);
        self.changed.send_replace(());
    }

    /// A node has told something new about itself.
    pub(crate) fn heard(&self, record: &Arc<Record>) {
        let mut members = self.lock();
        let Some(entry) = members.get_mut(&record.node) else { return };
        if entry.member.incarnation != record.incarnation || entry.member.state.is_gone() {
            return;
        }
        let before = entry.record.replace(record.clone());
        if let Some(event) = entry.refresh() {
            let _ = self.events.send(event);
        }
        let before = before.as_ref().map_or(&[][..], |before| &before.unreachable);
        self.tell_reach(&members, record.node, before, &record.unreachable);
        drop(members);
        self.changed.send_replace(());
    }

    /// This node tells something new about itself.
    pub(crate) fn told(&self, before: &Record, now: &Record) {
        self.tell_reach(&self.lock(), now.node, &before.unreachable, &now.unreachable);
        self.changed.send_replace(());
    }

    fn tell_reach(
        &self,
        members: &BTreeMap<NodeId, Entry>,
        from: NodeId,
        before: &[NodeId],
        now: &[NodeId],
    ) {
        for &to in now.iter().filter(|to| !before.contains(to)) {
            let _ = self.events.send(ClusterEvent::Unreachable { from, to });
        }
        for &to in before.iter().filter(|to| !now.contains(to)) {
            // Of one that has gone it is no news that nobody complains any more.
            if members.get(&to).is_none_or(|entry| !entry.member.state.is_gone()) {
                let _ = self.events.send(ClusterEvent::Reachable { from, to });
            }
        }
    }

    /// Membership sees a member in another way.
    pub(crate) fn set(&self, id: MemberId, standing: Standing) {
        let mut members = self.lock();
        let Some(entry) = members.get_mut(&id.node) else { return };
        if entry.member.incarnation != id.incarnation || entry.member.state.is_gone() {
            return;
        }
        entry.standing = standing;
        let Some(event) = entry.refresh() else { return };
        if entry.member.state.is_gone() {
            entry.gone_since = Some(Instant::now());
            // The member says what is to be known of it.
            entry.record = None;
        }
        let _ = self.events.send(event);
        drop(members);
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_have_gone_are_shown_for_a_while_and_only_the_latest() {
        let view = View::new();
        let hour = Duration::from_secs(3600);
        let member = |node| {
            let addr = SocketAddr::from(([127, 0, 0, 1], 1));
            MemberId::new(NodeId(node), Incarnation(1), addr)
        };
        let shown = || view.others().iter().map(|member| member.id.0).collect::<Vec<_>>();
        for (node, standing) in [(5, Standing::Left), (1, Standing::Down), (3, Standing::Left)] {
            view.up(member(node), None);
            view.set(member(node), standing);
        }
        view.up(member(2), None);
        let now = Instant::now();
        view.forget_gone(now, hour, 3);
        assert_eq!(shown(), [1, 2, 3, 5]);
        view.forget_gone(now, hour, 2);
        assert_eq!(shown(), [1, 2, 3], "the one that went first is forgotten first");
        view.forget_gone(now + hour, hour, 2);
        assert_eq!(shown(), [2]);
    }
}
