//! One authenticated connection between two nodes, and all that is under way on it.
//!
//! A session ends with its connection, or when the peer breaches the protocol. Calls under way then
//! fail as *may have run*; watches outlive it (the network lays them anew on the next session),
//! since only membership declares a node lost.

mod incoming;
mod nearby;
mod outgoing;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use footlight_runtime::{
    ActorId, System,
    error::{Cause, Failure},
    message::Fingerprint,
    remote::Answer,
    tensor::BufferPool,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
};

use crate::{
    transport::{
        assembly::Assemblies,
        bulk::Tensor,
        endpoint::Purpose as Carries,
        flow,
        frame::{self, Header},
        handshake::{NodeRecord, Purpose},
        inbox::Inbox,
        lane::{self, Lanes, Reader},
        outbox::Outbox,
        same_host::{Neighbour, SameHost},
        window::{Ledger, Window},
    },
    trust::{
        Anchor, Credentials, PeerIdentity, Right,
        rights::Standing,
        tls::{Shown, TlsSettings},
    },
};

/// Ordered lanes of each session: messages to one receiver keep to one lane.
pub(crate) const LANES: usize = 4;

/// The connection is closed with this code by a node that ends a session.
const ENDED: u32 = 1;
/// The connection is closed with this code by a node that has learned that its peer was revoked.
const THROWN_OUT: u32 = 2;

/// Most frames that are handed on together.
const BATCH: usize = 256;

/// So long may the end of one connection of a session be ahead of that of another.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Most bytes of answers and orders that wait for a peer to read.
const MAX_BACKLOG: usize = 256 << 20;

/// What a session needs of the node around it.
pub(crate) trait Host: Send + Sync {
    /// A frame about watches, ends and leaving: none of a session's own business.
    fn control(&self, session: &Arc<Session>, header: Header);
    /// The runtime on which large tensors are sent and received.
    fn bulk_thread(&self) -> &Handle;
    /// Dials the peer's address for messages or for tensors, and introduces the session.
    fn dial_beside(
        &self,
        session: &Session,
        carries: Carries,
    ) -> futures::future::BoxFuture<'static, Result<quinn::Connection, String>>;
    /// What a message of this name's hash to an actor needs.
    fn needed(&self, to: ActorId, key: u64) -> Right;
    /// What this node itself may do.
    fn standing(&self) -> Standing;
    /// Over how many connections large tensors are sent to a peer.
    fn bulk_connections(&self) -> usize;
    /// How large tensors travel within the host.
    fn same_host(&self) -> SameHost;
    /// The peer says that this node was thrown out of the cluster.
    fn is_thrown_out(&self, by: &Session);
    /// A membership datagram.
    fn datagram(&self, session: &Arc<Session>, data: Bytes);
}

pub(crate) struct Session {
    /// Names the session on both sides; drawn by the dialer.
    pub(crate) id: u64,
    pub(crate) peer: NodeRecord,
    pub(crate) purpose: Purpose,
    /// What the peer's certificate says: who it is, what it may do, until when.
    identity: Mutex<PeerIdentity>,
    /// The peer, as far as rights go: a renewed certificate has the same role.
    standing: Standing,
    /// This node, as far as rights go.
    own_standing: Standing,
    /// Whether this node dialed.
    pub(crate) dialed: bool,
    connection: quinn::Connection,
    system: System,
    host: Weak<dyn Host>,
    /// The control thread's runtime: readers and writers run there.
    control_thread: Handle,
    /// The control lane.
    control: Lanes<1>,
    lanes: Lanes<LANES>,
    outbox: Arc<Outbox>,
    bulk: OnceLock<mpsc::UnboundedSender<Tensor>>,
    /// How many connections for tensors the peer has made.
    bulk_taken: AtomicUsize,
    assemblies: Assemblies,
    near: Neighbour,
    /// The connections for messages and for tensors, out and in.
    beside: Mutex<Vec<quinn::Connection>>,
    /// The connection for messages is there.
    carried: AtomicBool,
    next: AtomicU64,
    /// Calls made.
    asked: AtomicU64,
    /// Bytes of frames without credit that are not written yet.
    backlog: Arc<AtomicUsize>,
    calls: DashMap<u64, Answer, RandomState>,
    /// What actors of the peer take, looked up with each message.
    takes: HashMap<u64, Fingerprint, RandomState>,
    windows: DashMap<ActorId, Arc<Window>, RandomState>,
    ledger: Mutex<Ledger>,
    inbox: Mutex<Inbox>,
    incoming: DashMap<u64, mpsc::Sender<flow::Event>>,
    unclaimed: DashMap<u64, mpsc::Receiver<flow::Event>>,
    outgoing: DashMap<u64, Arc<flow::Credits>>,
    fenced: AtomicBool,
    /// On how many streams the peer has said its last word.
    last_words: AtomicUsize,
    /// The peer has heard those of this side.
    heard: Notify,
    /// Messages have come that wait for tensors.
    announced: Notify,
    /// How many UDP packets had come when it was fenced.
    received_at_fence: AtomicU64,
    /// Why it ended, once it has.
    end: watch::Sender<Option<String>>,
    /// The same for those who ask with each message.
    over: AtomicBool,
}

