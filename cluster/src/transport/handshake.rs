//! The first words on a connection: who speaks, in which version, and what each side takes.
//!
//! ```text
//! dialer   ── magic "FTLT" │ version: u16 LE │ length: u32 LE │ Hello ──►
//!          ◄── magic │ version │ length │ Answer ── acceptor
//! ```
//!
//! Magic, version and length come before anything that a version may change, so nodes of different
//! versions can still tell each other so.

use std::net::SocketAddr;

use footlight_runtime::{Incarnation, NodeId, registry::Catalog};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::trust::{Right, Role};

/// The version of everything behind the preamble. Nodes of different versions refuse each other.
pub(crate) const PROTOCOL_VERSION: u16 = 3;

const MAGIC: [u8; 4] = *b"FTLT";
/// Longest Hello or answer: some 20,000 registered messages.
const MAX_HELLO: usize = 1 << 20;

/// What a connection needs to know of the node at its other end. All else stands in the node's
/// [record](crate::record), which changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Where it takes connections.
    pub addr: SocketAddr,
    /// Where it takes the connections that carry messages.
    pub message_addr: SocketAddr,
    /// Where it takes the connections that carry large tensors.
    pub bulk_addr: SocketAddr,
    /// Actor types it can host and messages they take, with their shapes.
    pub catalog: Catalog,
}

/// Why a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To exchange messages as members of one cluster.
    Member,
    /// To ask, without becoming a member.
    Observer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) record: NodeRecord,
    pub(crate) purpose: Purpose,
    /// Names this connection.
    pub(crate) session: u64,
    /// The latest connection with the acceptor that the dialer knew when it dialed: tells a dialer
    /// that lost a connection from one that dialed at the same time as the acceptor.
    pub(crate) knows: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub(crate) enum Answer {
    Welcome(NodeRecord),
    Refused(Refusal),
}

/// Why a node refuses a connection whose certificate is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// Both dialed at once and the other connection stays.
    #[error("another connection between the two nodes is used")]
    Duplicate,
    #[error("the certificate is of node {certificate}, the greeting of node {greeting}")]
    NotYou { certificate: NodeId, greeting: NodeId },
    #[error("incarnation {yours} of this node is over: {latest} is known here")]
    PastLife { yours: u64, latest: u64 },
    #[error("the node is leaving")]
    Leaving,
    #[error("a node can't connect to itself")]
    Yourself,
    #[error(
        "the role `{role}` of its certificate has no right to {}: that takes a token of role {}",
        Right::Belong, Right::Belong.of_roles()
    )]
    NoMember { role: Role },
    #[error("its certificate was revoked")]
    Revoked,
}

/// A handshake that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("what answers there is no Footlight node")]
    NotFootlight,
    #[error(
        "it speaks version {theirs} of Footlight's protocol and this node version {ours}: \
         run the same release on all nodes"
    )]
    Version { ours: u16, theirs: u16 },
    #[error("its greeting has {length} bytes, at most {most} are allowed")]
    TooLong { length: usize, most: usize },
    #[error("its greeting can't be read: {0}")]
    Garbled(String),
    #[error("it refused: {0}")]
    Refused(Refusal),
    #[error("the other node does not know this session")]
    UnknownSession,
    #[error("the connection broke during the greeting: {0}")]
    Broken(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_HELLO>()
}

/// Writes the preamble and one value.
pub(crate) async fn write<T: Serialize>(
    stream: &mut quinn::SendStream,
    version: u16,
    value: &T,
) -> Result<(), HandshakeError> {
    let body = bincode::serde::encode_to_vec(value, config())
        .map_err(|error| HandshakeError::Garbled(error.to_string()))?;
    if body.len() > MAX_HELLO {
        return Err(HandshakeError::TooLong { length: body.len(), most: MAX_HELLO });
    }
    let mut bytes = Vec::with_capacity(10 + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await.map_err(|error| HandshakeError::Broken(error.to_string()))
}

/// Reads the preamble and one value; nothing behind the preamble is read if the versions differ.
pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut quinn::RecvStream,
    ours: u16,
) -> Result<T, HandshakeError> {
    read_at_most(stream, ours, MAX_HELLO).await
}

/// As [`read`], and nothing is read of a value with more than `most` bytes.
pub(crate) async fn read_at_most<T: DeserializeOwned>(
    stream: &mut quinn::RecvStream,
    ours: u16,
    most: usize,
) -> Result<T, HandshakeError> {
    let broken = |error: quinn::ReadExactError| HandshakeError::Broken(error.to_string());
    let mut preamble = [0u8; 10];
    stream.read_exact(&mut preamble).await.map_err(broken)?;
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = preamble;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(HandshakeError::NotFootlight);
    }
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs != ours {
        return Err(HandshakeError::Version { ours, theirs });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > most {
        return Err(HandshakeError::TooLong { length, most });
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(broken)?;
    let (value, read) = bincode::serde::decode_from_slice(&body, config())
        .map_err(|error| HandshakeError::Garbled(error.to_string()))?;
    if read != length {
        return Err(HandshakeError::Garbled(format!("{} bytes are left over", length - read)));
    }
    Ok(value)
}

/// The first words on a connection for messages or tensors: which session it belongs to. The answer
/// is whether that is known.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SideHello {
    pub(crate) session: u64,
}

/// Says the first words on a connection for messages or tensors, and waits until the other node
/// agrees.
pub(crate) async fn introduce(
    connection: &quinn::Connection,
    version: u16,
    session: u64,
) -> Result<(), HandshakeError> {
    let broken = |error: quinn::ConnectionError| HandshakeError::Broken(error.to_string());
    let (mut send, mut recv) = connection.open_bi().await.map_err(broken)?;
    write(&mut send, version, &SideHello { session }).await?;
    match read(&mut recv, version).await? {
        true => Ok(()),
        false => Err(HandshakeError::UnknownSession),
    }
}
