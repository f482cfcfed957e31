//! Strangers: clients that are no Footlight nodes, and show and say whatever they like. They speak
//! the protocol by themselves, so that no check of a node's own stands in their way.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use footlight::{
    cluster::trust::Role,
    runtime::{
        ActorAddr, ActorId, Down, Failure, Incarnation, NodeId, message::name_hash,
        registry::Catalog, remote::End,
    },
};
use quinn::{
    ConnectionError, TransportErrorCode,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::{
        self, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::support::{LONG, soon};

/// What members speak, and what those speak who want to join.
pub(crate) const MEMBERS: &str = "footlight";
pub(crate) const JOINERS: &str = "footlight-join";

/// A certificate authority, ours or another one.
pub(crate) struct Forge(Issuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Shown(CertificateDer<'static>, Vec<u8>);

impl Forge {
    /// The cluster's own, by the key in its state directory.
    pub(crate) fn of_cluster(state: &Path) -> Self {
        let key = KeyPair::from_pem(&fs::read_to_string(state.join("ca.key")).unwrap()).unwrap();
        let certificate = fs::read_to_string(state.join("ca.pem")).unwrap();
        Forge(Issuer::from_ca_cert_pem(&certificate, key).unwrap())
    }

    /// Another one that calls itself the same.
    pub(crate) fn another() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "Footlight cluster CA");
        Forge(Issuer::new(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()))
    }

    /// A certificate with these names, valid from 2020 until 2090.
    pub(crate) fn certificate(&self, names: &[String]) -> Shown {
        self.until(names, 2090)
    }

    /// The same, until another year's beginning.
    pub(crate) fn until(&self, names: &[String], year: i32) -> Shown {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Shown(certificate.der().clone(), key.serialize_der())
    }
}

/// The names of a node's certificate.
pub(crate) fn names(node: NodeId, role: Role) -> Vec<String> {
    vec![format!("{node}.node.footlight"), format!("{role}.role.footlight")]
}

/// Somebody at an address, who believes everybody.
#[derive(Clone)]
pub(crate) struct Stranger {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
}

impl Stranger {
    pub(crate) fn new(from: impl Into<IpAddr>, shown: Option<&Shown>, alpn: &str) -> Self {
        let socket = UdpSocket::bind((from.into(), 0)).unwrap();
        let mut settings = quinn::EndpointConfig::default();
        settings.max_udp_payload_size(16_000).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(settings, None, socket, runtime).unwrap();
        Stranger { endpoint, client: client(shown, alpn) }
    }

    /// The same one, who shows something else.
    pub(crate) fn showing(&self, shown: Option<&Shown>, alpn: &str) -> Self {
        Stranger { endpoint: self.endpoint.clone(), client: client(shown, alpn) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// Shakes hands. In TLS 1.3 the one who dials is done first: a refusal may come afterwards.
    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
    ) -> Result<quinn::Connection, ConnectionError> {
        self.endpoint.connect_with(self.client.clone(), to, "any.node.footlight").unwrap().await
    }

    /// Shakes hands and waits until that comes to nothing; says how.
    pub(crate) async fn is_refused(&self, to: SocketAddr) -> Refused {
        let attempt = async {
            match self.connect(to).await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        };
        Refused::of(&soon(attempt).await)
    }

    /// Shakes hands, greets, and reads the answer.
    pub(crate) async fn greet(&self, to: SocketAddr, hello: &Hello) -> (Held, Answer) {
        let (connection, send, recv, answer) = self.introduce(to, hello).await;
        let messages = self.messages(hello, &answer).await;
        (Held::new(connection, messages, send, recv), answer)
    }

    /// The same, and never reads a word behind the answer.
    pub(crate) async fn greet_deaf(&self, to: SocketAddr, hello: &Hello) -> (Held, Answer) {
        let (connection, send, recv, answer) = self.introduce(to, hello).await;
        let messages = self.messages(hello, &answer).await;
        let (heard, unread) = (mpsc::unbounded_channel().1, Some(recv));
        (Held { connection, messages, send, heard, unread }, answer)
    }

    /// The connection for the messages of a session, if it has begun.
    async fn messages(&self, hello: &Hello, answer: &Answer) -> Option<quinn::Connection> {
        match answer {
            Answer::Welcome(record) => Some(self.beside(record.message_addr, hello.session).await),
            Answer::Refused(_) => None,
        }
    }

    /// Shakes hands and says something; the answer comes on the same stream.
    async fn introduce<A: DeserializeOwned>(
        &self,
        to: SocketAddr,
        word: &impl Serialize,
    ) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream, A) {
        let connection = soon(self.connect(to)).await.unwrap();
        let (mut send, mut recv) = soon(connection.open_bi()).await.unwrap();
        write(&mut send, word).await;
        let answer = soon(read(&mut recv)).await;
        (connection, send, recv, answer)
    }

    /// A connection for the messages or the tensors of a session.
    pub(crate) async fn beside(&self, to: SocketAddr, session: u64) -> quinn::Connection {
        let (connection, _, _, known): (_, _, _, bool) = self.introduce(to, &session).await;
        assert!(known, "the session is not known");
        connection
    }

    /// Takes connections too, as whoever it shows.
    pub(crate) fn listen(&self, shown: &Shown, alpn: &str) {
        let Shown(certificate, key) = shown;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.clone().into()))
            .unwrap();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let config = Arc::new(QuicServerConfig::try_from(config).unwrap());
        self.endpoint.set_server_config(Some(quinn::ServerConfig::with_crypto(config)));
    }

    /// Takes one connection for the tensors of its session, agrees to it, and reads nothing more.
    pub(crate) async fn take_bulk(&self) -> quinn::Connection {
        let connection = soon(self.endpoint.accept()).await.unwrap().await.unwrap();
        let (mut send, mut recv) = soon(connection.accept_bi()).await.unwrap();
        let _session: u64 = soon(read(&mut recv)).await;
        write(&mut send, &true).await;
        connection
    }
}

