//! What a certificate says about its owner: which node it is and what it may do.
//!
//! Both stand as DNS names among the subject's alternative names, where every TLS tool shows them:
//! `00000000deadbeef.node.footlight` and `worker.role.footlight`. A certificate has exactly one of
//! each; other names are ignored, so that later versions may add some.

use std::{fmt, str::FromStr};

use footlight_runtime::id::NodeId;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;

use super::TrustError;

const NODE_SUFFIX: &str = ".node.footlight";
const ROLE_SUFFIX: &str = ".role.footlight";

/// What the owner of a certificate may do in the cluster: see [`Right`](super::Right) for which role
/// has which.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// May do everything: a process that holds the authority's key itself. No token gives it.
    Node,
    /// Computes and answers: a member that starts and ends nothing on other nodes.
    Worker,
    /// Holds shared state: may also start and end actors elsewhere, and vote.
    Server,
    /// Only asks; is no member.
    Observer,
    /// May also change the cluster itself: make tokens, revoke and drain nodes.
    Admin,
}

impl Role {
    const ALL: [Role; 5] = [Role::Node, Role::Worker, Role::Server, Role::Observer, Role::Admin];

    /// Greater for a role with more rights.
    pub(crate) fn strength(self) -> u8 {
        match self {
            Role::Observer => 0,
            Role::Worker => 1,
            Role::Server => 2,
            Role::Admin => 3,
            Role::Node => 4,
        }
    }

    /// The role's name in a certificate.
    pub fn name(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Worker => "worker",
            Role::Server => "server",
            Role::Observer => "observer",
            Role::Admin => "admin",
        }
    }
}

/// A word that is no role which a token can give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: say worker, server, observer or admin")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    /// A role that a token can give; `node` is not one of them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text && *role != Role::Node);
        found.ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who the other end of a connection has proved to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerIdentity {
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
    /// When the certificate ends, in seconds since 1970.
    pub expires: i64,
}

/// The id of a node that joins by a token: the first 8 bytes of the SHA-256 of its public key.
///
/// So nobody can ask for another's id. `None` for the one key in 2^64 whose id would be 0.
pub(crate) fn id_of_key(public_key: &[u8]) -> Option<NodeId> {
    let hash = digest(&SHA256, public_key);
    let id = hash.as_ref().iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte));
    (id != 0).then_some(NodeId(id))
}

/// Tells who the other end of a connection is, from the certificate that the handshake verified.
///
/// Whoever dialled a known node compares the id: the handshake alone proves only that the other end
/// is some member of the cluster.
///
/// # Errors
/// [`TrustError::NoPeerCertificate`] before the handshake's end, [`TrustError::NotANode`].
pub fn peer_identity(connection: &quinn::Connection) -> Result<PeerIdentity, TrustError> {
    let identity = connection.peer_identity().ok_or(TrustError::NoPeerCertificate)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| TrustError::NoPeerCertificate)?;
    let leaf = chain.first().ok_or(TrustError::NoPeerCertificate)?;
    identity_in(leaf)
}

/// Reads node and role from a certificate, without verifying it.
pub(crate) fn identity_in(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, TrustError> {
    let not_a_node = |why: &dyn fmt::Display| TrustError::NotANode(why.to_string());
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| not_a_node(&error))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| not_a_node(&error))?
        .ok_or_else(|| not_a_node(&"it has no alternative names"))?;
    let (mut nodes, mut roles) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        let GeneralName::DNSName(name) = name else {
            continue;
        };
        if let Some(label) = name.strip_suffix(NODE_SUFFIX) {
            nodes.push(parse_node(label).ok_or_else(|| not_a_node(name))?);
        } else if let Some(label) = name.strip_suffix(ROLE_SUFFIX) {
            let role = Role::ALL.into_iter().find(|role| role.name() == label);
            roles.push(role.ok_or_else(|| not_a_node(name))?);
        }
    }
    match (nodes.as_slice(), roles.as_slice()) {
        (&[node], &[role]) => {
            let expires = parsed.validity().not_after.timestamp();
            Ok(PeerIdentity { node, role, expires })
        }
        (nodes, roles) => {
            let (nodes, roles) = (nodes.len(), roles.len());
            Err(not_a_node(&format_args!("it names {nodes} nodes and {roles} roles")))
        }
    }
}

/// The public key in a certificate, without verifying it.
pub(super) fn public_key_in(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, TrustError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TrustError::NotANode(error.to_string()))?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

pub(super) fn node_name(node: NodeId) -> String {
    format!("{node}{NODE_SUFFIX}")
}

pub(super) fn role_name(role: Role) -> String {
    format!("{role}{ROLE_SUFFIX}")
}

/// Exactly as it is written: one node must not have two spellings.
fn parse_node(label: &str) -> Option<NodeId> {
    NodeId::from_str(label).ok().filter(|node| node.to_string() == label && *node != NodeId(0))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let params = CertificateParams::new(names).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_exactly_one_node_and_one_role() {
        let node = "00000000deadbeef.node.footlight";
        let good = identity_in(&certificate(&[node, "worker.role.footlight", "a.example"]));
        let good = good.unwrap();
        assert_eq!((good.node, good.role), (NodeId(0xdead_beef), Role::Worker));
        let bad: [&[&str]; 8] = [
            &[],
            &["a.example"],
            &[node],
            &["node.role.footlight"],
            &[node, "king.role.footlight"],
            &[node, "0000000000000001.node.footlight", "node.role.footlight"],
            &["deadbeef.node.footlight", "node.role.footlight"],
            &["00000000DEADBEEF.node.footlight", "node.role.footlight"],
        ];
        for names in bad {
            let error = identity_in(&certificate(names)).unwrap_err();
            assert!(matches!(error, TrustError::NotANode(_)), "{names:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn bytes_that_are_no_certificate_are_an_error_and_no_panic(bytes: Vec<u8>) {
            identity_in(&CertificateDer::from(bytes)).unwrap_err();
        }
    }
}
