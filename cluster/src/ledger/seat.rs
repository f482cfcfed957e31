//! A node's place in the ledger: nothing, a voter, or one who is about to be one.
//!
//! One task on the control thread opens, founds, watches over and ends the node's voter, tells the
//! others of it, and does the leader's duties while the voter leads.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use footlight_runtime::{NodeId, System, codec::Sender};
use rand::Rng;
use rand_chacha::ChaCha12Rng;
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, Notify, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    LedgerId, LedgerSettings, LedgerView,
    actor::{LEDGER_ACTOR, LedgerActor},
    client::Client,
    directory::Directory,
    known,
    leader::Leader,
    leases::LeaseTime,
    merge,
    message::{Answer, Ask, Guarded, Invite, NoVoter, NotServed, Request},
    pre_vote::Standing,
    store::{Closed, Deed, Store, StoreError},
    types::VoterId,
    voter::{Voter, lock, millis},
};
use crate::network::Network;

/// Most questions that are being answered at once.
const QUESTIONS: usize = 1024;
/// Most streams of changes that this node tells.
const WATCHERS: usize = 1024;
/// A leader looks at its duties so often.
const LOOK: Duration = Duration::from_millis(100);
/// A voter that does not lead looks around so often, and a node without one.
const IDLE: Duration = Duration::from_secs(1);
/// A store that failed is opened again after this time.
const REOPEN: Duration = Duration::from_secs(5);
/// The leader has so long to let a voter go that is about to leave.
const RETIRE: Duration = Duration::from_secs(3);
/// A seed among several waits between once and twice so long for another one to found a ledger.
const FOUND_LATER: Duration = Duration::from_secs(3);
/// A voter that is out of touch asks so often whether it is one still.
const ASK: Duration = Duration::from_secs(3);
/// A node that waits for its ledger says so so often.
const WARN: Duration = Duration::from_secs(30);

/// Whether a node that holds no ledger founds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Founds {
    /// It joins a cluster that has one.
    Never,
    /// It is the first node.
    Now,
    /// It is one of several first nodes: if no other one has by then.
    Later(Instant),
}

/// A node's place in the ledger.
pub(crate) struct Seat {
    network: Weak<Network>,
    pub(super) client: Arc<Client>,
    /// The control thread, on which all of the ledger's tasks run.
    pub(super) control: Handle,
    /// Where the store lies; without one it is in memory.
    dir: Option<PathBuf>,
    pub(super) settings: LedgerSettings,
    founds: Mutex<Founds>,
    rng: Mutex<ChaCha12Rng>,
    /// Bounds the questions that are being answered.
    pub(super) gate: Arc<Semaphore>,
    /// Bounds the streams of changes.
    pub(super) watchers: Arc<Semaphore>,
    place: Mutex<Place>,
    /// Held by who changes the place.
    changing: AsyncMutex<()>,
    /// Something has changed that the task should look at.
    wake: Notify,
    /// Voters that are about to leave, as the leader was told.
    pub(super) retiring: Mutex<BTreeSet<NodeId>>,
}

enum Place {
    /// The store is to be opened.
    Unopened,
    /// No voter.
    None,
    Voter(Arc<Voter>),
    /// The store failed; it is opened again later.
    Broken,
    /// The node is ending.
    Ended,
}

impl Seat {
    /// A place for a node; `first`: it was started without seeds.
    pub(crate) fn new(
        network: &Arc<Network>,
        client: Arc<Client>,
        dir: Option<PathBuf>,
        settings: LedgerSettings,
        first: bool,
    ) -> Arc<Self> {
        Arc::new(Seat {
            network: Arc::downgrade(network),
            client,
            control: network.control_thread.clone(),
            dir,
            settings,
            founds: Mutex::new(if first { Founds::Now } else { Founds::Never }),
            rng: Mutex::new(network.system.env().seeds.stream("ledger")),
            gate: Arc::new(Semaphore::new(QUESTIONS)),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            place: Mutex::new(Place::Unopened),
            changing: AsyncMutex::default(),
            wake: Notify::new(),
            retiring: Mutex::default(),
        })
    }

