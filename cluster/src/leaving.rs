//! How a node leaves: it takes nothing new, finishes what it has in hand, says goodbye, ends.
//!
//! ```text
//! SIGTERM, `drain`, another node's `Drain`
//!   └► its record says `leaving`: nothing is placed there, its actors refuse what others send
//!       └► its singletons go to other nodes; every message is handled, every call answered, or the
//!          time is over; actors that are done stop, those that may be needed here wait for the rest
//!           └► voters hand over, actors stop (watchers: `Down::NodeLeft`), goodbye (members: `Left`)
//! ```

use std::{future::Future, sync::atomic::Ordering, time::Duration};

use footlight_runtime::{Error, NodeId, Result};
use futures::future::join_all;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Node,
    network::membership_task::Input,
    node_actor::{Drain, Draining, NodeActor},
    transport::frame::Header,
};

/// How long a node that drains has for what it has in hand, unless told otherwise. Kubernetes, for
/// one, waits 30 s after SIGTERM: this leaves some for the rest.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a node says last of all to those who are connected with it.
pub(crate) const HAS_ENDED: &str = "the node has ended";

/// Actors have so long to stop when the node leaves.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Membership has so long to say that this node leaves, and the sockets to send their last packets.
const GOODBYE: Duration = Duration::from_millis(500);
/// The others have so long to read the last answers.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A drain that takes longer than this says so.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// How far a node is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Here,
    Leaving,
    Gone,
}

/// A node's way out.
#[derive(Debug)]
pub(crate) struct Departure {
    stage: watch::Sender<Stage>,
    /// What is in hand is not waited for any longer.
    hurry: CancellationToken,
    drain_timeout: Duration,
    /// Why the node can't go on, once it can't.
    failed: watch::Sender<Option<String>>,
}

impl Departure {
    pub(crate) fn new(drain_timeout: Duration) -> Self {
        Departure {
            stage: watch::Sender::new(Stage::Here),
            hurry: CancellationToken::new(),
            drain_timeout,
            failed: watch::Sender::new(None),
        }
    }
}

