//! One other node, over all its lives and connections.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use footlight_runtime::{
    ActorAddr, Down, Incarnation, NodeId,
    error::{Cause, Failure},
    remote::End,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    past::Lives,
    watches::{Watcher, Watches},
};
use crate::{
    membership::MemberId,
    transport::{
        frame::Header,
        handshake::{Hello, Refusal},
        session::Session,
    },
};

pub(crate) struct Peer {
    pub(crate) id: NodeId,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    addr: Option<SocketAddr>,
    lives: Lives,
    session: Option<Arc<Session>>,
    /// The latest session there was, for the dialer's greeting.
    latest_session: Option<u64>,
    dialing: bool,
    /// Connections of the peer's whose greeting is being answered.
    answering: u32,
    maintained: bool,
    /// No connection can be held, though membership counts the node in.
    unreachable: bool,
    /// Why there is no session, as far as known.
    trouble: Option<String>,
    watches: Watches,
    /// Actors that are to end, until they have: a request may meet no connection.
    ends: HashMap<ActorAddr, End>,
    /// Nothing needed it when it was last looked at.
    idle: bool,
}

impl State {
    fn is_lost(&self) -> bool {
        self.lives.is_over(self.lives.latest)
    }

    /// A session with whatever life of the node: membership's packets still pass.
    fn connected(&self) -> Option<&Arc<Session>> {
        self.session.as_ref().filter(|session| session.is_live())
    }

    /// A session with the latest life that is known: one with an earlier life is dead, though it
    /// may not show yet.
    fn live(&self) -> Option<&Arc<Session>> {
        self.connected().filter(|session| session.peer.incarnation >= self.lives.latest)
    }

    /// That the two can't reach each other, if that is known.
    fn cut_off(&self, from: NodeId, to: NodeId) -> Option<Cause> {
        let why = || self.trouble.as_deref().unwrap_or("no connection").to_owned();
        self.unreachable.then(|| Cause::CutOff { from, to, why: why() })
    }

    /// Tells the node of watches that nobody needs any more.
    fn unwatch(&self, unneeded: Vec<u64>) {
        if let Some(session) = self.live() {
            unneeded.into_iter().for_each(|id| session.control(Header::Unwatch { id }));
        }
    }

    /// All that belongs to lives up to `over` ends.
    fn end_lives(&mut self, over: Incarnation) -> Vec<Watcher> {
        if let Some(session) = self.session.as_ref()
            && session.peer.incarnation <= over
        {
            session.lose();
        }
        self.ends.retain(|actor, _| actor.incarnation > over);
        self.watches.take_lives(over)
    }
}

/// The right to dial a peer, until dropped.
pub(crate) struct Dialing(Arc<Peer>);

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.state().dialing = false;
        self.0.changed.send_replace(());
    }
}

/// A peer's connection is being answered, until dropped. Meanwhile this node does not dial: of two
/// connections that are made at once, each end might end the one that the other keeps.
pub(crate) struct Answering(Arc<Peer>);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answering = state.answering.saturating_sub(1);
        drop(state);
        self.0.changed.send_replace(());
    }
}

