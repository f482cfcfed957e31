//! All that one node knows of the others, and the way to them: the runtime's
//! [`Remote`](footlight_runtime::remote::Remote).
//!
//! * `peer`: one other node: its latest session, who waits for it, what is watched there.
//! * `dial`, `accept`: making connections, and answering those that arrive.
//! * `events`: changes in the cluster, as a stream.
//! * `membership_task`: foca's packets and timers on the control thread.
//! * `links`: which actors of other nodes are to fail with actors of this one.
//! * `past`: what is kept of nodes that are gone.
//! * `records`: what the nodes tell of themselves.
//! * `seeds`: finding the cluster, and finding it again.
//! * `trust`: what the other ends may do, and what this one shows them.
//! * `view`: the members as users see them.
//! * `watches`: who waits for the end of which actor of a node.
//!
//! Only membership declares a node lost. A connection that broke is dialed again; until then sends
//! wait, within their deadlines.

pub(crate) mod accept;
pub(crate) mod dial;
pub(crate) mod events;
pub(crate) mod links;
pub(crate) mod membership_task;
pub(crate) mod past;
pub(crate) mod peer;
pub(crate) mod records;
pub(crate) mod seeds;
mod trust;
pub(crate) mod view;
mod watches;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use footlight_runtime::{
    ActorAddr, ActorId, Down, Incarnation, NodeId, System, Watch,
    env::deadline_after,
    error::{Cause, Failure},
    remote::{Answer, End, Outgoing, Remote, Unsent},
    telemetry::Counts,
};
use futures::future::BoxFuture;
use rand::Rng;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    enroll::{Issuer, Keyring},
    membership::MemberId,
    record::Record,
    transport::{
        endpoint::{Endpoint, Purpose as Carries},
        frame::Header,
        handshake::{self, NodeRecord, Purpose},
        same_host::SameHost,
        session::{Host, Session},
    },
    trust::{
        NodeIdentity, Right,
        rights::{Needs, Standing},
    },
};
use links::Links;
use membership_task::Input;
use past::Past;
use peer::Peer;
use records::Records;
use view::View;

/// How long a node that nobody has told us of is waited for: news of a member may be on its way.
const UNKNOWN_NODE: Duration = Duration::from_secs(5);

/// Most watches that other nodes have on actors of this one.
const MAX_WATCHES: usize = 1 << 16;

/// So many of a session's watches are ended before others have their turn.
const ENDED_AT_ONCE: usize = 256;

/// Most membership packets that wait to be heeded; further ones are dropped.
const MAX_PACKETS: usize = 4096;

/// How long a membership packet that must arrive waits for a connection that another task makes.
const PACKET_PATIENCE: Duration = Duration::from_secs(1);
/// The same for a probe: a node that has just come up must not be suspected because it is probed
/// before the connection with it stands. Later its answer would count no more.
const PROBE_PATIENCE: Duration = Duration::from_millis(300);

pub(crate) struct Network {
    pub(crate) system: System,
    /// How this node greets others.
    greeting: RwLock<NodeRecord>,
    records: Arc<Records>,
    links: Links,
    pub(crate) version: u16,
    pub(crate) purpose: Purpose,
    pub(crate) endpoint: Endpoint,
    /// Driven by the threads that run the actors.
    pub(crate) messages: Endpoint,
    pub(crate) bulk: Endpoint,
    pub(crate) control_thread: Handle,
    bulk_thread: Handle,
    pub(crate) view: View,
    peers: DashMap<NodeId, Arc<Peer>, RandomState>,
    past: Past,
    /// Those who only ask: kept alive until they go.
    observers: DashMap<u64, Arc<Session>>,
    /// Watches of other nodes on actors of this one, by node, session and number.
    watched: DashMap<(NodeId, u64, u64), AbortHandle>,
    numbers: AtomicU64,
    /// Sessions with members so far.
    connections: AtomicU64,
    /// Held as long as the node lives: no other process can take the same identity.
    identity: Mutex<NodeIdentity>,
    /// What this node shows and whom it believes.
    pub(crate) keyring: Arc<Keyring>,
    /// Answers those who want to join, once the node is up.
    pub(crate) issuer: OnceLock<Arc<Issuer>>,
    /// What messages need.
    needs: Needs,
    pub(crate) leaving: AtomicBool,
    pub(crate) membership: mpsc::UnboundedSender<Input>,
    /// Membership packets that wait.
    pub(crate) packets: AtomicUsize,
    /// Told whenever a node becomes known, or a session stands.
    known: watch::Sender<()>,
    /// A connection over which nothing came for so long is given up.
    silence: Duration,
    bulk_connections: usize,
    same_host: SameHost,
    me: Weak<Network>,
}

