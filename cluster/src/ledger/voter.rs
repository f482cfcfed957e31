//! A running voter: openraft over the store, and the answers to those who ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use footlight_runtime::NodeId;
use openraft::{
    Config, ServerState, SnapshotPolicy,
    error::{CheckIsLeaderError, ClientWriteError, RaftError},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    LedgerSettings, LedgerView,
    command::{Command, Entry, Outcome, Reign},
    leases::{LeaseTime, Timers},
    machine::{Machine, View},
    message::{Answer, Ask, NotServed, is_for_voters, is_listed},
    state::State,
    store::{Closed, Deed, Store, StoreError},
    transport::Wires,
    types::{Keeps, LogId, Raft, VoterId},
};

/// A snapshot is made when so many entries have come after the last one.
const SNAPSHOT_EVERY: u64 = 1_000;
/// So many entries that a snapshot holds are kept for voters that are a little behind.
const KEEP: u64 = 200;
/// Snapshots travel in pieces of so many bytes.
const PIECE: u64 = 256 * 1024;
/// A question that is not answered after this time is given back, so that another voter is asked.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// A voter that has not heard from the others for so long is out of touch.
const TOUCH: Duration = Duration::from_secs(2);
/// Bytes of one answer that lists keys.
const LISTED: usize = 1024 * 1024;

/// When others were heard last; no earlier than the voter was started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// Who leads.
    pub(super) leader: Instant,
    /// Who stood for election and was given this voter's vote.
    pub(super) candidate: Instant,
}

/// A voter that is open.
pub(super) struct Voter {
    pub(super) raft: Raft,
    pub(super) view: Arc<View>,
    pub(super) deed: Deed,
    /// The node's control thread, on which all of this voter's tasks run.
    pub(super) control: Handle,
    /// The leader's timers, while this voter leads.
    pub(super) timers: Mutex<Option<(Reign, Timers)>>,
    /// Those who wait until the leader knows that it still is.
    waiting: mpsc::UnboundedSender<oneshot::Sender<bool>>,
    closed: Mutex<Option<Closed>>,
    /// The way to the others.
    pub(super) wires: Wires,
    /// A voter that has heard the leader within this time gives nobody else its vote.
    pub(super) lease_of_a_leader: Duration,
    heard: Mutex<Heard>,
    /// Voters whose nodes say that they are none.
    pub(super) unknown: Mutex<mpsc::UnboundedReceiver<VoterId>>,
}

impl Voter {
    /// Starts a voter on its store. On the control thread: openraft starts tasks of its own where
    /// it is called.
    pub(super) async fn start(
        (store, closed): (Store, Closed),
        network: Weak<crate::network::Network>,
        control: Handle,
        settings: &LedgerSettings,
    ) -> Result<Arc<Self>, StoreError> {
        let deed = store.deed();
        // A ledger that is founded anew grants greater generations than one that was lost.
        let (machine, view) = Machine::load(store.clone(), State::new(deed.founded)).await?;
        let (unknown, heard) = mpsc::unbounded_channel();
        let failed = |error: String| StoreError::Failed(error);
        let config = config(settings).map_err(failed)?;
        let wires = Wires { network, lease: LeaseTime(settings.lease), unknown };
        let raft = Raft::new(deed.me, Arc::new(config), wires.clone(), store, machine).await;
        let raft = raft.map_err(|error| failed(error.to_string()))?;
        let (waiting, asked) = mpsc::unbounded_channel();
        control.spawn(confirm(raft.clone(), asked));
        let now = Instant::now();
        Ok(Arc::new(Voter {
            raft,
            view,
            deed,
            control,
            timers: Mutex::new(None),
            waiting,
            closed: Mutex::new(Some(closed)),
            wires,
            lease_of_a_leader: settings.election.end,
            heard: Mutex::new(Heard { leader: now, candidate: now }),
            unknown: Mutex::new(heard),
        }))
    }

    /// The voter of a ledger that nobody knows yet decides alone from now on.
    pub(super) async fn found(&self, on_disk: bool) -> Result<(), StoreError> {
        let me = BTreeMap::from([(self.deed.me, Keeps { on_disk })]);
        match self.raft.initialize(me).await {
            // A founder that was killed in between has done it.
            Ok(()) | Err(RaftError::APIError(openraft::error::InitializeError::NotAllowed(_))) => {
                Ok(())
            }
            Err(error) => Err(StoreError::Failed(error.to_string())),
        }
    }

