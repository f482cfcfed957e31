//! One authenticated connection between two nodes, and all that is under way on it.
//!
//! A session ends with its connection, or when the peer breaches the protocol. Calls under way then
//! fail as *may have run*; watches outlive it (the network lays them anew on the next session),
//! since only membership declares a node lost.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use dashmap::DashMap;
use footlight_runtime::{
    ActorId, System,
    codec::{Encoded, IncomingStream, Parcel},
    error::{Cause, Failure},
    remote::{Answer, Incoming, Outgoing, ReplyPort},
    tensor::BufferPool,
};
use futures::StreamExt;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    bulk, flow,
    frame::{self, Frame, Header, Payload},
    handshake::{NodeRecord, Purpose},
    inbox::{Inbox, Whole},
    lane::{self, Queue, Reader},
    window::{Ledger, Window},
};

/// Ordered lanes of each session: messages to one receiver keep to one lane.
pub(crate) const LANES: usize = 4;

/// Most bytes of answers and orders that wait for a peer to read.
const MAX_BACKLOG: usize = 256 << 20;

/// What a session needs of the node around it.
pub(crate) trait Host: Send + Sync {
    /// A frame about watches, ends and leaving: none of a session's own business.
    fn control(&self, session: &Arc<Session>, header: Header);
    /// The runtime on which large tensors are sent and received.
    fn bulk_thread(&self) -> &Handle;
    /// Dials the peer's bulk address and introduces the session.
    fn bulk(
        &self,
        session: &Arc<Session>,
    ) -> futures::future::BoxFuture<'static, Result<quinn::Connection, String>>;
    /// Whether those who only ask may send the message of this name's hash.
    fn may_observe(&self, key: u64) -> bool;
    /// A membership datagram.
    fn datagram(&self, session: &Arc<Session>, data: Bytes);
}

pub(crate) struct Session {
    /// Names the session on both sides; drawn by the dialer.
    pub(crate) id: u64,
    pub(crate) peer: NodeRecord,
    pub(crate) purpose: Purpose,
    /// Whether this node dialed.
    pub(crate) dialed: bool,
    connection: quinn::Connection,
    system: System,
    host: Weak<dyn Host>,
    /// The control thread's runtime: readers and writers run there.
    control_thread: Handle,
    control: Queue,
    lanes: [Queue; LANES],
    bulk: OnceLock<mpsc::UnboundedSender<(u64, Bytes)>>,
    /// The connections of large tensors, out and in, for the count of bytes.
    bulk_connections: Mutex<Vec<quinn::Connection>>,
    next: AtomicU64,
    /// Calls made.
    asked: AtomicU64,
    /// Bytes of frames without credit that are not written yet.
    backlog: Arc<AtomicUsize>,
    calls: DashMap<u64, Answer>,
    windows: DashMap<ActorId, Arc<Window>>,
    ledger: Mutex<Ledger>,
    inbox: Mutex<Inbox>,
    incoming: DashMap<u64, mpsc::Sender<flow::Event>>,
    unclaimed: DashMap<u64, mpsc::Receiver<flow::Event>>,
    outgoing: DashMap<u64, Arc<flow::Credits>>,
    fenced: AtomicBool,
    /// How many UDP packets had come when it was fenced.
    received_at_fence: AtomicU64,
    /// Why it ended, once it has.
    end: watch::Sender<Option<String>>,
}