impl Network {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        system: System,
        own: Record,
        version: u16,
        purpose: Purpose,
        endpoint: Endpoint,
        messages: Endpoint,
        bulk: Endpoint,
        identity: NodeIdentity,
        keyring: Arc<Keyring>,
        control_thread: Handle,
        bulk_thread: Handle,
        membership: mpsc::UnboundedSender<Input>,
        silence: Duration,
        bulk_connections: usize,
        same_host: SameHost,
    ) -> Arc<Self> {
        let greeting = NodeRecord {
            node: own.node,
            incarnation: own.incarnation,
            addr: own.addr,
            message_addr: own.message_addr,
            bulk_addr: own.bulk_addr,
            catalog: system.catalog().clone(),
        };
        Arc::new_cyclic(|me| Network {
            view: View::new(),
            links: Links::default(),
            records: Arc::new(Records::new(own, &mut system.env().seeds.stream("gossip"))),
            numbers: AtomicU64::new(system.env().seeds.stream("session ids").next_u64()),
            connections: AtomicU64::new(0),
            system,
            greeting: RwLock::new(greeting),
            version,
            purpose,
            endpoint,
            messages,
            bulk,
            control_thread,
            bulk_thread,
            peers: DashMap::default(),
            past: Past::default(),
            observers: DashMap::new(),
            watched: DashMap::new(),
            identity: Mutex::new(identity),
            keyring,
            issuer: OnceLock::new(),
            needs: Needs::new(),
            leaving: AtomicBool::new(false),
            membership,
            packets: AtomicUsize::new(0),
            known: watch::Sender::new(()),
            silence,
            bulk_connections,
            same_host,
            me: me.clone(),
        })
    }

    pub(crate) fn greeting(&self) -> NodeRecord {
        self.greeting.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.system.node()
    }

    /// A number for a session or a watch: starts at random, so that two lives of a node don't meet.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// UDP bytes of ended and live sessions, and the runtime's counters.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.system.telemetry().counts();
        let mut add = |session: &Session| {
            let (sent, received) = session.wire_bytes();
            counts.wire_bytes_sent += sent;
            counts.wire_bytes_received += received;
        };
        for peer in &self.peers {
            if let Some(session) = peer.session() {
                add(&session);
            }
        }
        self.observers.iter().for_each(|session| add(&session));
        counts
    }

    /// How many connections with members were made or taken so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Tasks that live on the node's own threads.
    pub(crate) fn tasks(&self) -> u64 {
        let threads = [&self.control_thread, &self.bulk_thread];
        threads.map(|thread| thread.metrics().num_alive_tasks() as u64).iter().sum()
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.get(&node).map(|peer| peer.clone())
    }

    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<_> = self.peers.iter().map(|peer| peer.clone()).collect();
        peers.sort_by_key(|peer| peer.id);
        peers
    }

    pub(crate) fn peer_or_new(&self, node: NodeId) -> Arc<Peer> {
        let new = || Arc::new(Peer::new(node, self.past.take(node)));
        let peer = self.peers.entry(node).or_insert_with(new).clone();
        self.known.send_replace(());
        peer
    }

    /// A session has shaken hands.
    pub(crate) fn install(&self, session: &Arc<Session>) {
        self.show_newer(session);
        if session.purpose == Purpose::Observer {
            self.observers.insert(session.id, session.clone());
            self.known.send_replace(());
            let (network, session) = (self.me.clone(), session.clone());
            self.control_thread.spawn(async move {
                session.ended().await;
                if let Some(network) = network.upgrade() {
                    network.observers.remove(&session.id);
                    network.forget_watches(&session).await;
                }
            });
            return;
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        let peer = self.peer_or_new(session.peer.node);
        peer.install(session);
        // A connection for its messages may be waiting for it.
        self.known.send_replace(());
        self.tell_own(session);
        let (network, ended) = (self.me.clone(), session.clone());
        self.control_thread.spawn(async move {
            ended.ended().await;
            if let Some(network) = network.upgrade() {
                network.forget_watches(&ended).await;
            }
        });
    }

    /// Ends the watches of a session that is over, some at a time: each is a task that has to run once
    /// more to end, on the thread that membership shares.
    async fn forget_watches(&self, session: &Session) {
        let of = (session.peer.node, session.id);
        let mut tasks = Vec::new();
        self.watched.retain(|(node, id, _), task| {
            let stays = (*node, *id) != of;
            if !stays {
                tasks.push(task.clone());
            }
            stays
        });
        for some in tasks.chunks(ENDED_AT_ONCE) {
            some.iter().for_each(AbortHandle::abort);
            tokio::task::yield_now().await;
        }
    }

    /// Membership says that a node is there: keep a connection with it.
    pub(crate) fn meet(&self, member: MemberId) {
        let peer = self.peer_or_new(member.node);
        peer.met(member);
        if peer.begin_maintenance()
            && let Some(network) = self.me.upgrade()
        {
            self.control_thread.spawn(dial::maintain(network, peer));
        }
    }

    /// Membership says that a life of a node is over, or the node has said so itself.
    pub(crate) fn lost(&self, member: MemberId) {
        if let Some(peer) = self.peer(member.node) {
            peer.lost(member.incarnation);
            if peer.is_lost() {
                self.reaches(&peer, true);
            }
        }
    }

    /// Sends a membership packet; without a connection one is made for it.
    pub(crate) fn send_packet(&self, to: MemberId, data: Bytes, must_arrive: bool) {
        let peer = self.peer_or_new(to.node);
        match peer.connection().filter(|session| !session.is_silent()) {
            Some(session) => session.send_packet(data, must_arrive),
            None if self.leaving.load(Ordering::Acquire) => {}
            None => {
                peer.seen_at(to.addr);
                let turn = peer.begin_dial();
                let patience = if must_arrive { PACKET_PATIENCE } else { PROBE_PATIENCE };
                if let Some(network) = self.me.upgrade() {
                    self.control_thread.spawn(async move {
                        let mut session = None;
                        if let Some(turn) = turn {
                            session = dial::dial(&network, to.addr, Some(to.node)).await.ok();
                            drop(turn);
                        }
                        // The other node's connection may be the one that stands.
                        let session = match session {
                            Some(session) => Ok(session),
                            None => {
                                peer.wait_session(network.node(), Instant::now() + patience).await
                            }
                        };
                        // A datagram could overtake the handshake's end and be lost.
                        if let Ok(session) = session {
                            session.send_packet(data, true);
                        }
                    });
                }
            }
        }
    }

    /// Waits for a session with a node.
    async fn session(&self, to: ActorAddr, deadline: Instant) -> Result<Arc<Session>, Failure> {
        let node = to.node;
        let unknown = deadline.min(Instant::now() + UNKNOWN_NODE);
        let mut known = self.known.subscribe();
        let peer = loop {
            if let Some(peer) = self.peer(node) {
                break peer;
            }
            if self.is_past(to) {
                return Err(Failure::not_sent(Cause::NodeLost(node)));
            }
            if !matches!(tokio::time::timeout_at(unknown, known.changed()).await, Ok(Ok(()))) {
                let why = format!("node {node} is not known here");
                return Err(Failure::not_sent(Cause::Unreachable(why)));
            }
        };
        peer.wait_session(self.node(), deadline).await
    }

    fn watch_remote(&self, actor: ActorAddr) -> Watch {
        let (sender, watch) = Watch::new(actor);
        if self.is_past(actor) {
            // A watch whose sender is gone tells that the node is lost.
            return watch;
        }
        let peer = self.peer_or_new(actor.node);
        let id = self.number();
        peer.watch(id, actor, sender);
        if !peer.is_known() {
            // Nobody may ever tell us of this node: don't let the watcher wait for ever.
            let network = self.me.clone();
            self.control_thread.spawn(async move {
                tokio::time::sleep(UNKNOWN_NODE).await;
                if let Some(peer) = network.upgrade().and_then(|network| network.peer(actor.node))
                    && !peer.is_known()
                {
                    peer.give_up(id);
                }
            });
        }
        watch
    }

    /// Begins a new life: the present one was declared over by others.
    pub(crate) fn renew(&self, incarnation: Incarnation) {
        // On disk first: a restart must not come back as this life or an earlier one.
        let mut identity = self.identity.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Err(error) = identity.raise(incarnation) {
            tracing::error!(%error, "the new incarnation could not be written down");
        }
        drop(identity);
        self.greeting.write().unwrap_or_else(|poison| poison.into_inner()).incarnation =
            incarnation;
        self.system.renew(incarnation);
        self.renew_record(incarnation);
        // The others learn the new life from the greeting of the next connection.
        self.close_sessions("this node has a new incarnation");
    }

    /// Closes all sessions, because this node is leaving or has a new incarnation.
    pub(crate) fn close_sessions(&self, why: &str) {
        for peer in self.peers() {
            if let Some(session) = peer.session() {
                session.close(why.to_owned());
            }
        }
        let observers: Vec<_> = self.observers.iter().map(|session| session.clone()).collect();
        observers.iter().for_each(|session| session.close(why.to_owned()));
    }
}

