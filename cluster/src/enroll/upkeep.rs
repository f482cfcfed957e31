//! What keeps a node in good standing while it runs: its certificate is renewed, the authority's key
//! is where it belongs, and nodes that were revoked are kept out.

use std::{
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Weak},
    time::Duration,
};

use footlight_runtime::NodeId;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{Issuer, issuer::issuers, joiner::Asker, renewal::Renewal};
use crate::{
    Node,
    ledger::{Expect, LedgerError},
    network::{Network, membership_task::Input},
    trust::{Authority, Credentials, node_key::SigningRequest},
};

/// Where the authority stands in the ledger.
const AUTHORITY: &str = "ca";
/// Where revoked nodes stand in the ledger.
pub(super) const REVOKED: &str = "revoked/";
/// The wall clock is looked at so often: it may be set, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(30);
/// Certificates that have ended are looked for so often.
const EXPIRED: Duration = Duration::from_secs(1);
/// A ledger that did not answer is asked again after this time.
const PAUSE: Duration = Duration::from_secs(2);

/// The ledger's key of a node that was revoked.
pub(super) fn revoked_key(node: NodeId) -> String {
    format!("{REVOKED}{node}")
}

/// Begins to answer those who want to join, and to keep this node in good standing.
pub(crate) fn begin(node: &Node, asker: Asker) {
    let (network, control) = (node.network(), node.control());
    let issuer = Arc::new(Issuer::new(network, node.ledger(), asker));
    let _ = network.issuer.set(issuer.clone());
    let rng = node.system().env().seeds.stream("renewal");
    control.spawn(renew(Arc::downgrade(network), issuer.clone(), rng));
    control.spawn(close_expired(Arc::downgrade(network)));
    control.spawn(keep_authority(Arc::downgrade(network), issuer.clone()));
    control.spawn(keep_out(Arc::downgrade(network), issuer));
}

/// Renews the node's certificate for as long as it lives.
pub(crate) async fn renew(network: Weak<Network>, issuer: Arc<Issuer>, mut rng: impl Rng) {
    loop {
        let Some((now, expires)) = network.upgrade().and_then(|network| times(&network)) else {
            return;
        };
        let mut renewal = Renewal::plan(now, expires, &mut rng);
        loop {
            let Some((now, _)) = network.upgrade().and_then(|network| times(&network)) else {
                return;
            };
            let wait = renewal.next().saturating_sub(now);
            if !wait.is_zero() {
                sleep(wait.min(LOOK)).await;
                continue;
            }
            let Some(here) = network.upgrade() else { return };
            match attempt(&here, issuer.asker(), to_ask(&here)).await {
                Ok(()) => break,
                Err(why) => {
                    let Some((now, _)) = times(&here) else { return };
                    renewal.failed(now);
                    match renewal.left(now) {
                        Duration::ZERO => tracing::error!(
                            why,
                            "this node's certificate has ended and was not renewed: no node takes its \
                             connections any more; start it again with a new token (`footlight token \
                             create`)"
                        ),
                        left => tracing::warn!(
                            why,
                            left_s = left.as_secs(),
                            again_in_s = renewal.next().saturating_sub(now).as_secs_f64(),
                            "this node's certificate could not be renewed"
                        ),
                    }
                }
            }
        }
    }
}

/// Renews what a program that only asks keeps for itself, once half of its life is over: such a program
/// does not run for long, so it is done while it is used. It asks at the node that it is asking anyway.
pub(crate) async fn renew_if_due(network: &Arc<Network>, asker: &Asker, at: SocketAddr) {
    let keyring = &network.keyring;
    let due = keyring.now().is_ok_and(|now| keyring.shown().is_past_half(now));
    if keyring.kept().is_some()
        && due
        && let Err(why) = attempt(network, asker, vec![at]).await
    {
        tracing::warn!(
            why,
            "the certificate that this program shows could not be renewed: when it has ended, a new \
             token is needed (`footlight token create`)"
        );
    }
}

/// Ends sessions that outlive their peers' certificates.
async fn close_expired(network: Weak<Network>) {
    loop {
        sleep(EXPIRED).await;
        let Some(network) = network.upgrade() else { return };
        network.close_expired();
    }
}

/// Now, and when the node's certificate ends.
fn times(network: &Network) -> Option<(Duration, Duration)> {
    let now = network.system.env().wall_clock.now_unix_micros();
    let expires = network.keyring.shown().identity().expires;
    let expires = Duration::from_secs(u64::try_from(expires).unwrap_or(0));
    (!network.is_leaving()).then_some((Duration::from_micros(now), expires))
}

