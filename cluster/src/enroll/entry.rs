//! From a node's options to what it can show: its identity and its credentials.
//!
//! 1. The authority's key is in the state directory: the node issues itself a certificate.
//! 2. The node joined by a token before: it shows what it kept, as long as that is valid.
//! 3. It has a token: it asks at its seeds to be let in, and keeps what it gets.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use footlight_runtime::env::{Env, deadline_after};
use rustls::pki_types::UnixTime;
use tokio::runtime::Handle;

use super::{Keyring, joiner::Asker};
use crate::{
    ClusterError,
    network::seeds::Seeds,
    transport::{handshake::Purpose, socket::Sockets},
    trust::{
        Credentials, Kept, NodeIdentity, NodeKey, Right, Role, StateDir, Token, TrustError,
        identity::Place, tls,
    },
};

/// What a node's options say about how it enters the cluster.
pub(crate) struct Entry {
    pub(crate) listen: SocketAddr,
    pub(crate) state: Option<PathBuf>,
    pub(crate) token: Option<Token>,
    pub(crate) seeds: Vec<String>,
    pub(crate) purpose: Purpose,
    pub(crate) patience: Duration,
    pub(crate) life: Duration,
    /// What the node says that it is for.
    pub(crate) words: Vec<String>,
}

/// A node that can show who it is.
pub(crate) struct Entered {
    pub(crate) identity: NodeIdentity,
    pub(crate) keyring: Keyring,
    /// Where its part of the ledger lies; `None` for a node that can't come back.
    pub(crate) ledger_dir: Option<PathBuf>,
}

/// A node with nothing to show yet.
struct Joins {
    state: StateDir,
    key: NodeKey,
    kept: Kept,
    /// Of a member.
    place: Option<Place>,
}

/// What a look into the state directory gave.
enum Found {
    Ready(Box<Entered>),
    /// Nothing to show yet.
    Joins(Box<Joins>),
}

impl Entry {
    /// Enters; a node with a token waits until it is let in.
    ///
    /// # Errors
    /// What is wrong with the state directory, the token or the seeds.
    pub(crate) async fn enter(
        mut self,
        env: &Env,
        tls: tls::TlsSettings,
        sockets: Arc<dyn Sockets>,
        version: u16,
        control: &Handle,
    ) -> Result<Entered, ClusterError> {
        let micros = env.wall_clock.now_unix_micros();
        let mut rng = env.seeds.stream("node id");
        let settings = tls.clone();
        let looked = blocking(move || {
            let found = self.look(&settings, micros, &mut rng)?;
            Ok::<_, ClusterError>((self, found, rng))
        });
        let (entry, found, mut rng) = looked.await?;
        self = entry;
        let Joins { mut state, key, kept, place } = match found {
            Found::Ready(entered) => return Ok(*entered),
            Found::Joins(joins) => *joins,
        };
        let Some(token) = self.token.clone() else {
            return Err(TrustError::NothingToShow { dir: state.path().to_owned() }.into());
        };
        if self.seeds.is_empty() {
            return Err(ClusterError::NoSeedToJoin);
        }
        let mut seeds = Seeds::new(&self.seeds, sockets.clone())?;
        let asker = Asker { sockets, tls: tls.clone(), version, control: control.clone() };
        let deadline = deadline_after(self.patience);
        let credentials = asker.join(&token, &key, &mut seeds, self.patience, deadline).await?;
        blocking(move || {
            state.settle(credentials.anchor().clone())?;
            kept.keep(credentials.certificate())?;
            let identity = match place {
                Some(place) => NodeIdentity::of_joiner(place, key.node(), micros)?,
                None => NodeIdentity::passing(micros, &mut rng),
            };
            self.entered(identity, credentials, Some(kept), tls)
        })
        .await
    }

