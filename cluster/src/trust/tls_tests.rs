//! Handshakes over real quinn endpoints on loopback.

use std::time::Duration;

use footlight_runtime::id::NodeId;
use quinn::{ConnectionError, TransportErrorCode};
use rustls::time_provider::DefaultTimeProvider;
use tokio::runtime::Handle;

use super::*;
use crate::{
    transport::{
        endpoint::{Endpoint, EndpointSettings, Purpose},
        socket::{NodeRuntime, SystemSockets},
    },
    trust::{Authority, PeerIdentity, Role, peer_identity},
};

#[derive(Debug)]
struct FixedClock(UnixTime);

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

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
    }
}

fn endpoint_with(credentials: &Credentials, tls: TlsSettings) -> Endpoint {
    let settings = EndpointSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        purpose: Purpose::Control,
        seed: [1; 32],
        credentials,
        tls,
    };
    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    Endpoint::bind(settings, &SystemSockets::new(), runtime).unwrap()
}

fn endpoint(authority: &Authority, node: u64) -> Endpoint {
    let credentials = authority.issue(NodeId(node), Role::Node, today()).unwrap();
    endpoint_with(&credentials, settings("footlight/1", today()))
}

fn authority() -> Authority {
    Authority::mint(today()).unwrap().0
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
        let connection = listener.accept().await.unwrap().await.map_err(|e| e.to_string())?;
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
    assert_eq!(dialled.unwrap(), PeerIdentity { node: NodeId(0xb), role: Role::Node });
    assert_eq!(accepted.unwrap(), PeerIdentity { node: NodeId(0xa), role: Role::Node });
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_by_both_ends() {
    let (ours, theirs) = (authority(), authority());
    let (a, b) = (endpoint(&ours, 1), endpoint(&theirs, 2));
    // The dialler sees the listener's certificate first.
    let why = refused(attempt(&a, &b).await);
    assert!(why.contains("certificate"), "{why}");

    // A dialler that believes the listener is refused by it.
    let mut mixed = theirs.issue(NodeId(1), Role::Node, today()).unwrap();
    mixed.roots = ours.issue(NodeId(9), Role::Node, today()).unwrap().roots;
    let a = endpoint_with(&mixed, settings("footlight/1", today()));
    let why = refused(attempt(&a, &endpoint(&ours, 2)).await);
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_end() {
    let authority = authority();
    let old = authority.issue(NodeId(1), Role::Node, today()).unwrap();
    let new = authority.issue(NodeId(2), Role::Node, days_from_now(91)).unwrap();
    let later = || settings("footlight/1", days_from_now(91));
    let (expired, valid) = (endpoint_with(&old, later()), endpoint_with(&new, later()));
    for (dialler, listener) in [(&expired, &valid), (&valid, &expired)] {
        let why = refused(attempt(dialler, listener).await);
        assert!(why.contains("expired"), "{why}");
    }
    let [dialled, accepted] = attempt(&valid, &endpoint_with(&new, later())).await;
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn a_dialler_without_a_certificate_is_refused() {
    let authority = authority();
    let listener = endpoint(&authority, 2);
    let credentials = authority.issue(NodeId(1), Role::Node, today()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(
            ClusterVerifier::new(&credentials, &settings("footlight/1", today())).unwrap(),
        )
        .with_no_client_auth();
    config.alpn_protocols = vec![b"footlight/1".to_vec()];
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));

    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut endpoint_config = quinn::EndpointConfig::default();
    endpoint_config.max_udp_payload_size(9000).unwrap();
    let stranger = quinn::Endpoint::new(endpoint_config, None, socket, runtime).unwrap();
    let dial = async {
        let connecting = stranger.connect_with(client, listener.local_addr(), ANY_NODE).unwrap();
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let accept = async { listener.accept().await.unwrap().await };
    let (dialled, accepted) = tokio::join!(dial, accept);
    // 116 is TLS's certificate_required.
    let ConnectionError::ConnectionClosed(close) = &dialled else { panic!("{dialled}") };
    assert_eq!(close.error_code, TransportErrorCode::crypto(116));
    assert_eq!(refusal(&dialled), Some(Refusal::Certificate));
    assert_eq!(refusal(&accepted.unwrap_err()), Some(Refusal::Certificate));
}

#[tokio::test]
async fn a_certificate_of_the_authority_that_names_no_node_is_refused() {
    let authority = authority();
    let mut nameless = authority.issue(NodeId(1), Role::Node, today()).unwrap();
    // Node 0 is no node.
    let zero = authority.issue(NodeId(0), Role::Node, today()).unwrap();
    (nameless.certificate, nameless.key) = (zero.certificate, zero.key);
    let nameless = endpoint_with(&nameless, settings("footlight/1", today()));
    refused(attempt(&nameless, &endpoint(&authority, 2)).await);
    refused(attempt(&endpoint(&authority, 2), &nameless).await);
}

#[tokio::test]
async fn ends_that_speak_other_protocol_versions_refuse_each_other_by_name() {
    let authority = authority();
    let credentials = authority.issue(NodeId(1), Role::Node, today()).unwrap();
    let newer = endpoint_with(&credentials, settings("footlight/2", today()));
    let older = endpoint(&authority, 2);
    refused(attempt(&newer, &older).await);
    let dial = async { newer.dial(older.local_addr(), Purpose::Control).unwrap().await };
    let accept = async { older.accept().await.unwrap().await };
    let (dialled, accepted) = tokio::join!(dial, accept);
    for error in [dialled.unwrap_err(), accepted.unwrap_err()] {
        assert_eq!(refusal(&error), Some(Refusal::ProtocolVersion), "{error}");
    }
}
