//! What a session receives: frames and tensors, put in order, handed to actors and to those who wait.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use footlight_runtime::{
    ActorId, System,
    codec::{Encoded, IncomingStream, Parcel},
    error::{Cause, Failure},
    remote::{Batch, Credits, Incoming, ReplyPort},
};
use futures::{StreamExt, future::BoxFuture};
use tokio::{sync::mpsc, time::Instant};

use super::{LANES, Session, lane_of, lock};
use crate::{
    transport::{
        assembly::{self, AssemblyError, Slice},
        bulk::{self, Head},
        flow,
        frame::{self, Frame, Header, Payload},
        inbox::Whole,
        outbox::Outbox,
        same_host::LendError,
        window,
    },
    trust::{Denied, Right, rights::Standing},
};

/// A peer that leaves is waited for so long for the tensors of its last answers.
const LAST_TENSORS: Duration = Duration::from_secs(2);

impl Session {
    /// Frames of one stream have arrived, in this order.
    pub(super) fn arrived(self: &Arc<Self>, frames: &mut Vec<Frame>) {
        // Delivered under the lock: that keeps the order when a tensor on another connection
        // releases a frame at the same time. Delivery never waits.
        let mut inbox = lock(&self.inbox);
        // After the end nothing is delivered: the next session may have begun.
        if !self.is_live() {
            return frames.clear();
        }
        let (known, mut breach) = self.count_in(frames);
        frames.truncate(known);
        let mut batches = Batches::of_at_most(frames.len());
        let mut ready = Vec::new();
        for frame in frames.drain(..) {
            if let Header::Lent(lent) = &frame.header
                && !inbox.expects(lent.id, lent.len)
            {
                breach = Some(LendError::Unnamed(lent.id).to_string());
                break;
            }
            if inbox.passes(&frame) {
                self.hand_on(frame.into(), &mut batches);
                continue;
            }
            let taken = inbox.frame(frame, &mut ready);
            ready.drain(..).for_each(|whole| self.hand_on(whole, &mut batches));
            if let Err(why) = taken {
                breach = Some(why.to_string());
                break;
            }
        }
        batches.deliver(&self.system);
        if !inbox.is_empty() {
            self.announced.notify_waiters();
        }
        drop(inbox);
        if let Some(why) = breach {
            self.close(why);
        }
    }

    /// Counts what has arrived; how many frames are in order, and what is wrong with the next one.
    fn count_in(&self, frames: &[Frame]) -> (usize, Option<String>) {
        let mut ledger = lock(&self.ledger);
        for (at, frame) in frames.iter().enumerate() {
            // Counted now: a message may wait here for its tensors, and is unread all the same.
            if let Header::Message { to, payload, .. } = &frame.header
                && let Err(why) = ledger.arrived(*to, payload.bytes())
            {
                return (at, Some(why.to_string()));
            }
            // Streams are known before their frame is delivered: it may wait for a large tensor while
            // the first items are here already.
            for &id in frame.header.payload().map_or(&[][..], |payload| &payload.streams) {
                let (sender, receiver) = flow::channel();
                self.incoming.insert(id, sender);
                self.unclaimed.insert(id, receiver);
            }
        }
        (frames.len(), None)
    }

    /// A large tensor arrived on the bulk connection.
    pub(crate) fn segment(self: &Arc<Self>, id: u64, bytes: Bytes) {
        let mut inbox = lock(&self.inbox);
        if !self.is_live() {
            return;
        }
        let mut ready = Vec::new();
        let taken = inbox.segment(id, bytes, &mut ready);
        let mut batches = Batches::of_at_most(ready.len());
        ready.into_iter().for_each(|whole| self.hand_on(whole, &mut batches));
        batches.deliver(&self.system);
        drop(inbox);
        if let Err(error) = taken {
            self.close(error.to_string());
        }
    }

    /// Hands on what is whole; a message goes with others to the same actor.
    fn hand_on(self: &Arc<Self>, whole: Whole, batches: &mut Batches) {
        match whole.header {
            Header::Message { .. } => self.gather(whole, batches),
            // What answers, or gives room, has no order with messages.
            Header::Reply { .. } | Header::Failed { .. } | Header::Credit { .. } => {
                self.dispatch(whole);
            }
            _ => {
                batches.deliver(&self.system);
                self.dispatch(whole);
            }
        }
    }