/// A connection behind its greeting: says what it likes, and hears what comes back.
pub(crate) struct Held {
    pub(crate) connection: quinn::Connection,
    messages: Option<quinn::Connection>,
    pub(crate) send: quinn::SendStream,
    heard: mpsc::UnboundedReceiver<Header>,
    /// The control lane, if it is not read: dropped, it would be stopped.
    unread: Option<quinn::RecvStream>,
}

impl Held {
    fn new(
        connection: quinn::Connection,
        messages: Option<quinn::Connection>,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        tokio::spawn(listen(recv, tell.clone()));
        if let Some(lanes) = messages.clone() {
            tokio::spawn(async move {
                while let Ok(lane) = lanes.accept_uni().await {
                    tokio::spawn(listen(lane, tell.clone()));
                }
            });
        }
        Held { connection, messages, send, heard, unread: None }
    }

    /// The connection for messages.
    pub(crate) fn messages(&self) -> &quinn::Connection {
        self.messages.as_ref().expect("a greeting that was welcome")
    }

    /// Sends a frame on the control lane.
    pub(crate) async fn say(&mut self, header: &Header, body: &[u8]) {
        soon(self.send.write_all(&frame(header, body))).await.unwrap();
    }

    /// Asks something that everybody may, and waits for the answer: by then the node, in this life,
    /// has read all that was said before.
    pub(crate) async fn is_heard(&mut self, incarnation: Incarnation) {
        const QUESTION: u64 = 7;
        let question = Header::Message {
            to: ActorId(1),
            incarnation,
            key: name_hash("cluster.find_actors"),
            fence: None,
            call: Some(QUESTION),
            payload: Payload { body: 1, segments: Vec::new(), streams: Vec::new() },
        };
        self.say(&question, &[0]).await;
        self.hear(|header| match header {
            Header::Reply { call: QUESTION, .. } | Header::Failed { call: QUESTION, .. } => {
                Some(())
            }
            _ => None,
        })
        .await;
    }