    /// Ends the voter; its file is closed afterwards.
    pub(super) async fn stop(&self) {
        let _ = self.raft.shutdown().await;
        let closed = lock(&self.closed).take();
        // Those who read the log last may take a moment to let go of the store.
        if let Some(closed) = closed {
            let _ = timeout(Duration::from_secs(2), closed).await;
        }
    }

    /// What this voter tells of the ledger.
    pub(super) fn told(&self) -> LedgerView {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let ids: BTreeSet<VoterId> = membership.voter_ids().collect();
        let keeps = |id: &&VoterId| membership.get_node(id).is_some_and(|keeps| keeps.on_disk);
        let on_disk = 2 * ids.iter().filter(keeps).count() > ids.len();
        let mut voters: Vec<NodeId> = ids.iter().map(|voter| voter.node).collect();
        voters.dedup();
        LedgerView {
            id: self.deed.ledger,
            founded_unix_micros: self.deed.founded,
            term: metrics.vote.leader_id.term,
            leader: metrics.current_leader.map(|leader| leader.node),
            voters,
            on_disk,
        }
    }

    /// The term in which this voter leads, if it does.
    pub(super) fn reign(&self) -> Option<Reign> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let leader_id = metrics.vote.leader_id;
        (metrics.state == ServerState::Leader)
            .then_some(Reign { term: leader_id.term, leader: leader_id.node_id })
    }

    /// Why openraft has ended, if it has.
    pub(super) fn fatal(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let running = metrics.borrow().running_state.clone();
        match running {
            Err(error) => Some(error.to_string()),
            // A panic of its task tells nothing more.
            Ok(()) if metrics.has_changed().is_err() => Some("its task panicked".to_owned()),
            Ok(()) => None,
        }
    }

    /// The leader speaks to this voter.
    pub(super) fn hears(&self) {
        lock(&self.heard).leader = Instant::now();
    }

    /// Somebody who stands for election has its vote.
    pub(super) fn gives_its_vote(&self) {
        lock(&self.heard).candidate = Instant::now();
    }

    /// When others were heard last.
    pub(super) fn heard(&self) -> Heard {
        *lock(&self.heard)
    }

    /// The last entry that it has.
    pub(super) fn last_log_id(&self) -> Option<LogId> {
        self.raft.data_metrics().borrow().last_log
    }

    /// Who votes; two sets of voters while that is being changed.
    pub(super) fn configs(&self) -> Vec<BTreeSet<VoterId>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_joint_config().clone()
    }

    /// Whether this voter knows what the majority knows, as of two seconds ago.
    pub(super) fn is_in_touch(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.state != ServerState::Leader {
            return self.heard().leader.elapsed() < TOUCH;
        }
        let alone = metrics.membership_config.voter_ids().count() == 1;
        alone || metrics.millis_since_quorum_ack.is_some_and(|since| since < millis(TOUCH))
    }

    /// That another one leads, as far as is known.
    pub(super) fn not_leader(&self) -> NotServed {
        let metrics = self.raft.server_metrics();
        let leader = metrics.borrow().current_leader;
        let leader = leader.filter(|leader| *leader != self.deed.me);
        NotServed::NotLeader(leader.map(|leader| leader.node))
    }

    /// Waits until a majority has confirmed, after now, that this voter leads.
    async fn confirmed(&self) -> Result<(), NotServed> {
        if self.reign().is_none() {
            return Err(self.not_leader());
        }
        let (done, confirmed) = oneshot::channel();
        let _ = self.waiting.send(done);
        match timeout(PATIENCE, confirmed).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) | Ok(Err(_)) => Err(self.not_leader()),
            Err(_) => Err(NotServed::Unconfirmed),
        }
    }

    /// Writes an entry; the outcome comes when a majority has it on its disks.
    pub(super) async fn write(&self, entry: Entry) -> Result<Outcome, NotServed> {
        match timeout(PATIENCE, self.raft.client_write(entry)).await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(NotServed::NotLeader(to.leader_id.map(|leader| leader.node)))
            }
            Ok(Err(_)) => Err(NotServed::NoVoter),
            Err(_) => Err(NotServed::Unconfirmed),
        }
    }

    /// Writes what the leader does on its own.
    pub(super) async fn lead(&self, command: Command) -> Result<Outcome, NotServed> {
        self.write(Entry { id: None, command }).await
    }

    /// Whether a node votes, as far as the log of this voter says.
    fn is_voter(&self, node: NodeId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().voter_ids().any(|voter| voter.node == node)
    }

    /// Answers a question. `guarded` is who asks, if by a guarded message: secret keys are listed
    /// for it, and if it votes, it may read those of the voters.
    pub(super) async fn answer(
        &self,
        ask: Ask,
        guarded: Option<NodeId>,
    ) -> Result<Answer, NotServed> {
        let received = Instant::now();
        match ask {
            Ask::Write { id, command } => {
                // Many may wait for one lease: that it is held costs no entry in the log.
                if let Command::Acquire { lease, .. } = &command
                    && self.reign().is_some()
                    && let Some(held) = self.view.read(|state| state.is_held(&id, lease))
                {
                    return Ok(Answer::Outcome(held));
                }
                let entry = Entry { id: Some(id), command };
                Ok(Answer::Outcome(self.write(entry).await?))
            }
            Ask::Get { key } => {
                self.confirmed().await?;
                // Now that it is sure that this voter leads, it knows who votes.
                if is_for_voters(&key) && !guarded.is_some_and(|node| self.is_voter(node)) {
                    return Err(NotServed::ForVoters);
                }
                Ok(Answer::Value(self.view.read(|state| state.get(&key).cloned())))
            }
            Ask::List { prefix, after } => {
                self.confirmed().await?;
                let after = after.as_deref();
                Ok(self.view.read(|state| list(state, &prefix, after, guarded.is_some())))
            }
            Ask::Renew { grants } => {
                self.confirmed().await?;
                let held: Vec<bool> = self.view.read(|state| {
                    // In the ledger that this one goes up in nobody has these leases.
                    let open = state.closed().is_none();
                    let held = |(lease, generation): &(String, u64)| {
                        open && state.holds(lease, *generation)
                    };
                    grants.iter().map(held).collect()
                });
                if let Some((_, timers)) = &mut *lock(&self.timers) {
                    for ((lease, generation), _) in
                        grants.iter().zip(&held).filter(|(_, held)| **held)
                    {
                        timers.renewed(lease, *generation, received);
                    }
                }
                Ok(Answer::Renewed(held))
            }
            Ask::IsVoter(voter) => {
                self.confirmed().await?;
                let metrics = self.raft.server_metrics();
                let metrics = metrics.borrow();
                let known = metrics.membership_config.membership().get_node(&voter).is_some();
                Ok(Answer::Is(known))
            }
            Ask::HasAbsorbed(ledger) => {
                self.confirmed().await?;
                Ok(Answer::Is(self.view.read(|state| state.has_absorbed(ledger))))
            }
            Ask::Retire(_) => Err(NotServed::NoVoter),
        }
    }
}

