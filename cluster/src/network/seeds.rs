//! Calling seeds: the addresses at which a node looks for its cluster.
//!
//! All addresses of all seeds are called at once, and looked up again in every round. As long as a
//! node knows no other member it calls every second, at first faster; so it may start before its
//! seeds, and finds its way back if it lost all others. As a member it calls those of its seeds that
//! are none, every five seconds: so two halves that formed apart become one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::NodeId;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    Network,
    dial::{self, DialError},
    membership_task::Input,
};
use crate::{
    ClusterError,
    membership::MemberId,
    transport::{session::Session, socket::Sockets},
};

const FIRST_ROUND: Duration = Duration::from_millis(100);
const LAST_ROUND: Duration = Duration::from_secs(1);
/// A member calls the seeds that are none this often.
const MEMBER_ROUND: Duration = Duration::from_secs(5);
/// How long a name may take to be looked up.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Most addresses of one name that are called.
const MAX_ADDRS: usize = 32;
/// A node that waits says so first after three seconds, then less and less often, each minute at last.
const FIRST_WORD: Duration = Duration::from_secs(3);
const LAST_WORD: Duration = Duration::from_secs(60);

/// How the search stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Each seed with the latest trouble.
    pub(crate) troubles: String,
    /// The first node that answered.
    pub(crate) through: Option<NodeId>,
    /// A seed has said, so, that this node was thrown out of the cluster.
    pub(crate) thrown_out: Option<String>,
}

/// The seeds of one node, and the calls under way.
pub(crate) struct Seeds {
    seeds: Vec<Seed>,
    sockets: Arc<dyn Sockets>,
    calls: JoinSet<(SocketAddr, Result<Arc<Session>, DialError>)>,
    under_way: BTreeSet<SocketAddr>,
    /// Who answered at an address: it may tell others another one.
    who: BTreeMap<SocketAddr, NodeId>,
    thrown_out: Option<String>,
}

struct Seed {
    given: String,
    addrs: Vec<SocketAddr>,
    trouble: Option<String>,
}

