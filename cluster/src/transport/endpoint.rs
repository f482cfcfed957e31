//! A node's QUIC endpoint: one socket that both listens and dials, with settings for its path.
//!
//! A node has three: for control (membership, watches, ends), for messages, and for bulk, so that a
//! message never waits behind a tensor, nor membership behind either. The figures behind the numbers
//! here stand in docs/architecture.md.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, UdpPoller, VarInt,
    congestion::{BbrConfig, ControllerFactory, CubicConfig},
    udp::{RecvMeta, Transmit},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use ring::{hkdf, hmac};

use super::{
    follow,
    socket::{SocketError, Sockets},
};
use crate::trust::{
    Credentials, TrustError,
    tls::{self, Gatekeeper},
};

/// The largest UDP payload that is ever sent to another machine, and on this one but for tensors, in
/// bytes.
///
/// quinn hands the kernel up to ten packets at once (GSO), and the kernel takes at most 64 KiB: from
/// about 6,550 bytes on, every such send fails and the transfer crawls.
pub const MAX_PAYLOAD: u16 = 6500;

/// The UDP payload of tensors on loopback, in bytes: four of them are just less than
/// the kernel takes at once, and what quinn does for each packet is done less than half as often. Above
/// 16,383 quinn panics. Other systems than Linux don't take as much by default.
pub const LARGE_PAYLOAD: u16 = if cfg!(target_os = "linux") { 16_000 } else { MAX_PAYLOAD };

/// As many packets of [`LARGE_PAYLOAD`] are handed to the kernel at once.
const LARGE_AT_ONCE: usize = 4;

/// The connection ends after this long without a packet. Membership declares a node down much
/// earlier; this only frees what an unreachable peer left behind.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a loopback connection may have on its way, in bytes. A few peers that send at once stay
/// within one socket's buffer (8 MiB where the system grants them).
const LOOPBACK_IN_FLIGHT: u64 = 2 << 20;

/// A connection that arrived may hold so much, unread, until its peer has proved who it is, in bytes.
const UNPROVED_WINDOW: u32 = 64 << 10;

const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How many times as long a connection for messages takes with both.
const MESSAGES_PATIENCE: u32 = 6;
const CID_LENGTH: usize = 8;

/// What lies between two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathKind {
    /// The same machine: large packets fit, no need to look for the limit.
    Loopback,
    /// A network: start small and let path discovery find what fits.
    Network,
}

impl PathKind {
    /// The path from a socket at `local` to `peer`, judged by their addresses. A wildcard address counts as a
    /// network.
    pub fn between(local: &SocketAddr, peer: &SocketAddr) -> Self {
        let loopback = |addr: &SocketAddr| addr.ip().to_canonical().is_loopback();
        if loopback(local) && loopback(peer) { Self::Loopback } else { Self::Network }
    }
}

/// What a connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Membership's datagrams, watches, ends: what must not wait for anything.
    Control,
    /// Messages, answers and small tensors.
    Messages,
    /// Large tensors, one unidirectional stream each.
    Bulk,
}

/// How fast a node sends, from what it learns of the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Slows down when packets are lost (RFC 9438): shares a path fairly with what else uses it.
    #[default]
    Cubic,
    /// Sends as fast as the path is seen to deliver, whatever is lost (Google's BBR, version 1, which
    /// quinn calls experimental): for paths that lose packets though they are not full. Beside others
    /// it may take more than its share.
    Bbr,
}

impl Purpose {
    /// The largest UDP payload that is sent and taken, in bytes.
    pub fn largest_payload(self) -> u16 {
        if self == Purpose::Bulk { LARGE_PAYLOAD } else { MAX_PAYLOAD }
    }

    /// The socket as it is to be used for this: one on loopback that carries large packets hands fewer of
    /// them to the kernel at once.
    pub fn socket(self, socket: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
        let on_loopback = socket.local_addr().is_ok_and(|addr| addr.ip().is_loopback());
        match self {
            Purpose::Bulk if on_loopback => Arc::new(FewAtOnce(socket)),
            _ => socket,
        }
    }
}

/// A socket for packets of [`LARGE_PAYLOAD`].
#[derive(Debug)]
struct FewAtOnce(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for FewAtOnce {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments().min(LARGE_AT_ONCE)
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

impl Congestion {
    /// `window`: so many bytes may be on their way at first; quinn's choice if none is given.
    fn controller(self, window: Option<u64>) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Congestion::Cubic => {
                let mut cubic = CubicConfig::default();
                window.map(|window| cubic.initial_window(window));
                Arc::new(cubic)
            }
            Congestion::Bbr => {
                let mut bbr = BbrConfig::default();
                window.map(|window| bbr.initial_window(window));
                Arc::new(bbr)
            }
        }
    }
}

