//! Who may talk to whom: mutual TLS on every connection, on one machine too.
//!
//! ```text
//! StateDir ── ca.pem, ca.key ──> Authority ── issues ──> Credentials ──> tls::server / tls::client
//!     └── nodes/<address>/identity.json ──> NodeIdentity (id, incarnation)
//! ```
//!
//! The first node to start in a state directory mints the cluster's authority there; processes of
//! the same user on the same machine find it and need no flag. Each process asks the authority for
//! a certificate of its own at start, so a private key of a node never touches the disk.
//!
//! Promises that the tests cite:
//! - **TR-1** Both ends of a connection have shown a certificate of this cluster's authority, valid
//!   at this moment, that names a node and a role.
//! - **TR-2** However many processes start at once in an empty state directory, one authority
//!   comes of it.
//! - **TR-3** A key that others can read is refused, not used.
//! - **TR-4** An incarnation is on the disk before it is used, and never goes back.

use std::{io, net::SocketAddr, path::PathBuf};

pub mod authority;
mod files;
pub mod identity;
pub mod peer;
pub mod state_dir;
pub mod tls;

pub use authority::{Authority, Credentials};
pub use identity::NodeIdentity;
pub use peer::{PeerIdentity, Role, peer_identity};
pub use state_dir::StateDir;

/// Why a node can't prove who it is, or can't believe a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No place for the state directory: neither named, nor a home directory to put it in.
    #[error(
        "no place for the state directory: name one with --state DIR or FOOTLIGHT_STATE \
         (neither XDG_STATE_HOME nor HOME is set to an absolute path)"
    )]
    NoStateDir,

    /// The operating system refused something about a file.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Another process held the directory's lock for longer than the start-up of a node takes.
    #[error(
        "{path} has been locked by another process for {seconds} s: end the process that hangs \
         while it starts (`fuser {path}` tells which)", path = path.display()
    )]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// How long was waited, in seconds.
        seconds: u64,
    },

    /// Another running node has the same listen address in the same state directory.
    #[error(
        "another running node uses the identity of {listen} in {dir}: stop it, give this one \
         another --listen port, or another --state directory (machines that share a home \
         directory need one each)", dir = dir.display()
    )]
    IdentityInUse {
        /// The listen address that both were given.
        listen: SocketAddr,
        /// The identity's directory.
        dir: PathBuf,
    },

    /// The key of the authority, or its directory, is open to other users.
    #[error(
        "other users can {access} {path} (mode {mode:03o}), so nothing that it vouches for can be \
         trusted: run `chmod {wanted} {path}`, and if others may have used that, delete ca.key \
         and ca.pem there to make new ones", path = path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they let others do: "read" or "write to".
        access: &'static str,
        /// The change that mends it, as `chmod` takes it.
        wanted: &'static str,
    },

    /// One of the authority's two files is missing.
    #[error(
        "{dir} holds {present} but not {missing}: restore it, or delete {present} too and a new \
         authority is made (nodes with certificates of the old one will be refused)",
         dir = dir.display()
    )]
    HalfAuthority {
        /// The state directory.
        dir: PathBuf,
        /// The file that is there.
        present: &'static str,
        /// The file that is not.
        missing: &'static str,
    },

    /// A file is not what it should be.
    #[error("{path} is damaged ({why}): {advice}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do about it.
        advice: &'static str,
    },

    /// A node may not listen off loopback with an authority nobody else knows.
    #[error(
        "refusing to listen on {addr}, which other machines can reach: {why}. Copy ca.pem and \
         ca.key (nothing else) of the first node's state directory into a directory of this \
         machine, mode 0700, and name it with --state DIR or FOOTLIGHT_STATE"
    )]
    OffLoopback {
        /// The address that was asked for.
        addr: SocketAddr,
        /// Which condition is not met.
        why: &'static str,
    },

    /// A certificate or key could not be made.
    #[error("cannot make {what}: {why}")]
    Issue {
        /// What was to be made.
        what: &'static str,
        /// What the certificate library said.
        why: String,
    },

    /// TLS refused the certificate, the key or the settings.
    #[error("TLS settings refused: {0}")]
    Tls(#[from] rustls::Error),

    /// The wall clock can't be read or stands before 1970, so no validity can be checked.
    #[error("the wall clock gives no usable time: set the machine's clock")]
    NoClock,

    /// The connection has no verified certificate of the peer (yet).
    #[error("the peer has shown no certificate: wait for the handshake's end")]
    NoPeerCertificate,

    /// The certificate is of this cluster's authority, but names no node or no role.
    #[error("the peer's certificate names no Footlight node and role: {0}")]
    NotANode(String),
}

impl TrustError {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> TrustError {
        let path = path.into();
        move |source| TrustError::Io { what, path, source }
    }
}
