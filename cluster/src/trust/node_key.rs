//! A node's own key, what it asks a certificate with, and what it shows then.

use std::fmt;

use footlight_runtime::id::NodeId;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ED25519, PublicKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::{
    Anchor, TrustError,
    authority::BACKDATE,
    peer::{PeerIdentity, id_of_key, identity_in, public_key_in},
};

const KEY: &str = "a node's key";

/// A node's key pair: Ed25519, from the operating system's randomness.
pub struct NodeKey {
    pair: KeyPair,
    node: NodeId,
}

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the operating system has no randomness to give.
    pub fn generate() -> Result<Self, TrustError> {
        loop {
            let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(|why| failed(KEY, why))?;
            if let Some(node) = id_of_key(pair.public_key_raw()) {
                return Ok(NodeKey { pair, node });
            }
        }
    }

    /// Reads a key back from [`pem`](Self::pem).
    ///
    /// # Errors
    /// [`TrustError::Issue`] if it is none.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let pair =
            KeyPair::from_pem_and_sign_algo(pem, &PKCS_ED25519).map_err(|why| failed(KEY, why))?;
        let node = id_of_key(pair.public_key_raw());
        Ok(NodeKey { node: node.ok_or_else(|| failed(KEY, "it names no node"))?, pair })
    }

    /// The key in PEM: whoever has it is this node.
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The node that the key names: the first 8 bytes of the SHA-256 of its public half.
    pub fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn public(&self) -> &KeyPair {
        &self.pair
    }

    /// A certificate signing request (PKCS #10, DER) that asks for nothing but the key.
    ///
    /// # Errors
    /// [`TrustError::Issue`]; none is known.
    pub(crate) fn request(&self) -> Result<Vec<u8>, TrustError> {
        let request = CertificateParams::default().serialize_request(&self.pair);
        let request = request.map_err(|why| failed("a signing request", why))?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeKey").field(&self.node).finish()
    }
}

/// A signing request that somebody sent, with its signature verified.
pub(crate) struct SigningRequest {
    pub(super) key: PublicKey,
    /// The node that the key names.
    pub(crate) node: NodeId,
}

impl SigningRequest {
    /// Reads a request (DER). Of what it asks for only the key counts.
    ///
    /// # Errors
    /// [`TrustError::Request`], which tells the sender what is wrong.
    pub(crate) fn read(der: &[u8]) -> Result<Self, TrustError> {
        let wrong = |why: &dyn fmt::Display| TrustError::Request(why.to_string());
        let request = CertificateSigningRequestParams::from_der(&der.into())
            .map_err(|error| wrong(&error))?;
        let key = request.public_key;
        if key.algorithm() != &PKCS_ED25519 {
            return Err(wrong(&"the key is not an Ed25519 one"));
        }
        let raw = rcgen::PublicKeyData::der_bytes(&key);
        let node = id_of_key(raw).ok_or_else(|| wrong(&"the key names no node"))?;
        Ok(SigningRequest { key, node })
    }
}

/// What a node shows on its connections: its certificate, the key to it, and whom it believes.
pub struct Credentials {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) anchor: Anchor,
    identity: PeerIdentity,
}

impl Credentials {
    /// Puts a key and a certificate for it together.
    ///
    /// # Errors
    /// [`TrustError::NotANode`] if the certificate is not of the anchor's authority or not for this
    /// key, or names no node.
    pub(crate) fn new(
        key: &NodeKey,
        certificate: CertificateDer<'static>,
        anchor: Anchor,
    ) -> Result<Self, TrustError> {
        let identity = identity_in(&certificate)?;
        if public_key_in(&certificate)? != key.pair.public_key_raw() {
            return Err(TrustError::NotANode("it is not for this node's key".to_owned()));
        }
        let key = PrivateKeyDer::Pkcs8(key.pair.serialize_der().into());
        Ok(Credentials { certificate, key, anchor, identity })
    }

