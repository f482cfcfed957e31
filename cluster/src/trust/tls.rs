//! TLS settings of both ends: 1.3 only, both show a certificate of the cluster, nothing is resumed.

use std::{fmt, sync::Arc};

use quinn::{
    ConnectionError,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
    version::TLS13,
};

use super::{Credentials, TrustError, peer::identity_in};

/// What a dialler gives as the server's name: any node of the cluster.
///
/// A seed is known by its address only, so the handshake can't ask for one node. It verifies that
/// the other end is a member; [`super::peer_identity`] then tells which.
pub const ANY_NODE: &str = "any.node.footlight";

/// What both ends of a connection have in common.
#[derive(Clone)]
pub struct TlsSettings {
    /// The protocol and its major version, such as `footlight/1`. Ends that don't agree on one
    /// refuse each other in the handshake (TLS alert 120, `no_application_protocol`).
    pub alpn: Vec<u8>,
    /// The cryptography: [`crypto_provider`], or a simulation's own.
    pub provider: Arc<CryptoProvider>,
    /// The wall clock that certificates are judged by.
    pub clock: Arc<dyn TimeProvider>,
}

/// ring, with AES-128-GCM first: the fastest of the three on processors with AES instructions, and
/// the one that QUIC needs for its first packets anyway.
pub fn crypto_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let first = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    provider
}

/// The TLS side of an endpoint that accepts connections.
///
/// # Errors
/// [`TrustError::Tls`] if the provider can't do TLS 1.3 with these credentials.
pub fn server(
    credentials: &Credentials,
    settings: &TlsSettings,
) -> Result<Arc<QuicServerConfig>, TrustError> {
    let verifier = ClusterVerifier::new(credentials, settings)?;
    let details = (settings.provider.clone(), settings.clock.clone());
    let mut config = ServerConfig::builder_with_details(details.0, details.1)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![credentials.certificate.clone()], credentials.key.clone_key())?;
    config.alpn_protocols = vec![settings.alpn.clone()];
    // A resumed session would skip the certificate, and so outlive it.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(no_initial_suite)?))
}

/// The TLS side of a connection to a peer. The server's name to give is [`ANY_NODE`].
///
/// # Errors
/// [`TrustError::Tls`] if the provider can't do TLS 1.3 with these credentials.
pub fn client(
    credentials: &Credentials,
    settings: &TlsSettings,
) -> Result<Arc<QuicClientConfig>, TrustError> {
    let verifier = ClusterVerifier::new(credentials, settings)?;
    let details = (settings.provider.clone(), settings.clock.clone());
    let mut config = ClientConfig::builder_with_details(details.0, details.1)
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // is what rustls calls every verifier that is not its own
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(
            vec![credentials.certificate.clone()],
            credentials.key.clone_key(),
        )?;
    config.alpn_protocols = vec![settings.alpn.clone()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(no_initial_suite)?))
}

fn no_initial_suite(error: quinn::crypto::rustls::NoInitialCipherSuite) -> TrustError {
    TrustError::Tls(Error::General(error.to_string()))
}

/// Why a handshake was refused, by either end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The ends speak no common version of the protocol.
    ProtocolVersion,
    /// An end showed no certificate, an expired one, or one of another cluster.
    Certificate,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProtocolVersion => {
                "it speaks another version of the protocol: run the same release on every node"
            }
            Self::Certificate => {
                "the two nodes don't believe each other's certificates: give both the same state \
                 directory (--state, FOOTLIGHT_STATE) or copies of its ca.pem and ca.key, and \
                 check both clocks"
            }
        })
    }
}

/// Tells a refusal from a connection that was lost for another reason (`None`).
///
/// The end that refuses and the end that is refused both get the same answer.
pub fn refusal(error: &ConnectionError) -> Option<Refusal> {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return None,
    };
    // RFC 9001, 4.8: a TLS alert is the last byte of codes from 0x100 to 0x1ff.
    let alert = u64::from(code).checked_sub(0x100).filter(|alert| *alert <= 0xff)?;
    match alert {
        120 => Some(Refusal::ProtocolVersion),
        // RFC 8446, 6: bad, unsupported, revoked, expired or unknown certificate; unknown CA;
        // access denied; decrypt error (a signature that is not the key's); certificate required.
        42..=46 | 48 | 49 | 51 | 116 => Some(Refusal::Certificate),
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
}

impl ClusterVerifier {
    fn new(credentials: &Credentials, settings: &TlsSettings) -> Result<Arc<Self>, TrustError> {
        let (roots, provider) = (credentials.roots.clone(), settings.provider.clone());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Self { roots, clients, provider }))
    }

    fn names_a_node(certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let refused =
            |_| Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        identity_in(certificate).map(|_| ()).map_err(refused)
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
        Self::names_a_node(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken".to_owned()))
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
        Self::names_a_node(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken".to_owned()))
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

impl fmt::Debug for ClusterVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterVerifier")
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
