//! TLS settings of both ends: 1.3 only, both show a certificate of the cluster, nothing is resumed.
//!
//! One exception is made for those who want to join: who offers the joiners' protocol (ALPN) and no
//! other need not show a certificate, and gets to see the authority's. That is decided for each
//! handshake from its first message; whoever then speaks another protocol, or none, is refused
//! within TLS (alert 116, `certificate_required`), before a byte of it is read.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use quinn::{
    ConnectionError, TransportErrorCode,
    crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use serde::{Deserialize, Serialize};

use super::{
    Anchor, Credentials, PeerIdentity, TrustError,
    peer::{identity_in, public_key_in},
    revoked::Revoked,
    token::AuthorityHash,
};

/// What a dialler gives as the server's name: any node of the cluster.
///
/// A seed is known by its address only, so the handshake can't ask for one node. It verifies that
/// the other end is a member; [`super::peer_identity`] then tells which.
pub const ANY_NODE: &str = "any.node.footlight";

/// What both ends of a connection have in common.
#[derive(Clone)]
pub struct TlsSettings {
    /// The protocol and its major version, such as `footlight/1`. Ends that don't agree on one
    /// refuse each other in the handshake (TLS alert 120, `no_application_protocol`). Joiners speak
    /// the same with `-join` behind it.
    pub alpn: Vec<u8>,
    /// The cryptography: [`crypto_provider`], or a simulation's own.
    pub provider: Arc<CryptoProvider>,
    /// The wall clock that certificates are judged by.
    pub clock: Arc<dyn TimeProvider>,
    /// Nodes whose certificates count no more.
    pub revoked: Arc<Revoked>,
}

impl TlsSettings {
    /// The protocol of those who want to join, or to have their certificate renewed.
    pub fn join_alpn(&self) -> Vec<u8> {
        [self.alpn.as_slice(), b"-join"].concat()
    }
}

/// ring, with AES-128-GCM first: the fastest of the three on processors with AES instructions, and
/// the one that QUIC needs for its first packets anyway.
pub fn crypto_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let first = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    provider
}

/// The TLS side of an endpoint that accepts connections: makes the settings of each handshake.
pub struct Gatekeeper {
    settings: TlsSettings,
    verifier: Arc<ClusterVerifier>,
    /// What members get to see.
    leaf: Arc<CertifiedKey>,
    /// What joiners get to see: they know the authority by its hash only.
    chain: Arc<CertifiedKey>,
}

impl Gatekeeper {
    /// Settings that show these credentials.
    ///
    /// # Errors
    /// [`TrustError::Tls`] if the provider can't use the credentials.
    pub fn new(credentials: &Credentials, settings: &TlsSettings) -> Result<Self, TrustError> {
        let verifier = ClusterVerifier::new(&credentials.anchor, settings)?;
        let leaf = credentials.certificate.clone();
        let chain = vec![leaf.clone(), credentials.anchor.der().clone()];
        let shown = |chain| {
            let key = credentials.key.clone_key();
            CertifiedKey::from_der(chain, key, &settings.provider).map(Arc::new)
        };
        let (leaf, chain) = (shown(vec![leaf])?, shown(chain)?);
        Ok(Self { settings: settings.clone(), verifier, leaf, chain })
    }

    /// For members only; may be used for any number of handshakes.
    ///
    /// # Errors
    /// [`TrustError::Tls`] if the provider can't do TLS 1.3.
    pub fn members(&self) -> Result<Arc<QuicServerConfig>, TrustError> {
        self.config(None)
    }

    /// For members and joiners, and for one handshake: whether a certificate is demanded of the
    /// client depends on the protocol that it offers.
    ///
    /// # Errors
    /// As [`members`](Self::members).
    pub fn anybody(&self) -> Result<Arc<QuicServerConfig>, TrustError> {
        self.config(Some(Arc::default()))
    }

