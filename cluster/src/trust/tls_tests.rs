//! Handshakes over real quinn endpoints on loopback.

use std::time::Duration;

use footlight_runtime::id::NodeId;
use quinn::{ConnectionError, TransportErrorCode};
use rustls::{pki_types::PrivateKeyDer, time_provider::DefaultTimeProvider};
use tokio::runtime::Handle;

use super::*;
use crate::{
    Congestion,
    transport::{
        endpoint::{Endpoint, EndpointSettings, Purpose},
        socket::{NodeRuntime, SystemSockets},
    },
    trust::{Authority, NodeKey, PeerIdentity, Role, peer_identity},
};

#[derive(Debug)]
struct FixedClock(UnixTime);

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

const LIFE: Duration = Duration::from_secs(24 * 3600);

fn today() -> UnixTime {
    DefaultTimeProvider.current_time().unwrap()
}

fn days_from_now(days: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(today().as_secs() + days * 24 * 3600))
}

fn settings(alpn: &str, now: UnixTime) -> TlsSettings {
    TlsSettings {
        alpn: alpn.as_bytes().to_vec(),
        provider: Arc::new(crypto_provider()),
        clock: Arc::new(FixedClock(now)),
        revoked: Arc::default(),
    }
}

fn endpoint_with(credentials: &Credentials, tls: TlsSettings) -> Endpoint {
    let settings = EndpointSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        purpose: Purpose::Control,
        congestion: Congestion::default(),
        seed: [1; 32],
        credentials,
        tls,
    };
    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    Endpoint::bind(settings, &SystemSockets::new(), runtime).unwrap()
}

fn endpoint(authority: &Authority, node: u64) -> Endpoint {
    let credentials = authority.issue(NodeId(node), Role::Node, LIFE, today()).unwrap();
    endpoint_with(&credentials, settings("footlight/1", today()))
}

fn authority() -> Authority {
    Authority::mint(today()).unwrap()
}

/// How both ends saw one attempt. In TLS 1.3 the dialler is done first and hears of a refusal on
/// the connection afterwards, so its side is asked for the connection's end.
async fn attempt(dialler: &Endpoint, listener: &Endpoint) -> [Result<PeerIdentity, String>; 2] {
    let dial = async {
        let connecting = dialler.dial(listener.local_addr(), Purpose::Control).unwrap();
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let identity = peer_identity(&connection).unwrap();
        // The listener sends one stream if it is content.
        match connection.accept_uni().await {
            Ok(_) => Ok(identity),
            Err(error) => Err(error.to_string()),
        }
    };
    let accept = async {
        let connection = async { listener.begin(listener.accept().await.unwrap())?.await }
            .await
            .map_err(|e: ConnectionError| e.to_string())?;
        let identity = peer_identity(&connection).unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(b"welcome").await.unwrap();
        let _ = stream.finish();
        let closed = connection.closed().await;
        assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed}");
        Ok(identity)
    };
    tokio::join!(dial, accept).into()
}

fn refused(attempt: [Result<PeerIdentity, String>; 2]) -> String {
    let [dialled, accepted] = attempt;
    format!("{} | {}", dialled.unwrap_err(), accepted.unwrap_err())
}

