//! The state directory: where a node finds the cluster's authority and its own identity.

use std::{
    env,
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::{
    pki_types::UnixTime,
    time_provider::{DefaultTimeProvider, TimeProvider},
};

use super::{Anchor, Authority, Credentials, Kept, Token, TrustError, files};

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const LOCK: &str = "lock";
const NODES: &str = "nodes";
/// The directory for what only asks.
const ASKER: &str = "asker";
/// How long the holder of the lock is waited for. It only reads and writes a few small files.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A state directory: where a node finds what it can show, and whom it believes.
///
/// ```text
/// ca.pem                          the authority's certificate
/// ca.key                          its key, mode 0600; only where the authority was made or copied to
/// lock                            taken for moments, while one of these files is written
/// nodes/127.0.0.1_7400/
///     identity.json               {"id": "<16 hexadecimal digits>", "incarnation": <last used>}
///     node.key, node.pem          key (mode 0600) and certificate of a node that joined by a token
///     lock                        held by the node as long as it runs
///     ledger/                     what it keeps as a voter of the ledger
/// nodes/asker/                    key and certificate of programs that only ask
/// ```
///
/// Every call blocks on the file system for some milliseconds: call at start, not in a handler.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    named: bool,
    trust: Held,
}

/// What the directory lets a node prove.
#[derive(Debug)]
enum Held {
    /// The authority is here: a process issues itself what it needs. Whether it was here before.
    Authority(Box<Authority>, bool),
    /// Somebody joined from here by a token.
    Anchor(Anchor),
    /// Nothing yet; a token will do.
    Nothing,
}

impl StateDir {
    /// Opens the state directory, and makes it if it is missing. Without a token the authority is
    /// made too, if there is none; with one, nothing is made that the token's cluster does not know.
    ///
    /// The directory is `explicit`, else `$FOOTLIGHT_STATE`, else `$XDG_STATE_HOME/footlight`, else
    /// `~/.local/state/footlight`; a new one gets mode 0700. `clock` dates the authority's
    /// certificate, should one be minted. Many processes may do this at the same time: one mints,
    /// the others find what it made.
    ///
    /// # Errors
    /// [`TrustError::Exposed`] if other users can read the key or write to the directory,
    /// [`TrustError::OtherCluster`] if the token is of another cluster than the directory, the other
    /// variants if the files can't be made, locked or understood.
    pub fn open(
        explicit: Option<&Path>,
        token: Option<&Token>,
        clock: &dyn TimeProvider,
    ) -> Result<Self, TrustError> {
        Self::open_in(explicit, token, |name| env::var_os(name), clock)
    }