/// The transport's settings for a path and a purpose.
///
/// | | control | messages | bulk |
/// | --- | --- | --- | --- |
/// | a stream may hold, unread | 4 MiB | 4 MiB | 128 MiB |
/// | a connection may hold, unread (64 KiB until its dialer has proved who it is) | 16 MiB | 16 MiB | 64 to 256 MiB |
/// | sent and not acknowledged, network | 16 MiB | 16 MiB | 64 to 256 MiB |
/// | the same, loopback | 2 MiB | 2 MiB | 2 MiB |
/// | streams open at once, two-way / one-way | 256 / 1024 | 16 / 16 | 16 / 1024 |
/// | datagrams kept to receive / to send | 1 MiB / 256 KiB | none | none |
/// | first congestion window | quinn's | quinn's | 1 MiB on loopback |
/// | keep-alive after a silence of | 0.5 s | 3 s | 0.5 s |
/// | ends after a silence of | 10 s | 60 s | 10 s |
///
/// Where two figures stand, the window begins with the first and follows what the path holds (bandwidth × delay).
///
/// On loopback packets have [`MAX_PAYLOAD`] from the start, those of tensors [`LARGE_PAYLOAD`]; on a network they start at 1200 bytes
/// and discovery finds up to 1452, or up to [`MAX_PAYLOAD`] where the path has jumbo frames (bulk).
///
/// The connection for messages is driven by the threads that run the actors, and these may be busy:
/// so it is patient, and it ends with the control connection that it belongs to.
pub fn transport_config(
    path: PathKind,
    purpose: Purpose,
    congestion: Congestion,
) -> TransportConfig {
    let mut config = TransportConfig::default();
    let at_once = (path == PathKind::Loopback && purpose == Purpose::Bulk).then_some(1 << 20);
    config.congestion_controller_factory(congestion.controller(at_once));
    let patience = if purpose == Purpose::Messages { MESSAGES_PATIENCE } else { 1 };
    config.keep_alive_interval(Some(KEEP_ALIVE * patience)).max_idle_timeout(Some(
        IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32 * patience)),
    ));
    match path {
        PathKind::Loopback => config
            .initial_mtu(purpose.largest_payload())
            .min_mtu(purpose.largest_payload())
            .mtu_discovery_config(None)
            // Not lower: a busy machine answers late, and what is sent again makes it busier.
            .initial_rtt(Duration::from_millis(10)),
        PathKind::Network => {
            let mut discovery = MtuDiscoveryConfig::default();
            if purpose == Purpose::Bulk {
                discovery.upper_bound(MAX_PAYLOAD);
            }
            config.mtu_discovery_config(Some(discovery)).initial_rtt(Duration::from_millis(100))
        }
    };
    let connection = connection_window(purpose);
    let (stream, two_way) = match purpose {
        Purpose::Control => (4 * MIB, 256u32),
        Purpose::Messages => (4 * MIB, 16),
        // No less than what the connection may come to: the two long tensors at once share that.
        Purpose::Bulk => (follow::MOST / 2, 16),
    };
    let one_way = if purpose == Purpose::Messages { 16u32 } else { 1024 };
    config
        .stream_receive_window(stream.into())
        .receive_window(connection.into())
        .send_window(connection.into())
        .max_concurrent_bidi_streams(two_way.into())
        .max_concurrent_uni_streams(one_way.into());
    if path == PathKind::Loopback {
        // The round trip is next to nothing, so more than this only waits in the receiver's socket
        // buffer, and is lost there while the receiver has no processor (measured with both cores
        // busy: 3 to 15 % lost without it, none with it, and twice the speed).
        config.send_window(LOOPBACK_IN_FLIGHT);
    }
    match purpose {
        Purpose::Control => {
            config.datagram_receive_buffer_size(Some(1 << 20)).datagram_send_buffer_size(256 << 10);
        }
        Purpose::Messages | Purpose::Bulk => {
            config.datagram_receive_buffer_size(None);
        }
    }
    config
}

const MIB: u32 = 1 << 20;

/// What a connection may hold unread, in bytes.
pub(crate) fn connection_window(purpose: Purpose) -> u32 {
    match purpose {
        Purpose::Control | Purpose::Messages => 16 * MIB,
        Purpose::Bulk => 64 * MIB,
    }
}

