//! The cluster's certificate authority, and the certificates that it issues to nodes.

use std::{fmt, time::Duration};

use footlight_runtime::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::{
    Anchor, Credentials, NodeKey, TrustError,
    node_key::SigningRequest,
    peer::{Role, node_name, role_name},
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Clocks of machines differ: a certificate is valid from a little before it was made.
pub(super) const BACKDATE: i64 = HOUR;
const CA_LIFE: i64 = 20 * 365 * DAY;

const MINTED: &str = "the cluster's authority";
const ISSUED: &str = "a node's certificate";

/// A node's certificate is valid for a day unless a setting says otherwise; it is renewed in time.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(DAY as u64);

/// The authority whose certificate every member of the cluster shows.
///
/// An Ed25519 key under the name "Footlight cluster CA", valid for 20 years, that may sign nodes
/// but no further authorities. Randomness comes from the operating system: a key is never derived
/// from a simulation's seed.
pub struct Authority {
    anchor: Anchor,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the operating system has no randomness to give.
    pub fn mint(now: UnixTime) -> Result<Self, TrustError> {
        let failed = |why: rcgen::Error| failed(MINTED, why);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(failed)?;
        let mut params = params(MINTED, now, CA_LIFE)?;
        params.distinguished_name.push(DnType::CommonName, "Footlight cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::new(Anchor::from_der(certificate.der())?, key)
    }

    /// Reads an authority back from its two files.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if one of them can't be read or they don't belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TrustError> {
        let key =
            KeyPair::from_pem(key).map_err(|error| failed("an authority of these files", error))?;
        Self::new(Anchor::from_pem(certificate)?, key)
    }

    fn new(anchor: Anchor, key: KeyPair) -> Result<Self, TrustError> {
        let failed = |why: &dyn fmt::Display| failed("an authority of these files", why);
        let (_, parsed) =
            x509_parser::parse_x509_certificate(anchor.der()).map_err(|error| failed(&error))?;
        if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
            return Err(failed(&"the key is not the certificate's"));
        }
        let issuer = Issuer::from_ca_cert_der(anchor.der(), key).map_err(|error| failed(&error))?;
        Ok(Self { anchor, issuer })
    }

    /// Its certificate. No secret.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Its key in PEM: whoever has it can make certificates. To be stored with care.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes credentials with a fresh key, valid for `life` from now, for a node that the caller names.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the operating system has no randomness to give.
    pub fn issue(
        &self,
        node: NodeId,
        role: Role,
        life: Duration,
        now: UnixTime,
    ) -> Result<Credentials, TrustError> {
        let key = NodeKey::generate()?;
        let certificate = self.certify(key.public(), node, role, life, now)?;
        Credentials::new(&key, certificate, self.anchor.clone())
    }

    /// Signs a request: a certificate for the key that made it, for the node that the key names.
    ///
    /// It is valid from an hour ago for `life` from now, may be used as client and as server, and
    /// names node and role as [`super::peer`] describes. What else the request asks for is ignored.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the clock is out of range.
    pub(crate) fn sign(
        &self,
        request: &SigningRequest,
        role: Role,
        life: Duration,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        self.certify(&request.key, request.node, role, life, now)
    }

    pub(super) fn certify(
        &self,
        key: &impl PublicKeyData,
        node: NodeId,
        role: Role,
        life: Duration,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let failed = |why: rcgen::Error| failed(ISSUED, why);
        let mut params = params(ISSUED, now, i64::try_from(life.as_secs()).unwrap_or(CA_LIFE))?;
        params.distinguished_name.push(DnType::CommonName, format!("Footlight node {node}"));
        for name in [node_name(node), role_name(role)] {
            let name = name.try_into().map_err(failed)?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok(certificate.der().clone())
    }
}

fn params(what: &'static str, now: UnixTime, life: i64) -> Result<CertificateParams, TrustError> {
    let at = |offset: i64| {
        i64::try_from(now.as_secs())
            .ok()
            .and_then(|now| now.checked_add(offset))
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| failed(what, "the wall clock is out of range"))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = at(-BACKDATE)?;
    params.not_after = at(life)?;
    Ok(params)
}

fn failed(what: &'static str, why: impl fmt::Display) -> TrustError {
    TrustError::Issue { what, why: why.to_string() }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("anchor", &self.anchor).finish_non_exhaustive()
    }
}