impl Peer {
    pub(super) fn new(id: NodeId, lives: Lives) -> Self {
        let state = State { lives, ..State::default() };
        Peer { id, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// What is to be known of it when it is forgotten.
    pub(super) fn lives(&self) -> Lives {
        self.state().lives
    }

    /// Whether nothing needs it now; what of it has ended goes.
    pub(super) fn is_idle(&self) -> bool {
        let mut state = self.state();
        let ended = state.session.take_if(|session| !session.is_live());
        let unneeded = state.watches.sweep();
        state.unwatch(unneeded);
        let idle = state.session.is_none()
            && !(state.dialing || state.answering > 0 || state.maintained)
            && state.watches.is_empty()
            && state.ends.is_empty();
        drop(state);
        drop(ended);
        idle
    }

    /// Whether nothing needs it now, nor when this was asked last.
    pub(super) fn is_idle_again(&self) -> bool {
        let idle = self.is_idle();
        std::mem::replace(&mut self.state().idle, idle) && idle
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn tell_all(&self, gone: Vec<Watcher>) {
        for watcher in gone {
            let _ = watcher.send(Down::NodeLost(self.id));
        }
        self.changed.send_replace(());
    }

    /// The present session, if it lives.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.state().live().cloned()
    }

    /// The present connection, also if it is one with an earlier life of the node.
    pub(crate) fn connection(&self) -> Option<Arc<Session>> {
        self.state().connected().cloned()
    }

    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.state().addr
    }

    pub(crate) fn is_known(&self) -> bool {
        let state = self.state();
        state.addr.is_some() || state.lives.lost.is_some()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.state().is_lost()
    }

    pub(crate) fn latest_session(&self) -> Option<u64> {
        self.state().latest_session
    }

    /// Where the node was seen, if nothing better is known.
    pub(crate) fn seen_at(&self, addr: SocketAddr) {
        self.state().addr.get_or_insert(addr);
        self.changed.send_replace(());
    }

    /// Membership knows a life of this node.
    pub(crate) fn met(&self, member: MemberId) {
        let mut state = self.state();
        let mut gone = Vec::new();
        if member.incarnation > state.lives.latest {
            let before = Incarnation(member.incarnation.0.saturating_sub(1));
            gone = state.end_lives(before);
            state.lives.latest = member.incarnation;
        }
        if member.incarnation >= state.lives.latest {
            state.addr = Some(member.addr);
        }
        let back = state.lives.is_over(member.incarnation);
        if back {
            // This node was cut off and wrong about it. The session was fenced: it begins anew.
            state.lives.lost = None;
        }
        let fenced = state.session.take_if(|_| back);
        drop(state);
        if let Some(session) = fenced {
            session.close("begun in error: this node was cut off".to_owned());
        }
        self.tell_all(gone);
    }

    /// A life of this node is over.
    pub(crate) fn lost(&self, incarnation: Incarnation) {
        let mut state = self.state();
        if state.lives.is_over(incarnation) {
            return;
        }
        state.lives.lost = Some(incarnation);
        let gone = state.end_lives(incarnation);
        drop(state);
        self.tell_all(gone);
    }

    /// Takes note of trouble with dialing, for the errors of those who wait.
    pub(crate) fn trouble(&self, why: String) {
        self.state().trouble = Some(why);
    }

    /// Takes note of whether a connection can be held; true if that is news.
    pub(crate) fn reached(&self, reached: bool) -> bool {
        let news = std::mem::replace(&mut self.state().unreachable, !reached) == reached;
        if news {
            self.changed.send_replace(());
        }
        news
    }

    /// The right to dial now; none while somebody else dials, or a connection that the peer dialed
    /// is about to stand.
    pub(crate) fn begin_dial(self: &Arc<Self>) -> Option<Dialing> {
        let mut state = self.state();
        if state.dialing || state.answering > 0 {
            return None;
        }
        state.dialing = true;
        Some(Dialing(self.clone()))
    }

    /// Whether this caller is to keep the connection from now on.
    pub(crate) fn begin_maintenance(&self) -> bool {
        !std::mem::replace(&mut self.state().maintained, true)
    }

    pub(crate) fn end_maintenance(&self) {
        self.state().maintained = false;
    }

    /// Whether a connection that the peer dialed is to be taken; what this gives is kept until it
    /// is installed.
    pub(crate) fn admit(self: &Arc<Self>, hello: &Hello, me: NodeId) -> Result<Answering, Refusal> {
        let mut state = self.state();
        if hello.record.incarnation < state.lives.latest {
            return Err(Refusal::PastLife {
                yours: hello.record.incarnation.0,
                latest: state.lives.latest.0,
            });
        }
        let stands = match state.connected() {
            // A new life, or the peer knows the present session and dials all the same: it is dead
            // on its side.
            Some(session) if session.peer.incarnation < hello.record.incarnation => false,
            Some(session) if !session.dialed || hello.knows == Some(session.id) => false,
            // Both dialed at once, and this node's connection is the one that stands.
            Some(_) => true,
            // Both are dialing: that of the smaller node stands.
            None => state.dialing && me < self.id,
        };
        if stands {
            return Err(Refusal::Duplicate);
        }
        state.answering += 1;
        Ok(Answering(self.clone()))
    }

    /// A session has shaken hands: it replaces the one before, and the watches move to it.
    pub(crate) fn install(&self, session: &Arc<Session>) {
        let mut state = self.state();
        let record = &session.peer;
        let mut gone = Vec::new();
        if record.incarnation > state.lives.latest {
            let before = Incarnation(record.incarnation.0.saturating_sub(1));
            gone = state.end_lives(before);
        }
        state.lives.latest = state.lives.latest.max(record.incarnation);
        state.addr = Some(record.addr);
        state.latest_session = Some(session.id);
        state.trouble = None;
        if state.is_lost() {
            session.fence();
        }
        let replaced = state.session.replace(session.clone());
        for (actor, how) in &state.ends {
            session.control(Header::End { actor: *actor, how: *how });
        }
        for (id, actor) in state.watches.iter() {
            session.control(Header::Watch { id, actor });
        }
        drop(state);
        if let Some(old) = replaced.filter(|old| old.id != session.id && old.is_live()) {
            old.close("replaced by a newer connection".into());
        }
        self.tell_all(gone);
    }

    /// That this node and `me` can't reach each other, if that is known.
    pub(crate) fn cut_off(&self, me: NodeId) -> Option<Cause> {
        self.state().cut_off(me, self.id)
    }

    /// Waits for a session with the node `me`.
    pub(crate) async fn wait_session(
        &self,
        me: NodeId,
        deadline: Instant,
    ) -> Result<Arc<Session>, Failure> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                if state.is_lost() {
                    return Err(Failure::not_sent(Cause::NodeLost(self.id)));
                }
                if let Some(session) = state.live() {
                    return Ok(session.clone());
                }
                if let Some(cut) = state.cut_off(me, self.id) {
                    return Err(Failure::not_sent(cut));
                }
            }
            if !matches!(tokio::time::timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
                let trouble = self.state().trouble.clone();
                let why = trouble.unwrap_or_else(|| format!("no connection with node {}", self.id));
                return Err(Failure::not_sent(Cause::Unreachable(why)));
            }
        }
    }

    /// Waits until the latest known life is declared over.
    pub(crate) async fn until_lost(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_lost() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until something about this peer has changed, or the time is over.
    pub(crate) async fn wait_change(&self, at_most: std::time::Duration) {
        let mut changed = self.changed.subscribe();
        let _ = tokio::time::timeout(at_most, changed.changed()).await;
    }

    /// Watches an actor of this node. `id` is a number that no other watch has.
    pub(crate) fn watch(&self, id: u64, actor: ActorAddr, sender: oneshot::Sender<Down>) {
        let mut state = self.state();
        if actor.incarnation < state.lives.latest || state.lives.is_over(actor.incarnation) {
            drop(state);
            let _ = sender.send(Down::NodeLost(self.id));
            return;
        }
        let unneeded = state.watches.sweep_if_many();
        state.unwatch(unneeded);
        if state.watches.add(id, actor, sender)
            && let Some(session) = state.live()
        {
            session.control(Header::Watch { id, actor });
        }
    }

    /// Stops waiting for an actor of a node that nobody knows.
    pub(crate) fn give_up(&self, id: u64) {
        self.down(id, Down::NodeLost(self.id));
    }

    /// Ends an actor of this node, now or as soon as there is a connection. True if this is the
    /// first request for it: then somebody has to say when it [has ended](Self::ended).
    pub(crate) fn end(&self, actor: ActorAddr, how: End) -> bool {
        let mut state = self.state();
        if actor.incarnation < state.lives.latest || state.lives.is_over(actor.incarnation) {
            return false;
        }
        if let Some(session) = state.live() {
            session.control(Header::End { actor, how });
        }
        match state.ends.get(&actor) {
            // A stop after a kill changes nothing.
            Some(_) if how == End::Stop => false,
            _ => state.ends.insert(actor, how).is_none(),
        }
    }

    /// An actor that was to end has ended.
    pub(crate) fn ended(&self, actor: ActorAddr) {
        self.state().ends.remove(&actor);
    }

    /// A watched actor of this node has ended.
    pub(crate) fn down(&self, id: u64, down: Down) {
        let watchers = self.state().watches.take(id);
        for watcher in watchers {
            let _ = watcher.send(down.clone());
        }
    }
}
