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
//! - **TR-5** What a role does not allow is refused where it arrives, before it is decoded; the answer
//!   names the role and those that may.
//! - **TR-6** Nobody speaks for a node, in a greeting or in membership, but the holder of the key of
//!   its certificate.
//! - **TR-7** A renewed certificate counts on the connections that are open. Where none is shown, the
//!   session ends when its peer's certificate has, some seconds of grace later.
//! - **TR-8** A member that has heard of a revocation has no session with that node, and begins none.
//! - **TR-9** Strangers take a bounded part of a node's memory and of its control thread's time.

use std::{io, net::SocketAddr, path::PathBuf};

pub mod anchor;
pub mod authority;
mod files;
pub mod identity;
mod kept;
pub mod lifetime;
pub mod node_key;
pub mod peer;
pub mod revoked;
pub mod rights;
pub mod state_dir;
pub mod tls;
pub mod token;

pub use anchor::Anchor;
pub use authority::{Authority, CERTIFICATE_LIFE};
pub use identity::NodeIdentity;
pub(crate) use kept::Kept;
pub use lifetime::parse_lifetime;
pub use node_key::{Credentials, NodeKey};
pub use peer::{PeerIdentity, Role, peer_identity};
pub use revoked::Revoked;
pub use rights::{Denied, Right};
pub use state_dir::StateDir;
pub use token::{AuthorityHash, Token, TokenError, TokenId, TokenSource};

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
         trusted: run `chmod {wanted} {path}`, and if others may have used that, {cure}",
        path = path.display()
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
        /// What to do if it was used.
        cure: &'static str,
    },

    /// The authority's key is there without its certificate.
    #[error(
        "{dir} holds ca.key but not ca.pem: restore it, or delete ca.key too and a new authority is \
         made (nodes with certificates of the old one will be refused)", dir = dir.display()
    )]
    HalfAuthority {
        /// The state directory.
        dir: PathBuf,
    },

    /// The directory belongs to another cluster than the token.
    #[error(
        "the token is of another cluster than {dir}: give the token's cluster a state directory of \
         its own (--state DIR, FOOTLIGHT_STATE)", dir = dir.display()
    )]
    OtherCluster {
        /// The state directory.
        dir: PathBuf,
    },

    /// The directory knows whom to believe, but has nothing to show.
    #[error(
        "{dir} holds the cluster's ca.pem, but neither ca.key nor a certificate that this node can \
         show: give it a token (--token TOKEN or FOOTLIGHT_TOKEN; `footlight token create` on a \
         node of the cluster makes one), or copy ca.key there", dir = dir.display()
    )]
    NothingToShow {
        /// The state directory.
        dir: PathBuf,
    },

    /// The certificate that the node kept has ended, so it can't be renewed any more.
    #[error(
        "the certificate in {dir} ended {ago_s} s ago, and a certificate is renewed only while it \
         is valid: give a new token (--token TOKEN or FOOTLIGHT_TOKEN; `footlight token create` on \
         a node of the cluster makes one)", dir = dir.display()
    )]
    Expired {
        /// The node's directory.
        dir: PathBuf,
        /// How long ago, in seconds.
        ago_s: u64,
    },

    /// The text that was given as a token is none.
    #[error("the join token (--token, FOOTLIGHT_TOKEN) can't be used: {0}")]
    Token(#[from] TokenError),

    /// The node says that it is for something that its certificate does not allow.
    #[error(
        "this node says that it is a `{word}` (--role), and its certificate, of role `{role}`, does \
         not allow that: leave that out, or join with a token of role {word}"
    )]
    Claim {
        /// What it says.
        word: String,
        /// The role of its certificate.
        role: Role,
    },

    /// The role of the token or of the certificate is not a member's.
    #[error(
        "the role `{role}` has no right to be a member: give this node a token of role {}; an \
         observer's lets commands in (`footlight status --token TOKEN`)", Right::Belong.of_roles()
    )]
    NoMember {
        /// The role.
        role: Role,
    },

    /// A signing request can't be used.
    #[error("the certificate signing request can't be used: {0}")]
    Request(String),

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
        "refusing to listen on {addr}, which other machines can reach: {why}. Give this node a join \
         token (--token TOKEN or FOOTLIGHT_TOKEN; `footlight token create` on a node of the cluster \
         makes one). The first node of a cluster names a state directory (--state DIR or \
         FOOTLIGHT_STATE) in which `footlight ca create` has made the authority"
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