    fn config(&self, gate: Option<Arc<AtomicBool>>) -> Result<Arc<QuicServerConfig>, TrustError> {
        let TlsSettings { alpn, provider, clock, .. } = &self.settings;
        let join = self.settings.join_alpn();
        let mut protocols = vec![alpn.clone()];
        if gate.is_some() {
            protocols.push(join.clone());
        }
        let builder = ServerConfig::builder_with_details(provider.clone(), clock.clone())
            .with_protocol_versions(&[&TLS13])?;
        let (leaf, chain) = (self.leaf.clone(), self.chain.clone());
        let mut config = match gate {
            None => builder
                .with_client_cert_verifier(self.verifier.clone())
                .with_cert_resolver(Arc::new(Resolver { leaf, join: None })),
            Some(joins) => builder
                .with_client_cert_verifier(Arc::new(Asked {
                    members: self.verifier.clone(),
                    joins: joins.clone(),
                }))
                .with_cert_resolver(Arc::new(Resolver { leaf, join: Some((join, chain, joins)) })),
        };
        config.alpn_protocols = protocols;
        // A resumed session would skip the certificate, and so outlive it.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(QuicServerConfig::try_from(config).map_err(no_initial_suite)?))
    }
}

/// Chooses what is shown, and notes whether the other end is a joiner.
struct Resolver {
    leaf: Arc<CertifiedKey>,
    join: Option<(Vec<u8>, Arc<CertifiedKey>, Arc<AtomicBool>)>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some((join, chain, joins)) = &self.join else { return Some(self.leaf.clone()) };
        // It must offer nothing else: then nothing else can come of the negotiation.
        let mut offered = hello.alpn()?;
        let is_joiner = offered.next() == Some(join.as_slice()) && offered.next().is_none();
        joins.store(is_joiner, Ordering::Release);
        Some(if is_joiner { chain.clone() } else { self.leaf.clone() })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// Asks members for a certificate, and lets joiners show one or none.
#[derive(Debug)]
struct Asked {
    members: Arc<ClusterVerifier>,
    /// Set from the first message of the handshake, before a certificate is asked for.
    joins: Arc<AtomicBool>,
}

impl ClientCertVerifier for Asked {
    fn client_auth_mandatory(&self) -> bool {
        !self.joins.load(Ordering::Acquire)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        ClientCertVerifier::root_hint_subjects(&*self.members)
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.members.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.members.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.members.schemes()
    }
}

fn never() -> Error {
    Error::General("TLS 1.2 is never spoken".to_owned())
}

/// The TLS side of a connection to a peer. The server's name to give is [`ANY_NODE`].
///
/// # Errors
/// [`TrustError::Tls`] if the provider can't do TLS 1.3 with these credentials.
pub fn client(
    credentials: &Credentials,
    settings: &TlsSettings,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    member_client(credentials, settings, settings.alpn.clone())
}

/// The TLS side of a member that asks a peer for a new certificate, or passes a joiner's request on.
///
/// # Errors
/// As [`client`].
pub(crate) fn renewing_client(
    credentials: &Credentials,
    settings: &TlsSettings,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    member_client(credentials, settings, settings.join_alpn())
}

fn member_client(
    credentials: &Credentials,
    settings: &TlsSettings,
    alpn: Vec<u8>,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    let verifier = ClusterVerifier::new(&credentials.anchor, settings)?;
    let certificate = vec![credentials.certificate.clone()];
    let config = client_builder(settings, verifier)?
        .with_client_auth_cert(certificate, credentials.key.clone_key())?;
    quic_client(config, alpn)
}

/// The TLS side of a stranger with a token: it shows nothing, and believes who can show the
/// authority of this hash.
///
/// # Errors
/// [`TrustError::Tls`] if the provider can't do TLS 1.3.
pub(crate) fn joining_client(
    authority: AuthorityHash,
    settings: &TlsSettings,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    let verifier = Pinned { authority, provider: settings.provider.clone() };
    let config = client_builder(settings, Arc::new(verifier))?.with_no_client_auth();
    quic_client(config, settings.join_alpn())
}

fn client_builder(
    settings: &TlsSettings,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TrustError> {
    let details = (settings.provider.clone(), settings.clock.clone());
    Ok(ClientConfig::builder_with_details(details.0, details.1)
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // is what rustls calls every verifier that is not its own
        .with_custom_certificate_verifier(verifier))
}

fn quic_client(
    mut config: ClientConfig,
    alpn: Vec<u8>,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    config.alpn_protocols = vec![alpn];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(no_initial_suite)?))
}

