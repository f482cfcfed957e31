//! Answering those who want to join, and members who want a new certificate.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use footlight_runtime::NodeId;
use rustls::pki_types::UnixTime;

use super::{
    joiner::Asker,
    tokens::{self, TokenRecord},
    wire::{Answer, BUSY, ISSUE_PATIENCE, Join, MAX_WORDS, PATIENCE, Refusal, Request},
};
use crate::{
    ledger::{Expect, Ledger, LedgerError, LedgerStatus},
    network::Network,
    transport::{admission::Source, handshake},
    trust::{Authority, PeerIdentity, node_key::SigningRequest},
};

/// Most requests that are answered at once, and of those most from one source.
const PLACES: usize = 16;
const PLACES_OF_ONE: usize = 4;
/// One that was refused keeps its place for so long: that bounds the attempts a second.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// An answer may take so long to arrive.
const LINGER: Duration = Duration::from_secs(1);
/// A token that somebody else changes at the same moment is looked at again.
const TRIES: usize = 3;
/// Most nodes to which a request is passed on.
const MAX_ISSUERS: usize = 5;

/// Answers requests for certificates.
pub(crate) struct Issuer {
    network: Weak<Network>,
    ledger: Ledger,
    asker: Asker,
    places: Places,
}

impl Issuer {
    pub(crate) fn new(network: &Arc<Network>, ledger: Ledger, asker: Asker) -> Self {
        Issuer { network: Arc::downgrade(network), ledger, asker, places: Places::default() }
    }

