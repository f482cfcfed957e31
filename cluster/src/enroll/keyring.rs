//! What a node shows and whom it believes, as it changes while the node runs.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::UnixTime;

use crate::trust::{Anchor, Authority, Credentials, Kept, Revoked, Role, TrustError, tls};

/// A node's credentials, and the authority's key where the node has it.
pub(crate) struct Keyring {
    tls: tls::TlsSettings,
    shown: RwLock<Arc<Credentials>>,
    authority: RwLock<Option<Arc<Authority>>>,
    /// Another certificate than the first is shown.
    renewed: AtomicBool,
    /// The authority's key is in the state directory: this node issues itself what it shows.
    holds_key: bool,
    /// Where a node that joined by a token keeps its certificate.
    kept: Option<Kept>,
    /// How long the certificates that this node issues are valid.
    life: Duration,
}

impl Keyring {
    pub(crate) fn new(
        tls: tls::TlsSettings,
        shown: Credentials,
        authority: Option<Authority>,
        kept: Option<Kept>,
        life: Duration,
    ) -> Self {
        Keyring {
            tls,
            shown: RwLock::new(Arc::new(shown)),
            renewed: AtomicBool::new(false),
            holds_key: authority.is_some(),
            authority: RwLock::new(authority.map(Arc::new)),
            kept,
            life,
        }
    }

    pub(crate) fn tls(&self) -> &tls::TlsSettings {
        &self.tls
    }

    pub(crate) fn revoked(&self) -> &Revoked {
        &self.tls.revoked
    }

    /// What the node shows now.
    pub(crate) fn shown(&self) -> Arc<Credentials> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn show(&self, credentials: Arc<Credentials>) {
        self.renewed.store(true, Ordering::Release);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// Whether the node showed another certificate when it started.
    pub(crate) fn was_renewed(&self) -> bool {
        self.renewed.load(Ordering::Acquire)
    }

    pub(crate) fn role(&self) -> Role {
        self.shown().identity().role
    }

    pub(crate) fn anchor(&self) -> Anchor {
        self.shown().anchor().clone()
    }

    /// The authority, if this node has its key.
    pub(crate) fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the authority's key from the ledger, or lets go of it.
    pub(crate) fn entrust(&self, authority: Option<Arc<Authority>>) {
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    pub(crate) fn holds_key(&self) -> bool {
        self.holds_key
    }

    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    pub(crate) fn life(&self) -> Duration {
        self.life
    }

    pub(crate) fn now(&self) -> Result<UnixTime, TrustError> {
        self.tls.clock.current_time().ok_or(TrustError::NoClock)
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("shown", &self.shown()).finish_non_exhaustive()
    }
}
