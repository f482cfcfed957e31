//! What the leader does besides answering: leases that were not renewed lapse, keys whose owner's
//! life is over go, voters come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use footlight_runtime::{Incarnation, NodeId};
use openraft::ChangeMembers;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    LedgerId, Told,
    actor::LedgerActor,
    command::{Command, Life, Reign},
    leases::{LeaseTime, Timers},
    message::Invite,
    seat::{Seat, go_up_in},
    types::{Keeps, VoterId},
    voter::{Voter, lock},
    voters::{Candidate, Health, Present, Step},
};
use crate::{MemberState, network::Network, trust::Right};

/// How often the leader looks at its duties, at the latest.
const LOOK: Duration = Duration::from_millis(100);
/// How often it looks for owners that are gone.
const SWEEP: Duration = Duration::from_secs(1);
/// An owner of which nobody knows is taken for gone after this time: news may be on its way.
const UNKNOWN: Duration = Duration::from_secs(60);
/// An older ledger is looked at for so long before this one goes up in it, and before that is tried
/// again.
const MERGE: Duration = Duration::from_secs(1);
/// Most leases that lapse by one entry.
const LAPSES: usize = 512;
/// How long a node may take to make its store.
const INVITED: Duration = Duration::from_secs(5);
/// A node that could not vote is not asked again for so long.
const REFUSED: Duration = Duration::from_secs(30);
/// A change of who votes takes so long at most; then it is looked at anew.
const CHANGE: Duration = Duration::from_secs(10);
/// A voter that is so many entries behind has caught up: the rest comes in a moment.
const NEAR: u64 = 64;

/// A voter's time as the leader. Each duty is done by a task, one at a time, on the control thread:
/// a leader must not seem gone because actors keep every core busy.
pub(super) struct Leader {
    pub(super) reign: Reign,
    first: JoinHandle<()>,
    lapsing: Option<JoinHandle<()>>,
    sweeping: Option<JoinHandle<()>>,
    changing: Option<JoinHandle<()>>,
    merging: Option<JoinHandle<()>>,
    merged: Instant,
    swept: Instant,
    unknown_owners: BTreeMap<Life, Instant>,
    /// Since when nodes are down, or voters' nodes no members that it knows, as far as this leader
    /// knows.
    down: BTreeMap<NodeId, Instant>,
    /// Voters whose nodes say that they are none any more.
    unknown: BTreeSet<VoterId>,
    /// Nodes that could not vote when they were asked.
    refused: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

fn is_free(task: &Option<JoinHandle<()>>) -> bool {
    task.as_ref().is_none_or(JoinHandle::is_finished)
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.first.abort();
        for task in [&self.lapsing, &self.sweeping, &self.changing].into_iter().flatten() {
            task.abort();
        }
    }
}

impl Leader {
    pub(super) fn begin(reign: Reign, voter: &Arc<Voter>, lease: LeaseTime) -> Self {
        let now = Instant::now();
        *lock(&voter.timers) = Some((reign, Timers::begin(now, lease)));
        Leader {
            reign,
            // What leaders before this one wrote is committed with the first entry of its own.
            first: does(voter, Command::Nothing),
            lapsing: None,
            sweeping: None,
            changing: None,
            merging: None,
            merged: now,
            swept: now,
            unknown_owners: BTreeMap::new(),
            down: BTreeMap::new(),
            unknown: BTreeSet::new(),
            refused: Arc::default(),
        }
    }

    /// Looks at all duties; never waits.
    pub(super) fn look(
        &mut self,
        seat: &Arc<Seat>,
        voter: &Arc<Voter>,
        network: &Arc<Network>,
        older: Option<LedgerId>,
    ) {
        let now = Instant::now();
        if let Some(older) = older
            && is_free(&self.merging)
            && now >= self.merged + MERGE
        {
            self.merged = now;
            tracing::info!("this ledger goes up in an older one that the cluster has");
            // It ends the voter, and so this leader: it must not be ended by that.
            self.merging = Some(voter.control.spawn(go_up_in(seat.clone(), voter.clone(), older)));
        }
        if is_free(&self.lapsing) {
            self.lapse(voter, now);
        }
        if is_free(&self.sweeping) && now >= self.swept + SWEEP {
            self.swept = now;
            self.sweep(voter, network, now);
        }
        if is_free(&self.changing) {
            self.change(seat, voter, network, now);
        }
    }

    fn lapse(&mut self, voter: &Arc<Voter>, now: Instant) {
        let mut timers = lock(&voter.timers);
        let Some((reign, timers)) = &mut *timers else { return };
        if *reign != self.reign {
            return;
        }
        let mut grants = voter.view.read(|state| timers.look(state.leases(), now, LOOK));
        grants.truncate(LAPSES);
        if !grants.is_empty() {
            tracing::debug!(?grants, "leases were not renewed");
            self.lapsing = Some(does(voter, Command::Lapse { reign: self.reign, grants }));
        }
    }

    fn sweep(&mut self, voter: &Arc<Voter>, network: &Arc<Network>, now: Instant) {
        let owners = voter.view.read(|state| state.owners());
        self.unknown_owners.retain(|life, _| owners.contains(life));
        let over = |life: &Life| match network.standing(life.node) {
            Some((incarnation, state)) => {
                incarnation > life.incarnation
                    || (incarnation == life.incarnation && state.is_gone())
            }
            None => {
                let since = *self.unknown_owners.entry(*life).or_insert(now);
                now >= since + UNKNOWN
            }
        };
        let over: Vec<Life> = owners.into_iter().filter(over).collect();
        if over.is_empty() {
            return;
        }
        let (control, voter) = (voter.control.clone(), voter.clone());
        self.sweeping = Some(control.spawn(async move {
            for life in over {
                let _ = voter.lead(Command::Forget(life)).await;
            }
        }));
    }