#[tokio::test]
async fn two_nodes_of_one_authority_connect_and_see_who_the_other_is() {
    let authority = authority();
    let (a, b) = (endpoint(&authority, 0xa), endpoint(&authority, 0xb));
    let [dialled, accepted] = attempt(&a, &b).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!((dialled.node, dialled.role), (NodeId(0xb), Role::Node));
    assert_eq!((accepted.node, accepted.role), (NodeId(0xa), Role::Node));
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_by_both_ends() {
    let (ours, theirs) = (authority(), authority());
    let (a, b) = (endpoint(&ours, 1), endpoint(&theirs, 2));
    // The dialler sees the listener's certificate first.
    let why = refused(attempt(&a, &b).await);
    assert!(why.contains("certificate"), "{why}");

    // A dialler that believes the listener is refused by it.
    let mut mixed = theirs.issue(NodeId(1), Role::Node, LIFE, today()).unwrap();
    mixed.anchor = ours.anchor().clone();
    let a = endpoint_with(&mixed, settings("footlight/1", today()));
    let why = refused(attempt(&a, &endpoint(&ours, 2)).await);
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_end() {
    let authority = authority();
    let old = authority.issue(NodeId(1), Role::Node, LIFE, today()).unwrap();
    let new = authority.issue(NodeId(2), Role::Node, LIFE, days_from_now(2)).unwrap();
    let later = || settings("footlight/1", days_from_now(2));
    let (expired, valid) = (endpoint_with(&old, later()), endpoint_with(&new, later()));
    for (dialler, listener) in [(&expired, &valid), (&valid, &expired)] {
        let why = refused(attempt(dialler, listener).await);
        assert!(why.contains("expired"), "{why}");
    }
    let [dialled, accepted] = attempt(&valid, &endpoint_with(&new, later())).await;
    assert!(dialled.is_ok() && accepted.is_ok());
}

/// A client that shows no certificate and offers these protocols.
async fn stranger(
    authority: &Authority,
    listener: &Endpoint,
    offered: &[&str],
) -> [Result<quinn::Connection, ConnectionError>; 2] {
    let settings = settings("footlight/1", today());
    let verifier = ClusterVerifier::new(authority.anchor(), &settings).unwrap();
    let mut config = client_builder(&settings, verifier).unwrap().with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    dial_with(Arc::new(QuicClientConfig::try_from(config).unwrap()), listener).await
}

async fn dial_with(
    client: Arc<QuicClientConfig>,
    listener: &Endpoint,
) -> [Result<quinn::Connection, ConnectionError>; 2] {
    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut endpoint_config = quinn::EndpointConfig::default();
    endpoint_config.max_udp_payload_size(9000).unwrap();
    let dialler = quinn::Endpoint::new(endpoint_config, None, socket, runtime).unwrap();
    let dial = async {
        let client = quinn::ClientConfig::new(client);
        let connecting = dialler.connect_with(client, listener.local_addr(), ANY_NODE).unwrap();
        let connection = connecting.await?;
        // The dialler is done before the listener is: a refusal comes afterwards.
        connection.accept_uni().await.map(|_| connection)
    };
    let accept = async {
        let connection = listener.begin(listener.accept().await.unwrap())?.await?;
        connection.open_uni().await?.write_all(b"welcome").await.unwrap();
        Ok(connection)
    };
    tokio::join!(dial, accept).into()
}

#[tokio::test]
async fn a_dialler_without_a_certificate_is_refused_whatever_else_it_offers() {
    let authority = authority();
    let listener = endpoint(&authority, 2);
    let offers: [&[&str]; 3] = [
        &["footlight/1"],
        &["footlight/1-join", "footlight/1"],
        &["footlight/1", "footlight/1-join"],
    ];
    for offered in offers {
        let [dialled, accepted] = stranger(&authority, &listener, offered).await;
        let dialled = dialled.unwrap_err();
        // 116 is TLS's certificate_required: nothing of it was read.
        let ConnectionError::ConnectionClosed(close) = &dialled else { panic!("{dialled}") };
        assert_eq!(close.error_code, TransportErrorCode::crypto(116), "{offered:?}");
        assert_eq!(refusal(&dialled), Some(Refusal::Certificate));
        assert_eq!(refusal(&accepted.unwrap_err()), Some(Refusal::Certificate));
    }
    // No protocol at all, or another one.
    for offered in [&[][..], &["h3"]] {
        let [dialled, accepted] = stranger(&authority, &listener, offered).await;
        assert!(dialled.is_err() && accepted.is_err(), "{offered:?}");
    }
}

#[tokio::test]
async fn a_joiner_needs_no_certificate_and_both_ends_know_that_it_is_one() {
    let authority = authority();
    let listener = endpoint(&authority, 2);
    for connection in stranger(&authority, &listener, &["footlight/1-join"]).await {
        let connection = connection.unwrap();
        assert_eq!(protocol(&connection).unwrap(), b"footlight/1-join");
    }
    // Where nobody can join, a joiner is a stranger.
    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    let credentials = authority.issue(NodeId(3), Role::Node, LIFE, today()).unwrap();
    let bulk = EndpointSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        purpose: Purpose::Bulk,
        congestion: Congestion::default(),
        seed: [1; 32],
        credentials: &credentials,
        tls: settings("footlight/1", today()),
    };
    let bulk = Endpoint::bind(bulk, &SystemSockets::new(), runtime).unwrap();
    let [dialled, _] = stranger(&authority, &bulk, &["footlight/1-join"]).await;
    assert!(dialled.is_err());
}

#[tokio::test]
async fn a_joiner_believes_only_the_authority_that_its_token_names() {
    let (ours, theirs) = (authority(), authority());
    let listener = endpoint(&ours, 2);
    let client = |hash| joining_client(hash, &settings("footlight/1", today())).unwrap();
    let [dialled, _] = dial_with(client(ours.anchor().hash()), &listener).await;
    assert!(dialled.is_ok());
    let [dialled, accepted] = dial_with(client(theirs.anchor().hash()), &listener).await;
    for error in [dialled.unwrap_err(), accepted.unwrap_err()] {
        assert_eq!(refusal(&error), Some(Refusal::Certificate), "{error}");
    }
}

#[tokio::test]
async fn a_revoked_node_is_refused_by_either_end_and_told_so() {
    let authority = authority();
    let (revoked, other) = (endpoint(&authority, 1), endpoint(&authority, 2));
    other.tls().revoked.insert(NodeId(1));
    for (dialler, listener) in [(&revoked, &other), (&other, &revoked)] {
        let [dialled, accepted] = attempt(dialler, listener).await;
        let told = [dialled.unwrap_err(), accepted.unwrap_err()].concat();
        assert!(told.contains("Revoked") || told.contains("44"), "{told}");
    }
    other.tls().revoked.remove(NodeId(1));
    assert!(attempt(&revoked, &other).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_newer_certificate_counts_on_the_connection_it_was_shown_on_and_no_other() {
    let authority = authority();
    let key = NodeKey::generate().unwrap();
    let life = |days: u64| Duration::from_secs(days * 24 * 3600);
    let certified = |key: &NodeKey, days| {
        let certificate =
            authority.certify(key.public(), key.node(), Role::Worker, life(days), today());
        Credentials::new(key, certificate.unwrap(), authority.anchor().clone()).unwrap()
    };
    let settings = settings("footlight/1", today());
    let (old, new) = (certified(&key, 1), certified(&key, 2));
    let listener = endpoint(&authority, 2);
    let connect = async |shown| {
        let [dialled, accepted] = dial_with(client(shown, &settings).unwrap(), &listener).await;
        (dialled.unwrap(), accepted.unwrap())
    };
    let (dialled, accepted) = connect(&old).await;
    let (_other_dialled, other) = connect(&old).await;

    let shown = Shown::new(&new, &dialled, &settings).unwrap();
    let identity = shown.verify(authority.anchor(), &accepted, &settings).unwrap();
    assert_eq!((identity.node, identity.role), (key.node(), Role::Worker));
    assert_eq!(identity.expires, new.identity().expires);
    assert!(identity.expires > peer_identity(&accepted).unwrap().expires);
    // Whoever heard it can't use it elsewhere.
    assert!(shown.verify(authority.anchor(), &other, &settings).is_err());
    // Nor does a certificate count whose key the peer does not have, or of another authority, or one
    // that has ended, or of a node that was revoked.
    let stolen = Shown {
        certificate: certified(&NodeKey::generate().unwrap(), 2).certificate.to_vec(),
        ..shown.clone()
    };
    assert!(stolen.verify(authority.anchor(), &accepted, &settings).is_err());
    let foreign = super::tests::authority();
    assert!(shown.verify(foreign.anchor(), &accepted, &settings).is_err());
    let later = TlsSettings { clock: Arc::new(FixedClock(days_from_now(3))), ..settings.clone() };
    assert!(shown.verify(authority.anchor(), &accepted, &later).is_err());
    settings.revoked.insert(key.node());
    assert!(shown.verify(authority.anchor(), &accepted, &settings).is_err());
}

#[tokio::test]
async fn a_certificate_of_the_authority_that_names_no_node_is_refused() {
    let authority = authority();
    let mut nameless = authority.issue(NodeId(1), Role::Node, LIFE, today()).unwrap();
    // Node 0 is no node.
    let key = NodeKey::generate().unwrap();
    let zero = authority.certify(key.public(), NodeId(0), Role::Node, LIFE, today()).unwrap();
    (nameless.certificate, nameless.key) =
        (zero, PrivateKeyDer::Pkcs8(key.public().serialize_der().into()));
    let nameless = endpoint_with(&nameless, settings("footlight/1", today()));
    refused(attempt(&nameless, &endpoint(&authority, 2)).await);
    refused(attempt(&endpoint(&authority, 2), &nameless).await);
}

#[tokio::test]
async fn ends_that_speak_other_protocol_versions_refuse_each_other_by_name() {
    let authority = authority();
    let credentials = authority.issue(NodeId(1), Role::Node, LIFE, today()).unwrap();
    let newer = endpoint_with(&credentials, settings("footlight/2", today()));
    let older = endpoint(&authority, 2);
    refused(attempt(&newer, &older).await);
    let dial = async { newer.dial(older.local_addr(), Purpose::Control).unwrap().await };
    let accept = async { older.begin(older.accept().await.unwrap())?.await };
    let (dialled, accepted) = tokio::join!(dial, accept);
    for error in [dialled.unwrap_err(), accepted.unwrap_err()] {
        assert_eq!(refusal(&error), Some(Refusal::ProtocolVersion), "{error}");
    }
}
