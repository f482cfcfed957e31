//! The words of joining and renewing.

use std::{net::SocketAddr, time::Duration};

use footlight_runtime::NodeId;
use serde::{Deserialize, Serialize};

use crate::trust::{Role, Token, TokenId, token::ProofKey};

/// Longest request and longest answer, in bytes. A signing request has some 160, a certificate 500.
pub(crate) const MAX_WORDS: usize = 4096;
/// Request and answer have so long each.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// An issuer may have to ask the ledger, and the one who was asked may have to ask an issuer.
pub(crate) const ISSUE_PATIENCE: Duration = Duration::from_secs(10);
/// The connection is closed with this code by one who has too much to do, before it has read
/// anything.
pub(crate) const BUSY: u32 = 2;

/// What a joiner or a member asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To be let in.
    Join(Join),
    /// A new certificate in place of the one that was shown, for the same key.
    Renew { request: Vec<u8> },
}

/// A joiner's request. Only who knows the token's secret can make it, and it is of use to nobody but
/// the holder of the key in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    /// Which token.
    pub(crate) token: TokenId,
    /// The role that the joiner believes the token to give.
    pub(crate) role: Role,
    /// The signing request (DER).
    pub(crate) request: Vec<u8>,
    /// Proves the knowledge of the token's secret, for this role and request.
    pub(crate) proof: Vec<u8>,
    /// A member has passed it on: it goes no further.
    pub(crate) passed_on: bool,
}

impl Join {
    pub(crate) fn new(token: &Token, request: Vec<u8>) -> Self {
        let role = token.role();
        let proof = token.key().prove(&proved(role, &request));
        Join { token: token.id(), role, request, proof, passed_on: false }
    }

    pub(crate) fn is_proved_by(&self, key: &ProofKey) -> bool {
        key.is_proof(&proved(self.role, &self.request), &self.proof)
    }
}

fn proved(role: Role, request: &[u8]) -> Vec<u8> {
    [role.name().as_bytes(), b"\0", request].concat()
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The certificate (DER).
    Certificate(Vec<u8>),
    Refused(Refusal),
    /// The authority's key is with these nodes. Said to members only.
    Elsewhere(Vec<SocketAddr>),
}

/// Why nobody is let in, or kept in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the cluster knows no such token: it was never made there, was revoked, or ended long ago; \
         make a new one (`footlight token create`)"
    )]
    UnknownToken,
    #[error("the token ended {ago_s} s ago: make a new one (`footlight token create`)")]
    Expired { ago_s: u64 },
    #[error(
        "the token was used already, by node {by}: a token lets in one node; make a new one \
         (`footlight token create`)"
    )]
    Used { by: NodeId },
    #[error("the token gives the role `{gives}`, not `{asked}`: use it as it was made")]
    WrongRole { gives: Role, asked: Role },
    #[error(
        "node {node} was revoked: delete its node.key and node.pem, and join with a new token under \
         a new id"
    )]
    Revoked { node: NodeId },
    #[error("the request can't be used: {0}")]
    Malformed(String),
    #[error("nobody who can issue certificates answers: {0}")]
    NoIssuer(String),
    #[error("it has too much to do")]
    Busy,
}

impl Refusal {
    /// Whether the same request may be granted a little later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Refusal::NoIssuer(_) | Refusal::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::AuthorityHash;

    #[test]
    fn a_proof_is_for_one_token_one_role_and_one_request() {
        let token = Token::new(Role::Worker, AuthorityHash::of(b"ca")).unwrap();
        let join = Join::new(&token, b"request".to_vec());
        assert!(join.is_proved_by(&token.key()));
        assert!(!Join { role: Role::Admin, ..join.clone() }.is_proved_by(&token.key()));
        assert!(!Join { request: b"other".to_vec(), ..join.clone() }.is_proved_by(&token.key()));
        assert!(!Join { proof: Vec::new(), ..join.clone() }.is_proved_by(&token.key()));
        let other = Token::new(Role::Worker, AuthorityHash::of(b"ca")).unwrap();
        assert!(!join.is_proved_by(&other.key()));
    }
}
