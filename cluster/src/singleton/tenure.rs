//! One singleton on one node: waits for its turn, takes the lease, runs the actor, gives it up.

use std::time::Duration;

use footlight_runtime::{
    ActorAddr, Down, Error, Fence, Incarnation, Result, System,
    codec::{Encoded, Opaque},
    fence,
    message::name_hash,
    remote::End,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::spec::{self, At, SingletonPolicy, Spec};
use crate::{
    Needs, Node,
    ledger::{Expect, HeldLease, Holder, Ledger, LedgerError, Life},
    spawn::Refusal,
};

/// An actor that was told to stop has so long before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// A lease that another holds is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Of the nodes that fit, the next one waits so much longer before it asks for a free lease.
const RANK_STEP: Duration = Duration::from_millis(200);
/// While a holder seems well, its lease is tried this often: it may have lost it unseen.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// After so many starts in a row that failed, another node has its turn.
const TRIES: u32 = 5;

/// A singleton that this node may run.
pub(super) struct Tenure {
    pub(super) system: System,
    pub(super) ledger: Ledger,
    pub(super) name: String,
    pub(super) spec: Spec,
    /// The version of the specification's key: it is deleted only as this one.
    pub(super) version: u64,
    /// Where the singleton runs, as the ledger says.
    pub(super) at: watch::Receiver<Option<At>>,
    /// Cancelled when the singleton is no longer wanted, or this node leaves.
    pub(super) over: CancellationToken,
}

/// How a time as holder ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is left to do for this node.
    Over,
    /// The lease is gone, or given up: somebody may take it at once.
    Free,
    /// The actor can't be started here: another node has its turn.
    Unable,
    /// What it needs was taken by another actor meanwhile: this node tries again when it has that.
    NoRoom,
}

/// Why the actor was not started.
#[derive(Debug)]
enum NotStarted {
    /// This node has not enough left, or leaves.
    Refused(Refusal),
    Failed(Error),
}

impl Tenure {
    pub(super) async fn run(mut self) {
        let over = self.over.clone();
        loop {
            tokio::select! {
                biased;
                () = over.cancelled() => return,
                () = self.turn() => {}
            }
            let incarnation = self.system.incarnation();
            let text = format!("singleton `{}`", self.name);
            let holder = Holder { node: self.system.node(), incarnation, text };
            match self.ledger.acquire(&spec::lease(&self.name), holder).await {
                Ok(lease) => {
                    let lease = self.ledger.hold(lease);
                    match Holding::new(&self, lease, incarnation).run().await {
                        Outcome::Over => return,
                        Outcome::Free => {}
                        Outcome::Unable => self.pause(LAST_BACKOFF).await,
                        Outcome::NoRoom => self.pause(ASK_AGAIN).await,
                    }
                }
                Err(error) => {
                    tracing::debug!(name = self.name, %error, "no lease");
                    self.pause(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn pause(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.over.cancelled()).await;
    }

    /// Waits until this node should try to take the lease.
    async fn turn(&mut self) {
        // A node that ends has no turn any more; `over` tells soon.
        let Some(mut changes) = Node::of(&self.system).map(|node| node.changes()) else {
            return std::future::pending().await;
        };
        let mut looked = Instant::now();
        loop {
            let rank = self.rank();
            let runs = self.runs_well();
            let wait = match rank {
                None => None,
                Some(rank) if runs => Some(looked + LOOK_AGAIN + rank * RANK_STEP),
                Some(rank) => Some(Instant::now() + rank * RANK_STEP),
            };
            let due = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                changed = self.at.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    looked = Instant::now();
                }
                () = due => return,
            }
        }
    }

    /// This node's place among those that fit and have enough left, as far as they have told; `None`
    /// if it has not.
    fn rank(&self) -> Option<u32> {
        let node = Node::of(&self.system)?;
        let members = node.members();
        let mut fit: Vec<(u64, _)> = members
            .iter()
            .filter(|member| self.spec.placement.admits(member, &self.spec.actor))
            .filter(|member| self.spec.needs.fit(&member.free))
            // Another order for each singleton, the same on all nodes: they spread.
            .map(|member| (name_hash(&format!("{} {}", self.name, member.id)), member.id))
            .collect();
        fit.sort_unstable();
        let place = fit.iter().position(|(_, id)| *id == self.system.node())?;
        u32::try_from(place).ok()
    }

    /// Whether it runs on a node that is up, as far as is known here.
    fn runs_well(&self) -> bool {
        let Some(At::Running { actor, .. }) = &*self.at.borrow() else { return false };
        Node::of(&self.system).is_some_and(|node| {
            node.members().iter().any(|member| {
                member.id == actor.node && member.incarnation == actor.incarnation && member.is_up()
            })
        })
    }
}

enum Event {
    Started(Result<ActorAddr, NotStarted>),
    StartNow,
    Announced(std::result::Result<(), LedgerError>),
    Down(Down),
    OutOfPatience,
}

/// Why a holder ends the actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The singleton is no longer wanted here: the actor is told to stop.
    Over,
    /// The lease is lost: the actor is killed.
    Lost,
}

/// A time as holder of the lease. It lasts until the actor has ended: not before may anybody else have
/// the lease by this node's own doing.
struct Holding<'a> {
    tenure: &'a Tenure,
    lease: HeldLease,
    /// The life of the node in which it began: the actor ends with it.
    incarnation: Incarnation,
    actor: Option<ActorAddr>,
    /// An actor that is starting comes through here.
    starting: Option<oneshot::Receiver<Result<ActorAddr, NotStarted>>>,
    events: FuturesUnordered<BoxFuture<'a, Event>>,
    failed_starts: u32,
    backoff: Duration,
    /// The actor is to end, and then this does.
    ending: Option<Ending>,
}

