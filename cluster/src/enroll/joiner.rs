//! Asking to be let in, before there is a node; and asking for a new certificate.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::{runtime::Handle, task::JoinSet, time::Instant};

use super::wire::{Answer, BUSY, ISSUE_PATIENCE, Join, MAX_WORDS, PATIENCE, Refusal, Request};
use crate::{
    ClusterError,
    network::seeds::Seeds,
    transport::{
        endpoint::{Congestion, MAX_PAYLOAD, PathKind, Purpose, transport_config},
        handshake,
        socket::{NodeRuntime, Sockets},
    },
    trust::{Anchor, AuthorityHash, Credentials, NodeKey, Token, TrustError, tls},
};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// A joiner that waits says so first after three seconds, then less and less often.
const FIRST_WORD: Duration = Duration::from_secs(3);
const LAST_WORD: Duration = Duration::from_secs(60);

/// Why one node could not be asked, or did not answer with a certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
    /// It can't show the authority that the token names.
    #[error(
        "what answers there is not of the cluster that the token is for (its authority has another \
         hash): check the address, or make a token in that cluster"
    )]
    Stranger,
    /// The key is with others.
    #[error("it does not hold the authority's key")]
    Elsewhere(Vec<SocketAddr>),
    /// Nobody answers, or not as it should.
    #[error("{0}")]
    Trouble(String),
}

/// A certificate, and the authority that the one who gave it has shown.
type Granted = (Vec<u8>, Anchor);

/// Somebody outside the cluster, or a member, that asks for certificates.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) sockets: Arc<dyn Sockets>,
    pub(crate) tls: tls::TlsSettings,
    pub(crate) version: u16,
    pub(crate) control: Handle,
}