impl Remote for Network {
    fn send(
        &self,
        message: Outgoing,
        answer: Option<Answer>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let deadline = deadline_after(patience);
            let session = self.session(message.to, deadline).await?;
            session.send(message, answer, deadline).await
        })
    }

    fn try_send(&self, message: Outgoing, answer: Option<Answer>) -> Result<(), Unsent> {
        let to = message.to;
        let session = self.peers.get(&to.node).and_then(|peer| peer.session());
        if let Some(session) = session {
            return session.try_send(message, answer);
        }
        if self.is_past(to) {
            return Err(Unsent::Failed(Failure::not_sent(Cause::NodeLost(to.node))));
        }
        let cut_off = self.peer(to.node).and_then(|peer| peer.cut_off(self.node()));
        let why = cut_off.unwrap_or_else(|| {
            Cause::Unreachable(format!("no connection with node {} yet", to.node))
        });
        Err(Unsent::NotNow(Box::new((message, answer)), Failure::not_sent(why)))
    }

    fn watch(&self, actor: ActorAddr) -> Watch {
        self.watch_remote(actor)
    }

    fn end(&self, actor: ActorAddr, how: End) {
        if !self.keyring.role().may(Right::End) {
            let role = self.keyring.role();
            tracing::warn!(%actor, %role, "not ended: this node's role has no right to end others' actors");
            return;
        }
        if self.is_past(actor) {
            return;
        }
        let peer = self.peer_or_new(actor.node);
        if peer.end(actor, how) {
            // Asked for again on each new connection until it is known to have ended.
            let watch = self.watch_remote(actor);
            self.control_thread.spawn(async move {
                watch.await;
                peer.ended(actor);
            });
        }
    }

    fn link(&self, actor: ActorAddr, with: ActorAddr, linked: bool) {
        self.tell_link(actor, with, linked);
    }
}