impl<'a> Holding<'a> {
    fn new(tenure: &'a Tenure, lease: HeldLease, incarnation: Incarnation) -> Self {
        Holding {
            tenure,
            lease,
            incarnation,
            actor: None,
            starting: None,
            events: FuturesUnordered::new(),
            failed_starts: 0,
            backoff: FIRST_BACKOFF,
            ending: None,
        }
    }

    async fn run(mut self) -> Outcome {
        let Tenure { name, over, .. } = self.tenure;
        tracing::info!(name, generation = self.lease.generation(), "this node runs the singleton");
        self.events.push(async { Event::StartNow }.boxed());
        loop {
            let event = tokio::select! {
                biased;
                () = self.lease.lost(), if self.ending != Some(Ending::Lost) => {
                    tracing::warn!(name, "the lease is lost: the singleton is killed");
                    match self.end(Ending::Lost) {
                        true => continue,
                        false => return Outcome::Free,
                    }
                }
                () = over.cancelled(), if self.ending.is_none() => match self.end(Ending::Over) {
                    true => continue,
                    false => return self.leave().await,
                },
                started = Self::started(&mut self.starting) => Event::Started(started),
                Some(event) = self.events.next() => event,
            };
            if let Some(outcome) = self.event(event).await {
                return outcome;
            }
        }
    }

    async fn started(
        starting: &mut Option<oneshot::Receiver<Result<ActorAddr, NotStarted>>>,
    ) -> Result<ActorAddr, NotStarted> {
        let Some(receiver) = starting else { return std::future::pending().await };
        let started = receiver.await;
        *starting = None;
        started.unwrap_or_else(|_| Err(NotStarted::Failed(Error::other("the node ended"))))
    }