/// A page of the keys that begin with a prefix.
fn list(state: &State, prefix: &str, after: Option<&str>, guarded: bool) -> Answer {
    let mut bytes = 0;
    let mut listed = Vec::new();
    for (key, value) in state.with_prefix(prefix) {
        if after.is_some_and(|after| key.as_str() <= after) || !is_listed(key, guarded) {
            continue;
        }
        bytes += key.len() + value.value.len();
        if bytes > LISTED && !listed.is_empty() {
            return Answer::Listed(listed, true);
        }
        listed.push((key.clone(), value.clone()));
    }
    Answer::Listed(listed, false)
}

/// Confirms leadership for all who wait: a round of heartbeats serves those who came before it
/// began, and nobody who came later.
async fn confirm(raft: Raft, mut asked: mpsc::UnboundedReceiver<oneshot::Sender<bool>>) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, usize::MAX).await > 0 {
        let deadline = Instant::now() + PATIENCE;
        let leads = loop {
            match timeout_at(deadline, raft.ensure_linearizable()).await {
                Ok(Ok(_)) => break true,
                Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))))
                    if Instant::now() < deadline =>
                {
                    // A busy machine answers a little later.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(Err(_)) | Err(_) => break false,
            }
        };
        for waiter in waiting.drain(..) {
            let _ = waiter.send(leads);
        }
    }
}

fn config(settings: &LedgerSettings) -> Result<Config, String> {
    let lease_of_a_leader = millis(settings.election.end);
    let config = Config {
        cluster_name: "footlight".to_owned(),
        heartbeat_interval: millis(settings.heartbeat),
        // The node says when: see `pre_vote`. For so long after the leader was heard no vote is given.
        enable_elect: false,
        election_timeout_min: lease_of_a_leader,
        election_timeout_max: lease_of_a_leader + 1,
        install_snapshot_timeout: 10_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEEP,
        replication_lag_threshold: 2 * SNAPSHOT_EVERY,
        snapshot_max_chunk_size: PIECE,
        ..Config::default()
    };
    config.validate().map_err(|error| error.to_string())
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