impl Host for Network {
    fn control(&self, session: &Arc<Session>, header: Header) {
        if !self.is_allowed(session, &header) {
            return;
        }
        match header {
            // A node tells of its own actors only: nobody watches a third one through it.
            Header::Watch { id, actor } if actor.node != self.node() => {
                session.control(Header::Down { id, down: Down::NoSuchActor });
            }
            Header::Watch { .. } if self.watched.len() >= MAX_WATCHES => {
                session.close_soon(format!("more than {MAX_WATCHES} watches"));
            }
            Header::Watch { id, actor } => {
                let watch = self.system.watch(actor);
                let (network, from) = (self.me.clone(), Arc::downgrade(session));
                let key = (session.peer.node, session.id, id);
                let task = self.control_thread.spawn(async move {
                    let down = watch.await;
                    if let Some(session) = from.upgrade() {
                        session.control(Header::Down { id, down });
                    }
                    if let Some(network) = network.upgrade() {
                        network.watched.remove(&key);
                    }
                });
                if let Some(replaced) = self.watched.insert(key, task.abort_handle()) {
                    replaced.abort();
                }
                // It may have ended before this frame of it was read.
                if !session.is_live()
                    && let Some((_, task)) = self.watched.remove(&key)
                {
                    task.abort();
                }
            }
            Header::Unwatch { id } => {
                if let Some((_, task)) = self.watched.remove(&(session.peer.node, session.id, id)) {
                    task.abort();
                }
            }
            Header::Down { id, down } => {
                if let Some(peer) = self.peer(session.peer.node) {
                    peer.down(id, down);
                }
            }
            Header::End { actor, how } => {
                if actor.node == self.node() {
                    self.system.end(actor, how);
                }
            }
            // Who only asks is no member that could leave.
            Header::Leaving if session.purpose == Purpose::Observer => {
                session.close_soon("goodbye".to_owned());
            }
            Header::Leaving => {
                let NodeRecord { node, incarnation, addr, .. } = session.peer;
                let _ =
                    self.membership.send(Input::Leaving(MemberId::new(node, incarnation, addr)));
                // Tells the one who leaves that the goodbye was heard.
                session.close_soon("goodbye".to_owned());
            }
            Header::Packet(data) => self.datagram(session, data.into()),
            Header::Certificate(shown) => self.heed_certificate(session, &shown),
            Header::Record(record) => self.heed_record(session, *record),
            Header::Digest(digest) => self.heed_digest(session, digest),
            Header::Want(nodes) => self.heed_want(session, &nodes),
            other => tracing::debug!(?other, "a frame that needs no control"),
        }
    }

