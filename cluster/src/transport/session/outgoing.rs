//! What a session sends: messages within their windows, answers and orders, large tensors beside.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use footlight_runtime::{
    ActorId,
    codec::Encoded,
    error::{Cause, Failure},
    remote::{Answer, Outgoing, Unsent},
};
use futures::future::try_join_all;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{LANES, MAX_BACKLOG, Session, lane_of};
use crate::{
    transport::{
        bulk::{self, Tensor},
        endpoint::Purpose as Carries,
        flow,
        frame::{self, Header, Payload, Pieces},
        lane::Lane,
        outbox::{Held, Outbox},
        window::Window,
    },
    trust::rights::Standing,
};

impl Session {
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

    /// Says the last word on every stream, and waits until the peer has read all that was sent
    /// before.
    pub(crate) async fn last_words(&self) {
        self.control(Header::LastWord);
        (0..LANES).for_each(|lane| self.on_lane(lane, Header::LastWord));
        tokio::select! {
            biased;
            () = self.heard.notified() => {}
            () = self.ended() => {}
        }
    }

    /// What waits for the peer of large tensors.
    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// How many UDP packets have come from the peer.
    pub(crate) fn heard_packets(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Sends a frame that needs no order with messages.
    pub(crate) fn control(&self, header: Header) {
        self.bare(self.control.get(0), &header);
    }

    pub(crate) fn on_lane(&self, lane: usize, header: Header) {
        self.bare(self.lanes.get(lane), &header);
    }

    fn bare(&self, lane: &Lane, header: &Header) {
        if self.is_overrun() {
            return;
        }
        let put = |pieces: &mut Pieces| pieces.frame(header, Bytes::new(), Vec::new());
        if let Some(Err(error)) = lane.put(Some(&self.backlog), put) {
            tracing::error!(%error, "a frame could not be made");
        }
    }

    /// A peer that asks and never reads must not make this node's memory grow for ever: past the
    /// bound the session ends, and nothing more is put in.
    fn is_overrun(&self) -> bool {
        let overrun = self.backlog.load(Ordering::Acquire) > MAX_BACKLOG;
        if overrun {
            // `until_closed` does the rest.
            self.connection.close(1u32.into(), b"the peer does not read what it asked for");
        }
        overrun
    }

    /// Sends a value: body and small tensors on the lane, large ones beside it, then the items of
    /// its streams as they come. `held` is the room that its large tensors take.
    pub(crate) fn send_value(
        self: &Arc<Self>,
        lane: usize,
        credited: bool,
        mut value: Encoded,
        held: Option<Held>,
        header: impl FnOnce(Payload) -> Header,
    ) -> Result<(), Failure> {
        let refused =
            |error: frame::FrameError| Failure::not_sent(Cause::CannotEncode(error.to_string()));
        let gone = || Failure::not_sent(Cause::Unreachable("the connection ended".into()));
        if !credited && self.is_overrun() {
            return Err(gone());
        }
        let backlog = if credited { None } else { Some(&*self.backlog) };
        if value.segments.is_empty() && value.streams.is_empty() {
            // Most messages: nothing travels beside the frame.
            let body = value.body;
            let header = header(Payload { body: body.len() as u32, ..Payload::default() });
            let put = |pieces: &mut Pieces| pieces.frame(&header, body, Vec::new());
            return self.lanes.get(lane).put(backlog, put).ok_or_else(gone)?.map_err(refused);
        }
        let mut laid = frame::lay_out(&mut value, || self.number()).map_err(refused)?;
        let streams: Vec<_> =
            value.streams.into_iter().map(|items| (self.number(), items)).collect();
        laid.payload.streams.extend(streams.iter().map(|(id, _)| *id));
        let mut pumps = Vec::with_capacity(streams.len());
        for (id, items) in streams {
            let credits = Arc::new(flow::Credits::new());
            // Known before the frame is under way: the reader may answer at once.
            self.outgoing.insert(id, credits.clone());
            pumps.push((id, credits, items));
        }
        let put = self.lanes.get(lane).put(backlog, |pieces| laid.seal(pieces, header));
        let large = put.ok_or_else(gone).and_then(|sealed| sealed.map_err(refused));
        let large = large.inspect_err(|_| {
            pumps.iter().for_each(|(id, ..)| drop(self.outgoing.remove(id)));
        })?;
        if !large.is_empty() {
            let held = Arc::new(held);
            for (id, bytes) in large {
                match self.near.lend(Tensor { id, bytes, held: held.clone() }) {
                    // On the same lane, so behind the frame that names it.
                    Ok(lent) => self.on_lane(lane, Header::Lent(lent)),
                    Err(tensor) => drop(self.bulk().send(tensor)),
                }
            }
        }
        for (id, credits, items) in pumps {
            let pump = flow::pump(self.clone(), id, lane, credits, items);
            self.system.env().spawner.spawn(pump);
        }
        Ok(())
    }

    /// The queue to the bulk connections, which are dialed when the first large tensor goes out.
    pub(super) fn bulk(self: &Arc<Self>) -> &mpsc::UnboundedSender<Tensor> {
        self.bulk.get_or_init(|| {
            let (sender, queue) = mpsc::unbounded_channel();
            let session = self.clone();
            let Some(host) = self.host.upgrade() else { return sender };
            let thread = host.bulk_thread().clone();
            thread.spawn(async move {
                let dialed = (0..host.bulk_connections().clamp(1, bulk::MAX_CONNECTIONS))
                    .map(|_| host.dial_beside(&session, Carries::Bulk));
                let dialed = try_join_all(dialed.collect::<Vec<_>>());
                drop(host);
                let ended = match dialed.await {
                    Ok(connections) => bulk::send(session.clone(), connections, queue)
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

    /// Sends a message within its receiver's window, and its large tensors behind those that wait.
    pub(crate) async fn send(
        self: &Arc<Self>,
        message: Outgoing,
        answer: Option<Answer>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.check(&message)?;
        let window = self.window(message.to.actor);
        let bytes = message.value.len() as u64;
        let large = frame::large_bytes(&message.value);
        let room = async {
            window.take(bytes, deadline).await?;
            if large == 0 {
                return Ok(None);
            }
            let held = timeout_at(deadline, self.outbox.take(large)).await;
            held.map(Some).map_err(|_| {
                window.give_back(bytes);
                Failure::not_sent(Cause::Overloaded)
            })
        };
        let held = tokio::select! {
            biased;
            held = room => held,
            () = self.ended() => Err(self.unreachable()),
        }
        .map_err(|failure| if self.is_fenced() { self.lost() } else { failure })?;
        self.put(message, answer, held).inspect_err(|_| window.give_back(bytes))
    }

    /// Sends a message if its receiver's window has room.
    pub(crate) fn try_send(
        self: &Arc<Self>,
        message: Outgoing,
        answer: Option<Answer>,
    ) -> Result<(), Unsent> {
        self.check(&message).map_err(Unsent::Failed)?;
        let (actor, bytes) = (message.to.actor, message.value.len() as u64);
        let taken = match self.windows.get(&actor) {
            Some(window) => window.try_take(bytes),
            None => self.window(actor).try_take(bytes),
        };
        if let Err(full) = taken {
            return Err(Unsent::NotNow(Box::new((message, answer)), full));
        }
        let large = frame::large_bytes(&message.value);
        let held = if large == 0 { None } else { self.outbox.try_take(large) };
        if large > 0 && held.is_none() {
            self.window(actor).give_back(bytes);
            let full = Failure::not_sent(Cause::Overloaded);
            return Err(Unsent::NotNow(Box::new((message, answer)), full));
        }
        let sent = self.put(message, answer, held);
        if sent.is_err() {
            self.window(actor).give_back(bytes);
        }
        sent.map_err(Unsent::Failed)
    }

    pub(super) fn put(
        self: &Arc<Self>,
        message: Outgoing,
        answer: Option<Answer>,
        held: Option<Held>,
    ) -> Result<(), Failure> {
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
        let sent = self.send_value(lane_of(to.actor), true, value, held, |payload| {
            Header::Message { to: to.actor, incarnation: to.incarnation, key, fence, call, payload }
        });
        if let (Err(_), Some(call)) = (&sent, call) {
            self.calls.remove(&call);
        }
        self.system.telemetry().messages_sent.add(1);
        // It may have ended between the check and the insertion, after `fail_calls` had passed.
        if (self.is_fenced() || !self.is_live())
            && let Some((_, answer)) = call.and_then(|call| self.calls.remove(&call))
        {
            let why = if self.is_fenced() { self.lost() } else { self.unreachable() };
            let _ = answer.send(Err(Failure::may_have_run(why.cause)));
        }
        sent
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    pub(super) fn lost(&self) -> Failure {
        Failure::not_sent(Cause::NodeLost(self.peer.node))
    }

    pub(super) fn check(&self, message: &Outgoing) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::not_sent(Cause::Refused(why)));
        if message.to.incarnation != self.peer.incarnation || self.is_fenced() {
            return Err(self.lost());
        }
        // The receiver looks as well. But a cast has no answer that could say so.
        if self.own_standing != Standing::EVERYTHING
            && let Some(host) = self.host.upgrade()
            && let Err(denied) = self.own_standing.check(host.needed(message.to.actor, message.key))
        {
            return refused(denied.to_string());
        }
        match self.takes.get(&message.key) {
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

    pub(super) fn window(&self, actor: ActorId) -> Arc<Window> {
        if let Some(window) = self.windows.get(&actor) {
            return window.clone();
        }
        self.windows.entry(actor).or_insert_with(|| Arc::new(Window::new())).clone()
    }

    pub(super) fn unreachable(&self) -> Failure {
        let reason = self.end().unwrap_or_else(|| "the connection ended".into());
        Failure::not_sent(Cause::Unreachable(reason))
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}