impl Asker {
    /// Asks to be let in by a token, at one seed after the other, until one does so or refuses.
    ///
    /// # Errors
    /// [`ClusterError::NotLetIn`] with the reason, [`ClusterError::NoSeed`] at the deadline.
    pub(crate) async fn join(
        &self,
        token: &Token,
        key: &NodeKey,
        seeds: &mut Seeds,
        patience: Duration,
        deadline: Instant,
    ) -> Result<Credentials, ClusterError> {
        let client = tls::joining_client(token.authority(), &self.tls)?;
        let request = Request::Join(Join::new(token, key.request()?));
        let (began, mut pause, mut word) = (Instant::now(), FIRST_PAUSE, FIRST_WORD);
        loop {
            seeds.look_up().await;
            let (mut troubles, mut strangers) = (Vec::new(), 0);
            let mut asked = self.ask_all(seeds.addrs(), &client, &request);
            while let Some(answered) = asked.join_next().await {
                let Ok((addr, answered)) = answered else { continue };
                let answered = answered.and_then(|(certificate, anchor)| {
                    accept(key, certificate, anchor, token.authority())
                });
                let why = match answered {
                    Ok(credentials) => return Ok(credentials),
                    Err(AskError::Refused(refusal)) if !refusal.may_pass() => {
                        return Err(ClusterError::NotLetIn { by: addr, why: refusal.to_string() });
                    }
                    Err(error) => {
                        strangers += usize::from(matches!(error, AskError::Stranger));
                        format!("{addr}: {error}")
                    }
                };
                troubles.push(why);
            }
            let addrs = seeds.addrs();
            if strangers == addrs.len() && strangers > 0 {
                let (by, why) = (addrs.first().copied(), AskError::Stranger.to_string());
                return Err(ClusterError::NotLetIn { by: by.unwrap_or_else(nowhere), why });
            }
            if troubles.is_empty() {
                troubles.push(seeds.troubles());
            }
            troubles.sort();
            let troubles = troubles.join("; ");
            if Instant::now() + pause >= deadline {
                return Err(ClusterError::NoSeed { waited: patience, seeds: troubles });
            }
            let waited = began.elapsed();
            if waited >= word {
                word = waited + waited.min(LAST_WORD);
                tracing::warn!(
                    waited_s = waited.as_secs(),
                    seeds = troubles,
                    "nobody lets this node in yet; it goes on asking"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn ask_all(
        &self,
        addrs: impl IntoIterator<Item = SocketAddr>,
        client: &Arc<QuicClientConfig>,
        request: &Request,
    ) -> JoinSet<(SocketAddr, Result<Granted, AskError>)> {
        let mut asked = JoinSet::new();
        for addr in addrs {
            let (asker, client, request) = (self.clone(), client.clone(), request.clone());
            asked.spawn_on(
                async move { (addr, asker.ask(addr, client, &request).await) },
                &self.control,
            );
        }
        asked
    }

    /// Asks a node for a new certificate in place of this one, and those to whom it points.
    ///
    /// # Errors
    /// The last reason.
    pub(crate) async fn renew(
        &self,
        shown: &Credentials,
        request: Vec<u8>,
        at: Vec<SocketAddr>,
    ) -> Result<CertificateDer<'static>, String> {
        let client = tls::renewing_client(shown, &self.tls).map_err(|error| error.to_string())?;
        let request = Request::Renew { request };
        let (mut to_ask, mut troubles) = (at, Vec::new());
        let mut next = 0;
        while let Some(addr) = to_ask.get(next).copied() {
            next += 1;
            match self.ask(addr, client.clone(), &request).await {
                Ok((certificate, _)) => return Ok(certificate.into()),
                Err(AskError::Elsewhere(addrs)) if to_ask.len() < MAX_ASKED => {
                    let new: Vec<_> =
                        addrs.into_iter().filter(|addr| !to_ask.contains(addr)).collect();
                    to_ask.extend(new);
                }
                Err(error) => troubles.push(format!("{addr}: {error}")),
            }
        }
        if troubles.is_empty() {
            troubles.push("no node is known that holds the authority's key".to_owned());
        }
        Err(troubles.join("; "))
    }

    /// Hands a joiner's request to a node that has the authority's key.
    ///
    /// # Errors
    /// What that says, or that it does not answer.
    pub(super) async fn pass_on(
        &self,
        shown: &Credentials,
        join: Join,
        to: SocketAddr,
    ) -> Result<Vec<u8>, AskError> {
        let client = tls::renewing_client(shown, &self.tls)?;
        let (certificate, _) = self.ask(to, client, &Request::Join(join)).await?;
        Ok(certificate)
    }

    /// Asks one node; gives the certificate and the authority that the node showed.
    async fn ask(
        &self,
        addr: SocketAddr,
        client: Arc<QuicClientConfig>,
        request: &Request,
    ) -> Result<Granted, AskError> {
        let trouble = |why: String| AskError::Trouble(why);
        let runtime = Arc::new(NodeRuntime::new(self.control.clone()));
        let socket = self.sockets.bind(own_addr(addr), &*runtime);
        let socket = socket.map_err(|error| trouble(error.to_string()))?;
        let mut settings = quinn::EndpointConfig::default();
        settings.max_udp_payload_size(MAX_PAYLOAD).map_err(|error| trouble(error.to_string()))?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(settings, None, socket, runtime)
            .map_err(|error| trouble(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(client);
        let path = PathKind::between(&own_addr(addr), &addr);
        let transport = transport_config(path, Purpose::Control, Congestion::default());
        config.transport_config(Arc::new(transport));
        let connecting = endpoint
            .connect_with(config, addr, tls::ANY_NODE)
            .map_err(|error| trouble(error.to_string()))?;
        let asked = converse(connecting, self.version, request).await;
        endpoint.close(0u32.into(), b"done");
        // What was written last should arrive.
        let _ = tokio::time::timeout(PATIENCE, endpoint.wait_idle()).await;
        asked
    }
}

/// Most nodes that are asked for one renewal.
const MAX_ASKED: usize = 16;

async fn converse(
    connecting: quinn::Connecting,
    version: u16,
    request: &Request,
) -> Result<Granted, AskError> {
    let connection = tokio::time::timeout(PATIENCE, connecting)
        .await
        .map_err(|_| AskError::Trouble("nobody answers".to_owned()))?
        .map_err(|error| lost(&error))?;
    let answer = tokio::time::timeout(ISSUE_PATIENCE, exchange(&connection, version, request))
        .await
        .map_err(|_| AskError::Trouble("it does not answer the request".to_owned()))??;
    let shown = connection.peer_identity();
    let chain = shown.and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let anchor = chain.and_then(|chain| Anchor::from_der(chain.get(1)?).ok());
    let anchor = anchor.ok_or(AskError::Stranger)?;
    match answer {
        Answer::Certificate(certificate) => Ok((certificate, anchor)),
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        Answer::Elsewhere(addrs) => Err(AskError::Elsewhere(addrs)),
    }
}

/// Sends a request on a connection in the joiners' protocol and reads the answer.
async fn exchange(
    connection: &quinn::Connection,
    version: u16,
    request: &Request,
) -> Result<Answer, AskError> {
    let told = |error: handshake::HandshakeError| match connection.close_reason() {
        Some(reason) => lost(&reason),
        None => AskError::Trouble(error.to_string()),
    };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| lost(&error))?;
    handshake::write(&mut send, version, request).await.map_err(told)?;
    let _ = send.finish();
    handshake::read_at_most(&mut recv, version, MAX_WORDS).await.map_err(told)
}

fn lost(error: &quinn::ConnectionError) -> AskError {
    match error {
        quinn::ConnectionError::ApplicationClosed(close)
            if close.error_code == quinn::VarInt::from_u32(BUSY) =>
        {
            AskError::Refused(Refusal::Busy)
        }
        _ => match tls::refusal(error) {
            // Before it has shown anything, the other end can only be the one that is disbelieved.
            Some(tls::Refusal::Certificate) => AskError::Stranger,
            Some(refusal) => AskError::Trouble(refusal.to_string()),
            None if matches!(error, quinn::ConnectionError::TimedOut) => {
                AskError::Trouble("nobody answers".to_owned())
            }
            None => AskError::Trouble(error.to_string()),
        },
    }
}

/// Looks at what was given before it is believed.
fn accept(
    key: &NodeKey,
    certificate: Vec<u8>,
    anchor: Anchor,
    pinned: AuthorityHash,
) -> Result<Credentials, AskError> {
    if anchor.hash() != pinned {
        return Err(AskError::Stranger);
    }
    let credentials = Credentials::new(key, certificate.into(), anchor)
        .map_err(|error| AskError::Trouble(format!("the certificate is of no use: {error}")))?;
    match credentials.identity().node == key.node() {
        true => Ok(credentials),
        false => Err(AskError::Trouble("the certificate is of another node".to_owned())),
    }
}

/// From where an address can be reached.
fn own_addr(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_loopback() && to.is_ipv4() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ if to.is_ipv4() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

fn nowhere() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}

impl From<TrustError> for AskError {
    fn from(error: TrustError) -> Self {
        AskError::Trouble(error.to_string())
    }
}