    fn change(&mut self, seat: &Seat, voter: &Arc<Voter>, network: &Arc<Network>, now: Instant) {
        let present = self.present(seat, voter, network.ledgers(), now);
        let step = present.step();
        if step != Step::Nothing {
            tracing::debug!(?step, "who votes");
        }
        let (control, voter) = (voter.control.clone(), voter.clone());
        self.changing = Some(match step {
            Step::Nothing => return,
            Step::Invite(node) => {
                let (network, refused) = (network.clone(), self.refused.clone());
                let lease = seat.client.lease;
                control.spawn(async move {
                    if let Err(why) = invite(&voter, &network, node, lease).await {
                        tracing::debug!(%node, why, "a node can't vote");
                        lock(&refused).insert(node, Instant::now());
                    }
                })
            }
            Step::Vote(voters) => {
                control.spawn(change(voter, ChangeMembers::ReplaceAllVoters(voters)))
            }
            Step::Dismiss(learner) => {
                let learner = [learner].into_iter().collect();
                control.spawn(change(voter, ChangeMembers::RemoveNodes(learner)))
            }
        });
    }

    fn present(&mut self, seat: &Seat, voter: &Voter, told: Vec<Told>, now: Instant) -> Present {
        {
            let mut heard = lock(&voter.unknown);
            while let Ok(unknown) = heard.try_recv() {
                self.unknown.insert(unknown);
            }
        }
        lock(&self.refused).retain(|_, since| now < *since + REFUSED);
        let metrics = voter.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let is_told = |node: NodeId| told.iter().any(|told| told.node == node);
        // After a restart it knows nobody at first, and who has been gone for an hour is forgotten.
        let absent = membership.voter_ids().map(|voter| voter.node).filter(|node| !is_told(*node));
        let absent: BTreeSet<NodeId> = absent.collect();
        self.down.retain(|node, _| {
            let is_down = |told: &Told| told.node == *node && told.state == MemberState::Down;
            absent.contains(node) || told.iter().any(is_down)
        });
        self.unknown.retain(|voter| membership.get_node(voter).is_some());
        let mut nodes = BTreeMap::new();
        let retiring = lock(&seat.retiring).clone();
        let mut gone = |node: NodeId| {
            let since = *self.down.entry(node).or_insert(now);
            let long = now >= since + seat.settings.replace_after;
            if long { Health::Lost } else { Health::Away }
        };
        for node in absent {
            nodes.insert(node, Candidate { health: gone(node), server: None, refused: false });
        }
        for Told { node, state, server, .. } in told {
            let health = match state {
                MemberState::Left => Health::Left,
                MemberState::Down => gone(node),
                _ if retiring.contains(&node) => Health::Leaves,
                MemberState::Leaving => Health::Leaves,
                MemberState::Up => Health::Up,
                MemberState::Joining | MemberState::Suspect => Health::Away,
            };
            let refused = lock(&self.refused).contains_key(&node);
            nodes.insert(node, Candidate { health, server, refused });
        }
        let last = metrics.last_log_index.unwrap_or(0);
        let caught_up = |learner: &VoterId| {
            let matched = metrics.replication.as_ref().and_then(|matched| matched.get(learner));
            matched.is_some_and(|id| id.is_some_and(|id| id.index + NEAR >= last))
        };
        let configs = membership.get_joint_config();
        Present {
            me: voter.deed.me,
            voters: membership.voter_ids().collect(),
            pending: if configs.len() > 1 { configs.last().cloned() } else { None },
            learners: membership.learner_ids().map(|id| (id, caught_up(&id))).collect(),
            unknown: self.unknown.clone(),
            nodes,
            most: seat.settings.voters.max(1),
        }
    }
}

/// Asks a node to listen, and adds it to those that do.
async fn invite(
    voter: &Voter,
    network: &Arc<Network>,
    node: NodeId,
    lease: LeaseTime,
) -> Result<(), String> {
    let there = LedgerActor::of(node, network).ok_or("it is no member now")?;
    // What it says of itself is not enough: a voter gets the authority's key.
    if !network.has_right(node, Right::Vote) {
        return Err("it is not connected, or its certificate does not let it vote".to_owned());
    }
    let invite = Invite { ledger: voter.deed.ledger, founded: voter.deed.founded, lease };
    let invited = there.call_within(invite, INVITED).await;
    let (id, on_disk) = invited.map_err(|error| error.to_string())??;
    if id.node != node {
        return Err(format!("it answers as node {}", id.node));
    }
    let added = timeout(CHANGE, voter.raft.add_learner(id, Keeps { on_disk }, false)).await;
    added
        .map_err(|_| "no majority of the voters answers".to_owned())?
        .map_err(|error| error.to_string())?;
    Ok(())
}

async fn change(voter: Arc<Voter>, change: ChangeMembers<VoterId, Keeps>) {
    match timeout(CHANGE, voter.raft.change_membership(change, false)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "who votes could not be changed"),
        Err(_) => tracing::debug!("who votes could not be changed in time"),
    }
}

/// Writes in a task of its own. If it fails, the next look tries again.
fn does(voter: &Arc<Voter>, command: Command) -> JoinHandle<()> {
    let (control, voter) = (voter.control.clone(), voter.clone());
    control.spawn(async move {
        if let Err(error) = voter.lead(command).await {
            tracing::debug!(%error, "a leader's entry was not written");
        }
    })
}

impl Network {
    /// The latest life of a node that is known, and how it is.
    fn standing(&self, node: NodeId) -> Option<(Incarnation, MemberState)> {
        if node == self.node() {
            return Some((self.system.incarnation(), MemberState::Up));
        }
        self.view.standing(node)
    }
}