    /// The next frame of which `wanted` makes something.
    pub(crate) async fn hear<T>(&mut self, mut wanted: impl FnMut(Header) -> Option<T>) -> T {
        soon(async {
            loop {
                let Some(header) = self.heard.recv().await else {
                    panic!("the connection ended: {:?}", self.connection.close_reason());
                };
                if let Some(found) = wanted(header) {
                    return found;
                }
            }
        })
        .await
    }
}

/// A value as the protocol encodes it.
pub(crate) fn encoded(value: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap()
}

/// A frame as it should be; `rest` is what follows the header.
pub(crate) fn frame(header: &Header, rest: &[u8]) -> Vec<u8> {
    frame_of(&encoded(header), rest)
}

/// The same with whatever for a header.
pub(crate) fn frame_of(header: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = 2 + header.len() + rest.len();
    let mut frame = (length as u32).to_le_bytes().to_vec();
    frame.extend((header.len() as u16).to_le_bytes());
    frame.extend(header);
    frame.extend(rest);
    frame
}

/// What a stream with a tensor begins with, or with one piece of so many.
pub(crate) fn segment_head(id: u64, length: u64, (piece, pieces): (u32, u32)) -> Vec<u8> {
    let numbers = [id.to_le_bytes(), length.to_le_bytes()].concat();
    [&numbers[..], &piece.to_le_bytes(), &pieces.to_le_bytes()].concat()
}

/// Reads frames; of those that are not in [`Header`] nothing comes.
async fn listen(mut recv: quinn::RecvStream, tell: mpsc::UnboundedSender<Header>) {
    let mut length = [0; 4];
    while recv.read_exact(&mut length).await.is_ok() {
        let mut frame = vec![0; u32::from_le_bytes(length) as usize];
        if recv.read_exact(&mut frame).await.is_err() {
            return;
        }
        let header = &frame[2..];
        if let Ok((header, _)) =
            bincode::serde::decode_from_slice(header, bincode::config::standard())
        {
            let _ = tell.send(header);
        }
    }
}

/// The first frames, in the order in which they are numbered on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Header {
    Message {
        to: ActorId,
        incarnation: Incarnation,
        key: u64,
        fence: Option<u64>,
        call: Option<u64>,
        payload: Payload,
    },
    Reply {
        call: u64,
        payload: Payload,
    },
    Failed {
        call: u64,
        failure: Failure,
    },
    StreamItem {
        stream: u64,
        payload: Payload,
    },
    StreamEnd,
    StreamCredit,
    StreamCancel,
    Credit,
    Watch {
        id: u64,
        actor: ActorAddr,
    },
    Unwatch {
        id: u64,
    },
    Down {
        id: u64,
        down: Down,
    },
    End {
        actor: ActorAddr,
        how: End,
    },
    /// Of membership.
    Packet(Vec<u8>),
    LastWord,
    Heard,
    Leaving,
    Record,
    Certificate,
    Digest,
    Want,
    Lend(Place),
    Prove([u64; 4]),
    Lent {
        id: u64,
        at: u64,
        len: u64,
    },
    Fetched {
        id: u64,
        whole: bool,
    },
}

/// Where a process and its proof are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) host: u128,
    pub(crate) numbering: u64,
    pub(crate) process: i32,
    pub(crate) proof: u64,
}

/// How a value lies in the frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) body: u32,
    pub(crate) segments: Vec<Segment>,
    pub(crate) streams: Vec<u64>,
}

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Segment {
    Inline { len: u32 },
    Stream { id: u64, len: u64 },
}

/// How a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// By this alert of TLS.
    Alert(u8),
    /// Without a look: the node has too many to answer.
    Busy,
    /// By the node, after the handshake.
    Closed,
    /// Nobody answered.
    Silence,
    /// By the node, which had forgotten the connection already.
    Forgotten,
    Otherwise,
}

impl Refused {
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
                code @ 0x100..0x200 => Refused::Alert((code - 0x100) as u8),
                _ if close.error_code == TransportErrorCode::CONNECTION_REFUSED => Refused::Busy,
                _ => Refused::Otherwise,
            },
            ConnectionError::ApplicationClosed(_) => Refused::Closed,
            ConnectionError::TimedOut => Refused::Silence,
            ConnectionError::Reset => Refused::Forgotten,
            _ => Refused::Otherwise,
        }
    }
}