/// The protocol that both ends of a connection agreed on.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<HandshakeData>().ok()?.protocol
}

/// A newer certificate, shown on a connection that is open.
///
/// TLS 1.3 over QUIC has no way to show another certificate after the handshake. So the node signs,
/// with the certificate's key, what only the two ends of this connection can know (RFC 5705): nobody
/// else could have sent it, and on no other connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

const SHOWN_LABEL: &[u8] = b"EXPORTER-footlight-certificate";

impl Shown {
    /// Shows credentials on a connection.
    ///
    /// # Errors
    /// [`TrustError::Tls`] if the key can't sign, or the connection has no handshake behind it.
    pub(crate) fn new(
        credentials: &Credentials,
        connection: &quinn::Connection,
        settings: &TlsSettings,
    ) -> Result<Self, TrustError> {
        let key = settings.provider.key_provider.load_private_key(credentials.key.clone_key())?;
        let signer = key.choose_scheme(&[SignatureScheme::ED25519]);
        let signer = signer.ok_or_else(|| Error::General("the key is no Ed25519 one".into()))?;
        let certificate = credentials.certificate.to_vec();
        let signature = signer.sign(&Self::signed(&certificate, connection)?)?;
        Ok(Shown { certificate, signature })
    }

    fn signed(certificate: &[u8], connection: &quinn::Connection) -> Result<Vec<u8>, TrustError> {
        let mut material = [0; 32];
        connection
            .export_keying_material(&mut material, SHOWN_LABEL, b"")
            .map_err(|_| Error::General("the connection has no keys".into()))?;
        Ok([SHOWN_LABEL, &material, certificate].concat())
    }

    /// Who the certificate names: one of the anchor's authority, valid now, of no node that was
    /// revoked, and shown by the holder of its key.
    ///
    /// # Errors
    /// [`TrustError::Tls`] with the reason, [`TrustError::NotANode`].
    pub(crate) fn verify(
        &self,
        anchor: &Anchor,
        connection: &quinn::Connection,
        settings: &TlsSettings,
    ) -> Result<PeerIdentity, TrustError> {
        let certificate = CertificateDer::from(self.certificate.as_slice());
        let verifier = ClusterVerifier::new(anchor, settings)?;
        let now = settings.clock.current_time().ok_or(TrustError::NoClock)?;
        verifier.verify_client_cert(&certificate, &[], now)?;
        let key = UnparsedPublicKey::new(&ED25519, public_key_in(&certificate)?);
        key.verify(&Self::signed(&self.certificate, connection)?, &self.signature)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))?;
        identity_in(&certificate)
    }
}

fn no_initial_suite(error: quinn::crypto::rustls::NoInitialCipherSuite) -> TrustError {
    TrustError::Tls(Error::General(error.to_string()))
}

