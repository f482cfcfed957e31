//! Answering the connections that arrive: members, those who only ask, and those who want to join.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{
    Network,
    dial::{CONNECT_TIMEOUT, established, explain, host},
    peer::Answering,
};
use crate::{
    transport::{
        admission::{Admission, Verdict},
        bulk,
        endpoint::{Endpoint, Purpose as Carries, trust_peer},
        handshake::{self, Answer, HandshakeError, Hello, Purpose, Refusal, SideHello},
        session::Session,
    },
    trust::{PeerIdentity, Right, peer_identity, tls},
};

/// Which addresses members have is looked up so often.
const LOOK: Duration = Duration::from_secs(1);
/// So many refusals a second are logged one by one; of further ones only the number.
const LINES: u32 = 5;

/// Refuses all connections: for a node that only asks.
pub(crate) async fn refuse_all(network: Arc<Network>) {
    while let Some(incoming) = network.endpoint.accept().await {
        incoming.refuse();
    }
}

/// Answers the connections that arrive on the control endpoint.
pub(crate) async fn accept(network: Arc<Network>) {
    let door = Door::new(&network, &network.control_thread);
    while let Some(incoming) = network.endpoint.accept().await {
        let here = network.clone();
        door.consider(&network.endpoint, incoming, |connecting, place| async move {
            let answered = answer(here, connecting).await;
            drop(place);
            answered
        });
    }
}

/// Answers the connections that arrive on the endpoint for messages.
pub(crate) async fn accept_messages(network: Arc<Network>) {
    let door = Door::new(&network, &network.control_thread);
    while let Some(incoming) = network.messages.accept().await {
        let here = network.clone();
        door.consider(&network.messages, incoming, |connecting, place| async move {
            let (session, connection) =
                answer_beside(&here, connecting, Carries::Messages, Right::Ask).await?;
            drop(place);
            session.carry(connection);
            Ok(())
        });
    }
}

/// Answers the connections that arrive on the bulk endpoint.
pub(crate) async fn accept_bulk(network: Arc<Network>) {
    let door = Door::new(&network, &network.bulk_thread);
    while let Some(incoming) = network.bulk.accept().await {
        let here = network.clone();
        door.consider(&network.bulk, incoming, |connecting, place| async move {
            let (session, connection) =
                answer_beside(&here, connecting, Carries::Bulk, Right::Belong).await?;
            // From here on it is no handshake that could give way to another.
            drop(place);
            if !session.takes_bulk() {
                session.close("the peer made more connections for tensors than there are".into());
            }
            bulk::receive(session, connection).await;
            Ok(())
        });
    }
}

/// Lets handshakes begin as [`Admission`] says.
struct Door(Arc<Inner>);

struct Inner {
    network: Arc<Network>,
    /// The thread of this door's connections.
    thread: Handle,
    admission: Mutex<Admission>,
    under_way: Mutex<BTreeMap<u64, AbortHandle>>,
    known: Mutex<Known>,
    log: Mutex<Chatter>,
}

/// The place of a handshake; it is free again when this is dropped.
struct Place(Arc<Inner>, u64);

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.0.admission).done(self.1);
        lock(&self.0.under_way).remove(&self.1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    fn new(network: &Arc<Network>, thread: &Handle) -> Self {
        let now = Instant::now();
        Door(Arc::new(Inner {
            network: network.clone(),
            thread: thread.clone(),
            admission: Mutex::new(Admission::new(now)),
            under_way: Mutex::default(),
            known: Mutex::new(Known::look(network, now)),
            log: Mutex::new(Chatter { since: now, said: 0 }),
        }))
    }

    fn consider<F>(
        &self,
        endpoint: &Endpoint,
        incoming: quinn::Incoming,
        answer: impl FnOnce(quinn::Connecting, Place) -> F,
    ) where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (from, now) = (incoming.remote_address(), Instant::now());
        let (proved, known) = (incoming.remote_address_validated(), self.0.knows(from, now));
        // A member has one, and another one that is to take its place.
        let strangers = endpoint.open_connections().saturating_sub(2 * lock(&self.0.known).members);
        let verdict = lock(&self.0.admission).arrives(from, proved, known, strangers, now);
        let (place, instead_of) = match verdict {
            Verdict::Begin { place, instead_of } => (place, instead_of),
            Verdict::Prove => {
                // Only one that is proved already can't be asked to.
                let _ = incoming.retry();
                return;
            }
            Verdict::Refuse => {
                incoming.refuse();
                return self.0.say(now, &format!("{from}: too many connections at once"));
            }
        };
        if let Some(task) = instead_of.and_then(|gone| lock(&self.0.under_way).remove(&gone)) {
            task.abort();
        }
        let held = Place(self.0.clone(), place);
        let began = Instant::now();
        let connecting = endpoint.begin(incoming);
        lock(&self.0.admission).took(began.elapsed());
        let connecting = match connecting {
            Ok(connecting) => connecting,
            Err(error) => return self.0.say(now, &format!("{from}: {}", explain(&error))),
        };
        let answer = answer(connecting, held);
        let inner = self.0.clone();
        let task = self.0.thread.spawn(async move {
            if let Err(why) = answer.await {
                inner.say(Instant::now(), &format!("{from}: {why}"));
            }
        });
        // It may have ended already: then nobody looks for it, and its place is free.
        if !task.is_finished() {
            lock(&self.0.under_way).insert(place, task.abort_handle());
        }
    }
}

