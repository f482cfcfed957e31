//! The ledger as a node's programs see it.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
use footlight_runtime::{Fate, NodeId, codec::Sender, env::deadline_after, error::Cause};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, timeout_at},
};

use super::{
    LedgerError, LedgerId, LedgerStatus, LedgerWatch, VOTER_ROLE,
    actor::LedgerActor,
    command::{Command, Expect, Holder, Life, Outcome, RequestId, Versioned},
    directory::{Directory, Told},
    held::{HeldLease, Keeper},
    leases::LeaseTime,
    message::{Answer, Ask, Guarded, NotServed, Request, WatchGuarded, WatchKeys, is_secret},
    mismatch::Mismatch,
    state::MAX_OUTCOMES,
    voter::lock,
    watch::Seen,
};
use crate::{MemberState, network::Network};

/// How long a question is asked of one voter after another, unless told.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one voter is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// After all voters were asked in vain.
const PAUSE: Duration = Duration::from_millis(50);
/// After no voter could tell what is watched.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// The cluster's ledger: the few things of which there must be exactly one. Cheap to clone.
///
/// It is a small log that up to five nodes, the voters, agree on; see the [module](super) for what
/// it promises. Any node may ask; who leads is found, and found again when it changes. A question
/// is asked for 5 s at most, unless [`within`](Self::within) says otherwise. What is said to be
/// written is on the disks of more than half of the voters.
#[derive(Clone)]
pub struct Ledger {
    client: Arc<Client>,
    patience: Duration,
}

/// What a node needs to ask.
pub(crate) struct Client {
    network: Weak<Network>,
    me: Life,
    numbers: Mutex<Numbers>,
    /// As many writes as the ledger tells apart for one client.
    writes: Arc<Semaphore>,
    keeper: Keeper,
    /// How long a lease lasts.
    pub(super) lease: LeaseTime,
    pub(super) mismatch: Mismatch,
}

/// The numbers of this node's writes.
#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    /// Those that are under way.
    open: BTreeSet<u64>,
}

/// A write under way; its number is done with when this is dropped.
struct Write<'a> {
    client: &'a Client,
    number: u64,
    _room: OwnedSemaphorePermit,
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        lock(&self.client.numbers).open.remove(&self.number);
    }
}

impl Write<'_> {
    fn id(&self) -> RequestId {
        let numbers = lock(&self.client.numbers);
        let answered = numbers.open.first().copied().unwrap_or(self.number);
        RequestId { client: self.client.me, number: self.number, answered }
    }
}

/// A lease that was granted.
///
/// It ends [some time](super::LedgerSettings::lease) after it was acquired or renewed, counted from
/// when the question was sent, and its holder must stop a little before, at [`until`](Self::until).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) ledger: LedgerId,
    pub(super) until: Instant,
}

