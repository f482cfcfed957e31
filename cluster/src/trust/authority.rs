//! The cluster's certificate authority, and the certificates that it issues to nodes.

use std::{fmt, sync::Arc};

use footlight_runtime::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
};
use time::OffsetDateTime;

use super::{
    TrustError,
    peer::{Role, node_name, role_name},
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Clocks of machines differ: a certificate is valid from a little before it was made.
const BACKDATE: i64 = HOUR;
const CA_LIFE: i64 = 20 * 365 * DAY;

const MINTED: &str = "the cluster's authority";
const ISSUED: &str = "a node's certificate";

/// A node's certificate is valid for 90 days, in seconds. A node asks for a new one at each start.
pub const NODE_LIFE: i64 = 90 * DAY;

/// The authority whose certificate every member of the cluster shows.
///
/// An Ed25519 key under the name "Footlight cluster CA", valid for 20 years, that may sign nodes
/// but no further authorities. Randomness comes from the operating system: a key is never derived
/// from a simulation's seed.
pub struct Authority {
    pem: String,
    roots: Arc<RootCertStore>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a node shows on its connections: its certificate, the key to it, and whom it believes.
pub struct Credentials {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Arc<RootCertStore>,
    /// The end of the certificate's validity, in seconds since 1970.
    pub expires: i64,
}

impl Authority {
    /// Makes a new authority; the second value is its key in PEM, to be stored with care.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the operating system has no randomness to give.
    pub fn mint(now: UnixTime) -> Result<(Self, String), TrustError> {
        let failed = |why: rcgen::Error| failed(MINTED, why);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(failed)?;
        let mut params = params(MINTED, now, CA_LIFE)?;
        params.distinguished_name.push(DnType::CommonName, "Footlight cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        let key_pem = key.serialize_pem();
        Ok((Self::from_pem(&pem, &key_pem)?, key_pem))
    }

    /// Reads an authority back from its two files.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if one of them can't be read or they don't belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TrustError> {
        let failed = |why: &dyn fmt::Display| failed("an authority of these files", why);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| failed(&error))?;
        let key = KeyPair::from_pem(key).map_err(|error| failed(&error))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| failed(&error))?;
        if parsed.public_key().subject_public_key.as_ref() != key.public_key_raw() {
            return Err(failed(&"the key is not the certificate's"));
        }
        if !parsed.is_ca() {
            return Err(failed(&"the certificate is not an authority's"));
        }
        let mut roots = RootCertStore::empty();
        roots.add(der.clone())?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| failed(&error))?;
        Ok(Self { pem: certificate.to_owned(), roots: Arc::new(roots), issuer })
    }

    /// The authority's certificate, in PEM. No secret.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Issues a certificate to a node, valid for [`NODE_LIFE`] from an hour before `now`.
    ///
    /// It has a fresh Ed25519 key, may be used as client and as server, and names the node and its
    /// role as [`super::peer`] describes.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if the operating system has no randomness to give.
    pub fn issue(
        &self,
        node: NodeId,
        role: Role,
        now: UnixTime,
    ) -> Result<Credentials, TrustError> {
        let failed = |why: rcgen::Error| failed(ISSUED, why);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(failed)?;
        let mut params = params(ISSUED, now, NODE_LIFE)?;
        params.distinguished_name.push(DnType::CommonName, format!("Footlight node {node}"));
        for name in [node_name(node), role_name(role)] {
            let name = name.try_into().map_err(failed)?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credentials {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            roots: self.roots.clone(),
            expires: params.not_after.unix_timestamp(),
        })
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
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("expires", &self.expires).finish_non_exhaustive()
    }
}