impl Seeds {
    /// Seeds as they were given: names or addresses, each with a port.
    ///
    /// # Errors
    /// [`ClusterError::Address`] of what can't become an address.
    pub(crate) fn new(given: &[String], sockets: Arc<dyn Sockets>) -> Result<Self, ClusterError> {
        let seed = |given: &String| match given.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Seed { given: given.clone(), addrs: Vec::new(), trouble: None })
            }
            _ => Err(ClusterError::Address {
                given: given.clone(),
                why: "it has no port".to_owned(),
            }),
        };
        Ok(Seeds {
            seeds: given.iter().map(seed).collect::<Result<_, _>>()?,
            sockets,
            calls: JoinSet::new(),
            under_way: BTreeSet::new(),
            who: BTreeMap::new(),
            thrown_out: None,
        })
    }

    /// Looks all names up, also those that were found before: a name may get other addresses.
    pub(crate) async fn look_up(&mut self) {
        let sockets = &self.sockets;
        let look = |seed: &Seed| {
            let given = seed.given.clone();
            async move { tokio::time::timeout(LOOK_UP, sockets.look_up(&given)).await }
        };
        let found = self.seeds.iter().map(look);
        let found = futures::future::join_all(found).await;
        for (seed, found) in self.seeds.iter_mut().zip(found) {
            let why = match found {
                Ok(Ok(addrs)) if addrs.is_empty() => "the name has no address".to_owned(),
                Ok(Ok(mut addrs)) => {
                    addrs.truncate(MAX_ADDRS);
                    seed.addrs = addrs;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not looked up within {LOOK_UP:?}"),
            };
            // Where it was last known it may still be.
            seed.trouble = Some(format!("{}: {why}", seed.given));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    pub(crate) fn addrs(&self) -> BTreeSet<SocketAddr> {
        self.seeds.iter().flat_map(|seed| seed.addrs.iter().copied()).collect()
    }

    /// Calls at all addresses but those of `known` nodes and those where a call is under way.
    fn call(&mut self, network: &Arc<Network>, known: &Known) {
        for addr in self.addrs() {
            let of_known = known.addrs.contains(&addr)
                || self.who.get(&addr).is_some_and(|node| known.nodes.contains(node));
            if of_known || !self.under_way.insert(addr) {
                continue;
            }
            let here = network.clone();
            let call = async move { (addr, dial::dial(&here, addr, None).await) };
            self.calls.spawn_on(call, &network.control_thread);
        }
        self.who.retain(|addr, _| self.seeds.iter().any(|seed| seed.addrs.contains(addr)));
    }

    /// The next session that a call has brought. Waits for ever if no call is under way.
    async fn answer(&mut self, network: &Network) -> Arc<Session> {
        loop {
            let Some(ended) = self.calls.join_next().await else {
                return std::future::pending().await;
            };
            let Ok((addr, outcome)) = ended else {
                // A task that was cancelled: the node is ending.
                continue;
            };
            self.under_way.remove(&addr);
            let why = match outcome {
                Ok(session) => {
                    self.who.insert(addr, session.peer.node);
                    return session;
                }
                Err(DialError::Yourself) => {
                    self.who.insert(addr, network.node());
                    continue;
                }
                Err(error) => {
                    if let DialError::ThrownOut(why) = &error {
                        self.thrown_out = Some(why.clone());
                    }
                    error.to_string()
                }
            };
            for seed in self.seeds.iter_mut().filter(|seed| seed.addrs.contains(&addr)) {
                seed.trouble = Some(why.clone());
            }
        }
    }

    pub(crate) fn troubles(&self) -> String {
        let troubles = self.seeds.iter().map(|seed| match &seed.trouble {
            Some(trouble) => trouble.clone(),
            None => format!("{}: nobody answers", seed.given),
        });
        troubles.collect::<Vec<_>>().join("; ")
    }

    /// Calls until somebody answers: for a node that only asks.
    ///
    /// # Errors
    /// [`ClusterError::NoAnswer`] at the deadline, [`ClusterError::ThrownOut`].
    pub(crate) async fn reach(
        mut self,
        network: Arc<Network>,
        waited: Duration,
        deadline: Instant,
    ) -> Result<Arc<Session>, ClusterError> {
        let mut round = FIRST_ROUND;
        loop {
            if let Some(why) = self.thrown_out.take() {
                return Err(ClusterError::ThrownOut(why));
            }
            self.look_up().await;
            self.call(&network, &Known::default());
            tokio::select! {
                biased;
                session = self.answer(&network) => return Ok(session),
                () = tokio::time::sleep_until(deadline) => {
                    return Err(ClusterError::NoAnswer { waited, node: self.troubles() });
                }
                () = tokio::time::sleep(round) => round = (round * 2).min(LAST_ROUND),
            }
        }
    }
}

/// Who need not be called: the members, and this node.
#[derive(Default)]
struct Known {
    nodes: BTreeSet<NodeId>,
    addrs: BTreeSet<SocketAddr>,
}

impl Known {
    fn of(network: &Network) -> Self {
        let members = network.view.others();
        let members = members.iter().filter(|member| !member.state.is_gone());
        let mut known = Known::default();
        for member in members {
            known.nodes.insert(member.id);
            known.addrs.insert(member.address);
        }
        known.nodes.insert(network.node());
        known.addrs.insert(network.greeting().addr);
        known
    }

    fn is_alone(&self) -> bool {
        self.nodes.len() <= 1
    }
}

/// When a node that waits says so.
struct Words {
    since: Instant,
    next: Duration,
}

impl Words {
    fn begin() -> Self {
        Words { since: Instant::now(), next: FIRST_WORD }
    }

    fn say(&mut self, troubles: &str) {
        let waited = self.since.elapsed();
        if waited >= self.next {
            self.next = waited + waited.min(LAST_WORD);
            tracing::warn!(
                waited_s = waited.as_secs(),
                seeds = troubles,
                "no seed answers; this node is alone and goes on calling"
            );
        }
    }
}

/// Calls a node's seeds for as long as it lives.
pub(crate) async fn keep(
    network: Weak<Network>,
    mut seeds: Seeds,
    progress: watch::Sender<Progress>,
) {
    let mut round = FIRST_ROUND;
    let mut words = Words::begin();
    loop {
        let Some(network) = network.upgrade() else { return };
        if network.leaving.load(Ordering::Acquire) {
            return;
        }
        seeds.look_up().await;
        let mut changes = network.view.changes();
        let known = Known::of(&network);
        let alone = known.is_alone();
        seeds.call(&network, &known);
        let pause = if alone {
            words.say(&seeds.troubles());
            progress.send_modify(|progress| {
                progress.troubles = seeds.troubles();
                progress.thrown_out.clone_from(&seeds.thrown_out);
            });
            round
        } else {
            words = Words::begin();
            round = FIRST_ROUND;
            MEMBER_ROUND
        };
        let over = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                session = seeds.answer(&network) => {
                    let peer = &session.peer;
                    let member = MemberId::new(peer.node, peer.incarnation, peer.addr);
                    let _ = network.membership.send(Input::Join(member));
                    progress.send_modify(|progress| {
                        progress.through.get_or_insert(peer.node);
                    });
                }
                changed = changes.changed() => {
                    // Whoever has just lost everybody does not wait for the round's end.
                    if changed.is_err() || Known::of(&network).is_alone() != alone {
                        break;
                    }
                }
                () = tokio::time::sleep_until(over) => {
                    round = (round * 2).min(LAST_ROUND);
                    break;
                }
            }
        }
    }
}