impl Lease {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which grant of the lease this is: greater than that of all holders before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The holder may believe in it until then, and no longer.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether the holder may still believe in it.
    pub fn is_held(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Client {
    pub(crate) fn new(network: &Arc<Network>, lease: Duration) -> Arc<Self> {
        let lease = LeaseTime(lease);
        let me = Life { node: network.node(), incarnation: network.system.incarnation() };
        Arc::new_cyclic(|client| Client {
            network: Arc::downgrade(network),
            me,
            numbers: Mutex::default(),
            writes: Arc::new(Semaphore::new(MAX_OUTCOMES)),
            keeper: Keeper::new(client.clone(), network.control_thread.clone(), lease),
            lease,
            mismatch: Mismatch::default(),
        })
    }

    async fn number(&self) -> Write<'_> {
        let room = match self.writes.clone().acquire_owned().await {
            Ok(room) => room,
            // Never closed.
            Err(_) => std::future::pending().await,
        };
        let mut numbers = lock(&self.numbers);
        numbers.next += 1;
        let number = numbers.next;
        numbers.open.insert(number);
        Write { client: self, number, _room: room }
    }

    /// Asks one voter after another until one answers, or the deadline has come.
    pub(super) async fn ask(
        &self,
        ask: impl Fn() -> Ask,
        ledger: Option<LedgerId>,
        patience: Duration,
    ) -> Result<(Answer, LedgerId), LedgerError> {
        let deadline = deadline_after(patience);
        let mut may_be_done = false;
        let writes = matches!(ask(), Ask::Write { .. });
        loop {
            let network = self.network.upgrade().ok_or(LedgerError::Ended)?;
            let mut changes = network.view.changes();
            let directory = Directory::of(&network.ledgers());
            let Some(directory) = directory else {
                drop(network);
                if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                    return Err(LedgerError::NoVoters { waited: patience });
                }
                continue;
            };
            let mut order = directory.order(self.me.node);
            let mut asked = BTreeSet::new();
            while !order.is_empty() {
                let node = order.remove(0);
                if !asked.insert(node) {
                    continue;
                }
                let ledger = ledger.unwrap_or(directory.ledger);
                let request = Request { ledger, lease: self.lease, ask: ask() };
                let trial = Self::attempt(&network, node, request, &directory, deadline).await;
                match trial {
                    Trial::Answered(answer) => return Ok((answer, directory.ledger)),
                    Trial::Refused(NotServed::NotLeader(Some(leader))) => {
                        // Whom it names is asked next, if it has not been asked in this round.
                        order.insert(0, leader);
                    }
                    Trial::Refused(why @ (NotServed::Forbidden | NotServed::ForVoters)) => {
                        return Err(LedgerError::Forbidden(why.to_string()));
                    }
                    Trial::Refused(NotServed::OtherSettings) => {
                        self.mismatch.say();
                        return Err(LedgerError::OtherSettings);
                    }
                    Trial::Refused(NotServed::Unconfirmed) | Trial::Lost(true) => {
                        may_be_done |= writes;
                    }
                    Trial::Refused(_) | Trial::Lost(false) => {}
                    Trial::Forbidden(why) => return Err(LedgerError::Forbidden(why)),
                    Trial::Changed => {
                        may_be_done |= writes;
                        break;
                    }
                }
            }
            drop(network);
            if Instant::now() + PAUSE >= deadline {
                let Directory { voters, .. } = directory;
                return Err(LedgerError::NoLeader { voters, waited: patience, may_be_done });
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks one voter, for as long as there is no news of another leader.
    async fn attempt(
        network: &Arc<Network>,
        node: NodeId,
        request: Request,
        directory: &Directory,
        deadline: Instant,
    ) -> Trial {
        let Some(there) = LedgerActor::of(node, network) else { return Trial::Lost(false) };
        let patience = ATTEMPT.min(deadline.saturating_duration_since(Instant::now()));
        let asked = async {
            match request.ask.is_open() {
                true => there.call_within(request, patience).await,
                false => {
                    let from = Sender::here(&network.system);
                    there.call_within(Guarded { request, from }, patience).await
                }
            }
        };
        let news = async {
            let mut changes = network.view.changes();
            while changes.changed().await.is_ok() {
                let now = Directory::of(&network.ledgers());
                let leads = now.map(|now| (now.ledger, now.term, now.leader));
                if let Some((ledger, term, Some(leader))) = leads
                    && (ledger, term) != (directory.ledger, directory.term)
                    && leader != node
                {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            answer = asked => match answer {
                Ok(Ok(answer)) => Trial::Answered(answer),
                Ok(Err(refused)) => Trial::Refused(refused),
                Err(error) => match error.cause() {
                    Cause::Refused(why) => Trial::Forbidden(why.clone()),
                    _ => Trial::Lost(error.fate() == Fate::MayHaveRun),
                },
            },
            () = news => Trial::Changed,
        }
    }

    async fn write(
        &self,
        command: Command,
        patience: Duration,
    ) -> Result<(Outcome, LedgerId), LedgerError> {
        command.check()?;
        let deadline = deadline_after(patience);
        let write = self.number().await;
        let patience = deadline.saturating_duration_since(Instant::now());
        let ask = || Ask::Write { id: write.id(), command: command.clone() };
        let (answer, ledger) = self.ask(ask, None, patience).await?;
        match answer {
            // It goes up in another one: that one is told of soon.
            Answer::Outcome(Outcome::Closed(_)) => Err(LedgerError::NoLeader {
                voters: Vec::new(),
                waited: patience,
                may_be_done: false,
            }),
            Answer::Outcome(Outcome::Refused(bound)) => Err(bound.into()),
            Answer::Outcome(outcome) => Ok((outcome, ledger)),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes to one ledger and no other.
    pub(super) async fn tell(&self, ledger: LedgerId, command: Command) -> Result<Outcome, String> {
        let write = self.number().await;
        let ask = || Ask::Write { id: write.id(), command: command.clone() };
        match self.ask(ask, Some(ledger), PATIENCE).await {
            Ok((Answer::Outcome(outcome), _)) => Ok(outcome),
            Ok((answer, _)) => Err(format!("an answer to another question: {answer:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Renews leases of one ledger; tells for each whether it is still held.
    pub(super) async fn renew(
        &self,
        grants: Vec<(String, u64)>,
        ledger: LedgerId,
        patience: Duration,
    ) -> Result<Vec<bool>, LedgerError> {
        let asked = grants.len();
        let ask = || Ask::Renew { grants: grants.clone() };
        if self.present() != Some(ledger) && self.present().is_some() {
            // That ledger has gone up in another one, which does not know these leases.
            return Ok(vec![false; asked]);
        }
        match self.ask(ask, Some(ledger), patience).await?.0 {
            Answer::Renewed(held) if held.len() == asked => Ok(held),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn release(
        &self,
        lease: String,
        generation: u64,
        patience: Duration,
    ) -> Result<(), LedgerError> {
        self.write(Command::Release { lease, generation }, patience).await.map(|_| ())
    }

    /// The ledger that counts now.
    fn present(&self) -> Option<LedgerId> {
        let network = self.network.upgrade()?;
        Directory::of(&network.ledgers()).map(|directory| directory.ledger)
    }

    /// Tells changes until nobody listens or the node has ended.
    async fn follow(
        self: Arc<Self>,
        prefix: String,
        to: mpsc::Sender<(String, Option<Versioned>)>,
    ) {
        let mut seen = Seen::default();
        let mut ledger = None;
        // Counts up, so that one voter after another is tried.
        let mut turn = 0;
        loop {
            let Some(network) = self.network.upgrade() else { return };
            let mut changes = network.view.changes();
            if let Some(directory) = Directory::of(&network.ledgers())
                && !directory.present.is_empty()
            {
                if ledger.replace(directory.ledger) != Some(directory.ledger) {
                    seen.other_ledger();
                }
                // This node's own voter costs nobody anything.
                let mut order = directory.present.clone();
                order.sort_by_key(|node| (*node != self.me.node, Some(*node) == directory.leader));
                let node = order[turn % order.len()];
                turn += 1;
                let there = LedgerActor::of(node, &network);
                let asked = WatchKeys { ledger: directory.ledger, prefix: prefix.clone() };
                drop(network);
                if let Some(there) = there {
                    let answer = match is_secret(&prefix) {
                        false => there.call_within(asked, ATTEMPT).await,
                        true => there.call_within(WatchGuarded(asked), ATTEMPT).await,
                    };
                    if let Ok(Ok(stream)) = answer {
                        tokio::select! {
                            biased;
                            () = to.closed() => return,
                            () = self.superseded(directory.ledger) => {}
                            listening = hand_on(stream, &mut seen, &to) => if !listening { return },
                        }
                    }
                }
            } else {
                drop(network);
            }
            // At once when there is news, else after a pause.
            tokio::select! {
                biased;
                () = to.closed() => return,
                _ = async { let _ = changes.changed().await; sleep(PAUSE).await } => {}
                () = sleep(WATCH_PAUSE) => {}
            }
        }
    }

    /// Ends when another ledger counts.
    async fn superseded(&self, ledger: LedgerId) {
        let Some(mut changes) = self.network.upgrade().map(|network| network.view.changes()) else {
            return;
        };
        while changes.changed().await.is_ok() {
            if self.present().is_some_and(|present| present != ledger) {
                return;
            }
        }
    }
}

enum Trial {
    Answered(Answer),
    Refused(NotServed),
    /// No answer; whether it may have run.
    Lost(bool),
    /// The node refused this one's message before it was read.
    Forbidden(String),
    /// There is another leader now.
    Changed,
}

fn unexpected(answer: &Answer) -> LedgerError {
    LedgerError::Forbidden(format!("the leader gave another answer than was asked for: {answer:?}"))
}

/// Tells what a voter tells. Whether anybody listens still.
async fn hand_on(
    mut stream: footlight_runtime::Streamed<super::message::Watched>,
    seen: &mut Seen,
    to: &mpsc::Sender<(String, Option<Versioned>)>,
) -> bool {
    while let Some(Ok(told)) = stream.next().await {
        let Some(changes) = seen.take(told) else { return true };
        for change in changes {
            if to.send(change).await.is_err() {
                return false;
            }
        }
    }
    true
}

impl Network {
    /// What the members tell of the ledger, this node included.
    pub(crate) fn ledgers(&self) -> Vec<Told> {
        let own = self.own();
        let mut told = self.view.ledgers();
        told.push(Told {
            node: own.node,
            state: if own.leaving { MemberState::Leaving } else { MemberState::Up },
            server: Some(own.roles.iter().any(|role| role == VOTER_ROLE)),
            ledger: own.ledger.clone(),
        });
        told
    }
}

impl Ledger {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Ledger { client, patience: PATIENCE }
    }

    /// The same, with questions that are asked for so long at most.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Takes a lease, if it is free. Does not wait until it is: see
    /// [`acquire_when_free`](Self::acquire_when_free).
    ///
    /// The lease ends after [a while](super::LedgerSettings::lease) if it is not
    /// [renewed](Self::renew); [`hold`](Self::hold) does that.
    ///
    /// # Errors
    /// [`LedgerError::Held`] if somebody has it, this holder included.
    pub async fn acquire(&self, lease: &str, holder: Holder) -> Result<Lease, LedgerError> {
        let sent = Instant::now();
        let name = lease.to_owned();
        let command = Command::Acquire { lease: name.clone(), holder };
        let (outcome, ledger) = self.client.write(command, self.patience).await?;
        match outcome {
            Outcome::Granted(generation) => {
                Ok(Lease { name, generation, ledger, until: self.client.lease.until(sent) })
            }
            Outcome::Held { by, generation } => {
                Err(LedgerError::Held { lease: name, by, generation })
            }
            other => Err(unexpected(&Answer::Outcome(other))),
        }
    }

    /// Takes a lease as soon as it is free, however long that takes; asks four times a second.
    ///
    /// # Errors
    /// [`LedgerError::Bound`], [`LedgerError::Forbidden`], [`LedgerError::OtherSettings`] and
    /// [`LedgerError::Ended`]: what waiting does not mend.
    pub async fn acquire_when_free(
        &self,
        lease: &str,
        holder: Holder,
    ) -> Result<Lease, LedgerError> {
        loop {
            match self.acquire(lease, holder.clone()).await {
                // An answer may be so late that the lease has ended.
                Ok(lease) if lease.is_held() => return Ok(lease),
                Ok(_)
                | Err(
                    LedgerError::Held { .. }
                    | LedgerError::NoLeader { .. }
                    | LedgerError::NoVoters { .. },
                ) => sleep(WATCH_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews a lease: gives it back with a later end.
    ///
    /// # Errors
    /// [`LedgerError::Lost`] if it is not held any more under its generation.
    pub async fn renew(&self, lease: &Lease) -> Result<Lease, LedgerError> {
        let sent = Instant::now();
        let grants = vec![(lease.name.clone(), lease.generation)];
        match self.client.renew(grants, lease.ledger, self.patience).await?[..] {
            [true] => Ok(Lease { until: self.client.lease.until(sent), ..lease.clone() }),
            _ => Err(LedgerError::Lost { lease: lease.name.clone(), generation: lease.generation }),
        }
    }

    /// Keeps a lease: it is renewed, four times as often as it must be, until the result is dropped
    /// or released, or it is lost.
    pub fn hold(&self, lease: Lease) -> HeldLease {
        self.client.keeper.keep(lease)
    }

    /// Gives a lease back; it is free for others at once.
    ///
    /// # Errors
    /// If the voters do not answer; then it is free when it has ended.
    pub async fn release(&self, lease: Lease) -> Result<(), LedgerError> {
        self.client.release(lease.name, lease.generation, self.patience).await
    }

    /// Reads a key: the latest that was written before this was asked, or later.
    ///
    /// # Errors
    /// If the voters do not answer; [`LedgerError::Forbidden`] if the key is not for this node.
    pub async fn get(&self, key: &str) -> Result<Option<Versioned>, LedgerError> {
        let ask = || Ask::Get { key: key.to_owned() };
        match self.client.ask(ask, None, self.patience).await?.0 {
            Answer::Value(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// All keys that begin with `prefix`, in order. Between two pages of a long list the ledger may
    /// change.
    ///
    /// # Errors
    /// If the voters do not answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, LedgerError> {
        let mut all = Vec::<(String, Versioned)>::new();
        loop {
            let after = all.last().map(|(key, _)| key.clone());
            let ask = || Ask::List { prefix: prefix.to_owned(), after: after.clone() };
            match self.client.ask(ask, None, self.patience).await?.0 {
                Answer::Listed(mut listed, more) => {
                    let more = more && !listed.is_empty();
                    all.append(&mut listed);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Writes a key; gives its new version. With an `owner` the key is deleted when that life of
    /// that node is over.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if the key is not as expected, [`LedgerError::Bound`] if key or
    /// value are too long or the ledger is full.
    pub async fn put(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        expect: Expect,
        owner: Option<Life>,
    ) -> Result<u64, LedgerError> {
        let command = Command::Put { key: key.to_owned(), value: value.into(), expect, owner };
        match self.client.write(command, self.patience).await?.0 {
            Outcome::Written(version) => Ok(version),
            Outcome::Conflict(version) => {
                Err(LedgerError::Conflict { key: key.to_owned(), version })
            }
            other => Err(unexpected(&Answer::Outcome(other))),
        }
    }

    /// Deletes a key; one that is not there is no error, unless a version was expected.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] if the key is not as expected.
    pub async fn delete(&self, key: &str, expect: Expect) -> Result<(), LedgerError> {
        let command = Command::Delete { key: key.to_owned(), expect };
        match self.client.write(command, self.patience).await?.0 {
            Outcome::Done => Ok(()),
            Outcome::Conflict(version) => {
                Err(LedgerError::Conflict { key: key.to_owned(), version })
            }
            other => Err(unexpected(&Answer::Outcome(other))),
        }
    }

    /// Tells of all keys that begin with `prefix`: first those that are there, then each that
    /// changes. Goes on when the voter that tells it is lost; then a key that changed twice
    /// meanwhile is told once.
    ///
    /// Secret keys are told only to one who asks for just them, and may.
    pub fn watch(&self, prefix: &str) -> LedgerWatch {
        let (sender, watch) = LedgerWatch::channel();
        if let Some(network) = self.client.network.upgrade() {
            let follow = self.client.clone().follow(prefix.to_owned(), sender);
            network.control_thread.spawn(follow);
        }
        watch
    }

    /// How the ledger is, as far as this node knows; `None` if it knows of none.
    pub fn status(&self) -> Option<LedgerStatus> {
        LedgerStatus::of(&self.client.network.upgrade()?.ledgers())
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("patience", &self.patience).finish_non_exhaustive()
    }
}