    /// Takes part from now on; on the control thread, and without waiting for a disk.
    pub(crate) async fn begin(self: Arc<Self>, system: &System) -> footlight_runtime::Result<()> {
        system.extend(self.clone());
        let system = system.clone();
        let actor = self.control.spawn(async move {
            // Spawned here, it lives here.
            system.spawn_well_known::<LedgerActor>(LEDGER_ACTOR, ()).await
        });
        actor.await.map_err(|error| footlight_runtime::Error::other(error.to_string()))??;
        self.control.clone().spawn(run(self));
        Ok(())
    }

    /// The node is a seed among others: it founds a ledger if none of them does.
    pub(crate) fn is_one_of_the_first(&self) {
        let wait = FOUND_LATER + Duration::from_millis(self.draw(millis(FOUND_LATER)));
        let mut founds = lock(&self.founds);
        if *founds == Founds::Never {
            *founds = Founds::Later(Instant::now() + wait);
        }
    }

    /// A number below `below`.
    fn draw(&self, below: u64) -> u64 {
        lock(&self.rng).next_u64() % below.max(1)
    }

    fn voter(&self) -> Option<Arc<Voter>> {
        match &*lock(&self.place) {
            Place::Voter(voter) => Some(voter.clone()),
            _ => None,
        }
    }

    /// The voter that another voter means.
    pub(super) fn voter_called(&self, id: VoterId) -> Result<Arc<Voter>, NoVoter> {
        match &*lock(&self.place) {
            Place::Voter(voter) if voter.deed.me == id => Ok(voter.clone()),
            Place::Voter(_) | Place::None => Err(NoVoter::Another),
            Place::Unopened | Place::Broken | Place::Ended => Err(NoVoter::NotYet),
        }
    }

    /// The voter of a ledger that a client means.
    pub(super) fn voter_of(&self, ledger: LedgerId) -> Result<Arc<Voter>, NotServed> {
        let voter = self.voter().filter(|voter| voter.deed.ledger == ledger);
        voter.ok_or(NotServed::NoVoter)
    }

    /// Whether leases last as long here as for another node; if not, it is said.
    pub(super) fn has_leases_of(&self, other: LeaseTime) -> bool {
        let same = other.0 == self.settings.lease;
        if !same {
            self.client.mismatch.say();
        }
        same
    }

    /// The leader has chosen this node.
    pub(super) async fn invited(&self, invite: Invite) -> Result<(VoterId, bool), String> {
        if !self.has_leases_of(invite.lease) {
            return Err(NoVoter::OtherSettings.to_string());
        }
        let _changing = self.changing.lock().await;
        let on_disk = self.dir.is_some();
        match &*lock(&self.place) {
            Place::None => {}
            Place::Voter(voter) if voter.deed.ledger == invite.ledger => {
                return Ok((voter.deed.me, on_disk));
            }
            Place::Voter(_) => return Err("this node is a voter of another ledger".to_owned()),
            Place::Unopened | Place::Broken | Place::Ended => {
                return Err("this node's store is not open".to_owned());
            }
        }
        let made = self.make(invite.ledger, invite.founded, false).await;
        let voter = made.map_err(|error| error.to_string())?;
        let id = voter.deed.me;
        self.set(Place::Voter(voter));
        Ok((id, on_disk))
    }

    /// A voter that is about to leave wants to be none any more.
    pub(super) async fn retire(&self, ledger: LedgerId, node: NodeId) -> Result<Answer, NotServed> {
        let voter = self.voter_of(ledger)?;
        if voter.reign().is_none() {
            return Err(voter.not_leader());
        }
        lock(&self.retiring).insert(node);
        self.wake.notify_one();
        let mut metrics = voter.raft.server_metrics();
        let gone = metrics.wait_for(|metrics| {
            let membership = metrics.membership_config.membership();
            let single = membership.get_joint_config().len() == 1;
            single && !membership.voter_ids().any(|voter| voter.node == node)
        });
        let done = timeout(RETIRE, gone).await.is_ok();
        lock(&self.retiring).remove(&node);
        Ok(Answer::Is(done))
    }