async fn attempt(
    network: &Arc<Network>,
    asker: &Asker,
    to_ask: Vec<SocketAddr>,
) -> Result<(), String> {
    fn told(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let keyring = &network.keyring;
    let shown = keyring.shown();
    let identity = shown.identity();
    let now = keyring.now().map_err(told)?;
    let fresh = match (keyring.authority(), keyring.kept().cloned()) {
        (Some(authority), None) => {
            authority.issue(identity.node, identity.role, keyring.life(), now).map_err(told)?
        }
        (authority, Some(kept)) => {
            let read = kept.clone();
            let key = tokio::task::spawn_blocking(move || read.key()).await.map_err(told)?;
            let key = key.map_err(told)?.ok_or("this node's key is gone from its directory")?;
            let request = key.request().map_err(told)?;
            let certificate = match authority {
                Some(authority) => {
                    let request = SigningRequest::read(&request).map_err(told)?;
                    authority.sign(&request, identity.role, keyring.life(), now).map_err(told)?
                }
                None => asker.renew(&shown, request, to_ask).await?,
            };
            let fresh = Credentials::new(&key, certificate, keyring.anchor()).map_err(told)?;
            let got = fresh.identity();
            if (got.node, got.role) != (identity.node, identity.role) {
                return Err("what was issued is for another node or another role".to_owned());
            }
            let der = fresh.certificate().to_vec();
            tokio::task::spawn_blocking(move || kept.keep(&der))
                .await
                .map_err(told)?
                .map_err(told)?;
            fresh
        }
        (None, None) => return Err("this node has neither a key nor the authority's".to_owned()),
    };
    network.show(Arc::new(fresh)).map_err(told)?;
    tracing::debug!("this node's certificate was renewed");
    Ok(())
}

/// Whom to ask for a certificate: those that hold the authority's key, then the other members, which
/// may know better.
fn to_ask(network: &Network) -> Vec<SocketAddr> {
    let mut addrs = issuers(network);
    let others = network.view.others().into_iter().filter(|member| !member.state.is_gone());
    for member in others {
        if !addrs.contains(&member.address) {
            addrs.push(member.address);
        }
    }
    addrs
}

/// What the ledger keeps of the authority.
#[derive(Serialize, Deserialize)]
struct Entrusted {
    certificate: String,
    key: String,
}

/// Keeps the authority's key where it belongs: in the ledger, and with its voters.
pub(crate) async fn keep_authority(network: Weak<Network>, issuer: Arc<Issuer>) {
    let mut stored_in = None;
    loop {
        let Some(here) = network.upgrade().filter(|network| !network.is_leaving()) else { return };
        let mut changes = here.view.changes();
        let own = here.own();
        let ledger = own.ledger.as_ref().filter(|ledger| ledger.voters.contains(&own.node));
        let done = match ledger {
            Some(ledger) if here.keyring.holds_key() && stored_in != Some(ledger.id) => {
                let stored = store(&here, &issuer).await;
                if stored.is_ok() {
                    stored_in = Some(ledger.id);
                }
                stored
            }
            Some(_) if here.keyring.authority().is_none() => fetch(&here, &issuer).await,
            None if !here.keyring.holds_key() => {
                here.keyring.entrust(None);
                Ok(())
            }
            _ => Ok(()),
        };
        drop((own, here));
        match done {
            Ok(()) => {
                if changes.changed().await.is_err() {
                    return;
                }
            }
            Err(why) => {
                tracing::debug!(why, "the authority's key is not in place yet");
                let _ = timeout(PAUSE, changes.changed()).await;
                sleep(PAUSE / 10).await;
            }
        }
    }
}

/// A node with the key in its state directory entrusts it to the ledger.
async fn store(network: &Network, issuer: &Issuer) -> Result<(), String> {
    let authority = network.keyring.authority().ok_or("the key is gone")?;
    let there = issuer.ledger().get(AUTHORITY).await.map_err(|error| error.to_string())?;
    if let Some(there) = there {
        let there = read(&there.value)?;
        if there.anchor() != authority.anchor() {
            tracing::error!(
                "the ledger holds the key of another authority than this node's state directory"
            );
        }
        return Ok(());
    }
    let entrusted = Entrusted { certificate: authority.anchor().pem(), key: authority.key_pem() };
    let value = serde_json::to_vec(&entrusted).map_err(|error| error.to_string())?;
    match issuer.ledger().put(AUTHORITY, value, Expect::Absent, None).await {
        Ok(_) | Err(LedgerError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// A voter takes the key from the ledger, so that certificates are issued although the node that made
/// the authority is gone.
async fn fetch(network: &Network, issuer: &Issuer) -> Result<(), String> {
    let there = issuer.ledger().get(AUTHORITY).await.map_err(|error| error.to_string())?;
    let there = there.ok_or("the ledger does not hold it yet")?;
    let authority = read(&there.value)?;
    if *authority.anchor() != network.keyring.anchor() {
        return Err("the ledger holds the key of another authority than this node's".to_owned());
    }
    network.keyring.entrust(Some(Arc::new(authority)));
    tracing::info!("this node can issue certificates from now on: it is a voter of the ledger");
    Ok(())
}

fn read(value: &[u8]) -> Result<Authority, String> {
    let Entrusted { certificate, key } =
        serde_json::from_slice(value).map_err(|error| error.to_string())?;
    Authority::from_pem(&certificate, &key).map_err(|error| error.to_string())
}

/// Keeps out the nodes that the ledger says were revoked.
pub(crate) async fn keep_out(network: Weak<Network>, issuer: Arc<Issuer>) {
    let mut watch = issuer.ledger().watch(REVOKED);
    while let Some((key, now)) = watch.next().await {
        let Some(here) = network.upgrade() else { return };
        let node = key.strip_prefix(REVOKED).map(NodeId::from_str);
        let Some(Ok(node)) = node else {
            tracing::error!(key, "what was revoked is no node");
            continue;
        };
        match now {
            None => here.keyring.revoked().remove(node),
            Some(_) if node == here.keyring.shown().identity().node => {
                if let Some(node) = Node::of(&here.system) {
                    node.fail("this node was revoked: the cluster takes its certificate no more");
                }
            }
            Some(_) if here.keyring.revoked().insert(node) => {
                tracing::warn!(%node, "the node was revoked and is kept out from now on");
                let _ = here.membership.send(Input::Revoked(node));
                here.close_revoked(node);
            }
            Some(_) => {}
        }
    }
}