    /// Who they say that the node is, as what, and until when.
    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }

    /// Whom the node believes.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The certificate (DER).
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Whether more than half of the certificate's life is over.
    pub(crate) fn is_past_half(&self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let began = x509_parser::parse_x509_certificate(&self.certificate)
            .map_or(now, |(_, parsed)| parsed.validity().not_before.timestamp() + BACKDATE);
        now.saturating_sub(began) > self.identity.expires.saturating_sub(now)
    }

    /// Whether the certificate has ended.
    pub fn has_expired(&self, now: UnixTime) -> bool {
        self.identity.expires < i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn failed(what: &'static str, why: impl fmt::Display) -> TrustError {
    TrustError::Issue { what, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{DnType, SanType};

    use super::*;
    use crate::trust::{Authority, Role};

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
    }

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn a_certificate_names_the_node_of_the_key_whatever_the_request_asks_for() {
        let authority = Authority::mint(now()).unwrap();
        let key = NodeKey::generate().unwrap();
        let mut asks = CertificateParams::default();
        asks.distinguished_name.push(DnType::CommonName, "king");
        for name in ["0000000000000001.node.footlight", "admin.role.footlight"] {
            asks.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        }
        let greedy = asks.serialize_request(&key.pair).unwrap();
        for der in [greedy.der().to_vec(), key.request().unwrap()] {
            let request = SigningRequest::read(&der).unwrap();
            let certificate = authority.sign(&request, Role::Worker, LIFE, now()).unwrap();
            let shown = Credentials::new(&key, certificate, authority.anchor().clone()).unwrap();
            let identity = shown.identity();
            assert_eq!((identity.node, identity.role), (key.node(), Role::Worker));
            assert_eq!(identity.expires, 1_800_000_060);
            assert!(!shown.has_expired(now()));
            let at = |second: u64| {
                UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000 + second))
            };
            assert!(!shown.is_past_half(at(30)) && shown.is_past_half(at(31)));
        }
    }

    #[test]
    fn a_request_that_somebody_changed_or_made_for_another_s_key_is_refused() {
        let der = NodeKey::generate().unwrap().request().unwrap();
        let other = NodeKey::generate().unwrap();
        let raw = other.pair.public_key_raw();
        let at = der
            .windows(32)
            .position(|part| id_of_key(part) == Some(SigningRequest::read(&der).unwrap().node))
            .unwrap();
        let mut stolen = der.clone();
        stolen[at..at + 32].copy_from_slice(raw);
        assert!(matches!(SigningRequest::read(&stolen), Err(TrustError::Request(_))));
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&p256).unwrap();
        assert!(matches!(SigningRequest::read(request.der()), Err(TrustError::Request(_))));
    }

    #[test]
    fn a_key_reads_back_and_a_certificate_for_another_key_is_of_no_use() {
        let authority = Authority::mint(now()).unwrap();
        let key = NodeKey::generate().unwrap();
        assert_eq!(NodeKey::from_pem(&key.pem()).unwrap().node(), key.node());
        let request = SigningRequest::read(&key.request().unwrap()).unwrap();
        let certificate = authority.sign(&request, Role::Worker, LIFE, now()).unwrap();
        let other = NodeKey::generate().unwrap();
        let mixed = Credentials::new(&other, certificate, authority.anchor().clone());
        assert!(matches!(mixed, Err(TrustError::NotANode(_))));
    }

    proptest::proptest! {
        #[test]
        fn bytes_that_are_no_request_are_an_error_and_no_panic(bytes: Vec<u8>, at in 0usize..400, byte: u8) {
            proptest::prop_assert!(SigningRequest::read(&bytes).is_err());
            let mut der = NodeKey::generate().unwrap().request().unwrap();
            let length = der.len();
            der[at % length] ^= byte;
            let _ = SigningRequest::read(&der);
        }
    }
}