    async fn event(&mut self, event: Event) -> Option<Outcome> {
        let name = &self.tenure.name;
        match event {
            // Nothing runs and nothing starts: there was nothing to wait for.
            Event::StartNow if self.ending.is_some() => {}
            Event::StartNow => self.start(),
            Event::Started(Ok(actor)) => {
                self.failed_starts = 0;
                self.actor = Some(actor);
                let down = self.tenure.system.watch(actor);
                self.events.push(down.map(Event::Down).boxed());
                match self.ending {
                    None => self.announce(actor),
                    Some(ending) => self.end_actor(actor, ending),
                }
            }
            Event::Started(Err(NotStarted::Failed(error))) => {
                return self.start_failed(error.to_string()).await;
            }
            Event::Started(Err(NotStarted::Refused(why))) => {
                tracing::debug!(name, %why, "the singleton is not started here now");
                if let Some(outcome) = self.ended().await {
                    return Some(outcome);
                }
                self.leave().await;
                return Some(Outcome::NoRoom);
            }
            Event::Announced(Ok(())) => {}
            Event::Announced(Err(error)) => {
                tracing::warn!(name, %error, "the singleton runs elsewhere: it is killed here");
                if !self.end(Ending::Lost) {
                    return Some(Outcome::Free);
                }
            }
            Event::Down(down) => {
                self.actor = None;
                return self.down(down).await;
            }
            Event::OutOfPatience => {
                if let Some(actor) = self.actor {
                    tracing::warn!(name, "the singleton did not stop and is killed");
                    self.tenure.system.end(actor, End::Kill);
                }
            }
        }
        None
    }

    /// Starts the actor under the lease, on the runtime of the node's actors.
    fn start(&mut self) {
        let (sender, started) = oneshot::channel();
        self.starting = Some(started);
        let system = self.tenure.system.clone();
        let Spec { actor, args, needs, .. } = self.tenure.spec.clone();
        let generation = self.lease.generation();
        let fence = Fence { lease: name_hash(&spec::lease(&self.tenure.name)), generation };
        let args = Opaque::from(Encoded { body: args.into(), ..Encoded::default() });
        self.tenure.system.env().spawner.spawn(async move {
            let started = fence::under(Some(fence), start(&system, &actor, args, &needs)).await;
            // Nobody waits any more: the lease was lost meanwhile.
            if let Err(Ok(actor)) = sender.send(started) {
                system.end(actor, End::Kill);
            }
        });
    }

    /// Says where it runs. It fails only if another generation runs already.
    fn announce(&mut self, actor: ActorAddr) {
        let (ledger, key) = (self.tenure.ledger.clone(), spec::at_key(&self.tenure.name));
        let generation = self.lease.generation();
        let owner = Life { node: actor.node, incarnation: actor.incarnation };
        self.events.push(
            async move {
                loop {
                    match announce(&ledger, &key, At::Running { actor, generation }, owner).await {
                        Err(error) if !matches!(error, LedgerError::Lost { .. }) => {
                            tracing::debug!(key, %error, "not announced yet");
                            tokio::time::sleep(ASK_AGAIN).await;
                        }
                        announced => return Event::Announced(announced),
                    }
                }
            }
            .boxed(),
        );
    }

    async fn start_failed(&mut self, why: String) -> Option<Outcome> {
        let Tenure { name, ledger, spec, .. } = self.tenure;
        tracing::warn!(name, why, "the singleton could not be started");
        if let Some(outcome) = self.ended().await {
            return Some(outcome);
        }
        if spec.policy == SingletonPolicy::UntilItEnds {
            let failed = At::Failed { submission: spec.submission, why };
            let _ = ledger.put(&spec::at_key(name), failed.encode(), Expect::Any, None).await;
            return Some(self.finish().await);
        }
        self.failed_starts += 1;
        if self.failed_starts >= TRIES {
            self.leave().await;
            return Some(Outcome::Unable);
        }
        self.start_later();
        None
    }