impl Session {
    /// Starts a session on a connection whose handshake is done. `send` and `recv` are the
    /// handshake's stream, the control lane from here on.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn start(
        id: u64,
        peer: NodeRecord,
        identity: PeerIdentity,
        purpose: Purpose,
        dialed: bool,
        connection: quinn::Connection,
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        system: System,
        host: Weak<dyn Host>,
        control_thread: &Handle,
    ) -> Arc<Self> {
        let standing = Standing { role: identity.role, purpose };
        // Without the node there is nobody left who would send.
        let own_standing = host.upgrade().map_or(standing, |host| host.standing());
        let takes = peer.catalog.messages.iter().map(|(key, shape)| (*key, *shape)).collect();
        let session = Arc::new(Session {
            id,
            peer,
            purpose,
            identity: Mutex::new(identity),
            standing,
            own_standing,
            dialed,
            connection,
            system,
            host,
            control_thread: control_thread.clone(),
            control: Lanes::default(),
            lanes: Lanes::default(),
            outbox: Arc::default(),
            bulk: OnceLock::new(),
            bulk_taken: AtomicUsize::new(0),
            assemblies: Assemblies::default(),
            near: Neighbour::default(),
            beside: Mutex::default(),
            carried: AtomicBool::new(false),
            next: AtomicU64::new(1),
            asked: AtomicU64::new(1),
            backlog: Arc::default(),
            calls: DashMap::default(),
            takes,
            windows: DashMap::default(),
            ledger: Mutex::default(),
            inbox: Mutex::default(),
            incoming: DashMap::new(),
            unclaimed: DashMap::new(),
            outgoing: DashMap::new(),
            fenced: AtomicBool::new(false),
            last_words: AtomicUsize::new(0),
            heard: Notify::new(),
            announced: Notify::new(),
            received_at_fence: AtomicU64::new(0),
            end: watch::Sender::new(None),
            over: AtomicBool::new(false),
        });
        // Writers hold the connection and not the session: the session holds their lanes open.
        let (lane, backlog) = (session.control.get(0).clone(), session.backlog.clone());
        let control = session.connection.clone();
        control_thread.spawn(async move {
            let written = lane.write(&control, send, &backlog).await;
            end_if_stopped(written, &control);
        });
        control_thread.spawn(session.clone().read(recv));
        control_thread.spawn(session.clone().datagrams());
        control_thread.spawn(session.clone().until_closed());
        session.offer_memory();
        if dialed {
            control_thread.spawn(session.clone().dial_messages());
        }
        session
    }

    /// Who has dialed the session dials its connection for messages as well. What is sent meanwhile
    /// waits in the lanes.
    async fn dial_messages(self: Arc<Self>) {
        let Some(host) = self.host.upgrade() else { return };
        let dialed = host.dial_beside(&self, Carries::Messages);
        drop(host);
        match dialed.await {
            Ok(connection) => self.carry(connection),
            Err(why) => self.close(format!("no connection for messages: {why}")),
        }
    }

    /// The connection for messages stands: the lanes go over it.
    pub(crate) fn carry(self: &Arc<Self>, connection: quinn::Connection) {
        if self.carried.swap(true, Ordering::AcqRel) {
            return self.close("the peer made two connections for messages".into());
        }
        self.adopt(connection.clone());
        let spawner = &self.system.env().spawner;
        for lane in 0..LANES {
            let (lane, connection) = (self.lanes.get(lane).clone(), connection.clone());
            let (backlog, control) = (self.backlog.clone(), self.connection.clone());
            spawner.spawn(async move {
                let Ok(stream) = connection.open_uni().await else { return };
                let written = lane.write(&connection, stream, &backlog).await;
                end_if_stopped(written, &control);
            });
        }
        let session = self.clone();
        spawner.spawn(async move {
            for _ in 0..LANES {
                let Ok(stream) = connection.accept_uni().await else { break };
                session.system.env().spawner.spawn(session.clone().read(stream));
            }
            // A fifth lane is a breach; else this waits for the end.
            match connection.accept_uni().await {
                Ok(_) => session.close("the peer opened more lanes than there are".into()),
                Err(error) => session.lost_beside("the connection for messages", &error).await,
            }
        });
    }

    /// A connection beside the control connection has ended, and so does the session. If the peer has
    /// closed it, the control connection says why, in a moment.
    pub(crate) async fn lost_beside(&self, what: &str, error: &quinn::ConnectionError) {
        if matches!(error, quinn::ConnectionError::ApplicationClosed(_)) {
            let _ = tokio::time::timeout(LAST_WORD, self.ended()).await;
        }
        if self.is_live() {
            self.close(format!("{what} ended: {error}"));
        }
    }

    async fn datagrams(self: Arc<Self>) {
        while let Ok(data) = self.connection.read_datagram().await {
            if let Some(host) = self.host.upgrade() {
                host.datagram(&self, data);
            }
        }
    }

    async fn until_closed(self: Arc<Self>) {
        let reason = self.connection.closed().await;
        self.finish(reason.to_string());
        if let quinn::ConnectionError::ApplicationClosed(close) = &reason
            && close.error_code == THROWN_OUT.into()
            && let Some(host) = self.host.upgrade()
        {
            host.is_thrown_out(&self);
        }
    }

    async fn read(self: Arc<Self>, stream: quinn::RecvStream) {
        let mut reader = Reader::new(stream);
        let mut frames = Vec::new();
        loop {
            let first = match reader.next().await {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            // What has come with it is handed on with it: a batch wakes a receiver once.
            let taken = first.and_then(|first| {
                frames.push(frame::open(first)?);
                while frames.len() < BATCH
                    && let Some(next) = reader.ready()?
                {
                    frames.push(frame::open(next)?);
                }
                Ok(())
            });
            // Those before a broken one count.
            let flooded = frames.len() == BATCH;
            self.arrived(&mut frames);
            if flooded {
                // Others have their turn: on the control thread, membership.
                tokio::task::yield_now().await;
            }
            match taken {
                Ok(()) => {}
                // quinn hands out what it had received before the end.
                _ if !self.is_live() => return,
                // The connection's own end is told by `until_closed`.
                Err(lane::LaneError::Read(quinn::ReadError::ConnectionLost(_))) => return,
                Err(error) => return self.close(error.to_string()),
            }
        }
    }

    /// Ends the session, telling the peer why.
    pub(crate) fn close(&self, reason: String) {
        self.close_with(ENDED, reason);
    }

    /// Ends the session with a node that was revoked, and lets it know.
    pub(crate) fn throw_out(&self) {
        self.close_with(THROWN_OUT, format!("node {} was revoked", self.identity().node));
    }

    fn close_with(&self, code: u32, reason: String) {
        let text = &reason.as_bytes()[..reason.len().min(200)];
        self.connection.close(code.into(), text);
        self.finish(reason);
    }

    fn finish(&self, reason: String) {
        let first = self.end.send_if_modified(|end| {
            let first = end.is_none();
            self.over.store(true, Ordering::Release);
            end.get_or_insert_with(|| reason.clone());
            first
        });
        if !first {
            return;
        }
        for connection in lock(&self.beside).iter() {
            connection.close(ENDED.into(), b"the session ended");
        }
        self.near.revoke();
        let telemetry = self.system.telemetry();
        let (sent, received) = self.wire_bytes();
        telemetry.wire_bytes_sent.add(sent);
        telemetry.wire_bytes_received.add(received);
        self.fail_calls(&Failure::may_have_run(Cause::Unreachable(format!(
            "the connection to node {} ended: {reason}",
            self.peer.node
        ))));
        self.windows.iter().for_each(|window| window.close());
        self.outgoing.iter().for_each(|credits| credits.close());
        self.incoming.clear();
        self.unclaimed.clear();
        *lock(&self.inbox) = Inbox::default();
    }

    /// The peer's life is over: nobody waits for it any longer, though the connection may live on.
    pub(crate) fn lose(&self) {
        self.fence();
        self.near.revoke();
        let lost = Failure::may_have_run(Cause::NodeLost(self.peer.node));
        self.fail_calls(&lost);
        self.windows.iter().for_each(|window| window.close());
        self.outgoing.iter().for_each(|credits| credits.close());
        for stream in &self.incoming {
            // There is always room for the end.
            let _ = stream.try_send(flow::Event::End(Some(lost.clone())));
        }
        self.incoming.clear();
    }

    /// Fails all calls under way.
    fn fail_calls(&self, failure: &Failure) {
        let calls: Vec<u64> = self.calls.iter().map(|call| *call.key()).collect();
        for call in calls {
            if let Some((_, answer)) = self.calls.remove(&call) {
                let _ = answer.send(Err(failure.clone()));
            }
        }
    }

    /// What the peer's certificate says.
    pub(crate) fn identity(&self) -> PeerIdentity {
        *lock(&self.identity)
    }

    /// Shows newer credentials to the peer.
    pub(crate) fn show(&self, credentials: &Credentials, tls: &TlsSettings) {
        match Shown::new(credentials, &self.connection, tls) {
            Ok(shown) => self.control(Header::Certificate(shown)),
            Err(error) => tracing::warn!(%error, "the new certificate could not be shown"),
        }
    }

    /// The peer shows a newer certificate.
    ///
    /// # Errors
    /// Why it does not count.
    pub(crate) fn is_shown(
        &self,
        shown: &Shown,
        anchor: &Anchor,
        tls: &TlsSettings,
    ) -> Result<(), String> {
        let fresh = shown.verify(anchor, &self.connection, tls).map_err(|why| why.to_string())?;
        let mut identity = lock(&self.identity);
        if (fresh.node, fresh.role) != (identity.node, identity.role) {
            return Err("it names another node or another role".to_owned());
        }
        identity.expires = identity.expires.max(fresh.expires);
        Ok(())
    }

    /// The peer, as far as rights go.
    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// Why it ended; `None` while it lives.
    pub(crate) fn end(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// Waits until the session has ended.
    pub(crate) async fn ended(&self) {
        let _ = self.end.subscribe().wait_for(Option::is_some).await;
    }

    /// UDP bytes sent and received so far, those of large tensors included.
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        let beside = lock(&self.beside);
        std::iter::once(&self.connection).chain(beside.iter()).fold((0, 0), |sum, connection| {
            let stats = connection.stats();
            (sum.0 + stats.udp_tx.bytes, sum.1 + stats.udp_rx.bytes)
        })
    }

    /// A connection for messages or tensors belongs to this session now, and ends with it.
    pub(crate) fn adopt(&self, connection: quinn::Connection) {
        lock(&self.beside).push(connection.clone());
        // It may have ended just before.
        if !self.is_live() {
            connection.close(ENDED.into(), b"the session ended");
        }
    }

    pub(crate) fn pool(&self) -> &BufferPool {
        self.system.pool()
    }
}

/// A peer that stopped a lane while the session lives would wait for ever for what it asked for.
fn end_if_stopped(written: Result<(), quinn::WriteError>, control: &quinn::Connection) {
    if let Err(quinn::WriteError::Stopped(_)) = written {
        // `until_closed` does the rest.
        control.close(ENDED.into(), b"the peer stopped reading a lane");
    }
}

fn lane_of(actor: ActorId) -> usize {
    (actor.0 % LANES as u64) as usize
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("peer", &self.peer.node)
            .field("live", &self.is_live())
            .finish_non_exhaustive()
    }
}