impl Session {
    /// Starts a session on a connection whose handshake is done. `send` and `recv` are the
    /// handshake's stream, the control lane from here on.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn start(
        id: u64,
        peer: NodeRecord,
        purpose: Purpose,
        dialed: bool,
        connection: quinn::Connection,
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        system: System,
        host: Weak<dyn Host>,
        control_thread: &Handle,
    ) -> Arc<Self> {
        let (control, control_queue) = mpsc::unbounded_channel();
        let mut queues = Vec::with_capacity(LANES);
        let lanes = std::array::from_fn(|_| {
            let (lane, queue) = mpsc::unbounded_channel();
            queues.push(queue);
            lane
        });
        let session = Arc::new(Session {
            id,
            peer,
            purpose,
            dialed,
            connection,
            system,
            host,
            control_thread: control_thread.clone(),
            control,
            lanes,
            bulk: OnceLock::new(),
            bulk_connections: Mutex::default(),
            next: AtomicU64::new(1),
            asked: AtomicU64::new(1),
            backlog: Arc::default(),
            calls: DashMap::new(),
            windows: DashMap::new(),
            ledger: Mutex::default(),
            inbox: Mutex::default(),
            incoming: DashMap::new(),
            unclaimed: DashMap::new(),
            outgoing: DashMap::new(),
            fenced: AtomicBool::new(false),
            received_at_fence: AtomicU64::new(0),
            end: watch::Sender::new(None),
        });
        let _ = send.set_priority(2);
        // Writers hold the connection and not the session: the session holds their queues open.
        let (connection, backlog) = (session.connection.clone(), session.backlog.clone());
        control_thread.spawn(lane::write(control_queue, connection, send, backlog));
        for queue in queues {
            let (connection, backlog) = (session.connection.clone(), session.backlog.clone());
            control_thread.spawn(async move {
                if let Ok(stream) = connection.open_uni().await {
                    let _ = stream.set_priority(1);
                    lane::write(queue, connection, stream, backlog).await;
                }
            });
        }
        control_thread.spawn(session.clone().read(recv));
        control_thread.spawn(session.clone().accept_lanes());
        control_thread.spawn(session.clone().datagrams());
        control_thread.spawn(session.clone().until_closed());
        session
    }

    async fn accept_lanes(self: Arc<Self>) {
        for _ in 0..LANES {
            let Ok(stream) = self.connection.accept_uni().await else { return };
            self.control_thread.spawn(self.clone().read(stream));
        }
        // A fifth lane is a breach.
        if self.connection.accept_uni().await.is_ok() {
            self.close("the peer opened more lanes than there are".into());
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
    }

    async fn read(self: Arc<Self>, stream: quinn::RecvStream) {
        let mut reader = Reader::new(stream);
        loop {
            let frame = match reader.next().await {
                Ok(Some(bytes)) => frame::open(bytes).map_err(lane::LaneError::Frame),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            match frame {
                Ok(frame) => self.arrived(frame),
                // quinn hands out what it had received before the end.
                _ if !self.is_live() => return,
                // The connection's own end is told by `until_closed`.
                Err(lane::LaneError::Read(_)) => return,
                Err(error) => return self.close(error.to_string()),
            }
        }
    }

    /// Ends the session, telling the peer why.
    pub(crate) fn close(&self, reason: String) {
        let text = &reason.as_bytes()[..reason.len().min(200)];
        self.connection.close(1u32.into(), text);
        self.finish(reason);
    }

    fn finish(&self, reason: String) {
        let first = self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert_with(|| reason.clone());
            first
        });
        if !first {
            return;
        }
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

    /// Why it ended; `None` while it lives.
    pub(crate) fn end(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.end.borrow().is_none()
    }

    /// Waits until the session has ended.
    pub(crate) async fn ended(&self) {
        let _ = self.end.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until the peer has closed the connection, having heard the goodbye.
    pub(crate) async fn goodbye(&self) {
        self.ended().await;
    }

    /// UDP bytes sent and received so far, those of large tensors included.
    pub(crate) fn wire_bytes(&self) -> (u64, u64) {
        let bulk = lock(&self.bulk_connections);
        std::iter::once(&self.connection).chain(bulk.iter()).fold((0, 0), |sum, connection| {
            let stats = connection.stats();
            (sum.0 + stats.udp_tx.bytes, sum.1 + stats.udp_rx.bytes)
        })
    }

    /// A connection for large tensors belongs to this session now.
    pub(crate) fn adopt(&self, connection: quinn::Connection) {
        lock(&self.bulk_connections).push(connection);
    }

    pub(crate) fn pool(&self) -> &BufferPool {
        self.system.pool()
    }

    // ── outgoing ────────────────────────────────────────────────────────────────────────────────

    /// Sends a membership packet: as a datagram, which may be lost, or reliably.
    pub(crate) fn send_packet(&self, data: Bytes, must_arrive: bool) {
        let fits = self.connection.max_datagram_size().is_some_and(|most| data.len() <= most);
        if must_arrive || !fits {
            self.control(Header::Packet(data.into()));
        } else {
            let _ = self.connection.send_datagram(data);
        }
    }

    /// The peer's life was declared over: neither side's messages are heeded any more, while
    /// membership's packets still pass, so that the peer can learn it and come back.
    pub(crate) fn fence(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            let received = self.connection.stats().udp_rx.datagrams;
            self.received_at_fence.store(received, Ordering::Release);
        }
    }

    /// Whether nothing has come since the peer's life was declared over. Then a process that was
    /// started again in its place can't be reached by this connection, though it seems to live.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_fenced()
            && self.connection.stats().udp_rx.datagrams
                == self.received_at_fence.load(Ordering::Acquire)
    }

    /// Sends a frame that needs no order with messages.
    pub(crate) fn control(&self, header: Header) {
        match frame::bare(&header) {
            Ok(pieces) => {
                let uncredited = self.uncredited(&pieces);
                let _ = self.control.send((pieces, uncredited));
            }
            Err(error) => tracing::error!(%error, "a control frame could not be made"),
        }
    }

    pub(crate) fn on_lane(&self, lane: usize, header: Header) {
        match (frame::bare(&header), self.lanes.get(lane)) {
            (Ok(pieces), Some(lane)) => {
                let uncredited = self.uncredited(&pieces);
                let _ = lane.send((pieces, uncredited));
            }
            (Err(error), _) => tracing::error!(%error, "a frame could not be made"),
            (Ok(_), None) => {}
        }
    }

    /// Counts a frame that needs no credit. A peer that asks and never reads must not make this
    /// node's memory grow for ever.
    fn uncredited(&self, pieces: &frame::Pieces) -> usize {
        let bytes = pieces.iter().map(Bytes::len).sum();
        if self.backlog.fetch_add(bytes, Ordering::AcqRel) > MAX_BACKLOG {
            let connection = self.connection.clone();
            // `until_closed` does the rest.
            connection.close(1u32.into(), b"the peer does not read what it asked for");
        }
        bytes
    }

    /// Sends a value: body and small tensors on the lane, large ones beside it, then the items of
    /// its streams as they come.
    pub(crate) fn send_value(
        self: &Arc<Self>,
        lane: usize,
        credited: bool,
        mut value: Encoded,
        header: impl FnOnce(Payload) -> Header,
    ) -> Result<(), Failure> {
        let refused =
            |error: frame::FrameError| Failure::not_sent(Cause::CannotEncode(error.to_string()));
        let mut laid = frame::lay_out(&mut value, || self.number()).map_err(refused)?;
        let streams: Vec<_> =
            value.streams.into_iter().map(|items| (self.number(), items)).collect();
        laid.payload.streams.extend(streams.iter().map(|(id, _)| *id));
        let (pieces, large) = laid.seal(header).map_err(refused)?;
        let Some(queue) = self.lanes.get(lane) else { return Ok(()) };
        let mut pumps = Vec::with_capacity(streams.len());
        for (id, items) in streams {
            let credits = Arc::new(flow::Credits::new());
            // Known before the frame is under way: the reader may answer at once.
            self.outgoing.insert(id, credits.clone());
            pumps.push((id, credits, items));
        }
        let uncredited = if credited { 0 } else { self.uncredited(&pieces) };
        let gone = || Failure::not_sent(Cause::Unreachable("the connection ended".into()));
        queue.send((pieces, uncredited)).map_err(|_| gone())?;
        for (id, bytes) in large {
            let _ = self.bulk().send((id, bytes));
        }
        for (id, credits, items) in pumps {
            let pump = flow::pump(self.clone(), id, lane, credits, items);
            self.system.env().spawner.spawn(pump);
        }
        Ok(())
    }

    /// The queue to the bulk connection, which is dialed when the first large tensor goes out.
    fn bulk(self: &Arc<Self>) -> &mpsc::UnboundedSender<(u64, Bytes)> {
        self.bulk.get_or_init(|| {
            let (sender, queue) = mpsc::unbounded_channel();
            let session = self.clone();
            let Some(host) = self.host.upgrade() else { return sender };
            let thread = host.bulk_thread().clone();
            thread.spawn(async move {
                let dialed = host.bulk(&session).await;
                drop(host);
                let ended = match dialed {
                    Ok(connection) => bulk::send(session.clone(), connection, queue)
                        .await
                        .map_err(|error| error.to_string()),
                    Err(why) => Err(why),
                };
                if let Err(why) = ended {
                    session.close(format!("the bulk connection failed: {why}"));
                }
            });
            sender
        })
    }

    /// Sends a message within its receiver's window.
    pub(crate) async fn send(
        self: &Arc<Self>,
        message: Outgoing,
        answer: Option<Answer>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.check(&message)?;
        let window = self.window(message.to.actor);
        let bytes = message.value.len() as u64;
        tokio::select! {
            biased;
            taken = window.take(bytes, deadline) => taken,
            () = self.ended() => Err(self.unreachable()),
        }
        .map_err(|failure| if self.is_fenced() { self.lost() } else { failure })?;
        self.put(message, answer).inspect_err(|_| window.give_back(bytes))
    }

    /// Sends a message if its receiver's window has room.
    pub(crate) fn try_send(self: &Arc<Self>, message: Outgoing) -> Result<(), Failure> {
        self.check(&message)?;
        let window = self.window(message.to.actor);
        let bytes = message.value.len() as u64;
        window.try_take(bytes)?;
        self.put(message, None).inspect_err(|_| window.give_back(bytes))
    }

    fn put(self: &Arc<Self>, message: Outgoing, answer: Option<Answer>) -> Result<(), Failure> {
        if !self.is_live() {
            return Err(self.unreachable());
        }
        let Outgoing { to, key, fence, value, .. } = message;
        let call = answer.map(|answer| {
            let call = self.number();
            if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(1024) {
                // Callers that gave up leave their place when the next ones come.
                self.calls.retain(|_, answer| !answer.is_closed());
            }
            self.calls.insert(call, answer);
            call
        });
        let sent = self.send_value(lane_of(to.actor), true, value, |payload| Header::Message {
            to: to.actor,
            incarnation: to.incarnation,
            key,
            fence,
            call,
            payload,
        });
        if let (Err(_), Some(call)) = (&sent, call) {
            self.calls.remove(&call);
        }
        self.system.telemetry().messages_sent.add(1);
        // It may have ended between the check and the insertion, after `fail_calls` had passed.
        let over = match self.end() {
            _ if self.is_fenced() => Some(self.lost().cause),
            reason => reason.map(Cause::Unreachable),
        };
        if let Some(cause) = over
            && let Some((_, answer)) = call.and_then(|call| self.calls.remove(&call))
        {
            let _ = answer.send(Err(Failure::may_have_run(cause)));
        }
        sent
    }

    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    fn lost(&self) -> Failure {
        Failure::not_sent(Cause::NodeLost(self.peer.node))
    }

    fn check(&self, message: &Outgoing) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::not_sent(Cause::Refused(why)));
        if message.to.incarnation != self.peer.incarnation || self.is_fenced() {
            return Err(self.lost());
        }
        match self.peer.catalog.messages.get(&message.key) {
            Some(known) if *known == message.fingerprint => Ok(()),
            Some(_) => refused(format!(
                "`{}` has another shape on node {}: run the same build on all nodes",
                message.name, self.peer.node
            )),
            None => refused(format!(
                "no actor type registered on node {} takes `{}`",
                self.peer.node, message.name
            )),
        }
    }

    fn window(&self, actor: ActorId) -> Arc<Window> {
        self.windows.entry(actor).or_insert_with(|| Arc::new(Window::new())).clone()
    }

    fn unreachable(&self) -> Failure {
        let reason = self.end().unwrap_or_else(|| "the connection ended".into());
        Failure::not_sent(Cause::Unreachable(reason))
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    // ── incoming ────────────────────────────────────────────────────────────────────────────────

    fn arrived(self: &Arc<Self>, frame: Frame) {
        // Delivered under the lock: that keeps the order when a tensor on another connection
        // releases a frame at the same time. Delivery never waits.
        let mut inbox = lock(&self.inbox);
        // After the end nothing is delivered: the next session may have begun.
        if !self.is_live() {
            return;
        }
        // Counted now: a message may wait here for its tensors, and is unread all the same.
        if let Header::Message { to, payload, .. } = &frame.header
            && let Err(breach) = lock(&self.ledger).arrived(*to, payload.bytes())
        {
            drop(inbox);
            return self.close(breach.to_string());
        }
        // Streams are known before their frame is delivered: it may wait for a large tensor while
        // the first items are here already.
        for &id in frame.header.payload().map_or(&[][..], |payload| &payload.streams) {
            let (sender, receiver) = flow::channel();
            self.incoming.insert(id, sender);
            self.unclaimed.insert(id, receiver);
        }
        match inbox.frame(frame) {
            Ok(ready) => ready.into_iter().for_each(|whole| self.dispatch(whole)),
            Err(error) => {
                drop(inbox);
                self.close(error.to_string());
            }
        }
    }

    /// A large tensor arrived on the bulk connection.
    pub(crate) fn segment(self: &Arc<Self>, id: u64, bytes: Bytes) {
        let mut inbox = lock(&self.inbox);
        if !self.is_live() {
            return;
        }
        match inbox.segment(id, bytes) {
            Ok(ready) => ready.into_iter().for_each(|whole| self.dispatch(whole)),
            Err(error) => {
                drop(inbox);
                self.close(error.to_string());
            }
        }
    }

    fn dispatch(self: &Arc<Self>, whole: Whole) {
        let Whole { header, body, segments } = whole;
        // A life that was declared over acts no more: neither its answers nor its orders count. Its
        // messages are refused below, so that it learns why.
        let heeded = matches!(
            header,
            Header::Message { .. } | Header::Packet(_) | Header::Leaving | Header::Credit { .. }
        );
        if !heeded && self.is_fenced() {
            return;
        }
        match header {
            Header::Message { to, incarnation, key, fence, call, payload } => {
                let bytes = payload.bytes();
                let parcel = self.parcel(body, segments, &payload);
                let reply = call.map(|call| -> Box<dyn ReplyPort> {
                    Box::new(WireReply { session: self.clone(), call, lane: lane_of(to) })
                });
                let credit: Box<dyn Any + Send> =
                    Box::new(Credit { session: Arc::downgrade(self), actor: to, bytes });
                let asks_only = self.purpose == Purpose::Observer
                    && !self.host.upgrade().is_some_and(|host| host.may_observe(key));
                let refusal = if asks_only {
                    Some(Cause::Refused("a node that only observes may ask for status only".into()))
                } else if incarnation != self.system.incarnation() {
                    Some(Cause::NodeLost(self.system.node()))
                } else if self.is_fenced() {
                    Some(Cause::Refused(format!(
                        "incarnation {} of node {} was declared down",
                        self.peer.incarnation.0, self.peer.node
                    )))
                } else {
                    None
                };
                if let Some(cause) = refusal {
                    if let Some(reply) = reply {
                        reply.answer(Err(Failure::not_sent(cause)));
                    }
                    return;
                }
                let from = self.peer.node;
                self.system.deliver(Incoming { from, to, key, fence, parcel, reply, credit });
            }
            Header::Reply { call, payload } => {
                let parcel = self.parcel(body, segments, &payload);
                if let Some((_, answer)) = self.calls.remove(&call) {
                    let _ = answer.send(Ok(parcel));
                }
            }
            Header::Failed { call, failure } => {
                if let Some((_, answer)) = self.calls.remove(&call) {
                    let _ = answer.send(Err(failure));
                }
            }
            Header::StreamItem { stream, payload } => {
                let parcel = self.parcel(body, segments, &payload);
                let sender = self.incoming.get(&stream).map(|sender| sender.clone());
                if let Some(Err(mpsc::error::TrySendError::Full(_))) =
                    sender.map(|sender| sender.try_send(flow::Event::Item(parcel)))
                {
                    self.close_soon("a stream ran ahead of its window".into());
                }
            }
            Header::StreamEnd { stream, failure } => {
                if let Some((_, sender)) = self.incoming.remove(&stream) {
                    let _ = sender.try_send(flow::Event::End(failure));
                }
            }
            Header::StreamCredit { stream, items } => {
                if let Some(credits) = self.outgoing.get(&stream) {
                    credits.give(items);
                }
            }
            Header::StreamCancel { stream } => {
                if let Some(credits) = self.outgoing.get(&stream) {
                    credits.close();
                }
            }
            Header::Credit { actor, messages, bytes } => {
                if let Some(window) = self.windows.get(&actor) {
                    window.give(messages, bytes);
                }
                // One that nobody uses and that is whole again is as good as a new one.
                self.windows.remove_if(&actor, |_, window| {
                    Arc::strong_count(window) == 1 && window.is_whole()
                });
            }
            other => {
                if let Some(host) = self.host.upgrade() {
                    host.control(self, other);
                }
            }
        }
    }

    /// Closes from within a delivery, where the inbox is locked.
    pub(crate) fn close_soon(self: &Arc<Self>, reason: String) {
        let session = self.clone();
        self.control_thread.spawn(async move { session.close(reason) });
    }

    fn parcel(self: &Arc<Self>, body: Bytes, segments: Vec<Bytes>, payload: &Payload) -> Parcel {
        let streams = payload
            .streams
            .iter()
            .filter_map(|&id| {
                let (_, events) = self.unclaimed.remove(&id)?;
                let items: IncomingStream =
                    flow::Items::new(Arc::downgrade(self), id, events).boxed();
                Some(items)
            })
            .collect();
        Parcel { body, segments, streams, system: self.system.clone(), from: self.peer.node }
    }

    /// Whether a message has announced a tensor.
    pub(crate) fn expects(&self, id: u64, length: u64) -> bool {
        lock(&self.inbox).expects(id, length)
    }

    pub(crate) fn forget_incoming(&self, stream: u64) {
        self.incoming.remove(&stream);
    }

    pub(crate) fn forget_outgoing(&self, stream: u64) {
        self.outgoing.remove(&stream);
    }
}

fn lane_of(actor: ActorId) -> usize {
    (actor.0 % LANES as u64) as usize
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Gives the sender its credit back when the actor takes the message.
struct Credit {
    session: Weak<Session>,
    actor: ActorId,
    bytes: u64,
}

impl Drop for Credit {
    fn drop(&mut self) {
        let Some(session) = self.session.upgrade() else { return };
        let paid = lock(&session.ledger).taken(self.actor, self.bytes);
        if let Some((messages, bytes)) = paid {
            session.control(Header::Credit { actor: self.actor, messages, bytes });
        }
    }
}

struct WireReply {
    session: Arc<Session>,
    call: u64,
    lane: usize,
}

impl ReplyPort for WireReply {
    fn answer(self: Box<Self>, outcome: Result<Encoded, Failure>) {
        let WireReply { session, call, lane } = *self;
        let sent = match outcome {
            Ok(value) => {
                let sent = session
                    .send_value(lane, false, value, |payload| Header::Reply { call, payload });
                sent.map_err(|failure| Failure::may_have_run(failure.cause))
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            session.on_lane(lane, Header::Failed { call, failure });
        }
    }
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