fn client(shown: Option<&Shown>, alpn: &str) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        Some(Shown(certificate, key)) => config
            .with_client_auth_cert(
                vec![certificate.clone()],
                PrivateKeyDer::Pkcs8(key.clone().into()),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.enable_sni = false;
    let mut client =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    // Long enough for every answer that there may be.
    transport.max_idle_timeout(Some(LONG.try_into().unwrap()));
    transport.keep_alive_interval(Some(Duration::from_millis(500)));
    client.transport_config(Arc::new(transport));
    client
}

/// Believes every server: it wants to hear what the server says.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What stands in a greeting, as it is on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) record: Record,
    pub(crate) purpose: Purpose,
    pub(crate) session: u64,
    pub(crate) knows: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addr: SocketAddr,
    pub(crate) message_addr: SocketAddr,
    pub(crate) bulk_addr: SocketAddr,
    pub(crate) catalog: Catalog,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Purpose {
    Member,
    Observer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub(crate) enum Answer {
    Welcome(Record),
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Duplicate,
    NotYou { certificate: NodeId, greeting: NodeId },
    PastLife { yours: u64, latest: u64 },
    Leaving,
    Yourself,
    NoMember { role: Role },
    Revoked,
}

impl Hello {
    /// Greets as a node.
    pub(crate) fn of(node: NodeId, from: SocketAddr, purpose: Purpose) -> Self {
        let (addr, message_addr, bulk_addr) = (from, from, from);
        let record = Record {
            node,
            incarnation: Incarnation(1),
            addr,
            message_addr,
            bulk_addr,
            catalog: Catalog::default(),
        };
        Hello { record, purpose, session: 1, knows: None }
    }
}

async fn write<T: Serialize>(stream: &mut quinn::SendStream, value: &T) {
    let body = encoded(value);
    let mut bytes = b"FTLT\x03\x00".to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await.unwrap();
}

async fn read<T: DeserializeOwned>(stream: &mut quinn::RecvStream) -> T {
    let mut head = [0; 10];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[..6], *b"FTLT\x03\x00");
    let mut body = vec![0; u32::from_le_bytes([head[6], head[7], head[8], head[9]]) as usize];
    stream.read_exact(&mut body).await.unwrap();
    bincode::serde::decode_from_slice(&body, bincode::config::standard()).unwrap().0
}

/// The first packets of so many handshakes that nobody will go on with.
pub(crate) async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    // They are caught at an address where nobody answers. Nobody gives up meanwhile: that it does so
    // is said in a first packet, too.
    let trap = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let stranger = Stranger::new([127, 0, 0, 1], None, MEMBERS);
    let (mut caught, mut under_way) = (BTreeMap::new(), Vec::with_capacity(count));
    let mut buffer = vec![0; 9000];
    for _ in 0..count {
        let to = trap.local_addr().unwrap();
        let connecting =
            stranger.endpoint.connect_with(stranger.client.clone(), to, "any.node.footlight");
        under_way.push(connecting.unwrap());
        while caught.len() < under_way.len() {
            let (length, _) = soon(trap.recv_from(&mut buffer)).await.unwrap();
            // By the id that the handshake goes by: it may have been sent again already (RFC 9000, 17.2).
            let id = buffer[6..][..usize::from(buffer[5])].to_vec();
            caught.entry(id).or_insert_with(|| buffer[..length].to_vec());
        }
    }
    caught.into_values().collect()
}

/// The UDP ports that a process has.
pub(crate) fn udp_ports(pid: u32) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sockets: Vec<String> = files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter_map(|link| {
            let link = link.to_string_lossy().into_owned();
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap();
    let ports = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = columns.get(1)?.rsplit_once(':')?;
        let is_its = sockets.iter().any(|inode| columns.get(9) == Some(&inode.as_str()));
        is_its.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    });
    let mut ports: Vec<u16> = ports.collect();
    ports.sort();
    ports
}
