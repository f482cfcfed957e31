//! Making connections, keeping them, and answering those that arrive.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::NodeId;
use tokio::sync::Semaphore;

use super::{Network, named, peer::Peer};
use crate::{
    transport::{
        bulk,
        endpoint::Purpose as Carries,
        handshake::{self, Answer, BulkHello, HandshakeError, Hello, Purpose, Refusal},
        session::{Host, Session},
    },
    trust::{PeerIdentity, peer_identity, tls},
};

/// How long a connection and its greeting may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most handshakes that are answered at once.
const ANSWERING: usize = 256;
/// The node with the greater id leaves the other so long to dial first: two connections at once
/// would be one too many.
const AFTER_YOU: Duration = Duration::from_millis(300);
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
}

/// Waits for a connection's TLS handshake and checks who is there.
pub(crate) async fn established(
    connecting: quinn::Connecting,
    expected: Option<NodeId>,
) -> Result<quinn::Connection, String> {
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| format!("nobody answers (waited {CONNECT_TIMEOUT:?})"))?
        .map_err(|error| explain(&error))?;
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    match expected {
        Some(expected) if expected != identity.node => {
            connection.close(0u32.into(), b"another node was expected");
            Err(format!("node {} answers there, not node {expected}", identity.node))
        }
        _ => Ok(connection),
    }
}

/// quinn's reason in a user's words.
fn explain(error: &quinn::ConnectionError) -> String {
    match tls::refusal(error) {
        Some(refusal) => refusal.to_string(),
        None if matches!(error, quinn::ConnectionError::TimedOut) => "nobody answers".to_owned(),
        None => error.to_string(),
    }
}