/// The peer of a connection that arrived has proved who it is: it may send as much as the table of
/// [`transport_config`] says.
pub(crate) fn trust_peer(connection: &quinn::Connection, purpose: Purpose) {
    connection.set_receive_window(connection_window(purpose).into());
}

/// What an endpoint is made from.
#[derive(Debug)]
pub struct EndpointSettings<'a> {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What the connections that arrive will carry.
    pub purpose: Purpose,
    /// How fast it sends.
    pub congestion: Congestion,
    /// Seeds connection ids, reset and token keys and quinn's own choices. Drawn from the system's
    /// randomness in a real node: who knows it can close other nodes' connections.
    pub seed: [u8; 32],
    /// Who this node is.
    pub credentials: &'a Credentials,
    /// Protocol, cryptography and wall clock.
    pub tls: tls::TlsSettings,
}

/// Why there is no endpoint, or why a dial could not even begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No TLS settings.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address can't be dialled from here, or the endpoint is closing.
    #[error("cannot dial {peer}: {source}")]
    Dial {
        /// The address.
        peer: SocketAddr,
        /// quinn's reason.
        source: quinn::ConnectError,
    },
}

/// One socket, its connections, and the right settings for each new one.
pub struct Endpoint {
    quinn: quinn::Endpoint,
    local: SocketAddr,
    purpose: Purpose,
    congestion: Congestion,
    tls: tls::TlsSettings,
    keys: Keys,
    shown: Mutex<Shown>,
    ids: Arc<Mutex<ChaCha12Rng>>,
}

/// What handshakes show, until the next certificate.
struct Shown {
    client: Arc<quinn::crypto::rustls::QuicClientConfig>,
    gatekeeper: Arc<Gatekeeper>,
    server: quinn::ServerConfig,
}

/// The keys of the endpoint itself, all from its seed.
struct Keys {
    token: Arc<hkdf::Prk>,
}

impl Endpoint {
    /// Opens the socket and starts the endpoint's driver on `runtime`.
    ///
    /// # Errors
    /// [`EndpointError::Socket`] if the address can't be had, [`EndpointError::Trust`].
    pub fn bind(
        settings: EndpointSettings<'_>,
        sockets: &dyn Sockets,
        runtime: Arc<dyn quinn::Runtime>,
    ) -> Result<Self, EndpointError> {
        let EndpointSettings { listen, purpose, congestion, seed, credentials, tls } = settings;
        let mut rng = ChaCha12Rng::from_seed(seed);
        let mut draw = || {
            let mut key = [0; 64];
            rng.fill_bytes(&mut key);
            key
        };
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &draw());
        let token = Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&draw()));
        let mut quinn_seed = [0; 32];
        quinn_seed.copy_from_slice(&draw()[..32]);
        let ids = Arc::new(Mutex::new(rng));

        let mut config = EndpointConfig::new(Arc::new(reset));
        let own_ids = ids.clone();
        config
            .rng_seed(Some(quinn_seed))
            .cid_generator(move || Box::new(SeededIds(own_ids.clone())))
            // Always: a peer on this machine may send large packets to a wildcard address too.
            .max_udp_payload_size(purpose.largest_payload())
            .map_err(|error| rustls::Error::General(error.to_string()))
            .map_err(TrustError::Tls)?;

        let socket = purpose.socket(sockets.bind(listen, &*runtime)?);
        let io = |source| SocketError::Io { addr: listen, source };
        let local = socket.local_addr().map_err(io)?;
        let keys = Keys { token };
        let shown = Shown::new(&local, (purpose, congestion), credentials, &tls, &keys)?;
        let server = Some(shown.server.clone());
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)
            .map_err(io)?;
        Ok(Self { quinn, local, purpose, congestion, tls, keys, shown: Mutex::new(shown), ids })
    }

    fn shown<T>(&self, take: impl FnOnce(&Shown) -> T) -> T {
        take(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts a handshake with the node at `peer`.
    ///
    /// # Errors
    /// [`EndpointError::Dial`] if it can't begin: an IPv6 address on an IPv4 socket, port 0, an
    /// endpoint that is closing.
    pub fn dial(
        &self,
        peer: SocketAddr,
        purpose: Purpose,
    ) -> Result<quinn::Connecting, EndpointError> {
        let crypto = self.shown(|shown| shown.client.clone());
        let mut config = quinn::ClientConfig::new(crypto);
        let ids = self.ids.clone();
        config
            .transport_config(Arc::new(transport_config(
                PathKind::between(&self.local, &peer),
                purpose,
                self.congestion,
            )))
            .initial_dst_cid_provider(Arc::new(move || random_id(&ids, INITIAL_ID_LENGTH)));
        self.quinn
            .connect_with(config, peer, tls::ANY_NODE)
            .map_err(|source| EndpointError::Dial { peer, source })
    }

    /// The next connection that somebody wants, or `None` once the endpoint is closed.
    pub fn accept(&self) -> quinn::Accept<'_> {
        self.quinn.accept()
    }

    /// The connections that there are, those that are about to be or to end included.
    pub(crate) fn open_connections(&self) -> usize {
        self.quinn.open_connections()
    }

    /// Begins the handshake of a connection that somebody wants. On a control endpoint that may be a
    /// joiner, who has shown no certificate: the [protocol](tls::protocol) tells.
    ///
    /// # Errors
    /// What is wrong with its first packet.
    pub(crate) fn begin(
        &self,
        incoming: quinn::Incoming,
    ) -> Result<quinn::Connecting, quinn::ConnectionError> {
        if self.purpose != Purpose::Control {
            return incoming.accept();
        }
        let (gatekeeper, mut config) =
            self.shown(|shown| (shown.gatekeeper.clone(), shown.server.clone()));
        // The like of it was made when the endpoint was; without it nobody joins here.
        if let Ok(crypto) = gatekeeper.anybody() {
            config.crypto = crypto;
        }
        incoming.accept_with(Arc::new(config))
    }

    #[cfg(test)]
    pub(crate) fn tls(&self) -> &tls::TlsSettings {
        &self.tls
    }

    /// Shows other credentials from the next handshake on; open connections stay as they are.
    ///
    /// # Errors
    /// [`EndpointError::Trust`] if TLS can't use them; then nothing changes.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<(), EndpointError> {
        let shown = Shown::new(
            &self.local,
            (self.purpose, self.congestion),
            credentials,
            &self.tls,
            &self.keys,
        )?;
        self.quinn.set_server_config(Some(shown.server.clone()));
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    /// The socket's address, with the port that a wish for port 0 got.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The endpoint underneath, to close it, wait for its idleness or read its counters.
    pub fn quinn(&self) -> &quinn::Endpoint {
        &self.quinn
    }
}

