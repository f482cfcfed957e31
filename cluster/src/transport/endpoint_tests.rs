use std::time::Instant;

use footlight_runtime::id::NodeId;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use tokio::runtime::Handle;

use super::*;
use crate::{
    transport::socket::{NodeRuntime, SystemSockets},
    trust::{Authority, CERTIFICATE_LIFE, Role, peer_identity, tls::TlsSettings},
};

fn endpoint(authority: &Authority, node: u64, listen: &str, purpose: Purpose) -> Endpoint {
    endpoint_with(Congestion::default(), authority, node, listen, purpose)
}

fn endpoint_with(
    congestion: Congestion,
    authority: &Authority,
    node: u64,
    listen: &str,
    purpose: Purpose,
) -> Endpoint {
    let clock = Arc::new(DefaultTimeProvider);
    let now = clock.current_time().unwrap();
    let settings = EndpointSettings {
        listen: listen.parse().unwrap(),
        purpose,
        congestion,
        seed: [node as u8; 32],
        credentials: &authority.issue(NodeId(node), Role::Node, CERTIFICATE_LIFE, now).unwrap(),
        tls: TlsSettings {
            alpn: b"footlight/test".to_vec(),
            provider: Arc::new(tls::crypto_provider()),
            clock,
            revoked: Arc::default(),
        },
    };
    let runtime = Arc::new(NodeRuntime::new(Handle::current()));
    Endpoint::bind(settings, &SystemSockets::new(), runtime).unwrap()
}

fn authority() -> Authority {
    Authority::mint(DefaultTimeProvider.current_time().unwrap()).unwrap()
}

async fn connect(
    from: &Endpoint,
    to: &Endpoint,
    addr: SocketAddr,
    purpose: Purpose,
) -> (quinn::Connection, quinn::Connection) {
    let dialled = async { from.dial(addr, purpose).unwrap().await.unwrap() };
    let accepted = async {
        let accepted = to.begin(to.accept().await.unwrap()).unwrap().await.unwrap();
        trust_peer(&accepted, purpose);
        accepted
    };
    tokio::join!(dialled, accepted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_whole_over_loopback() {
    sixty_four_mebibytes_arrive_whole(Congestion::Cubic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_do_with_bbr() {
    sixty_four_mebibytes_arrive_whole(Congestion::Bbr).await;
}

async fn sixty_four_mebibytes_arrive_whole(congestion: Congestion) {
    const SIZE: usize = 64 << 20;
    let authority = authority();
    let a = endpoint_with(congestion, &authority, 1, "127.0.0.1:0", Purpose::Bulk);
    let b = endpoint_with(congestion, &authority, 2, "127.0.0.1:0", Purpose::Bulk);
    let (dialled, accepted) = connect(&a, &b, b.local_addr(), Purpose::Bulk).await;

    let mut content = vec![0; SIZE];
    ChaCha12Rng::from_seed([7; 32]).fill_bytes(&mut content);
    let content = bytes::Bytes::from(content);
    let sent = content.clone();
    let start = Instant::now();
    let send = tokio::spawn(async move {
        let mut stream = dialled.open_uni().await.unwrap();
        stream.write_chunk(sent).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
        dialled
    });
    let mut stream = accepted.accept_uni().await.unwrap();
    let mut arrived = Vec::with_capacity(SIZE);
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
        arrived.extend_from_slice(&chunk.bytes);
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(arrived == content, "the content differs");
    let dialled = send.await.unwrap();
    let path = dialled.stats().path;
    println!(
        "{:.2} Gbit/s, packets of {} bytes, {} of {} lost",
        SIZE as f64 * 8.0 / seconds / 1e9,
        path.current_mtu,
        path.lost_packets,
        path.sent_packets,
    );
    assert_eq!(path.current_mtu, LARGE_PAYLOAD);
}

#[tokio::test]
async fn a_loopback_dialler_reaches_a_wildcard_listener_with_large_packets() {
    let authority = authority();
    let a = endpoint(&authority, 1, "127.0.0.1:0", Purpose::Control);
    let b = endpoint(&authority, 2, "0.0.0.0:0", Purpose::Control);
    let addr = SocketAddr::from(([127, 0, 0, 1], b.local_addr().port()));
    let (dialled, accepted) = connect(&a, &b, addr, Purpose::Control).await;
    assert_eq!(peer_identity(&dialled).unwrap().node, NodeId(2));
    assert_eq!(peer_identity(&accepted).unwrap().node, NodeId(1));
    // Membership's packets fit into a datagram from the first moment, both ways.
    for connection in [&dialled, &accepted] {
        let largest = connection.max_datagram_size().unwrap();
        assert!(largest >= crate::membership::MAX_PACKET, "{largest}");
    }
}

#[tokio::test]
async fn a_bulk_connection_takes_no_datagrams() {
    let authority = authority();
    let a = endpoint(&authority, 1, "127.0.0.1:0", Purpose::Bulk);
    let b = endpoint(&authority, 2, "127.0.0.1:0", Purpose::Bulk);
    let (dialled, _accepted) = connect(&a, &b, b.local_addr(), Purpose::Bulk).await;
    assert_eq!(dialled.max_datagram_size(), None);
}

#[tokio::test]
async fn new_credentials_are_shown_from_the_next_connection_on() {
    let authority = authority();
    let a = endpoint(&authority, 1, "127.0.0.1:0", Purpose::Control);
    let b = endpoint(&authority, 2, "127.0.0.1:0", Purpose::Control);
    let now = DefaultTimeProvider.current_time().unwrap();
    let (before, _kept) = connect(&a, &b, b.local_addr(), Purpose::Control).await;
    b.set_credentials(&authority.issue(NodeId(2), Role::Server, CERTIFICATE_LIFE, now).unwrap())
        .unwrap();
    let (after, _kept) = connect(&a, &b, b.local_addr(), Purpose::Control).await;
    assert_eq!(peer_identity(&before).unwrap().role, Role::Node);
    assert_eq!(peer_identity(&after).unwrap().role, Role::Server);
    assert!(before.close_reason().is_none());
}

#[tokio::test]
async fn an_address_that_cannot_be_dialled_is_an_error_at_once() {
    let a = endpoint(&authority(), 1, "127.0.0.1:0", Purpose::Control);
    for peer in ["[::1]:7400", "127.0.0.1:0"] {
        let error = a.dial(peer.parse().unwrap(), Purpose::Control).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot dial {peer}")), "{error}");
    }
}
