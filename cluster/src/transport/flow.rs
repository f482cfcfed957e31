//! Streams of items between two nodes: the sender may be [`STREAM_WINDOW`] items ahead.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use footlight_runtime::{
    codec::{OutgoingStream, Parcel},
    error::{Cause, Failure},
    stream::STREAM_WINDOW,
};
use futures::{Stream, StreamExt};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::{
    frame::{self, Header},
    session::Session,
};

/// What the reader of a stream gets from the connection.
pub(crate) enum Event {
    Item(Parcel),
    End(Option<Failure>),
}

/// The queue between connection and reader: a sender that keeps to its window never fills it.
pub(crate) fn channel() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(STREAM_WINDOW + 1)
}

/// The reading end of a stream from another node.
pub(crate) struct Items {
    session: Weak<Session>,
    stream: u64,
    events: mpsc::Receiver<Event>,
    taken: u32,
    ended: bool,
}

impl Items {
    pub(crate) fn new(session: Weak<Session>, stream: u64, events: mpsc::Receiver<Event>) -> Self {
        Items { session, stream, events, taken: 0, ended: false }
    }

    fn tell(&self, header: Header) {
        if let Some(session) = self.session.upgrade() {
            session.on_lane(self.stream as usize, header);
        }
    }
}

impl Stream for Items {
    type Item = Result<Parcel, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.events.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Event::Item(parcel))) => {
                self.taken += 1;
                if self.taken as usize >= STREAM_WINDOW / 4 {
                    let items = std::mem::take(&mut self.taken);
                    self.tell(Header::StreamCredit { stream: self.stream, items });
                }
                Poll::Ready(Some(Ok(parcel)))
            }
            Poll::Ready(Some(Event::End(failure))) => {
                self.ended = true;
                Poll::Ready(failure.map(Err))
            }
            Poll::Ready(None) => {
                self.ended = true;
                let cause = Cause::Unreachable("the connection ended within a stream".into());
                Poll::Ready(Some(Err(Failure::may_have_run(cause))))
            }
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Header::StreamCancel { stream: self.stream });
        }
        if let Some(session) = self.session.upgrade() {
            session.forget_incoming(self.stream);
        }
    }
}

/// How many items the sender of a stream may still send, and whether it is to go on at all.
pub(crate) struct Credits {
    items: Semaphore,
    closed: Notify,
}

impl Credits {
    pub(crate) fn new() -> Self {
        Credits { items: Semaphore::new(STREAM_WINDOW), closed: Notify::new() }
    }

    /// The reader has taken items. More than the window is a breach that is cut off.
    pub(crate) fn give(&self, items: u32) {
        let room = STREAM_WINDOW.saturating_sub(self.items.available_permits());
        self.items.add_permits(room.min(items as usize));
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.items.close();
        // Kept for a pump that is elsewhere just now.
        self.closed.notify_one();
    }
}

/// Sends the items of a stream on the lane of the frame that carried it, as the reader makes room.
pub(crate) async fn pump(
    session: Arc<Session>,
    stream: u64,
    lane: usize,
    credits: Arc<Credits>,
    mut items: OutgoingStream,
) {
    let failure = loop {
        // Closed when the reader wants no more or the connection has ended.
        let credit = match credits.items.acquire().await {
            Ok(credit) => credit,
            Err(_) => break None,
        };
        let item = tokio::select! {
            biased;
            () = session.ended() => break None,
            // A producer that has nothing to send is to learn it too.
            () = credits.closed.notified() => break None,
            item = items.next() => item,
        };
        match item {
            Some(Ok(item)) => {
                credit.forget();
                let held = match frame::large_bytes(&item) {
                    0 => None,
                    bytes => tokio::select! {
                        biased;
                        () = session.ended() => break None,
                        held = session.outbox().take(bytes) => Some(held),
                    },
                };
                let sent = session.send_value(lane, true, item, held, |payload| {
                    Header::StreamItem { stream, payload }
                });
                if let Err(failure) = sent {
                    break Some(failure);
                }
            }
            Some(Err(error)) => {
                break Some(Failure::may_have_run(Cause::CannotEncode(error.to_string())));
            }
            None => break None,
        }
    };
    session.forget_outgoing(stream);
    session.on_lane(lane, Header::StreamEnd { stream, failure });
}
