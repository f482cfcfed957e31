//! What the nodes tell of themselves: the own record, and [`Gossip`] on the control thread.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use footlight_runtime::{Incarnation, NodeId};
use rand::Rng;
use tokio::{sync::Notify, time::Instant};

use super::{Network, peer::Peer};
use crate::{
    gossip::{Digest, Gossip, Send, Telling},
    membership::MemberId,
    record::{Record, RecordTooLarge},
    transport::{frame::Header, handshake::Purpose, session::Session},
};

pub(super) struct Records {
    gossip: Mutex<Gossip>,
    /// There is something to do before the time.
    wake: Notify,
}

impl Records {
    pub(super) fn new(own: Record, rng: &mut impl Rng) -> Self {
        Records { gossip: Mutex::new(Gossip::new(own, rng, Instant::now())), wake: Notify::new() }
    }

    fn gossip(&self) -> MutexGuard<'_, Gossip> {
        self.gossip.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Telling {
    fn header(self) -> Header {
        match self {
            Telling::Record(record) => Header::Record(Box::new(Arc::unwrap_or_clone(record))),
            Telling::Digest(digest) => Header::Digest(digest),
            Telling::Want(nodes) => Header::Want(nodes),
        }
    }
}

impl Network {
    /// What this node tells of itself.
    pub(crate) fn own(&self) -> Arc<Record> {
        self.records.gossip().own().clone()
    }

    /// Changes what this node tells of itself; all members learn it. From any thread, never waits.
    ///
    /// # Errors
    /// If it would not fit into a frame; then nothing has changed.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Record)) -> Result<(), RecordTooLarge> {
        let mut gossip = self.records.gossip();
        let Some(before) = gossip.tell(change)? else { return Ok(()) };
        let now = gossip.own().clone();
        drop(gossip);
        self.records.wake.notify_one();
        self.view.told(&before, &now);
        Ok(())
    }

    /// A new life of this node tells anew.
    pub(super) fn renew_record(&self, incarnation: Incarnation) {
        let renewed = self.tell(|record| {
            record.incarnation = incarnation;
            record.unreachable.clear();
            record.groups.clear();
        });
        if let Err(error) = renewed {
            tracing::error!(%error, "the new life's record could not be told");
        }
    }

    /// Whether a connection with a member can be held; all members learn if it can't.
    pub(super) fn reaches(&self, peer: &Peer, reaches: bool) {
        if !peer.reached(reaches) {
            return;
        }
        let node = peer.id;
        if !reaches {
            tracing::warn!(%node, "a member can't be reached from here, though others reach it");
        }
        let told = self.tell(|record| {
            record.unreachable.retain(|known| *known != node);
            if !reaches {
                record.unreachable.push(node);
                record.unreachable.sort();
            }
        });
        if let Err(error) = told {
            tracing::error!(%error, "the others could not be told who can't be reached");
        }
    }

    /// The first words on a new session.
    pub(super) fn tell_own(&self, session: &Session) {
        if self.purpose == Purpose::Observer {
            return;
        }
        session.control(Telling::Record(self.own()).header());
    }

    pub(super) fn heed_record(&self, session: &Arc<Session>, record: Record) {
        if session.purpose != Purpose::Member {
            return;
        }
        let (from, life) = (session.peer.node, session.peer.incarnation);
        let role = session.identity().role;
        if record.node == from
            && let Some(word) = record.roles.iter().find(|word| !role.may_claim(word))
        {
            return session.close_soon(format!(
                "node {from} says that it is a `{word}`, and its certificate's role is `{role}`"
            ));
        }
        let news = self.records.gossip().heed(from, life, record);
        match news {
            Some(record) => self.view.heard(&record),
            // It may have been this node's own, made up.
            None => self.records.wake.notify_one(),
        }
    }

    pub(super) fn heed_digest(&self, session: &Session, digest: Digest) {
        if session.purpose == Purpose::Member {
            let sends = self.records.gossip().compare(session.peer.node, digest);
            self.records.wake.notify_one();
            self.send_records(sends);
        }
    }

    pub(super) fn heed_want(&self, session: &Session, nodes: &[NodeId]) {
        if session.purpose == Purpose::Member {
            let sends = self.records.gossip().answer(session.peer.node, nodes);
            self.send_records(sends);
        }
    }

    /// Membership knows a life of a node; gives back what that has told already.
    pub(super) fn record_up(&self, member: MemberId) -> Option<Arc<Record>> {
        let mut gossip = self.records.gossip();
        gossip.up(member.node, member.incarnation);
        gossip.record(member.node).cloned()
    }

    pub(super) fn record_gone(&self, member: MemberId) {
        self.records.gossip().gone(member.node, member.incarnation);
    }

    fn send_records(&self, sends: Vec<Send>) {
        for (to, telling) in sends {
            if let Some(session) = self.peer(to).and_then(|peer| peer.session()) {
                session.control(telling.header());
            }
        }
    }
}

/// Spreads records until the node has gone.
pub(crate) async fn run(network: Weak<Network>) {
    loop {
        let Some(here) = network.upgrade() else { return };
        let connected: Vec<NodeId> = here
            .peers()
            .into_iter()
            .filter(|peer| peer.session().is_some() && !peer.is_lost())
            .map(|peer| peer.id)
            .collect();
        let (sends, due) = {
            let mut gossip = here.records.gossip();
            (gossip.at(Instant::now(), &connected), gossip.next_due())
        };
        here.send_records(sends);
        let records = here.records.clone();
        drop(here);
        tokio::select! {
            biased;
            () = records.wake.notified() => {}
            () = tokio::time::sleep_until(due) => {}
        }
    }
}