/// Connects with the node at an address and starts a session.
pub(crate) async fn dial(
    network: &Arc<Network>,
    addr: SocketAddr,
    expected: Option<NodeId>,
) -> Result<Arc<Session>, DialError> {
    let failed = |why: String| DialError::Failed(format!("{}: {why}", named(expected, addr)));
    let known = expected.and_then(|node| network.peer(node));
    let live = known.as_ref().and_then(|peer| peer.session());
    if let Some(session) = live.filter(|session| !session.is_silent()) {
        return Ok(session);
    }
    // As of the decision to dial: naming one that comes up meanwhile would call it dead.
    let knew = known.and_then(|peer| peer.latest_session());
    let connecting =
        network.endpoint.dial(addr, Carries::Control).map_err(|error| failed(error.to_string()))?;
    let connection = established(connecting, expected).await.map_err(failed)?;
    let identity = peer_identity(&connection).map_err(|error| failed(error.to_string()))?;
    let hello = Hello {
        record: network.record(),
        purpose: network.purpose,
        session: network.number(),
        knows: match expected {
            Some(_) => knew,
            None => network.peer(identity.node).and_then(|peer| peer.latest_session()),
        },
    };
    let greeting = tokio::time::timeout(CONNECT_TIMEOUT, greet(&connection, network, &hello));
    let (answer, streams) = match greeting.await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("no greeting within {CONNECT_TIMEOUT:?}"))),
    };
    match answer {
        Answer::Refused(Refusal::Duplicate) => Err(DialError::Duplicate),
        Answer::Refused(refusal) => Err(failed(HandshakeError::Refused(refusal).to_string())),
        Answer::Welcome(record) if record.node != identity.node => {
            let refusal = Refusal::NotYou { certificate: identity.node, greeting: record.node };
            Err(failed(refusal.to_string()))
        }
        Answer::Welcome(record) => {
            let session = Session::start(
                hello.session,
                record,
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

fn host(network: &Arc<Network>) -> std::sync::Weak<dyn Host> {
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

async fn keep(network: &Arc<Network>, peer: &Peer) {
    let leaving = || network.leaving.load(Ordering::Acquire);
    let mut retry = FIRST_RETRY;
    if network.node() > peer.id && peer.session().is_none() {
        peer.wait_change(AFTER_YOU).await;
    }
    while !leaving() && !peer.is_lost() {
        if let Some(session) = peer.session() {
            retry = FIRST_RETRY;
            tokio::select! {
                () = session.ended() => {}
                () = peer.until_lost() => break,
            }
            if network.node() > peer.id {
                peer.wait_change(AFTER_YOU).await;
            }
            continue;
        }
        let Some(addr) = peer.addr() else { break };
        if !peer.begin_dial() {
            peer.wait_change(LAST_RETRY).await;
            continue;
        }
        let dialed = dial(network, addr, Some(peer.id)).await;
        peer.end_dial();
        match dialed {
            Ok(_) => {}
            Err(DialError::Duplicate) => peer.wait_change(LAST_RETRY).await,
            Err(error) => {
                tracing::debug!(%error, "a member can't be reached");
                peer.trouble(error.to_string());
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

/// Refuses all connections: for a node that only asks.
pub(crate) async fn refuse_all(network: Arc<Network>) {
    while let Some(incoming) = network.endpoint.accept().await {
        incoming.refuse();
    }
}

/// Answers the connections that arrive on the control endpoint.
pub(crate) async fn accept(network: Arc<Network>) {
    let places = Arc::new(Semaphore::new(ANSWERING));
    while let Some(incoming) = network.endpoint.accept().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let Ok(connecting) = incoming.accept() else { continue };
        let network = network.clone();
        tokio::spawn(async move {
            if let Err(why) = answer(&network, connecting).await {
                tracing::info!(why, "a connection was not taken");
            }
            drop(place);
        });
    }
}

async fn answer(network: &Arc<Network>, connecting: quinn::Connecting) -> Result<(), String> {
    let connection = established(connecting, None).await?;
    let from = connection.remote_address();
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    let greeted = tokio::time::timeout(CONNECT_TIMEOUT, async {
        let (send, mut recv) = connection
            .accept_bi()
            .await
            .map_err(|error| HandshakeError::Broken(error.to_string()))?;
        let hello = handshake::read::<Hello>(&mut recv, network.version).await;
        Ok((send, recv, hello))
    });
    let greeted: Result<_, HandshakeError> =
        greeted.await.map_err(|_| format!("{from} sent no greeting"))?;
    let (mut send, recv, hello) = greeted.map_err(|error| format!("{from}: {error}"))?;
    let hello = match hello {
        Ok(hello) => hello,
        Err(error) => {
            // The preamble of the answer tells the other side which version is spoken here.
            let refusal = Answer::Refused(Refusal::Leaving);
            tracing::warn!(%from, %error, "a node was refused");
            refuse(&connection, &mut send, network.version, &refusal).await;
            return Ok(());
        }
    };
    if let Err(refusal) = admit(network, &identity, &hello) {
        let text = format!("node {} at {from}: {refusal}", identity.node);
        refuse(&connection, &mut send, network.version, &Answer::Refused(refusal)).await;
        return Err(text);
    }
    let welcome = Answer::Welcome(network.record());
    tokio::time::timeout(CONNECT_TIMEOUT, handshake::write(&mut send, network.version, &welcome))
        .await
        .map_err(|_| format!("{from} does not read its welcome"))?
        .map_err(|error| format!("{from}: {error}"))?;
    let session = Session::start(
        hello.session,
        hello.record,
        hello.purpose,
        false,
        connection,
        (send, recv),
        network.system.clone(),
        host(network),
        &network.control_thread,
    );
    network.install(&session);
    Ok(())
}

fn admit(network: &Network, identity: &PeerIdentity, hello: &Hello) -> Result<(), Refusal> {
    let record = &hello.record;
    if record.node != identity.node {
        return Err(Refusal::NotYou { certificate: identity.node, greeting: record.node });
    }
    if record.node == network.node() {
        return Err(Refusal::Yourself);
    }
    if network.leaving.load(Ordering::Acquire) {
        return Err(Refusal::Leaving);
    }
    match hello.purpose {
        Purpose::Observer => Ok(()),
        Purpose::Member => network.peer_or_new(record.node).admit(hello, network.node()),
    }
}

/// Sends a refusal and waits until it has arrived: closing at once would overtake it.
async fn refuse(
    connection: &quinn::Connection,
    send: &mut quinn::SendStream,
    version: u16,
    refusal: &Answer,
) {
    if handshake::write(send, version, refusal).await.is_ok() {
        let _ = send.finish();
        let _ = tokio::time::timeout(Duration::from_secs(1), send.stopped()).await;
    }
    connection.close(0u32.into(), b"refused");
}

/// Answers the connections that arrive on the bulk endpoint.
pub(crate) async fn accept_bulk(network: Arc<Network>) {
    let places = Arc::new(Semaphore::new(ANSWERING));
    while let Some(incoming) = network.bulk.accept().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let Ok(connecting) = incoming.accept() else { continue };
        let network = network.clone();
        tokio::spawn(async move {
            match answer_bulk(&network, connecting).await {
                Ok((session, connection)) => {
                    drop(place);
                    bulk::receive(session, connection).await;
                }
                Err(why) => tracing::info!(why, "a bulk connection was not taken"),
            }
        });
    }
}

async fn answer_bulk(
    network: &Network,
    connecting: quinn::Connecting,
) -> Result<(Arc<Session>, quinn::Connection), String> {
    let connection = established(connecting, None).await?;
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    let introduced = tokio::time::timeout(CONNECT_TIMEOUT, async {
        let (mut send, mut recv) =
            connection.accept_bi().await.map_err(|error| error.to_string())?;
        let hello: BulkHello =
            handshake::read(&mut recv, network.version).await.map_err(|error| error.to_string())?;
        // Its greeting may overtake the welcome that makes the session known here.
        let known = tokio::time::timeout(CONNECT_TIMEOUT / 2, async {
            let peer = network.peer_or_new(identity.node);
            loop {
                if let Some(session) = network.session_by_id(identity.node, hello.session) {
                    return session;
                }
                peer.wait_change(AFTER_YOU).await;
            }
        });
        let session = known.await.ok();
        handshake::write(&mut send, network.version, &session.is_some())
            .await
            .map_err(|error| error.to_string())?;
        session.ok_or_else(|| format!("node {} names an unknown session", identity.node))
    });
    let session = introduced.await.map_err(|_| "no greeting in time".to_owned())??;
    Ok((session, connection))
}

impl Network {
    fn session_by_id(&self, node: NodeId, id: u64) -> Option<Arc<Session>> {
        let session = self.peer(node)?.session()?;
        (session.id == id).then_some(session)
    }
}