    /// Looks for what there is to show.
    fn look(
        &self,
        tls: &tls::TlsSettings,
        micros: u64,
        rng: &mut impl rand::Rng,
    ) -> Result<Found, ClusterError> {
        let member = self.purpose == Purpose::Member;
        if let Some(token) = self.token.as_ref().filter(|_| member) {
            // Before the token is used up.
            belongs(token.role())?;
        }
        let state = StateDir::open(self.state.as_deref(), self.token.as_ref(), &*tls.clock)?;
        let now = UnixTime::since_unix_epoch(Duration::from_micros(micros));
        if member {
            state.allows_bind(&self.listen)?;
        }
        if let Some(authority) = state.authority() {
            let identity = match member {
                true => NodeIdentity::claim(&state, self.listen, micros, rng)?,
                false => NodeIdentity::passing(micros, rng),
            };
            let credentials = authority.issue(identity.id, Role::Node, self.life, now)?;
            let ledger_dir = state.ledger_dir(&self.listen);
            let authority = state.into_authority();
            let keyring = Keyring::new(tls.clone(), credentials, authority, None, self.life);
            return Ok(Found::Ready(Box::new(Entered { identity, keyring, ledger_dir })));
        }
        if !member {
            return self.look_as_asker(state, tls, now, micros, rng);
        }
        let place = Place::for_joiner(&state, self.listen)?;
        let kept = place.kept();
        let shown = match state.anchor() {
            Some(anchor) => kept.credentials(anchor)?,
            None => None,
        };
        match shown {
            Some(shown) if self.will_do(&shown, now) => {
                let identity = NodeIdentity::of_joiner(place, shown.identity().node, micros)?;
                Ok(Found::Ready(Box::new(self.entered(
                    identity,
                    shown,
                    Some(kept),
                    tls.clone(),
                )?)))
            }
            Some(shown) if self.token.is_none() => Err(expired(&kept, &shown, now).into()),
            _ if self.token.is_none() => {
                Err(TrustError::NothingToShow { dir: state.path().to_owned() }.into())
            }
            _ => {
                let key = kept.key_or_new()?;
                Ok(Found::Joins(Box::new(Joins { state, key, kept, place: Some(place) })))
            }
        }
    }

    /// A program that only asks shows what some node of the directory can show, or joins for itself.
    fn look_as_asker(
        &self,
        state: StateDir,
        tls: &tls::TlsSettings,
        now: UnixTime,
        micros: u64,
        rng: &mut impl rand::Rng,
    ) -> Result<Found, ClusterError> {
        match state.strongest(now)? {
            Some((shown, own)) if self.will_do(&shown, now) => {
                let identity = NodeIdentity::passing(micros, rng);
                Ok(Found::Ready(Box::new(self.entered(identity, shown, own, tls.clone())?)))
            }
            _ if self.token.is_none() => {
                let kept = state.asker()?;
                let ended = match state.anchor() {
                    Some(anchor) => kept.credentials(anchor)?,
                    None => None,
                };
                Err(match ended {
                    Some(ended) => expired(&kept, &ended, now).into(),
                    None => TrustError::NothingToShow { dir: state.path().to_owned() }.into(),
                })
            }
            _ => {
                let kept = state.asker()?;
                let key = kept.key_or_new()?;
                Ok(Found::Joins(Box::new(Joins { state, key, kept, place: None })))
            }
        }
    }

    /// Whether what was kept is still valid, and of the role that a token would give: else the token
    /// is used.
    fn will_do(&self, shown: &Credentials, now: UnixTime) -> bool {
        let role = shown.identity().role;
        !shown.has_expired(now) && self.token.as_ref().is_none_or(|token| token.role() == role)
    }

    fn entered(
        &self,
        identity: NodeIdentity,
        shown: Credentials,
        kept: Option<Kept>,
        tls: tls::TlsSettings,
    ) -> Result<Entered, ClusterError> {
        let role = shown.identity().role;
        if self.purpose == Purpose::Member {
            belongs(role)?;
        }
        if let Some(word) = self.words.iter().find(|word| !role.may_claim(word)) {
            return Err(TrustError::Claim { word: word.clone(), role }.into());
        }
        let ledger_dir = kept.as_ref().map(|kept| kept.dir().join("ledger"));
        let keyring = Keyring::new(tls, shown, None, kept, self.life);
        Ok(Entered { identity, keyring, ledger_dir })
    }
}

/// Whether a node with a certificate of this role can be a member.
fn belongs(role: Role) -> Result<(), TrustError> {
    match role.may(Right::Belong) {
        true => Ok(()),
        false => Err(TrustError::NoMember { role }),
    }
}

fn expired(kept: &Kept, shown: &Credentials, now: UnixTime) -> TrustError {
    let ago = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - shown.identity().expires;
    TrustError::Expired { dir: kept.dir().to_owned(), ago_s: u64::try_from(ago).unwrap_or(0) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClusterError> + Send + 'static,
) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ClusterError::Ended))
}
