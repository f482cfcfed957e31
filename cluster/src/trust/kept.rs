//! What a node that was let in by a token keeps between its lives: its key and its certificate.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Anchor, Credentials, NodeKey, TrustError, anchor::certificate_pem, files, state_dir::check_mode,
};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.pem";

/// The key and the certificate in one node's directory. The caller holds the directory's lock.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
}

impl Kept {
    pub(crate) fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Kept { dir: dir.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's key, if it has one.
    ///
    /// # Errors
    /// [`TrustError::Exposed`] if others can read it: then they may be this node.
    pub(crate) fn key(&self) -> Result<Option<NodeKey>, TrustError> {
        let path = self.path(KEY);
        if path.try_exists().map_err(TrustError::io("look for", &path))? {
            // Before it is read: a key that others could read proves nothing.
            let cure = "delete it and node.pem, revoke the node (`footlight revoke NODE`), and join \
                        with a new token";
            check_mode(&path, 0o077, "read", "go=", cure)?;
        }
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let advice = "delete it and node.pem, and join with a new token under a new id";
        let damaged = |why: TrustError| TrustError::Damaged { path, why: why.to_string(), advice };
        NodeKey::from_pem(&text).map(Some).map_err(damaged)
    }

    /// The node's key; a new one is on the disk before this returns, so that a joiner that gets no
    /// answer can ask again with the same key.
    pub(crate) fn key_or_new(&self) -> Result<NodeKey, TrustError> {
        if let Some(key) = self.key()? {
            return Ok(key);
        }
        let key = NodeKey::generate()?;
        files::replace(&self.path(KEY), key.pem().as_bytes(), 0o600)?;
        Ok(key)
    }

    /// What the node can show, whether or not it has expired; `None` if it never got a certificate.
    pub(crate) fn credentials(&self, anchor: &Anchor) -> Result<Option<Credentials>, TrustError> {
        let Some(key) = self.key()? else { return Ok(None) };
        let path = self.path(CERTIFICATE);
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let advice = "delete it, and join with a new token";
        let damaged = |why: String| TrustError::Damaged { path, why, advice };
        let certificate = match CertificateDer::from_pem_slice(text.as_bytes()) {
            Ok(certificate) => certificate,
            Err(error) => return Err(damaged(error.to_string())),
        };
        Credentials::new(&key, certificate, anchor.clone())
            .map(Some)
            .map_err(|error| damaged(error.to_string()))
    }

    /// Stores the certificate.
    pub(crate) fn keep(&self, certificate: &[u8]) -> Result<(), TrustError> {
        files::replace(&self.path(CERTIFICATE), certificate_pem(certificate).as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use rustls::{pki_types::UnixTime, time_provider::DefaultTimeProvider};

    use super::*;
    use crate::trust::{Authority, Role, node_key::SigningRequest};

    fn kept() -> (tempfile::TempDir, Kept) {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::in_dir(dir.path());
        (dir, kept)
    }

    fn now() -> UnixTime {
        rustls::time_provider::TimeProvider::current_time(&DefaultTimeProvider).unwrap()
    }

    #[test]
    fn key_and_certificate_are_the_same_in_the_next_life() {
        let (_dir, kept) = kept();
        let authority = Authority::mint(now()).unwrap();
        assert!(kept.credentials(authority.anchor()).unwrap().is_none());
        let key = kept.key_or_new().unwrap();
        assert!(kept.credentials(authority.anchor()).unwrap().is_none());
        let request = SigningRequest::read(&key.request().unwrap()).unwrap();
        let life = Duration::from_secs(60);
        let certificate = authority.sign(&request, Role::Worker, life, now()).unwrap();
        kept.keep(&certificate).unwrap();
        let again = kept.credentials(authority.anchor()).unwrap().unwrap();
        assert_eq!(again.identity().node, key.node());
        assert_eq!(kept.key_or_new().unwrap().node(), key.node());
        let mode = fs::metadata(kept.path(KEY)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_key_that_others_may_read_and_damaged_files_are_refused_with_the_cure() {
        let (_dir, kept) = kept();
        let authority = Authority::mint(now()).unwrap();
        kept.key_or_new().unwrap();
        fs::write(kept.path(CERTIFICATE), "nothing").unwrap();
        let error = kept.credentials(authority.anchor()).unwrap_err().to_string();
        assert!(error.contains("node.pem is damaged") && error.contains("new token"), "{error}");
        fs::set_permissions(kept.path(KEY), fs::Permissions::from_mode(0o644)).unwrap();
        let error = kept.key().unwrap_err();
        assert!(matches!(error, TrustError::Exposed { mode: 0o644, .. }), "{error}");
        fs::set_permissions(kept.path(KEY), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(kept.path(KEY), "nothing").unwrap();
        assert!(matches!(kept.key(), Err(TrustError::Damaged { .. })));
    }
}