    fn bulk_thread(&self) -> &Handle {
        &self.bulk_thread
    }

    fn dial_beside(
        &self,
        session: &Session,
        carries: Carries,
    ) -> BoxFuture<'static, Result<quinn::Connection, String>> {
        let dialed = match carries {
            Carries::Bulk => self.bulk.dial(session.peer.bulk_addr, carries),
            _ => self.messages.dial(session.peer.message_addr, carries),
        };
        let (version, id, peer) = (self.version, session.id, session.peer.node);
        Box::pin(async move {
            let connecting = dialed.map_err(|error| error.to_string())?;
            let connection = dial::established(connecting, Some(peer)).await;
            let connection = connection.map_err(|error| error.to_string())?;
            let introduced = handshake::introduce(&connection, version, id);
            tokio::time::timeout(dial::CONNECT_TIMEOUT, introduced)
                .await
                .map_err(|_| "the other node does not answer the greeting".to_owned())?
                .map_err(|error| error.to_string())?;
            Ok(connection)
        })
    }

    fn needed(&self, to: ActorId, key: u64) -> Right {
        self.needs.of(to, key)
    }

    fn standing(&self) -> Standing {
        Standing { role: self.keyring.role(), purpose: self.purpose }
    }

    fn bulk_connections(&self) -> usize {
        self.bulk_connections
    }

    fn same_host(&self) -> SameHost {
        self.same_host
    }

    fn is_thrown_out(&self, by: &Session) {
        self.heed_revocation(by.identity());
    }

    fn datagram(&self, session: &Arc<Session>, data: Bytes) {
        if session.standing().check(Right::Belong).is_err() {
            return;
        }
        // Membership is made for loss, and a flood must not become a queue without end.
        if self.packets.fetch_add(1, Ordering::AcqRel) >= MAX_PACKETS {
            self.packets.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let _ = self.membership.send(Input::Packet { from: session.peer.node, data });
    }
}

/// Where a new connection would go: for errors.
pub(crate) fn named(node: Option<NodeId>, addr: SocketAddr) -> String {
    match node {
        Some(node) => format!("node {node} at {addr}"),
        None => addr.to_string(),
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("node", &self.node())
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