    async fn down(&mut self, down: Down) -> Option<Outcome> {
        let Tenure { name, ledger, spec, .. } = self.tenure;
        tracing::info!(name, %down, "the singleton ended");
        if let Some(outcome) = self.ended().await {
            return Some(outcome);
        }
        let by_itself = matches!(down, Down::Stopped | Down::Failed(_) | Down::Panicked(_));
        if by_itself && spec.policy == SingletonPolicy::UntilItEnds {
            let _ = ledger.delete(&spec::at_key(name), Expect::Any).await;
            return Some(self.finish().await);
        }
        self.start_later();
        None
    }

    fn start_later(&mut self) {
        let wait = self.backoff;
        self.backoff = (wait * 2).min(LAST_BACKOFF);
        self.events.push(tokio::time::sleep(wait).map(|()| Event::StartNow).boxed());
    }

    /// No actor is left: if there is to be none, this time is over.
    async fn ended(&mut self) -> Option<Outcome> {
        match self.ending {
            Some(Ending::Over) => Some(self.leave().await),
            Some(Ending::Lost) => Some(Outcome::Free),
            // The node has begun a new life: it holds nothing of the old one.
            None if self.tenure.system.incarnation() != self.incarnation => Some(Outcome::Free),
            None => None,
        }
    }

    /// Ends the actor; false if there is none, and none is starting.
    fn end(&mut self, ending: Ending) -> bool {
        self.ending = Some(ending);
        if let Some(actor) = self.actor {
            self.end_actor(actor, ending);
        }
        self.actor.is_some() || self.starting.is_some()
    }

    fn end_actor(&mut self, actor: ActorAddr, ending: Ending) {
        match ending {
            Ending::Lost => self.tenure.system.end(actor, End::Kill),
            Ending::Over => {
                self.tenure.system.end(actor, End::Stop);
                let patience = tokio::time::sleep(STOP_PATIENCE).map(|()| Event::OutOfPatience);
                self.events.push(patience.boxed());
            }
        }
    }

    /// The singleton is over for all nodes.
    async fn finish(&mut self) -> Outcome {
        let Tenure { name, ledger, version, .. } = self.tenure;
        // Asked for anew meanwhile: that one is not ours to end.
        let _ = ledger.delete(&spec::key(name), Expect::Version(*version)).await;
        Outcome::Over
    }

    /// The actor has ended; another node may have the lease.
    async fn leave(&mut self) -> Outcome {
        let Tenure { name, ledger, .. } = self.tenure;
        let _ = ledger.delete(&spec::at_key(name), Expect::Any).await;
        Outcome::Over
    }
}

/// Reserves what an actor needs on this node, and starts it with that.
async fn start(
    system: &System,
    actor: &str,
    args: Opaque,
    needs: &Needs,
) -> Result<ActorAddr, NotStarted> {
    let granted = match Node::of(system) {
        Some(node) => node.host().admit(needs).map_err(NotStarted::Refused)?,
        None => return Err(NotStarted::Refused(Refusal::Leaving)),
    };
    let started = system.spawn_by_name_with_claim(actor, args, Some(granted)).await;
    started.map_err(|error| match error {
        Error::Leaving(_) => NotStarted::Refused(Refusal::Leaving),
        error => NotStarted::Failed(error),
    })
}

/// Writes where a singleton runs, unless a later generation has.
async fn announce(
    ledger: &Ledger,
    key: &str,
    at: At,
    owner: Life,
) -> std::result::Result<(), LedgerError> {
    let At::Running { generation, .. } = at else { return Ok(()) };
    loop {
        let there = ledger.get(key).await?;
        let expect = match &there {
            None => Expect::Absent,
            Some(there) => match At::decode(&there.value) {
                Ok(At::Running { generation: other, .. }) if other > generation => {
                    return Err(LedgerError::Lost { lease: key.to_owned(), generation });
                }
                _ => Expect::Version(there.version),
            },
        };
        match ledger.put(key, at.encode(), expect, Some(owner)).await {
            Err(LedgerError::Conflict { .. }) => {}
            written => return written.map(drop),
        }
    }
}
