//! What a session does with a peer of the same host: [`same_host`](crate::transport::same_host) says how.

use std::sync::{Arc, atomic::Ordering};

use tokio::{sync::mpsc, time::sleep};

use super::{LANES, Session};
use crate::{
    transport::{
        bulk::{LONG, PATIENCE},
        frame::Header,
        same_host::{Challenge, Lent, Place, SameHost},
    },
    trust::Right,
};

impl Session {
    /// Tells a peer that may be of this host where this process is.
    pub(super) fn offer_memory(&self) {
        let is_near = is_of_this_host(&self.connection);
        let may =
            [self.standing, self.own_standing].map(|whose| whose.check(Right::Belong).is_ok());
        if is_near
            && may == [true; 2]
            && self.lends_memory()
            && let Some(place) = self.near.place()
        {
            self.control(Header::Lend(place));
        }
    }

    fn lends_memory(&self) -> bool {
        self.host.upgrade().is_some_and(|host| host.same_host() == SameHost::Memory)
    }

    /// The peer says where its process is.
    pub(super) fn consider_memory(self: &Arc<Self>, place: Place) {
        if let Err(denied) = self.standing.check(Right::Belong) {
            return self.close_soon(denied.to_string());
        }
        if !self.lends_memory() || !is_of_this_host(&self.connection) {
            return;
        }
        let drawn = self.system.env().seeds.bytes(&format!("neighbour of session {}", self.id));
        let (words, _) = drawn.as_chunks::<8>();
        let mut challenge = Challenge::default();
        challenge
            .iter_mut()
            .zip(words)
            .for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes));
        match self.near.consider(place, challenge) {
            Ok(true) => self.control(Header::Prove(challenge)),
            Ok(false) => {}
            Err(breach) => self.close_soon(breach.to_string()),
        }
    }

    /// The peer would borrow.
    pub(super) fn prove_memory(self: &Arc<Self>, challenge: Challenge) {
        // Who ends has taken its word back.
        if self.lends_memory()
            && self.near.prove(challenge)
            && let Some(host) = self.host.upgrade()
        {
            host.bulk_thread().spawn(self.clone().watch_borrower());
        }
        if !self.is_live() || self.is_fenced() {
            self.near.revoke();
        }
    }

    /// A peer that fetches nothing of what is lent for long does not read: it must not be kept for ever.
    async fn watch_borrower(self: Arc<Self>) {
        let unread = async {
            let mut before = None;
            loop {
                let now =
                    (self.near.lends_now() > 0).then(|| self.near.fetched.load(Ordering::Relaxed));
                if now.is_some() && now == before {
                    return;
                }
                before = now;
                sleep(PATIENCE).await;
            }
        };
        tokio::select! {
            biased;
            () = self.ended() => {}
            () = unread => {
                self.close(format!("the peer has fetched nothing of the tensors lent to it for {PATIENCE:?}"));
            }
        }
    }

    /// The peer has fetched a tensor, or could not.
    pub(super) fn is_fetched(self: &Arc<Self>, id: u64, whole: bool) {
        let tensor = self.near.is_fetched(id);
        if whole {
            let sent = tensor.map_or(0, |tensor| tensor.bytes.len() as u64);
            self.system.telemetry().memory_bytes_sent.add(sent);
        } else if let Some(tensor) = tensor {
            self.near.stop_lending();
            let _ = self.bulk().send(tensor);
        }
    }

    /// The peer has lent a tensor.
    pub(super) fn borrow(self: &Arc<Self>, lent: Lent) {
        let begun = self.near.borrow(lent, |queue| {
            if let Some(host) = self.host.upgrade() {
                host.bulk_thread().spawn(self.clone().fetch_all(queue));
            }
        });
        if let Err(breach) = begun {
            self.close_soon(breach.to_string());
        }
    }

    /// Fetches what the peer lends until the session ends: long tensors in their turn, shorter ones
    /// between their pieces.
    async fn fetch_all(self: Arc<Self>, mut queue: mpsc::UnboundedReceiver<Lent>) {
        let (to_long, mut long) = mpsc::unbounded_channel();
        let short = async {
            while let Some(lent) = queue.recv().await {
                if lent.len > LONG as u64 {
                    let _ = to_long.send(lent);
                } else {
                    self.fetch(lent).await;
                }
            }
        };
        let long = async {
            while let Some(lent) = long.recv().await {
                self.fetch(lent).await;
            }
        };
        tokio::select! {
            biased;
            () = self.ended() => {}
            _ = async { tokio::join!(short, long) } => {}
        }
    }

    async fn fetch(self: &Arc<Self>, lent: Lent) {
        let fetched = self.near.fetch(lent, self.pool().take(lent.len as usize)).await;
        let whole = fetched.is_ok();
        // The lender's memory is free before the message is handled.
        self.on_lane(lent.id as usize % LANES, Header::Fetched { id: lent.id, whole });
        match fetched {
            Ok(buffer) => {
                self.system.telemetry().memory_bytes_received.add(lent.len);
                self.segment(lent.id, buffer.freeze());
            }
            // The end of a session is told elsewhere.
            Err(error)
                if !self.is_live() || error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => tracing::warn!(
                node = %self.peer.node, %error,
                "tensors of another process of this host come over the network, which is slower: reading its \
                 memory is not allowed or did not work; `sysctl -w kernel.yama.ptrace_scope=0` allows it where \
                 that is what forbids it, and `--same-host network` does not try"
            ),
        }
    }
}

/// Whether a connection stays within this host, as far as addresses tell.
fn is_of_this_host(connection: &quinn::Connection) -> bool {
    let there = connection.remote_address().ip().to_canonical();
    let here = connection.local_ip().map(|ip| ip.to_canonical());
    there.is_loopback() || here == Some(there)
}