impl Shown {
    fn new(
        local: &SocketAddr,
        (purpose, congestion): (Purpose, Congestion),
        credentials: &Credentials,
        tls: &tls::TlsSettings,
        keys: &Keys,
    ) -> Result<Self, TrustError> {
        let gatekeeper = Gatekeeper::new(credentials, tls)?;
        let mut server = quinn::ServerConfig::new(gatekeeper.members()?, keys.token.clone());
        // quinn has one setting for all that arrive: only a loopback socket knows them to be local.
        let mut transport = transport_config(PathKind::between(local, local), purpose, congestion);
        // Who has proved nothing fills no memory; raised when that has changed.
        transport.receive_window(UNPROVED_WINDOW.into());
        server
            .transport_config(Arc::new(transport))
            .time_source(Arc::new(InjectedTime(tls.clock.clone())))
            // A peer that moves to another address proves itself again.
            .migration(false)
            .max_incoming(1024)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(16 << 20);
        Ok(Shown {
            client: tls::client(credentials, tls)?,
            gatekeeper: Arc::new(gatekeeper),
            server,
        })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Endpoint");
        shown.field("local", &self.local).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

/// A client's first destination id: RFC 9000 asks for at least 8 unpredictable bytes.
const INITIAL_ID_LENGTH: usize = 20;

fn random_id(rng: &Mutex<ChaCha12Rng>, length: usize) -> ConnectionId {
    let mut bytes = [0; INITIAL_ID_LENGTH];
    rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes[..length]);
    ConnectionId::new(&bytes[..length])
}

/// Connection ids from the endpoint's seed; quinn's own come from the system's randomness.
struct SeededIds(Arc<Mutex<ChaCha12Rng>>);

impl ConnectionIdGenerator for SeededIds {
    fn generate_cid(&mut self) -> ConnectionId {
        random_id(&self.0, CID_LENGTH)
    }

    fn cid_len(&self) -> usize {
        CID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The wall clock of address-validation tokens.
struct InjectedTime(Arc<dyn rustls::time_provider::TimeProvider>);

impl quinn::TimeSource for InjectedTime {
    fn now(&self) -> std::time::SystemTime {
        let now = self.0.current_time().map_or(0, |now| now.as_secs());
        std::time::UNIX_EPOCH + Duration::from_secs(now)
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
