//! Making connections and keeping them.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::NodeId;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Network, named, peer::Peer};
use crate::{
    transport::{
        endpoint::Purpose as Carries,
        handshake::{self, Answer, HandshakeError, Hello, Purpose, Refusal},
        session::{Host, Session},
    },
    trust::{Right, peer_identity, tls},
};

/// How long a connection and its greeting may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The node with the greater id leaves the other so long to dial first: two connections at once
/// would be one too many.
pub(super) const AFTER_YOU: Duration = Duration::from_millis(300);
/// A member whose connection fell silent is dialed for so long before it is called unreachable.
const TRIES: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Why a dial came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Failed(String),
    /// The other node's own connection is used instead.
    #[error("both nodes dialed at once")]
    Duplicate,
    #[error("this node itself answers there")]
    Yourself,
    /// The other node says that this one was thrown out of the cluster.
    #[error("{0}")]
    ThrownOut(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct NoConnection {
    why: String,
    /// The other end takes this node's certificate no more, for good.
    thrown_out: bool,
}

impl From<String> for NoConnection {
    fn from(why: String) -> Self {
        NoConnection { why, thrown_out: false }
    }
}

impl From<quinn::ConnectionError> for NoConnection {
    fn from(error: quinn::ConnectionError) -> Self {
        let thrown_out = tls::refusal(&error) == Some(tls::Refusal::ThrownOut);
        NoConnection { why: explain(&error), thrown_out }
    }
}

/// Waits for a connection's TLS handshake and checks who is there.
pub(crate) async fn established(
    connecting: quinn::Connecting,
    expected: Option<NodeId>,
) -> Result<quinn::Connection, NoConnection> {
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| format!("nobody answers (waited {CONNECT_TIMEOUT:?})"))??;
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    match expected {
        Some(expected) if expected != identity.node => {
            connection.close(0u32.into(), b"another node was expected");
            Err(format!("node {} answers there, not node {expected}", identity.node).into())
        }
        _ => Ok(connection),
    }
}

/// quinn's reason in a user's words.
pub(super) fn explain(error: &quinn::ConnectionError) -> String {
    match tls::refusal(error) {
        Some(refusal) => refusal.to_string(),
        None if matches!(error, quinn::ConnectionError::TimedOut) => "nobody answers".to_owned(),
        None => error.to_string(),
    }
}

/// Connects with the node at an address and starts a session. Who knows which node is there has
/// [begun to dial](Peer::begin_dial) it.
pub(crate) async fn dial(
    network: &Arc<Network>,
    addr: SocketAddr,
    expected: Option<NodeId>,
) -> Result<Arc<Session>, DialError> {
    let begun = Instant::now();
    let failed = |why: String| DialError::Failed(format!("{}: {why}", named(expected, addr)));
    let refused = |no: NoConnection| match no.thrown_out {
        true => DialError::ThrownOut(format!("{}: {no}", named(expected, addr))),
        false => failed(no.why),
    };
    let known = expected.and_then(|node| network.peer(node));
    let live = known.as_ref().and_then(|peer| peer.session());
    if let Some(session) = live.filter(|session| !session.is_silent()) {
        return Ok(session);
    }
    // As of the decision to dial: naming one that comes up meanwhile would call it dead.
    let knew = known.and_then(|peer| peer.latest_session());
    let connecting =
        network.endpoint.dial(addr, Carries::Control).map_err(|error| failed(error.to_string()))?;
    let connection = established(connecting, expected).await.map_err(refused)?;
    let identity = peer_identity(&connection).map_err(|error| failed(error.to_string()))?;
    if identity.node == network.node() {
        connection.close(0u32.into(), b"myself");
        return Err(DialError::Yourself);
    }
    if !identity.role.may(Right::Belong) {
        connection.close(0u32.into(), b"no member");
        let role = identity.role;
        return Err(failed(format!(
            "what answers there has a certificate of role `{role}`, which no member has"
        )));
    }
    // From here on whoever is there is known by name: only one connection with it is made at once.
    let peer = network.peer_or_new(identity.node);
    let mut turn = None;
    while expected.is_none() && turn.is_none() {
        turn = peer.begin_dial();
        if let Some(session) = peer.session().filter(|session| !session.is_silent()) {
            connection.close(0u32.into(), b"another connection is used");
            return Ok(session);
        }
        if turn.is_none() {
            if begun.elapsed() > CONNECT_TIMEOUT {
                connection.close(0u32.into(), b"another connection is made");
                return Err(DialError::Duplicate);
            }
            peer.wait_change(AFTER_YOU).await;
        }
    }
    let hello = Hello {
        record: network.greeting(),
        purpose: network.purpose,
        session: network.number(),
        knows: match expected {
            Some(_) => knew,
            None => peer.latest_session(),
        },
    };
    let greeting = tokio::time::timeout(CONNECT_TIMEOUT, greet(&connection, network, &hello));
    let (answer, streams) = match greeting.await {
        Ok(Ok(greeted)) => greeted,
        // The handshake of the one who dials is done first: the other's refusal comes afterwards.
        Ok(Err(error)) => {
            let Some(reason) = connection.close_reason() else {
                return Err(failed(error.to_string()));
            };
            let error = NoConnection::from(reason);
            if error.thrown_out {
                network.heed_revocation(identity);
            }
            return Err(refused(error));
        }
        Err(_) => return Err(failed(format!("no greeting within {CONNECT_TIMEOUT:?}"))),
    };
    match answer {
        Answer::Refused(Refusal::Duplicate) if expected.is_none() => {
            drop(turn);
            let other = peer.wait_session(network.node(), Instant::now() + CONNECT_TIMEOUT).await;
            other.map_err(|_| DialError::Duplicate)
        }
        Answer::Refused(Refusal::Duplicate) => Err(DialError::Duplicate),
        Answer::Refused(Refusal::Revoked) => {
            let (why, thrown_out) = (tls::Refusal::ThrownOut.to_string(), true);
            Err(refused(NoConnection { why, thrown_out }))
        }
        Answer::Refused(refusal) => Err(failed(HandshakeError::Refused(refusal).to_string())),
        Answer::Welcome(record) if record.node != identity.node => {
            let refusal = Refusal::NotYou { certificate: identity.node, greeting: record.node };
            Err(failed(refusal.to_string()))
        }
        Answer::Welcome(record) => {
            let session = Session::start(
                hello.session,
                record,
                identity,
                Purpose::Member,
                true,
                connection,
                streams,
                network.system.clone(),
                host(network),
                &network.control_thread,
            );
            network.install(&session);
            Ok(session)
        }
    }
}