impl Node {
    /// Says that this node can't go on, a GPU that this process has lost for good, say: its actors
    /// are needed elsewhere. [`until_shutdown`](Self::until_shutdown) then leaves with an error.
    pub fn fail(&self, why: impl Into<String>) {
        let why = why.into();
        tracing::error!(why, "this node can't go on");
        self.departure().failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(why);
            first
        });
    }

    /// Runs until SIGINT (Ctrl-C) or SIGTERM, then [drains](Self::drain); a second signal makes it
    /// leave at once. Also returns when the node has left for another reason, and leaves when it
    /// [fails](Self::fail).
    ///
    /// The signals are caught from this call on, before the future is first awaited: whoever tells
    /// that the node is up can call this first.
    ///
    /// # Errors
    /// Why the node failed, or that the signals can't be waited for.
    pub fn until_shutdown(self) -> impl Future<Output = Result<()>> + Send {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = signal(SignalKind::terminate())
            .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
        async move {
            let (mut terminate, mut interrupt) = signals?;
            let departure = self.departure();
            let (mut failed, mut stage) =
                (departure.failed.subscribe(), departure.stage.subscribe());
            let failure = tokio::select! {
                biased;
                why = failed.wait_for(Option::is_some) => why.ok().and_then(|why| why.clone()),
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                _ = stage.wait_for(|stage| *stage == Stage::Gone) => None,
            };
            let within = if failure.is_some() { Duration::ZERO } else { departure.drain_timeout };
            self.begin_departure(within);
            tokio::select! {
                biased;
                () = self.gone() => {}
                _ = terminate.recv() => departure.hurry.cancel(),
                _ = interrupt.recv() => departure.hurry.cancel(),
            }
            self.gone().await;
            failure.map_or(Ok(()), |why| Err(Error::other(why)))
        }
    }

    /// Leaves in good order. From now on nothing is placed on this node, and its actors refuse what
    /// other nodes send (`Cause::Leaving`, not sent). When all that they have in hand is done (every
    /// message handled, every call answered), at most after the
    /// [`drain_timeout`](crate::NodeBuilder::drain_timeout), it [leaves](Self::leave). Those who
    /// supervise its actors from other nodes start them elsewhere.
    ///
    /// Not waited for: streams that actors are sending, and their tasks
    /// ([`Context::run`](footlight_runtime::Context::run)); they end as with any stop.
    ///
    /// # Errors
    /// None today; a later way of leaving may have some.
    pub async fn drain(self) -> Result<()> {
        self.begin_departure(self.departure().drain_timeout);
        self.gone().await;
        Ok(())
    }

    /// Leaves the cluster: stops this node's actors (at most 5 s), says goodbye, ends. The others
    /// see it as left at once. A node that [drains](Self::drain) no longer waits for what it has in
    /// hand.
    ///
    /// # Errors
    /// None today; a later way of leaving may have some.
    pub async fn leave(self) -> Result<()> {
        self.begin_departure(Duration::ZERO);
        self.gone().await;
        Ok(())
    }

    /// Asks a node, this one too, to [drain](Self::drain) and leave; `within` is how long it waits
    /// for what it has in hand, by default its own
    /// [`drain_timeout`](crate::NodeBuilder::drain_timeout); zero makes it leave at once. The answer
    /// comes when it has begun.
    ///
    /// # Errors
    /// If the node is not known here, does not answer, or refuses.
    pub async fn drain_node(&self, node: NodeId, within: Option<Duration>) -> Result<Draining> {
        let members = self.members();
        let member = members.iter().find(|member| member.id == node && !member.state.is_gone());
        let member = member
            .ok_or_else(|| Error::other(format!("node {node} is no member, as seen here")))?;
        let there = NodeActor::of(node, member.incarnation, self.system());
        Ok(there.call(Drain { within }).await?)
    }

    /// Begins to leave; what is in hand is waited for at most for `within`, or for the time of an
    /// earlier call. Gives that time.
    pub(crate) fn begin_departure(&self, within: Duration) {
        let departure = self.departure();
        let first = departure.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Here;
            if first {
                *stage = Stage::Leaving;
            }
            first
        });
        if first {
            // Of its own, so that it comes to an end whoever still waits for it; and none of the
            // node's tasks, which end before.
            let node = self.clone();
            self.system().env().spawner.handle().spawn(async move { node.depart(within).await });
        } else if within.is_zero() {
            departure.hurry.cancel();
        }
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        self.departure().drain_timeout
    }

    async fn gone(&self) {
        let mut stage = self.departure().stage.subscribe();
        // The sender lives as long as this node does.
        let _ = stage.wait_for(|stage| *stage == Stage::Gone).await;
    }

    async fn depart(self, within: Duration) {
        // Before it is told: whoever knows of it finds it so.
        self.system().drain();
        if let Err(error) = self.network().tell(|record| record.leaving = true) {
            tracing::error!(%error, "the others could not be told that this node leaves");
        }
        // First: nobody can call them here any more, and another node may start them at once.
        if let Some(singletons) = self.singleton_manager() {
            singletons.leave().await;
        }
        self.finish_what_is_in_hand(within).await;
        if let Some(seat) = self.seat() {
            seat.leave().await;
        }
        self.system().shutdown(STOP_TIMEOUT).await;
        // What the actors held goes on threads of its own, and with it the last answers: that they
        // stopped.
        let _ = tokio::time::timeout(LAST_WORDS, self.system().idle()).await;
        self.say_goodbye().await;
        self.halt().await;
        self.departure().stage.send_replace(Stage::Gone);
    }

    async fn finish_what_is_in_hand(&self, within: Duration) {
        let system = self.system();
        let say = async {
            tokio::time::sleep(SAY_AFTER.min(within)).await;
            if system.in_hand() > 0 && !within.is_zero() {
                tracing::warn!(
                    in_hand = system.in_hand(),
                    "this node finishes what it has in hand, for at most {} s; signal it again to \
                     end it at once",
                    within.as_secs_f32()
                );
            }
            std::future::pending::<()>().await;
        };
        let done = async {
            // Who has no time left does not begin.
            if !within.is_zero() {
                system.dismiss_done().await;
            }
            system.idle().await;
        };
        tokio::select! {
            biased;
            () = done => {}
            () = self.departure().hurry.cancelled() => {}
            () = tokio::time::sleep(within) => {
                if !within.is_zero() {
                    let in_hand = system.in_hand();
                    tracing::warn!(in_hand, "this node leaves before all that it has in hand is done");
                }
            }
            () = say => {}
        }
    }

    /// Makes sure that the last answers have come over, then tells all that this node leaves.
    async fn say_goodbye(&self) {
        let network = self.network();
        network.leaving.store(true, Ordering::Release);
        let peers = network.peers();
        let present = peers.iter().filter(|peer| !peer.is_lost());
        let sessions: Vec<_> = present.filter_map(|peer| peer.session()).collect();
        // Before the goodbye: whoever knows that a node has left no longer waits for its answers.
        let heard = join_all(sessions.iter().map(|session| session.last_words()));
        let _ = tokio::time::timeout(LAST_WORDS, heard).await;
        sessions.iter().for_each(|session| session.control(Header::Leaving));
        let (done, said) = oneshot::channel();
        if network.membership.send(Input::Leave(done)).is_ok() {
            let _ = tokio::time::timeout(GOODBYE, said).await;
        }
        let ended = join_all(sessions.iter().map(|session| session.ended()));
        let _ = tokio::time::timeout(GOODBYE, ended).await;
    }

    /// Ends the node without a goodbye.
    pub(crate) async fn halt(&self) {
        if let Some(seat) = self.seat() {
            seat.end().await;
        }
        let network = self.network();
        network.leaving.store(true, Ordering::Release);
        network.close_sessions(HAS_ENDED);
        network.endpoint.quinn().close(0u32.into(), HAS_ENDED.as_bytes());
        network.messages.quinn().close(0u32.into(), HAS_ENDED.as_bytes());
        network.bulk.quinn().close(0u32.into(), HAS_ENDED.as_bytes());
        let idle = network.endpoint.quinn().wait_idle();
        let _ = tokio::time::timeout(GOODBYE, idle).await;
        let soon = Instant::now() + Duration::from_millis(200);
        let _ = self.system().env().spawner.close_and_wait(soon).await;
        for thread in self.take_threads() {
            thread.stop().await;
        }
        self.system().disconnect();
    }
}