impl Inner {
    fn knows(&self, from: SocketAddr, now: Instant) -> bool {
        let mut known = lock(&self.known);
        if now.saturating_duration_since(known.at) >= LOOK {
            *known = Known::look(&self.network, now);
        }
        known.addresses.contains(&from.ip().to_canonical())
    }

    fn say(&self, now: Instant, what: &str) {
        let passed_over = lock(&self.log).may_say(now);
        match passed_over {
            None => {}
            Some(0) => tracing::info!(why = what, "a connection was not taken"),
            Some(more) => tracing::info!(why = what, more, "connections were not taken"),
        }
    }
}

/// The members that are there.
struct Known {
    at: Instant,
    members: usize,
    addresses: BTreeSet<IpAddr>,
}

impl Known {
    fn look(network: &Network, now: Instant) -> Self {
        let mut known = Known { at: now, members: 0, addresses: BTreeSet::new() };
        network.view.each(|member| {
            if !member.state.is_gone() {
                known.members += 1;
                known.addresses.insert(member.address.ip().to_canonical());
            }
        });
        known
    }
}

/// Keeps strangers from filling the log.
struct Chatter {
    since: Instant,
    said: u32,
}

impl Chatter {
    /// Whether a line may be written; if so, how many were passed over before it.
    fn may_say(&mut self, now: Instant) -> Option<u32> {
        let mut passed_over = 0;
        if now.saturating_duration_since(self.since) >= LOOK {
            passed_over = self.said.saturating_sub(LINES);
            *self = Chatter { since: now, said: 0 };
        }
        self.said += 1;
        (self.said <= LINES).then_some(passed_over)
    }
}

async fn answer(network: Arc<Network>, connecting: quinn::Connecting) -> Result<(), String> {
    let connection = timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| "it began a handshake and did not go on".to_owned())?
        .map_err(|error| explain(&error))?;
    if tls::protocol(&connection) == Some(network.keyring.tls().join_alpn()) {
        let Some(issuer) = network.issuer.get().cloned() else {
            connection.close(0u32.into(), b"not up yet");
            return Err("it wants to join, and this node is not up yet".to_owned());
        };
        drop(network);
        let identity = peer_identity(&connection).ok();
        return issuer.serve(connection, identity).await;
    }
    // TLS has seen to it that there is one (TR-1).
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    let from = connection.remote_address();
    let greeted = timeout(CONNECT_TIMEOUT, async {
        let (send, mut recv) = connection
            .accept_bi()
            .await
            .map_err(|error| HandshakeError::Broken(error.to_string()))?;
        let hello = handshake::read::<Hello>(&mut recv, network.version).await;
        Ok((send, recv, hello))
    });
    let greeted: Result<_, HandshakeError> =
        greeted.await.map_err(|_| "it sent no greeting".to_owned())?;
    let (mut send, recv, hello) = greeted.map_err(|error| error.to_string())?;
    let mut hello = match hello {
        Ok(hello) => hello,
        Err(error) => {
            // The preamble of the answer tells the other side which version is spoken here.
            let refusal = Answer::Refused(Refusal::Leaving);
            tracing::warn!(%from, %error, "a node was refused");
            refuse(&connection, &mut send, network.version, &refusal).await;
            return Ok(());
        }
    };
    let answering = match admit(&network, &identity, &hello) {
        Ok(answering) => answering,
        Err(refusal) => {
            let text = format!("node {}: {refusal}", identity.node);
            refuse(&connection, &mut send, network.version, &Answer::Refused(refusal)).await;
            return Err(text);
        }
    };
    if hello.purpose == Purpose::Observer {
        // It goes by a passing name of its own; who it is says its certificate.
        hello.record.node = identity.node;
    }
    trust_peer(&connection, Carries::Control);
    let welcome = Answer::Welcome(network.greeting());
    timeout(CONNECT_TIMEOUT, handshake::write(&mut send, network.version, &welcome))
        .await
        .map_err(|_| "it does not read its welcome".to_owned())?
        .map_err(|error| error.to_string())?;
    let session = Session::start(
        hello.session,
        hello.record,
        identity,
        hello.purpose,
        false,
        connection,
        (send, recv),
        network.system.clone(),
        host(&network),
        &network.control_thread,
    );
    network.install(&session);
    drop(answering);
    Ok(())
}

