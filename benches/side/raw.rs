//! The limit: the same work on bare quinn with the transport's own settings.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use footlight_cluster::transport::{
    endpoint::{Congestion, PathKind, Purpose, transport_config},
    socket::{NodeRuntime, Sockets, SystemSockets},
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{
    Outcome, Work, measure, raw_behind,
    raw_step::{self, Steps},
    ready, until_stdin_ends,
};

const ECHO: usize = 64;
const CAST: usize = 100;
const TENSOR: usize = 100 << 20;

/// One side's part of a work.
///
/// # Errors
/// What went wrong with it.
pub fn run(work: Work, rank: u8, addr: SocketAddr) -> anyhow::Result<Outcome> {
    let step = raw_step::format(work);
    let is_other = matches!(
        work,
        Work::CallRtt | Work::CastsPerSecond | Work::TensorPut100mib | Work::CallBehindBulkP99
    );
    if step.is_none() && !is_other {
        return Ok(Outcome::Cannot);
    }
    // One thread a side is what bare quinn is fastest with on two cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if work == Work::CallBehindBulkP99 {
            return match rank {
                0 => raw_behind::serve(addr).await.map(|()| Outcome::Served),
                _ => raw_behind::measure(addr).await.map(Outcome::Value),
            };
        }
        let purpose = purpose(work);
        if rank == 0 {
            let endpoint = endpoint(addr, purpose)?;
            ready();
            let serve = async {
                let incoming = endpoint.accept().await.context("the endpoint has closed")?;
                let connection = incoming.await?;
                match (step, work) {
                    (Some(format), _) => Steps::new(&connection, format, 0).serve().await,
                    (_, Work::CallRtt) => echo(&connection).await,
                    (_, Work::CastsPerSecond) => count(&connection).await,
                    _ => take_tensors(&connection).await,
                }
            };
            tokio::select! {
                served = serve => served?,
                () = until_stdin_ends() => return Ok(Outcome::Served),
            }
            until_stdin_ends().await;
            return Ok(Outcome::Served);
        }
        let (endpoint, connection) = connect(addr, purpose).await?;
        let value = match (step, work) {
            (Some(format), _) => Steps::new(&connection, format, 1).measure().await?,
            (_, Work::CallRtt) => round_trips(&connection).await?,
            (_, Work::CastsPerSecond) => casts(&connection).await?,
            _ => put_tensors(&connection).await?,
        };
        connection.close(0u32.into(), b"done");
        endpoint.wait_idle().await;
        Ok(Outcome::Value(value))
    })
}

fn purpose(work: Work) -> Purpose {
    match work {
        Work::CallRtt | Work::CastsPerSecond => Purpose::Control,
        _ => Purpose::Bulk,
    }
}

/// The address that a client has towards `addr`: any on its own host's interfaces, but loopback for loopback.
fn local(addr: SocketAddr) -> SocketAddr {
    match addr.ip().is_loopback() {
        true => ([127, 0, 0, 1], 0).into(),
        false => ([0, 0, 0, 0], 0).into(),
    }
}

pub(crate) async fn connect(
    addr: SocketAddr,
    purpose: Purpose,
) -> anyhow::Result<(quinn::Endpoint, quinn::Connection)> {
    let endpoint = endpoint(local(addr), purpose)?;
    let connection = endpoint.connect_with(client(addr, purpose)?, addr, "bench")?.await?;
    Ok((endpoint, connection))
}

/// This side of a connection whose other side does rank 0's part of a work.
#[derive(Debug)]
pub struct Client {
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Client {
    /// Connects with the other side at `addr`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connect(work: Work, addr: SocketAddr) -> anyhow::Result<Self> {
        let (endpoint, connection) = connect(addr, purpose(work)).await?;
        Ok(Client { _endpoint: endpoint, connection })
    }

