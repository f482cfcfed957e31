//! The state directory: where a node finds the cluster's authority and its own identity.

use std::{
    env,
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use super::{Authority, TrustError, files};

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const LOCK: &str = "lock";
/// How long the holder of the lock is waited for. It only reads and writes a few small files.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A state directory with the cluster's authority in it.
///
/// ```text
/// ca.pem                          the authority's certificate
/// ca.key                          its key, mode 0600
/// lock                            taken for moments, while one of these files is written
/// nodes/127.0.0.1_7400/
///     identity.json               {"id": "<16 hexadecimal digits>", "incarnation": <last used>}
///     lock                        held by the node as long as it runs
/// ```
///
/// Every call blocks on the file system for some milliseconds: call at start, not in a handler.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    named: bool,
    existed_before: bool,
    authority: Authority,
}

impl StateDir {
    /// Opens the state directory, and makes it and the authority in it if they are missing.
    ///
    /// The directory is `explicit`, else `$FOOTLIGHT_STATE`, else `$XDG_STATE_HOME/footlight`, else
    /// `~/.local/state/footlight`; a new one gets mode 0700. `clock` dates the authority's
    /// certificate, should one be minted. Many processes may do this at the same time: one mints,
    /// the others find what it made.
    ///
    /// # Errors
    /// [`TrustError::Exposed`] if other users can read the key or write to the directory, the other
    /// variants if the files can't be made, locked or understood.
    pub fn open(explicit: Option<&Path>, clock: &dyn TimeProvider) -> Result<Self, TrustError> {
        Self::open_in(explicit, |name| env::var_os(name), clock)
    }

    fn open_in(
        explicit: Option<&Path>,
        env: impl Fn(&str) -> Option<OsString>,
        clock: &dyn TimeProvider,
    ) -> Result<Self, TrustError> {
        let (path, named) = locate(explicit, env)?;
        files::make_private_dir(&path)?;
        check_mode(&path, 0o002, "write to", "go-w")?;
        let lock_path = path.join(LOCK);
        let Some(_lock) = files::lock(&lock_path, LOCK_PATIENCE)? else {
            let seconds = LOCK_PATIENCE.as_secs();
            return Err(TrustError::Locked { path: lock_path, seconds });
        };
        let now = clock.current_time().ok_or(TrustError::NoClock)?;
        let (authority, existed_before) = load_or_mint(&path, now)?;
        Ok(Self { path, named, existed_before, authority })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster's certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether the authority was there before this process opened the directory.
    pub fn existed_before(&self) -> bool {
        self.existed_before
    }

    /// Whether a node with this state may listen on `addr`.
    ///
    /// Loopback always. An address that other machines reach only if the user named the directory
    /// and the authority was in it already: else the node would offer itself to the network under
    /// an authority that it made a moment ago and that nobody else can know.
    ///
    /// # Errors
    /// [`TrustError::OffLoopback`], which says what to do.
    pub fn allows_bind(&self, addr: &SocketAddr) -> Result<(), TrustError> {
        let why = match (self.named, self.existed_before) {
            _ if addr.ip().to_canonical().is_loopback() => return Ok(()),
            (true, true) => return Ok(()),
            (false, _) => "the state directory was not named",
            (true, false) => "the state directory held no authority, so no other node knows it",
        };
        Err(TrustError::OffLoopback { addr: *addr, why })
    }

    /// The directory for what belongs to one listen address.
    pub(super) fn node_dir(&self, listen: &SocketAddr) -> PathBuf {
        // An IPv6 address keeps its shape with dashes; the port comes after the only underscore.
        let ip = listen.ip().to_string().replace(':', "-");
        self.path.join("nodes").join(format!("{ip}_{}", listen.port()))
    }
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

/// The caller holds the directory's lock.
fn load_or_mint(dir: &Path, now: UnixTime) -> Result<(Authority, bool), TrustError> {
    let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let half = |present, missing| TrustError::HalfAuthority { dir: dir.into(), present, missing };
    if key_path.try_exists().map_err(TrustError::io("look for", &key_path))? {
        // Before it is read: a key that others could read vouches for nothing.
        check_mode(&key_path, 0o077, "read", "go=")?;
    }
    match (files::read(&cert_path)?, files::read(&key_path)?) {
        (Some(cert), Some(key)) => {
            let authority = Authority::from_pem(&cert, &key).map_err(|why| TrustError::Damaged {
                path: dir.join("ca.{pem,key}"),
                why: why.to_string(),
                advice: "restore both files from one place, or delete both to make a new authority",
            })?;
            Ok((authority, true))
        }
        (Some(_), None) => Err(half(CA_CERT, CA_KEY)),
        (None, Some(_)) => Err(half(CA_KEY, CA_CERT)),
        (None, None) => {
            let (authority, key) = Authority::mint(now)?;
            files::replace(&key_path, key.as_bytes(), 0o600)?;
            files::replace(&cert_path, authority.certificate_pem().as_bytes(), 0o644)?;
            Ok((authority, false))
        }
    }
}

fn check_mode(
    path: &Path,
    forbidden: u32,
    access: &'static str,
    wanted: &'static str,
) -> Result<(), TrustError> {
    let metadata = fs::metadata(path).map_err(TrustError::io("look at", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(TrustError::Exposed { path: path.to_owned(), mode, access, wanted })
}

#[cfg(test)]
#[path = "state_dir_tests.rs"]
mod tests;