    /// As [`open`](Self::open) without a token, dated by the system's clock: for a new cluster.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(explicit: Option<&Path>) -> Result<Self, TrustError> {
        Self::open(explicit, None, &DefaultTimeProvider)
    }

    fn open_in(
        explicit: Option<&Path>,
        token: Option<&Token>,
        env: impl Fn(&str) -> Option<OsString>,
        clock: &dyn TimeProvider,
    ) -> Result<Self, TrustError> {
        let (path, named) = locate(explicit, env)?;
        files::make_private_dir(&path)?;
        check_mode(&path, 0o002, "write to", "go-w", CA_CURE)?;
        let _lock = lock(&path)?;
        let now = clock.current_time().ok_or(TrustError::NoClock)?;
        let trust = load_or_mint(&path, token, now)?;
        let state = Self { path, named, trust };
        if let (Some(token), Some(anchor)) = (token, state.anchor())
            && token.authority() != anchor.hash()
        {
            let dir = state.path;
            return Err(TrustError::OtherCluster { dir });
        }
        Ok(state)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster's certificate authority, if its key is here.
    pub fn authority(&self) -> Option<&Authority> {
        match &self.trust {
            Held::Authority(authority, _) => Some(authority),
            Held::Anchor(_) | Held::Nothing => None,
        }
    }

    /// As [`authority`](Self::authority), taken out.
    pub(crate) fn into_authority(self) -> Option<Authority> {
        match self.trust {
            Held::Authority(authority, _) => Some(*authority),
            Held::Anchor(_) | Held::Nothing => None,
        }
    }

    /// Whom a node with this state believes, if that is known yet.
    pub fn anchor(&self) -> Option<&Anchor> {
        match &self.trust {
            Held::Authority(authority, _) => Some(authority.anchor()),
            Held::Anchor(anchor) => Some(anchor),
            Held::Nothing => None,
        }
    }

    /// Whether the authority was there before this process opened the directory.
    pub fn existed_before(&self) -> bool {
        matches!(self.trust, Held::Authority(_, true))
    }

    /// Remembers whom to believe, after a node joined by a token.
    ///
    /// # Errors
    /// [`TrustError::OtherCluster`] if somebody made another authority here meanwhile.
    pub(crate) fn settle(&mut self, anchor: Anchor) -> Result<(), TrustError> {
        let _lock = lock(&self.path)?;
        let path = self.path.join(CA_CERT);
        match files::read(&path)? {
            None => files::replace(&path, anchor.pem().as_bytes(), 0o644)?,
            Some(there) if Anchor::from_pem(&there)? == anchor => {}
            Some(_) => return Err(TrustError::OtherCluster { dir: self.path.clone() }),
        }
        if matches!(self.trust, Held::Nothing) {
            self.trust = Held::Anchor(anchor);
        }
        Ok(())
    }

    /// Whether a node with this state may listen on `addr`.
    ///
    /// Loopback always. An address that other machines reach only if somebody let the node in by a
    /// token, or if the user named the directory and the authority was in it already: else the node
    /// would offer itself to the network under an authority that it made a moment ago and that
    /// nobody else can know.
    ///
    /// # Errors
    /// [`TrustError::OffLoopback`], which says what to do.
    pub fn allows_bind(&self, addr: &SocketAddr) -> Result<(), TrustError> {
        let why = match (&self.trust, self.named) {
            _ if addr.ip().to_canonical().is_loopback() => return Ok(()),
            (Held::Anchor(_) | Held::Nothing, _) => return Ok(()),
            (Held::Authority(_, true), true) => return Ok(()),
            (Held::Authority(..), false) => "the state directory was not named",
            (Held::Authority(_, false), true) => {
                "the state directory held no authority, so no other node knows it"
            }
        };
        Err(TrustError::OffLoopback { addr: *addr, why })
    }

    /// Where the ledger of the node with this address lies; `None` for one that takes any port, and
    /// so is another node each time.
    pub(crate) fn ledger_dir(&self, listen: &SocketAddr) -> Option<PathBuf> {
        (listen.port() != 0).then(|| self.node_dir(listen).join("ledger"))
    }

    /// The directory for what belongs to one listen address.
    pub(super) fn node_dir(&self, listen: &SocketAddr) -> PathBuf {
        // An IPv6 address keeps its shape with dashes; the port comes after the only underscore.
        let ip = listen.ip().to_string().replace(':', "-");
        self.path.join(NODES).join(format!("{ip}_{}", listen.port()))
    }

    /// Where programs that only ask keep what they can show.
    pub(crate) fn asker(&self) -> Result<Kept, TrustError> {
        let dir = self.path.join(NODES).join(ASKER);
        files::make_private_dir(&dir)?;
        Ok(Kept::in_dir(dir))
    }

    /// The strongest certificate that some node of this directory can show and that is valid now:
    /// for a program that asks, with no node of its own. With it comes where it is kept, if that is
    /// what such programs keep for themselves: then they see to it that it is renewed.
    ///
    /// # Errors
    /// If the directory can't be read. What is wrong with one node's files is that node's business.
    pub(crate) fn strongest(
        &self,
        now: UnixTime,
    ) -> Result<Option<(Credentials, Option<Kept>)>, TrustError> {
        let Some(anchor) = self.anchor() else { return Ok(None) };
        let nodes = self.path.join(NODES);
        let entries = match fs::read_dir(&nodes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrustError::io("list", nodes)(error)),
        };
        let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        dirs.sort();
        let found = dirs.into_iter().filter_map(|dir| {
            let kept = Kept::in_dir(dir);
            match kept.credentials(anchor) {
                Ok(credentials) => {
                    let own = kept.dir().ends_with(ASKER).then_some(kept);
                    credentials.filter(|found| !found.has_expired(now)).map(|found| (found, own))
                }
                Err(error) => {
                    tracing::debug!(%error, "passed over");
                    None
                }
            }
        });
        Ok(found
            .max_by_key(|(found, _)| (found.identity().role.strength(), found.identity().expires)))
    }
}

