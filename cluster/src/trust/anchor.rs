//! Whom a node believes: the certificate of the cluster's authority.

use std::{fmt, sync::Arc};

use data_encoding::BASE64;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{TrustError, token::AuthorityHash};

/// An authority's certificate. No secret.
#[derive(Clone)]
pub struct Anchor {
    der: CertificateDer<'static>,
    pub(super) roots: Arc<RootCertStore>,
}

impl Anchor {
    /// Takes a certificate in DER.
    ///
    /// # Errors
    /// [`TrustError::Issue`] if it is not the certificate of an authority.
    pub fn from_der(der: &[u8]) -> Result<Self, TrustError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(failed)?;
        if !parsed.is_ca() {
            return Err(failed("the certificate is not an authority's"));
        }
        let der = CertificateDer::from(der.to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(der.clone())?;
        Ok(Anchor { der, roots: Arc::new(roots) })
    }

    /// Reads a certificate in PEM.
    ///
    /// # Errors
    /// As [`from_der`](Self::from_der).
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        Self::from_der(&CertificateDer::from_pem_slice(pem.as_bytes()).map_err(failed)?)
    }

    /// The certificate in PEM.
    pub fn pem(&self) -> String {
        certificate_pem(&self.der)
    }

    /// What tokens name it by.
    pub fn hash(&self) -> AuthorityHash {
        AuthorityHash::of(&self.der)
    }

    /// The certificate in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// A certificate as PEM (RFC 7468): lines of 64 characters.
pub(super) fn certificate_pem(der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn failed(why: impl fmt::Display) -> TrustError {
    TrustError::Issue { what: "an authority of this certificate", why: why.to_string() }
}

impl PartialEq for Anchor {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Anchor {}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Anchor").field(&self.hash()).finish()
    }
}