    pub(super) fn asker(&self) -> &Asker {
        &self.asker
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Answers the one request of a connection in the joiners' protocol. `identity` is what the
    /// other end has proved, if it showed a certificate.
    ///
    /// # Errors
    /// Why it got no certificate, for the log.
    pub(crate) async fn serve(
        &self,
        connection: quinn::Connection,
        identity: Option<PeerIdentity>,
    ) -> Result<(), String> {
        let from = connection.remote_address();
        let Some(_place) = self.places.take(from) else {
            connection.close(BUSY.into(), b"too many ask to be let in");
            return Err(format!("{from} asked to be let in while too many others did"));
        };
        let version = self.asker.version;
        let asked = tokio::time::timeout(PATIENCE, async {
            let (send, mut recv) = connection.accept_bi().await.map_err(|why| why.to_string())?;
            let request = handshake::read_at_most(&mut recv, version, MAX_WORDS).await;
            Ok::<_, String>((send, request))
        });
        let asked = asked.await.map_err(|_| format!("{from} asked for nothing"))?;
        let (mut send, request) = asked.map_err(|why| format!("{from}: {why}"))?;
        let answer = match request {
            // The preamble of the answer tells which version is spoken here.
            Err(error) => Answer::Refused(Refusal::Malformed(error.to_string())),
            Ok(request) => {
                let issued = tokio::time::timeout(ISSUE_PATIENCE, self.issue(request, identity));
                let late = || Refusal::NoIssuer("the cluster took too long".to_owned());
                issued.await.unwrap_or_else(|_| Err(late())).unwrap_or_else(Answer::Refused)
            }
        };
        let written = tokio::time::timeout(PATIENCE, async {
            handshake::write(&mut send, version, &answer).await.map_err(|why| why.to_string())?;
            let _ = send.finish();
            // Closing at once would overtake the answer.
            let _ = tokio::time::timeout(LINGER, send.stopped()).await;
            Ok::<_, String>(())
        });
        let written = written.await.unwrap_or_else(|_| Err("it does not read".to_owned()));
        connection.close(0u32.into(), b"answered");
        if let Answer::Refused(refusal) = answer {
            tokio::time::sleep(REFUSED_PAUSE).await;
            return Err(format!("{from} was not let in: {refusal}"));
        }
        written.map_err(|why| format!("{from} asked and did not take the answer: {why}"))
    }

    async fn issue(
        &self,
        request: Request,
        identity: Option<PeerIdentity>,
    ) -> Result<Answer, Refusal> {
        let network = self.network.upgrade().ok_or(Refusal::Busy)?;
        let keyring = &network.keyring;
        let now = keyring.now().map_err(|error| Refusal::NoIssuer(error.to_string()))?;
        let read = |der: &[u8]| {
            SigningRequest::read(der).map_err(|error| Refusal::Malformed(error.to_string()))
        };
        match (request, keyring.authority()) {
            (Request::Join(join), None) => self.pass_on(&network, join).await,
            (Request::Join(join), Some(authority)) => {
                let signing = read(&join.request)?;
                self.admit(&network, &authority, &join, signing, now).await
            }
            (Request::Renew { request }, authority) => {
                let no_right = || Refusal::Malformed("it is not from a member".to_owned());
                let identity = identity.ok_or_else(no_right)?;
                let signing = read(&request)?;
                if signing.node != identity.node {
                    let why = "it is for another node's key".to_owned();
                    return Err(Refusal::Malformed(why));
                }
                if keyring.revoked().contains(identity.node) {
                    return Err(Refusal::Revoked { node: identity.node });
                }
                let Some(authority) = authority else {
                    return Ok(Answer::Elsewhere(issuers(&network)));
                };
                let signed = authority.sign(&signing, identity.role, keyring.life(), now);
                let signed = signed.map_err(|error| Refusal::NoIssuer(error.to_string()))?;
                tracing::info!(node = %identity.node, "a certificate was renewed");
                Ok(Answer::Certificate(signed.to_vec()))
            }
        }
    }

    /// Lets a joiner in, if its token says so. The ledger decides who is first (EN-1).
    async fn admit(
        &self,
        network: &Network,
        authority: &Authority,
        join: &Join,
        signing: SigningRequest,
        now: UnixTime,
    ) -> Result<Answer, Refusal> {
        if !join.token.is_valid() {
            return Err(Refusal::UnknownToken);
        }
        let key = tokens::key_of(&join.token);
        // Strangers are told nothing of the voters; the log is.
        let silent = |error: LedgerError| {
            tracing::warn!(%error, "a joiner could not be let in");
            Refusal::NoIssuer("the cluster's ledger does not answer".to_owned())
        };
        for _ in 0..TRIES {
            let found = self.ledger.get(&key).await.map_err(silent)?;
            let found = found.ok_or(Refusal::UnknownToken)?;
            let record = TokenRecord::decode(&found.value).map_err(|error| {
                tracing::error!(error, key, "a token in the ledger can't be read");
                Refusal::UnknownToken
            })?;
            let entitled = record.judge(join, signing.node, now)?;
            if network.keyring.revoked().contains(signing.node) {
                return Err(Refusal::Revoked { node: signing.node });
            }
            if let Some(record) = entitled.record {
                let value = record.encode().map_err(Refusal::NoIssuer)?;
                let expect = Expect::Version(found.version);
                match self.ledger.put(&key, value, expect, None).await {
                    Ok(_) => {}
                    Err(LedgerError::Conflict { .. }) => continue,
                    Err(error) => return Err(silent(error)),
                }
            }
            let signed = authority.sign(&signing, entitled.role, network.keyring.life(), now);
            let signed = signed.map_err(|error| Refusal::NoIssuer(error.to_string()))?;
            tracing::info!(node = %signing.node, role = %entitled.role, "a node was let in");
            return Ok(Answer::Certificate(signed.to_vec()));
        }
        Err(Refusal::Busy)
    }

    /// Hands a joiner's request to nodes that have the authority's key.
    async fn pass_on(&self, network: &Network, join: Join) -> Result<Answer, Refusal> {
        let nobody = |why: &str| Refusal::NoIssuer(why.to_owned());
        if join.passed_on {
            return Err(nobody("the node that was asked does not hold the authority's key"));
        }
        let join = Join { passed_on: true, ..join };
        let mut refusal = nobody("no node with the authority's key is known here");
        for addr in issuers(network).into_iter().take(MAX_ISSUERS) {
            let shown = network.keyring.shown();
            match self.asker.pass_on(&shown, join.clone(), addr).await {
                Ok(certificate) => return Ok(Answer::Certificate(certificate)),
                Err(super::joiner::AskError::Refused(why)) if !why.may_pass() => return Err(why),
                Err(error) => {
                    tracing::info!(%addr, %error, "a joiner's request could not be passed on");
                    refusal = nobody("the nodes with the authority's key do not answer");
                }
            }
        }
        Err(refusal)
    }
}

/// Where the authority's key is, as far as a node knows: with the ledger's voters.
pub(super) fn issuers(network: &Network) -> Vec<SocketAddr> {
    let voters = LedgerStatus::of(&network.ledgers()).map_or_else(Vec::new, |told| told.voters);
    let there: BTreeMap<NodeId, SocketAddr> = network
        .view
        .others()
        .into_iter()
        .filter(|member| !member.state.is_gone())
        .map(|member| (member.id, member.address))
        .collect();
    voters.iter().filter_map(|voter| there.get(voter).copied()).collect()
}

/// The places of those who are being answered.
#[derive(Default)]
struct Places(Arc<Mutex<BTreeMap<Source, usize>>>);

struct Place {
    taken: Arc<Mutex<BTreeMap<Source, usize>>>,
    source: Source,
}

impl Places {
    fn take(&self, from: SocketAddr) -> Option<Place> {
        let source = Source::of(from);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= PLACES {
            return None;
        }
        let of_one = taken.entry(source).or_default();
        if *of_one >= PLACES_OF_ONE {
            return None;
        }
        *of_one += 1;
        Some(Place { taken: self.0.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_places_for_others_and_they_come_back() {
        let places = Places::default();
        let at = |a: u8, port| SocketAddr::from(([10, 0, 0, a], port));
        let mut held: Vec<_> =
            (0..PLACES_OF_ONE as u16).map(|port| places.take(at(1, port))).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(at(1, 99)).is_none());
        for source in 2..=4 {
            held.extend((0..PLACES_OF_ONE as u16).map(|port| places.take(at(source, port))));
        }
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(at(5, 1)).is_none());
        held.clear();
        assert!(places.take(at(5, 1)).is_some());
    }
}
