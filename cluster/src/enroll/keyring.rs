//! What a node shows and whom it believes, as it changes while the node runs.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use crate::trust::{Anchor, Authority, Credentials, Kept, Revoked, Role, TrustError, tls};

/// The certificate that a node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What it allows.
    pub role: Role,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
    /// How often it was renewed since the node started.
    pub renewals: u64,
}

/// A node's credentials, and the authority's key where the node has it.
pub(crate) struct Keyring {
    tls: tls::TlsSettings,
    shown: RwLock<Arc<Credentials>>,
    authority: RwLock<Option<Arc<Authority>>>,
    /// How often another certificate came in place of the one before.
    renewals: AtomicU64,
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
            renewals: AtomicU64::new(0),
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
        self.renewals.fetch_add(1, Ordering::AcqRel);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// Whether the node showed another certificate when it started.
    pub(crate) fn was_renewed(&self) -> bool {
        self.renewals.load(Ordering::Acquire) > 0
    }

    /// What the node shows now, for people.
    pub(crate) fn certificate(&self) -> Certificate {
        let identity = self.shown().identity();
        let renewals = self.renewals.load(Ordering::Acquire);
        Certificate { role: identity.role, expires: identity.expires, renewals }
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