    /// So many round trips of so many bytes, one after the other (`Work::CallRtt`).
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn echoes(&self, count: u64, bytes: usize) -> anyhow::Result<Duration> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        let mut message = vec![7; bytes];
        let began = Instant::now();
        for _ in 0..count {
            send.write_all(&message).await?;
            recv.read_exact(&mut message).await?;
        }
        Ok(began.elapsed())
    }

    /// So many round trips of so many bytes, of which `in_flight` are under way (`Work::CallRtt`).
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn echoes_at_once(
        &self,
        count: u64,
        bytes: usize,
        in_flight: usize,
    ) -> anyhow::Result<Duration> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        let messages = vec![7; bytes * in_flight];
        let all = count as usize * bytes;
        let (mut sent, mut back) = (0, 0);
        let began = Instant::now();
        while back < all {
            let room = all.min(back + messages.len()) - sent;
            send.write_all(&messages[..room]).await?;
            sent += room;
            let chunk = recv.read_chunk(usize::MAX, true).await?;
            back += chunk.context("the other side has ended")?.bytes.len();
        }
        Ok(began.elapsed())
    }

    /// So many frames of 100 bytes one way (`Work::CastsPerSecond`).
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn casts(&self, count: u64) -> anyhow::Result<Duration> {
        let frames = Bytes::from(vec![3; CAST * BATCH]);
        let began = Instant::now();
        let (mut send, mut recv) = self.connection.open_bi().await?;
        let feed = async move {
            let mut left = count as usize * CAST;
            while left > 0 {
                let piece = frames.slice(..left.min(frames.len()));
                left -= piece.len();
                send.write_chunk(piece).await?;
            }
            send.finish()?;
            anyhow::Ok(())
        };
        let told = async move {
            let mut frames = [0; 8];
            let mut arrived = 0;
            while recv.read_exact(&mut frames).await.is_ok() {
                arrived = u64::from_le_bytes(frames);
            }
            anyhow::ensure!(arrived == count, "{arrived} of {count} frames came");
            Ok(())
        };
        tokio::try_join!(feed, told)?;
        Ok(began.elapsed())
    }

    /// Puts a tensor so often, one after the other (`Work::TensorPut100mib`).
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn puts(&self, count: u64, tensor: &Bytes) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for _ in 0..count {
            put(&self.connection, tensor.clone()).await?;
        }
        Ok(began.elapsed())
    }
}

pub(crate) async fn echo(connection: &quinn::Connection) -> anyhow::Result<()> {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            send.write_chunk(chunk.bytes).await?;
        }
    }
    Ok(())
}

async fn round_trips(connection: &quinn::Connection) -> anyhow::Result<f64> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut message = [7; ECHO];
    let mut samples = Vec::new();
    for round in 0..WARM_CALLS + CALLS {
        let began = Instant::now();
        send.write_all(&message).await?;
        recv.read_exact(&mut message).await?;
        if round >= WARM_CALLS {
            samples.push(began.elapsed());
        }
    }
    Ok(measure::us(measure::percentile(&mut samples, 0.5)))
}

/// Calls before the first that counts, and those that count.
pub(crate) const WARM_CALLS: usize = 2_000;
pub(crate) const CALLS: usize = 10_000;

/// How long a rate is measured, after a warm-up of a fifth.
pub(crate) const RATE_FOR: Duration = Duration::from_secs(2);

/// Frames written at once.
const BATCH: usize = 256;

async fn count(connection: &quinn::Connection) -> anyhow::Result<()> {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let mut read = 0u64;
        // Every so many frames are acknowledged, and the last: the sender measures what has arrived.
        let mut told = 0;
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            read += chunk.bytes.len() as u64;
            let frames = read / CAST as u64;
            if frames - told >= 10_000 {
                told = frames;
                send.write_all(&frames.to_le_bytes()).await?;
            }
        }
        send.write_all(&(read / CAST as u64).to_le_bytes()).await?;
        send.finish()?;
    }
    Ok(())
}