/// Takes the lock of the directory, for moments.
fn lock(dir: &Path) -> Result<fs::File, TrustError> {
    let path = dir.join(LOCK);
    let seconds = LOCK_PATIENCE.as_secs();
    files::lock(&path, LOCK_PATIENCE)?.ok_or(TrustError::Locked { path, seconds })
}

fn locate(
    explicit: Option<&Path>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<(PathBuf, bool), TrustError> {
    if let Some(path) = explicit {
        return Ok((path.to_owned(), true));
    }
    if let Some(path) = env("FOOTLIGHT_STATE").filter(|path| !path.is_empty()) {
        return Ok((path.into(), true));
    }
    // The XDG base directory specification: a relative path is to be ignored.
    let absolute = |name| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| (base.join("footlight"), false))
        .ok_or(TrustError::NoStateDir)
}

const CA_CURE: &str = "delete ca.key and ca.pem there to make new ones";

/// The caller holds the directory's lock.
fn load_or_mint(dir: &Path, token: Option<&Token>, now: UnixTime) -> Result<Held, TrustError> {
    let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
    if key_path.try_exists().map_err(TrustError::io("look for", &key_path))? {
        // Before it is read: a key that others could read vouches for nothing.
        check_mode(&key_path, 0o077, "read", "go=", CA_CURE)?;
    }
    match (files::read(&cert_path)?, files::read(&key_path)?) {
        (Some(cert), Some(key)) => {
            let authority = Authority::from_pem(&cert, &key).map_err(|why| TrustError::Damaged {
                path: dir.join("ca.{pem,key}"),
                why: why.to_string(),
                advice: "restore both files from one place, or delete both to make a new authority",
            })?;
            Ok(Held::Authority(Box::new(authority), true))
        }
        (Some(cert), None) => {
            let anchor = Anchor::from_pem(&cert).map_err(|why| TrustError::Damaged {
                path: cert_path,
                why: why.to_string(),
                advice: "restore it, or delete it and join with a token",
            })?;
            Ok(Held::Anchor(anchor))
        }
        (None, Some(_)) => Err(TrustError::HalfAuthority { dir: dir.into() }),
        (None, None) if token.is_some() => Ok(Held::Nothing),
        (None, None) => {
            let authority = Authority::mint(now)?;
            files::replace(&key_path, authority.key_pem().as_bytes(), 0o600)?;
            files::replace(&cert_path, authority.anchor().pem().as_bytes(), 0o644)?;
            Ok(Held::Authority(Box::new(authority), false))
        }
    }
}

pub(super) fn check_mode(
    path: &Path,
    forbidden: u32,
    access: &'static str,
    wanted: &'static str,
    cure: &'static str,
) -> Result<(), TrustError> {
    let metadata = fs::metadata(path).map_err(TrustError::io("look at", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(TrustError::Exposed { path: path.to_owned(), mode, access, wanted, cure })
}

#[cfg(test)]
#[path = "state_dir_tests.rs"]
mod tests;