/// Why a handshake was refused, by either end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The ends speak no common version of the protocol.
    ProtocolVersion,
    /// An end showed no certificate, or one of another cluster.
    Certificate,
    /// An end's certificate has ended, or has not begun.
    Expired,
    /// The certificate of the other end is of a node that was thrown out.
    Revoked,
    /// This node was thrown out, says the other end.
    ThrownOut,
    /// The other end takes no more connections for the moment.
    Busy,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => {
                "the certificate of one of the two has ended, by the other's clock: check both \
                 clocks; a node whose certificate ended while it was away needs a new token \
                 (`footlight token create`)"
            }
            Self::Revoked => "the node's certificate was revoked",
            Self::ThrownOut => {
                "this node was revoked, so its certificate counts no more: to let it in again, delete \
                 node.key and node.pem in its state directory and start it with a new token \
                 (`footlight token create`)"
            }
            Self::Busy => "it has too many connections to answer; try again",
            Self::ProtocolVersion => {
                "it speaks another version of the protocol: run the same release on every node"
            }
            Self::Certificate => {
                "the two nodes don't believe each other's certificates: let the one join by a token \
                 that `footlight token create` makes in the other's cluster (--token, \
                 FOOTLIGHT_TOKEN, with a state directory of its own), or give both the same state \
                 directory (--state, FOOTLIGHT_STATE) if they share a machine; and check both clocks"
            }
        })
    }
}

/// Tells a refusal from a connection that was lost for another reason (`None`).
///
/// The end that refuses and the end that is refused both get the same answer, but for one thing: who
/// was revoked is told that it is this node itself.
pub fn refusal(error: &ConnectionError) -> Option<Refusal> {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return None,
    };
    if code == TransportErrorCode::CONNECTION_REFUSED {
        return Some(Refusal::Busy);
    }
    // RFC 9001, 4.8: a TLS alert is the last byte of codes from 0x100 to 0x1ff.
    let alert = u64::from(code).checked_sub(0x100).filter(|alert| *alert <= 0xff)?;
    match alert {
        120 => Some(Refusal::ProtocolVersion),
        44 if matches!(error, ConnectionError::ConnectionClosed(_)) => Some(Refusal::ThrownOut),
        44 => Some(Refusal::Revoked),
        45 => Some(Refusal::Expired),
        // RFC 8446, 6: bad, unsupported or unknown certificate; unknown CA;
        // access denied; decrypt error (a signature that is not the key's); certificate required.
        42 | 43 | 46 | 48 | 49 | 51 | 116 => Some(Refusal::Certificate),
        _ => None,
    }
}

/// Believes a certificate of the cluster's authority that names a node, and no other.
///
/// Chain, validity and usage are checked by webpki; only the comparison of the server's name with
/// the one that was dialled is replaced, by "names one node and one role".
struct ClusterVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    revoked: Arc<Revoked>,
}

impl ClusterVerifier {
    fn new(anchor: &Anchor, settings: &TlsSettings) -> Result<Arc<Self>, TrustError> {
        let (roots, provider) = (anchor.roots.clone(), settings.provider.clone());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let revoked = settings.revoked.clone();
        Ok(Arc::new(Self { roots, clients, provider, revoked }))
    }

    fn names_a_node(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match identity_in(certificate) {
            Ok(identity) if self.revoked.contains(identity.node) => {
                Err(Error::InvalidCertificate(CertificateError::Revoked))
            }
            Ok(_) => Ok(()),
            Err(_) => {
                let why = CertificateError::ApplicationVerificationFailure;
                Err(Error::InvalidCertificate(why))
            }
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        self.names_a_node(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for ClusterVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.names_a_node(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Believes who shows, behind a certificate of its own, the authority's certificate that a token
/// names by its hash.
struct Pinned {
    authority: AuthorityHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|der| AuthorityHash::of(der) == self.authority);
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let anchor = Anchor::from_der(pinned.ok_or_else(unknown)?).map_err(|_| unknown())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &anchor.roots, &[], now, algorithms)?;
        identity_in(end_entity).map_err(|_| {
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.authority).finish()
    }
}

impl fmt::Debug for ClusterVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterVerifier")
    }
}

impl fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gatekeeper").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alpn = String::from_utf8_lossy(&self.alpn);
        f.debug_struct("TlsSettings").field("alpn", &alpn).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