/// Whether a connection is to be taken; for a member's, what is to be kept until it is installed.
fn admit(
    network: &Network,
    identity: &PeerIdentity,
    hello: &Hello,
) -> Result<Option<Answering>, Refusal> {
    let record = &hello.record;
    if network.is_leaving() {
        return Err(Refusal::Leaving);
    }
    // It may have been revoked since the handshake began.
    if network.keyring.revoked().contains(identity.node) {
        return Err(Refusal::Revoked);
    }
    match hello.purpose {
        Purpose::Observer => Ok(None),
        Purpose::Member if record.node != identity.node => {
            Err(Refusal::NotYou { certificate: identity.node, greeting: record.node })
        }
        Purpose::Member if record.node == network.node() => Err(Refusal::Yourself),
        Purpose::Member if !identity.role.may(Right::Belong) => {
            Err(Refusal::NoMember { role: identity.role })
        }
        Purpose::Member => network.peer_or_new(record.node).admit(hello, network.node()).map(Some),
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
        let _ = timeout(Duration::from_secs(1), send.stopped()).await;
    }
    connection.close(0u32.into(), b"refused");
}

/// Finds out which session a connection for messages or tensors belongs to.
async fn answer_beside(
    network: &Network,
    connecting: quinn::Connecting,
    carries: Carries,
    needed: Right,
) -> Result<(Arc<Session>, quinn::Connection), String> {
    let connection = established(connecting, None).await.map_err(|error| error.to_string())?;
    let identity = peer_identity(&connection).map_err(|error| error.to_string())?;
    let introduced = timeout(CONNECT_TIMEOUT, async {
        let (mut send, mut recv) =
            connection.accept_bi().await.map_err(|error| error.to_string())?;
        let hello: SideHello =
            handshake::read(&mut recv, network.version).await.map_err(|error| error.to_string())?;
        // Its greeting may overtake the welcome that makes the session known here.
        let known = timeout(CONNECT_TIMEOUT / 2, async {
            let mut news = network.known.subscribe();
            loop {
                if let Some(session) = network.session_by_id(identity.node, hello.session) {
                    return session;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        });
        let session = match identity.role.may(needed) {
            true => known.await.ok(),
            false => None,
        };
        handshake::write(&mut send, network.version, &session.is_some())
            .await
            .map_err(|error| error.to_string())?;
        session.ok_or_else(|| format!("node {} names an unknown session", identity.node))
    });
    let session = introduced.await.map_err(|_| "no greeting in time".to_owned())??;
    trust_peer(&connection, carries);
    Ok((session, connection))
}

impl Network {
    fn session_by_id(&self, node: footlight_runtime::NodeId, id: u64) -> Option<Arc<Session>> {
        let member = self.peer(node).and_then(|peer| peer.session());
        let observer = || self.observers.get(&id).map(|session| session.clone());
        let observer = || observer().filter(|session| session.identity().node == node);
        member.filter(|session| session.id == id).or_else(observer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_write_a_few_lines_a_second_and_the_rest_is_counted() {
        let mut now = Instant::now();
        let mut log = Chatter { since: now, said: 0 };
        let said = (0..1_000).filter(|_| log.may_say(now) == Some(0)).count();
        assert_eq!(said, LINES as usize);
        now += LOOK;
        assert_eq!(log.may_say(now), Some(1_000 - LINES));
        assert_eq!(log.may_say(now), Some(0));
    }
}