    fn gather(self: &Arc<Self>, whole: Whole, batches: &mut Batches) {
        let Whole { header, body, segments } = whole;
        let Header::Message { to, incarnation, key, fence, call, payload } = header else { return };
        let bytes = u64::from(window::cost(payload.bytes()));
        let parcel = self.parcel(body, segments, &payload);
        let reply = call.map(|call| -> Box<dyn ReplyPort> {
            Box::new(WireReply { session: self.clone(), call, actor: to })
        });
        let refusal = if let Err(denied) = self.may_send(to, key) {
            // Before anything of it is decoded.
            Some(Cause::Refused(denied.to_string()))
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
            self.pay(to, 1, bytes);
            if let Some(reply) = reply {
                reply.answer(Err(Failure::not_sent(cause)));
            }
            return;
        }
        let message = Incoming { key, fence, parcel, reply, bytes };
        batches.put(to, message, || {
            let (session, outbox) = (Arc::downgrade(self), self.outbox.clone());
            Arc::new(Room { session, outbox, actor: to })
        });
    }

    /// An actor has taken messages out of its mailbox.
    fn pay(&self, actor: ActorId, messages: u32, bytes: u64) {
        let paid = lock(&self.ledger).taken(actor, messages, bytes);
        if let Some((messages, bytes)) = paid {
            // On a lane: the control thread has nothing to do with messages.
            self.on_lane(lane_of(actor), Header::Credit { actor, messages, bytes });
        }
    }

    pub(super) fn dispatch(self: &Arc<Self>, whole: Whole) {
        let Whole { header, body, segments } = whole;
        // A life that was declared over acts no more: neither its answers nor its orders count.
        let heeded = matches!(
            header,
            Header::Packet(_) | Header::Leaving | Header::Credit { .. } | Header::Certificate(_)
        );
        if !heeded && self.is_fenced() {
            return;
        }
        match header {
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
            Header::Lend(place) => self.consider_memory(place),
            Header::Prove(challenge) => self.prove_memory(challenge),
            Header::Lent(lent) => self.borrow(lent),
            Header::Fetched { id, whole } => self.is_fetched(id, whole),
            Header::LastWord => self.heard_last_word(),
            Header::Heard => self.heard.notify_one(),
            other => {
                if let Some(host) = self.host.upgrade() {
                    host.control(self, other);
                }
            }
        }
    }

    /// The peer has said its last word on one more stream. Once it has on all, and its tensors that
    /// are still on their way have come, it is told that all was heard.
    fn heard_last_word(self: &Arc<Self>) {
        if self.last_words.fetch_add(1, Ordering::AcqRel) != LANES {
            return;
        }
        let session = self.clone();
        self.control_thread.spawn(async move {
            let deadline = Instant::now() + LAST_TENSORS;
            while !lock(&session.inbox).is_empty() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            session.control(Header::Heard);
        });
    }

    /// Whether the peer has the right to send an actor a message of this name's hash.
    fn may_send(&self, to: ActorId, key: u64) -> Result<(), Denied> {
        let standing = self.standing();
        if standing == Standing::EVERYTHING {
            return Ok(());
        }
        let host = self.host.upgrade();
        standing.check(host.map_or(Right::Command, |host| host.needed(to, key)))
    }

    /// Closes from within a delivery, where the inbox is locked.
    pub(crate) fn close_soon(self: &Arc<Self>, reason: String) {
        let session = self.clone();
        self.control_thread.spawn(async move { session.close(reason) });
    }

    pub(super) fn parcel(
        self: &Arc<Self>,
        body: Bytes,
        segments: Vec<Bytes>,
        payload: &Payload,
    ) -> Parcel {
        let streams = match payload.streams.as_slice() {
            // Mostly there are none.
            [] => Vec::new(),
            ids => ids
                .iter()
                .filter_map(|&id| {
                    let (_, events) = self.unclaimed.remove(&id)?;
                    let items: IncomingStream =
                        flow::Items::new(Arc::downgrade(self), id, events).boxed();
                    Some(items)
                })
                .collect(),
        };
        Parcel { body, segments, streams, system: self.system.clone(), from: self.peer.node }
    }

    /// The peer has made one more connection for tensors; false if that is one too many.
    pub(crate) fn takes_bulk(&self) -> bool {
        self.bulk_taken.fetch_add(1, Ordering::AcqRel) < bulk::MAX_CONNECTIONS
    }

