//! What the ledger keeps of tokens, and what it says to a joiner.

use std::time::Duration;

use footlight_runtime::NodeId;
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::wire::{Join, Refusal};
use crate::trust::{Role, Token, TokenId, token::ProofKey};

/// Where tokens stand in the ledger.
pub(crate) const PREFIX: &str = "token/";
/// A token is forgotten so long after its end: until then its holder is told what became of it.
const REMEMBERED: u64 = 24 * 3600;

/// The ledger's key of a token.
pub(crate) fn key_of(token: &TokenId) -> String {
    format!("{PREFIX}{token}")
}

/// What the ledger keeps of a token: neither it nor its secret, but what proofs are checked by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) role: Role,
    /// In seconds since 1970.
    pub(crate) made: u64,
    /// In seconds since 1970.
    pub(crate) expires: u64,
    /// Who was let in by it.
    pub(crate) used_by: Option<NodeId>,
    key: ProofKey,
}

/// A joiner that has proved that it may come in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entitled {
    pub(crate) role: Role,
    /// What the ledger is to keep from now on; `None` if the same key was let in before.
    pub(crate) record: Option<TokenRecord>,
}

impl TokenRecord {
    pub(crate) fn new(token: &Token, ttl: Duration, now: UnixTime) -> Self {
        let (made, role, key) = (now.as_secs(), token.role(), token.key());
        let expires = made.saturating_add(ttl.as_secs());
        TokenRecord { role, made, expires, used_by: None, key }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec(self).map_err(|error| error.to_string())
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }

    /// Whether it need not be kept any longer.
    pub(crate) fn is_forgotten(&self, now: UnixTime) -> bool {
        now.as_secs() > self.expires.saturating_add(REMEMBERED)
    }

    /// What a joiner with the key of `node` gets by it.
    ///
    /// # Errors
    /// Why it gets nothing. Nothing but that is said to one who does not know the secret (EN-2).
    pub(crate) fn judge(
        &self,
        join: &Join,
        node: NodeId,
        now: UnixTime,
    ) -> Result<Entitled, Refusal> {
        if !join.is_proved_by(&self.key) {
            return Err(Refusal::UnknownToken);
        }
        let now = now.as_secs();
        match self.used_by {
            // Before the time is looked at: its answer may have been lost.
            Some(by) if by == node => {}
            Some(by) => return Err(Refusal::Used { by }),
            None => {}
        }
        if now > self.expires {
            return Err(Refusal::Expired { ago_s: now - self.expires });
        }
        if join.role != self.role {
            return Err(Refusal::WrongRole { gives: self.role, asked: join.role });
        }
        let record = TokenRecord { used_by: Some(node), ..self.clone() };
        Ok(Entitled { role: self.role, record: self.used_by.is_none().then_some(record) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::AuthorityHash;

    const NODE: NodeId = NodeId(7);

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn made() -> (Token, TokenRecord, Join) {
        let token = Token::new(Role::Worker, AuthorityHash::of(b"ca")).unwrap();
        let record = TokenRecord::new(&token, Duration::from_secs(60), at(1_000));
        let join = Join::new(&token, b"request".to_vec());
        (token, record, join)
    }

    #[test]
    fn a_token_lets_in_one_key_which_may_ask_again_and_no_other() {
        let (_, record, join) = made();
        let entitled = record.judge(&join, NODE, at(1_010)).unwrap();
        assert_eq!(entitled.role, Role::Worker);
        let used = entitled.record.unwrap();
        let used = TokenRecord::decode(&used.encode().unwrap()).unwrap();
        assert_eq!(used.judge(&join, NODE, at(1_020)).unwrap().record, None);
        assert_eq!(used.judge(&join, NodeId(8), at(1_020)), Err(Refusal::Used { by: NODE }));
        // Also when it has ended meanwhile, the second one is told that it comes second.
        assert_eq!(used.judge(&join, NodeId(8), at(9_000)), Err(Refusal::Used { by: NODE }));
    }

    #[test]
    fn a_token_that_has_ended_or_is_used_as_another_one_lets_nobody_in() {
        let (token, record, join) = made();
        assert!(record.judge(&join, NODE, at(1_060)).is_ok());
        assert_eq!(record.judge(&join, NODE, at(1_070)), Err(Refusal::Expired { ago_s: 10 }));
        // Whoever writes another role into the text of the token.
        let (head, tail) = token
            .to_string()
            .split_once("worker")
            .map(|(h, t)| (h.to_owned(), t.to_owned()))
            .unwrap();
        let forged: Token = format!("{head}admin{tail}").parse().unwrap();
        let forged = Join::new(&forged, b"request".to_vec());
        let refused = record.judge(&forged, NODE, at(1_010)).unwrap_err();
        assert_eq!(refused, Refusal::WrongRole { gives: Role::Worker, asked: Role::Admin });
    }

    #[test]
    fn who_does_not_know_the_secret_learns_nothing_of_the_token() {
        let (_, record, join) = made();
        let used = record.judge(&join, NODE, at(1_010)).unwrap().record.unwrap();
        let guess = Join { proof: vec![0; 32], ..join };
        for (record, now) in [(&record, 1_010), (&record, 9_000), (&used, 1_010)] {
            assert_eq!(record.judge(&guess, NODE, at(now)), Err(Refusal::UnknownToken));
        }
    }

    #[test]
    fn a_token_is_remembered_for_a_day_after_its_end() {
        let (_, record, _) = made();
        assert!(!record.is_forgotten(at(1_060 + 24 * 3600)));
        assert!(record.is_forgotten(at(1_061 + 24 * 3600)));
    }
}