    fn me(&self) -> Option<NodeId> {
        self.network.upgrade().map(|network| network.node())
    }

    /// Makes a voter that has promised nothing yet.
    async fn make(
        &self,
        ledger: LedgerId,
        founded: u64,
        founder: bool,
    ) -> Result<Arc<Voter>, StoreError> {
        let node = self.me().ok_or(StoreError::Ended)?;
        let birth = self.draw(u64::MAX);
        let deed = Deed { ledger, founded, me: VoterId { node, birth }, founder };
        let dir = self.dir.clone();
        let store = blocking(move || Store::create(dir.as_deref(), deed)).await?;
        self.start(store).await
    }

    async fn start(&self, store: (Store, Closed)) -> Result<Arc<Voter>, StoreError> {
        let (network, control) = (self.network.clone(), self.control.clone());
        let voter = Voter::start(store, network, control, &self.settings).await?;
        if voter.deed.founder {
            // Does nothing if it was done before: it may have been killed in between.
            voter.found(self.dir.is_some()).await?;
        }
        Ok(voter)
    }

    fn set(&self, place: Place) {
        let mut now = lock(&self.place);
        if !matches!(*now, Place::Ended) {
            *now = place;
        }
        drop(now);
        self.wake.notify_one();
    }

    /// Opens what the directory holds. Whether there is a note of a ledger elsewhere.
    async fn open(&self) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        let Some(dir) = self.dir.clone() else {
            self.set(Place::None);
            return Ok(());
        };
        let (found, known) = blocking(move || Ok((Store::open(&dir)?, known::read(&dir)?))).await?;
        let Some((store, closed)) = found else {
            if known.is_some() {
                *lock(&self.founds) = Founds::Never;
            }
            self.set(Place::None);
            return Ok(());
        };
        let node = store.deed().me.node;
        if self.me().is_some_and(|me| me != node) {
            let why = format!("it belongs to node {node}: was it copied? delete it");
            return Err(StoreError::Failed(why));
        }
        let voter = self.start((store, closed)).await?;
        self.set(Place::Voter(voter));
        Ok(())
    }

    /// Founds a ledger, if that is for this node to do now.
    async fn found(&self, network: &Network) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        if !matches!(&*lock(&self.place), Place::None) {
            return Ok(());
        }
        let founds = *lock(&self.founds);
        match founds {
            Founds::Now => {}
            Founds::Later(then) => {
                // Another one has: this node never has to.
                if Directory::of(&network.ledgers()).is_some() {
                    *lock(&self.founds) = Founds::Never;
                    return Ok(());
                }
                if Instant::now() < then {
                    return Ok(());
                }
            }
            Founds::Never => return Ok(()),
        }
        let now = network.system.env().wall_clock.now_unix_micros();
        let ledger = LedgerId(self.draw(u64::MAX));
        let voter = self.make(ledger, now, true).await?;
        *lock(&self.founds) = Founds::Never;
        tracing::debug!(ledger = ledger.0, "founded a ledger");
        self.set(Place::Voter(voter));
        Ok(())
    }

    /// The node is about to leave: lets others vote in its place first, as far as there are some.
    pub(crate) async fn leave(&self) {
        let (Some(voter), Some(me)) = (self.voter(), self.me()) else { return };
        let view = voter.told();
        if !view.voters.contains(&me) || view.voters.len() < 2 {
            return;
        }
        let retired = match view.leader {
            Some(leader) if leader == me => {
                self.retire(view.id, me).await.map_err(|error| error.to_string())
            }
            Some(leader) => {
                let Some(network) = self.network.upgrade() else { return };
                let Some(there) = LedgerActor::of(leader, &network) else { return };
                let (ledger, lease) = (view.id, self.client.lease);
                let request = Request { ledger, lease, ask: Ask::Retire(me) };
                let from = Sender::here(&network.system);
                match there.call_within(Guarded { request, from }, RETIRE).await {
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
            None => Err("there is no leader".to_owned()),
        };
        if let Err(why) = retired {
            tracing::debug!(why, "this voter leaves without having been replaced");
        }
    }

    /// Ends the voter, so that its file is closed; there is none afterwards.
    pub(crate) async fn end(&self) {
        let before = std::mem::replace(&mut *lock(&self.place), Place::Ended);
        self.wake.notify_one();
        if let Place::Voter(voter) = before {
            voter.stop().await;
        }
    }

    /// Stops being a voter: nothing depends on what this one promised any more.
    pub(super) async fn give_up(&self, voter: &Voter) {
        let _changing = self.changing.lock().await;
        voter.stop().await;
        if let Some(dir) = self.dir.clone()
            && let Err(error) = blocking(move || Store::remove(&dir)).await
        {
            tracing::warn!(%error, "what is left of a ledger could not be removed");
        }
        self.set(Place::None);
    }

    /// Notes that there is a ledger that comes back when all its voters are started again.
    async fn note(&self, ledger: LedgerId) {
        let Some(dir) = self.dir.clone() else { return };
        if let Err(error) = blocking(move || known::write(&dir, ledger)).await {
            tracing::warn!(%error, "the ledger could not be noted");
        }
    }
}

/// What the disk is asked, off the control thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| StoreError::Failed(error.to_string()))?
}