async fn casts(connection: &quinn::Connection) -> anyhow::Result<f64> {
    let (mut send, mut recv) = connection.open_bi().await?;
    // Frames that lie one behind the other in one buffer: pieces would be slower.
    let frames = Bytes::from(vec![3; CAST * BATCH]);
    let feed = async move { while send.write_chunk(frames.clone()).await.is_ok() {} };
    let watch = async {
        let mut frames = [0; 8];
        let mut begun: Option<(Instant, u64)> = None;
        let start = Instant::now();
        loop {
            recv.read_exact(&mut frames).await?;
            let arrived = u64::from_le_bytes(frames);
            match begun {
                None if start.elapsed() > RATE_FOR / 5 => begun = Some((Instant::now(), arrived)),
                Some((since, before)) if since.elapsed() > RATE_FOR => {
                    return Ok((arrived - before) as f64 / since.elapsed().as_secs_f64());
                }
                _ => {}
            }
        }
    };
    tokio::select! {
        rate = watch => rate,
        () = feed => bail!("the connection ended"),
    }
}

/// Puts of one tensor before the first that counts, and those that count.
pub(crate) const WARM_PUTS: usize = 3;
pub(crate) const PUTS: usize = 12;

pub(crate) async fn take_tensors(connection: &quinn::Connection) -> anyhow::Result<()> {
    let mut destination = vec![0u8; TENSOR];
    loop {
        let Ok(mut stream) = connection.accept_uni().await else { return Ok(()) };
        let mut filled = 0;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
            let end = filled + chunk.bytes.len();
            if end > destination.len() {
                destination.resize(2 * end, 0);
            }
            destination[filled..end].copy_from_slice(&chunk.bytes);
            filled = end;
        }
        let mut answer = connection.open_uni().await?;
        answer.write_all(&[1]).await?;
        answer.finish()?;
    }
}

/// Puts one tensor and waits until it is there.
pub(crate) async fn put(connection: &quinn::Connection, tensor: Bytes) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    stream.write_chunk(tensor).await?;
    stream.finish()?;
    connection.accept_uni().await?.read_to_end(1).await?;
    Ok(())
}

async fn put_tensors(connection: &quinn::Connection) -> anyhow::Result<f64> {
    let tensor = Bytes::from(vec![5; TENSOR]);
    let mut samples = Vec::new();
    for round in 0..WARM_PUTS + PUTS {
        let began = Instant::now();
        put(connection, tensor.clone()).await?;
        if round >= WARM_PUTS {
            samples.push(began.elapsed());
        }
    }
    let median = measure::percentile(&mut samples, 0.5);
    Ok(TENSOR as f64 / median.as_secs_f64() / 1e9)
}

/// The transport as the nodes have it.
fn settings(addr: &SocketAddr, purpose: Purpose) -> Arc<quinn::TransportConfig> {
    Arc::new(transport_config(PathKind::between(addr, addr), purpose, Congestion::default()))
}

/// TLS as the nodes have it, with a certificate that the client takes on trust: the handshake is not
/// measured.
pub(crate) fn endpoint(addr: SocketAddr, purpose: Purpose) -> anyhow::Result<quinn::Endpoint> {
    let issued = rcgen::generate_simple_self_signed(vec!["bench".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
    let certificate = CertificateDer::from(issued.cert);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())?;
    tls.max_early_data_size = 0;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(settings(&addr, purpose));
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(purpose.largest_payload())?;
    let runtime = Arc::new(NodeRuntime::new(tokio::runtime::Handle::current()));
    let socket = purpose.socket(SystemSockets::new().bind(addr, &*runtime)?);
    Ok(quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?)
}

fn client(addr: SocketAddr, purpose: Purpose) -> anyhow::Result<quinn::ClientConfig> {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(settings(&addr, purpose));
    Ok(client)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(footlight_cluster::trust::tls::crypto_provider())
}

/// Takes any certificate: both ends of this connection are this program.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