pub(super) fn host(network: &Arc<Network>) -> std::sync::Weak<dyn Host> {
    let host: Arc<dyn Host> = network.clone();
    Arc::downgrade(&host)
}

type Streams = (quinn::SendStream, quinn::RecvStream);

async fn greet(
    connection: &quinn::Connection,
    network: &Network,
    hello: &Hello,
) -> Result<(Answer, Streams), HandshakeError> {
    let (mut send, mut recv) =
        connection.open_bi().await.map_err(|error| HandshakeError::Broken(error.to_string()))?;
    handshake::write(&mut send, network.version, hello).await?;
    let answer = handshake::read(&mut recv, network.version).await?;
    Ok((answer, (send, recv)))
}

/// Keeps a connection with a member until its node is lost or this one leaves.
pub(crate) async fn maintain(network: Arc<Network>, peer: Arc<Peer>) {
    loop {
        keep(&network, &peer).await;
        peer.end_maintenance();
        // It may have come back while this task was on its way out.
        let over = network.leaving.load(Ordering::Acquire) || peer.is_lost();
        if over || peer.addr().is_none() || !peer.begin_maintenance() {
            return;
        }
    }
}

async fn keep(network: &Arc<Network>, peer: &Arc<Peer>) {
    let leaving = || network.leaving.load(Ordering::Acquire);
    // After so long without a packet or a connection a member is called unreachable: by then one
    // that nobody reaches has been declared down.
    let after = network.silence;
    let mut retry = FIRST_RETRY;
    let mut without = Instant::now();
    if network.node() > peer.id && peer.session().is_none() {
        peer.wait_change(AFTER_YOU).await;
    }
    while !leaving() && !peer.is_lost() {
        if let Some(session) = peer.session() {
            retry = FIRST_RETRY;
            network.reaches(peer, true);
            let mut silent = Duration::ZERO;
            tokio::select! {
                biased;
                () = session.ended() => {}
                () = silence(&session, after) => {
                    session.close(format!("nothing was heard for {after:?}"));
                    silent = after.saturating_sub(TRIES);
                }
                () = peer.until_lost() => break,
            }
            let now = Instant::now();
            without = now.checked_sub(silent).unwrap_or(now);
            if network.node() > peer.id {
                peer.wait_change(AFTER_YOU).await;
            }
            continue;
        }
        let Some(addr) = peer.addr() else { break };
        let Some(turn) = peer.begin_dial() else {
            peer.wait_change(LAST_RETRY).await;
            continue;
        };
        let dialed = dial(network, addr, Some(peer.id)).await;
        drop(turn);
        match dialed {
            Ok(_) => {}
            Err(DialError::Duplicate) => peer.wait_change(LAST_RETRY).await,
            Err(error) => {
                tracing::debug!(%error, "a member can't be reached");
                // Membership counts it in, so others reach it.
                if without.elapsed() >= after && !peer.is_lost() {
                    network.reaches(peer, false);
                }
                peer.trouble(error.to_string());
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

/// Waits until nothing has come over a session for a time, though keep-alives do twice a second.
/// Counted in looks and not by the clock: this node may have stood still itself.
async fn silence(session: &Session, lasts: Duration) {
    const LOOKS: u32 = 8;
    let mut look = tokio::time::interval(lasts / LOOKS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut silent) = (session.heard_packets(), 0);
    while silent < LOOKS {
        look.tick().await;
        let now = session.heard_packets();
        silent = if now == heard { silent + 1 } else { 0 };
        heard = now;
    }
}