    /// A piece of a tensor begins: where its slices go.
    pub(crate) fn assemble(
        self: &Arc<Self>,
        head: Head,
    ) -> Result<mpsc::Sender<Slice>, AssemblyError> {
        let (slices, first) = self.assemblies.begin(head)?;
        if let (Some(come), Some(host)) = (first, self.host.upgrade()) {
            host.bulk_thread().spawn(self.clone().put_together(head, come));
        }
        Ok(slices)
    }

    /// Puts a tensor together once a message has announced it.
    async fn put_together(self: Arc<Self>, head: Head, come: mpsc::Receiver<Slice>) {
        let whole = async {
            self.is_announced(head.id, head.length).await;
            assembly::fill(self.pool().take(head.length as usize), come).await
        };
        let whole = tokio::select! {
            biased;
            () = self.ended() => return,
            whole = whole => whole,
        };
        self.assemblies.end(head.id);
        if let Some(buffer) = whole {
            self.segment(head.id, buffer.freeze());
        }
    }

    /// Waits until a message has announced a tensor.
    pub(crate) async fn is_announced(&self, id: u64, length: u64) {
        loop {
            let announced = self.announced.notified();
            if lock(&self.inbox).expects(id, length) {
                return;
            }
            announced.await;
        }
    }

    pub(crate) fn forget_incoming(&self, stream: u64) {
        self.incoming.remove(&stream);
    }

    pub(crate) fn forget_outgoing(&self, stream: u64) {
        self.outgoing.remove(&stream);
    }
}

/// Among so many receivers, messages to one are gathered.
const NEAR: usize = 16;

/// Messages on their way to actors of this node, those to one actor together.
struct Batches {
    batches: Vec<Batch>,
    /// So many messages come at most.
    most: usize,
}

impl Batches {
    fn of_at_most(most: usize) -> Self {
        Batches { batches: Vec::new(), most }
    }

    fn put(&mut self, to: ActorId, message: Incoming, credits: impl FnOnce() -> Arc<Room>) {
        match self.batches.iter_mut().rev().take(NEAR).find(|batch| batch.to == to) {
            Some(batch) => batch.messages.push(message),
            None => {
                // Mostly all are for one actor.
                let room = if self.batches.is_empty() { self.most } else { 1 };
                let mut messages = Vec::with_capacity(room);
                messages.push(message);
                self.batches.push(Batch { to, messages, credits: credits() });
            }
        }
    }

    fn deliver(&mut self, system: &System) {
        self.batches.drain(..).for_each(|batch| system.deliver(batch));
    }
}

/// Gives a sender its room back.
struct Room {
    session: Weak<Session>,
    /// Beside the session, as it is looked at with each call.
    outbox: Arc<Outbox>,
    actor: ActorId,
}

impl Credits for Room {
    fn taken(&self, messages: u32, bytes: u64) {
        if let Some(session) = self.session.upgrade() {
            session.pay(self.actor, messages, bytes);
        }
    }

    fn reads_slowly(&self) -> Option<BoxFuture<'static, ()>> {
        if !self.outbox.is_full_for(self.actor) {
            return None;
        }
        let session = self.session.upgrade().filter(|session| session.is_live())?;
        Some(Box::pin(async move {
            tokio::select! {
                () = session.outbox.takes_answers() => {}
                () = session.ended() => {}
            }
        }))
    }
}

struct WireReply {
    session: Arc<Session>,
    call: u64,
    /// Who answers.
    actor: ActorId,
}

impl ReplyPort for WireReply {
    fn answer(self: Box<Self>, outcome: Result<Encoded, Failure>) {
        let WireReply { session, call, actor } = *self;
        let sent = match outcome {
            Ok(value) => {
                let held = match frame::large_bytes(&value) {
                    0 => Ok(None),
                    bytes => session.outbox.take_for_answer(actor, bytes).map(Some),
                };
                let sent = held.and_then(|held| {
                    session.send_value(lane_of(actor), false, value, held, |payload| {
                        Header::Reply { call, payload }
                    })
                });
                sent.map_err(|failure| Failure::may_have_run(failure.cause))
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            session.on_lane(lane_of(actor), Header::Failed { call, failure });
        }
    }
}