/// The node's task for the ledger: runs until the node has gone.
async fn run(seat: Arc<Seat>) {
    let standing = Standing::new(seat.settings.election.clone(), |below| seat.draw(below));
    let mut task = Task {
        seat,
        standing,
        leader: None,
        told: None,
        noted: None,
        reopen: Instant::now(),
        asked: Instant::now(),
        warned: Instant::now(),
        asking: None,
    };
    loop {
        let Some(network) = task.seat.network.upgrade() else { return };
        if matches!(&*lock(&task.seat.place), Place::Ended) {
            return;
        }
        let mut metrics = task.seat.voter().map(|voter| voter.raft.server_metrics());
        // What changes from here on is news.
        metrics.iter_mut().for_each(watch::Receiver::mark_unchanged);
        let pause = task.look(&network).await;
        drop(network);
        let news = async {
            let changed = match &mut metrics {
                Some(metrics) => metrics.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = task.seat.wake.notified() => {}
            () = news => {}
            () = sleep(pause) => {}
        }
    }
}

/// What the node's task remembers.
struct Task {
    seat: Arc<Seat>,
    /// Until it stands for election.
    standing: Standing,
    leader: Option<Leader>,
    /// What the others were told last.
    told: Option<LedgerView>,
    /// The ledger that was noted last.
    noted: Option<LedgerId>,
    reopen: Instant,
    asked: Instant,
    warned: Instant,
    /// Asks whether this voter is one still.
    asking: Option<JoinHandle<()>>,
}

impl Task {
    /// Looks at all there is to do; how long until the next time.
    async fn look(&mut self, network: &Arc<Network>) -> Duration {
        let now = Instant::now();
        let opens = matches!(&*lock(&self.seat.place), Place::Unopened | Place::Broken);
        if opens && now >= self.reopen {
            self.reopen = now + REOPEN;
            if let Err(error) = self.seat.open().await {
                tracing::error!(%error, "this node's part of the ledger can't be had");
                self.seat.set(Place::Broken);
            }
        }
        if let Err(error) = self.seat.found(network).await {
            tracing::error!(%error, "a ledger could not be founded");
        }
        let voter = self.seat.voter();
        if let Some(voter) = &voter
            && let Some(why) = voter.fatal()
        {
            tracing::error!(why, "this node's voter has ended; its store is opened again soon");
            self.reopen = now + REOPEN;
            self.leader = None;
            voter.stop().await;
            self.seat.set(Place::Broken);
            return IDLE;
        }
        self.tell(network, voter.as_ref());
        let directory = Directory::of(&network.ledgers());
        let Some(voter) = voter else {
            self.leader = None;
            self.without_voter(directory, now).await;
            return IDLE;
        };
        let other = directory.filter(|directory| {
            (directory.founded, directory.ledger) < (voter.deed.founded, voter.deed.ledger)
        });
        let Some(reign) = voter.reign() else {
            self.leader = None;
            *lock(&voter.timers) = None;
            if !voter.is_in_touch() && now >= self.asked + ASK {
                self.asked = now;
                self.ask_whether_still_voter(voter.clone(), other.is_some());
            }
            let seat = &self.seat;
            return self.standing.look(&voter, |below| seat.draw(below), now).min(IDLE);
        };
        if self.leader.as_ref().is_none_or(|leader| leader.reign != reign) {
            self.leader = Some(Leader::begin(reign, &voter, self.seat.client.lease));
        }
        if let Some(leader) = &mut self.leader {
            leader.look(&self.seat, &voter, network, other.map(|other| other.ledger));
        }
        LOOK
    }

    fn tell(&mut self, network: &Network, voter: Option<&Arc<Voter>>) {
        let view = voter.map(|voter| voter.told()).filter(|view| !view.voters.is_empty());
        // Who only listens leaves the telling to those who vote.
        let view = view.filter(|view| view.voters.contains(&network.node()));
        if view != self.told {
            match network.tell(|record| record.ledger = view.clone()) {
                Ok(()) => self.told = view,
                Err(error) => tracing::error!(%error, "the ledger could not be told of"),
            }
        }
    }

    /// A node that does not vote notes the ledger, and says so if it waits for one.
    async fn without_voter(&mut self, directory: Option<Directory>, now: Instant) {
        match directory {
            Some(directory) => {
                self.warned = now;
                if directory.on_disk
                    && self.noted.replace(directory.ledger) != Some(directory.ledger)
                {
                    self.seat.note(directory.ledger).await;
                }
            }
            None if now >= self.warned + WARN => {
                self.warned = now;
                let note = self.seat.dir.as_deref().map(known::path).unwrap_or_default();
                tracing::warn!(
                    note = %note.display(),
                    "no node tells of the cluster's ledger: its voters must be started; if they \
                     are gone for good, delete the note on the first node and start it again"
                );
            }
            None => {}
        }
    }

    /// A voter that nobody speaks to may have been replaced, or its ledger gone up in another one.
    fn ask_whether_still_voter(&mut self, voter: Arc<Voter>, other: bool) {
        if self.asking.as_ref().is_some_and(|asking| !asking.is_finished()) {
            return;
        }
        let seat = self.seat.clone();
        self.asking = Some(self.seat.control.spawn(async move {
            let ask = || match other {
                true => Ask::HasAbsorbed(voter.deed.ledger),
                false => Ask::IsVoter(voter.deed.me),
            };
            let answer = seat.client.ask(ask, None, ASK).await;
            // Gone up in another one, or no voter any more.
            if matches!(answer, Ok((Answer::Is(is), _)) if is == other) {
                tracing::debug!("this node is no voter any more");
                seat.give_up(&voter).await;
            }
        }));
    }
}

/// Lets the ledger of a voter that leads go up in another one, and ends the voter.
pub(super) async fn go_up_in(seat: Arc<Seat>, voter: Arc<Voter>, other: LedgerId) {
    match merge::carry_over(&seat.client, &voter, other).await {
        Ok(()) => seat.give_up(&voter).await,
        Err(why) => tracing::warn!(why, "this ledger could not go up in the older one yet"),
    }
}
