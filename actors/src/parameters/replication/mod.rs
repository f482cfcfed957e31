//! How a shard is kept on several nodes: one of them is its *primary*, to which everybody talks, the others are its
//! *backups*, which do what it does.
//!
//! ```text
//! workers ── slots ──► primary: sums them ──┬─ the sum ─► backup: applies it, knows it ──┐
//!                                           └─ the sum ─► backup: applies it, knows it ──┤
//!            pulls ◄── primary: applies it, publishes the version ◄── both know it ──────┘
//! ```
//!
//! The gradients are summed before they are passed on (*replication after aggregation*, Li et al., OSDI'14, 4.3): one
//! sum a chunk and step, however many slots there are. The optimiser is a function of state and sum, so all have the
//! same bits without a word about parameters. What anybody has seen of a step is at every backup, so each of them may
//! become the primary; slots that were pushed and not applied are lost with a primary, and computed again.
//!
//! Who is what is said by the trainer, which the ledger's lease makes the only one ([`Configure`]); each time under a
//! greater *view*. A backup heeds no view below the greatest that it has seen, so a primary that was only cut off or
//! frozen, and wakes up, can't publish another step: its backups don't take the sum. It is told so, and ends.
//!
//! - **RP-1** A version is published when all backups of its view have it.
//! - **RP-2** A backup takes each step once, in order, whatever is sent twice.
//! - **RP-3** A backup takes sums after it has been given the whole state of that chunk, by the same primary.
//! - **RP-4** What was sent under an earlier view changes nothing.

mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use footlight_runtime::{
    ActorAddr, ActorRef, Cause, Context, DeferredHandler, Handler, Message, ReplyTo,
    actor::Receives,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

pub use self::message::{Configure, Copy, Record, Replicate, Taken};
use super::{
    rule::Verdict,
    server::{Floats, ParameterServer, PushError, StepDone, refused, tensor},
    shard::ShardError,
};

/// After a connection broke.
const AGAIN: Duration = Duration::from_millis(100);
/// A backup that is still being given its state is asked again so much later.
const NOT_YET: Duration = Duration::from_millis(5);
/// So many chunks are on their way to a new backup at once.
const COPIES_AT_ONCE: usize = 4;

/// What a shard is among those that hold the same chunks.
#[derive(Debug)]
pub(super) struct Replication {
    /// The latest that is known; of a shard of a job without backups 0.
    view: Arc<AtomicU64>,
    role: Role,
}

#[derive(Debug)]
enum Role {
    Primary {
        backups: Vec<Backup>,
        /// What is not published yet, and who has still to take it.
        unpublished: BTreeMap<Key, (Record, HashSet<ActorAddr>)>,
    },
    Backup {
        /// By chunk: the view in which its state was given.
        given: HashMap<u32, u64>,
    },
}

#[derive(Clone, Debug)]
struct Backup {
    server: ActorRef<ParameterServer>,
    /// The view in which it was given the state.
    given: u64,
    /// It has all of that.
    is_synced: bool,
    /// Who tells it something gives up when this is gone: it is no backup any more, and may be out of reach for ever.
    stays: Arc<()>,
}

/// Which record is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Key {
    Sum { step: u64, chunk: u32 },
    Verdict { step: u64 },
}

/// What a shard's own tasks tell it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Heard {
    /// A backup has a record.
    Taken { backup: ActorAddr, key: Key },
    /// A backup has all that there was in this view.
    Synced { backup: ActorAddr, view: u64 },
    /// There is another primary.
    Deposed { view: u64 },
}

impl Message for Heard {
    type Reply = ();
    const NAME: &'static str = "parameters.heard";
}

impl Default for Replication {
    /// A primary without backups.
    fn default() -> Self {
        let role = Role::Primary { backups: Vec::new(), unpublished: BTreeMap::new() };
        Replication { view: Arc::default(), role }
    }
}

impl Replication {
    fn view(&self) -> u64 {
        self.view.load(Ordering::Acquire)
    }

    pub(super) fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary { .. })
    }

    fn backups(&self) -> &[Backup] {
        match &self.role {
            Role::Primary { backups, .. } => backups,
            Role::Backup { .. } => &[],
        }
    }

    /// Whether sums go to backups before they are applied.
    fn has_backups(&self) -> bool {
        !self.backups().is_empty()
    }

    /// Heeds a message of a primary of this view; gives the chunks that this backup has been given.
    fn heed(&mut self, view: u64) -> std::result::Result<&mut HashMap<u32, u64>, Taken> {
        let own = self.view();
        if view < own || view == own && self.is_primary() {
            return Err(Taken::Deposed(own));
        }
        self.view.store(view, Ordering::Release);
        if self.is_primary() {
            // A shard that was just started. A primary with a view of its own is deposed by its backups and ends.
            if own > 0 {
                return Err(Taken::Refused("a primary does not become a backup".to_owned()));
            }
            self.role = Role::Backup { given: HashMap::new() };
        }
        match &mut self.role {
            Role::Backup { given } => Ok(given),
            Role::Primary { .. } => Err(Taken::Deposed(own)),
        }
    }
}

impl DeferredHandler<Configure> for ParameterServer {
    async fn handle(
        &mut self,
        told: Configure,
        reply: ReplyTo<<Configure as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let Configure { view, backups: wanted } = told;
        let own = self.replication.view();
        if view < own {
            return reply.send(Err(refused(format!("view {view} is over: {own} is known"))));
        }
        if !wanted.is_empty() && !self.shard.has_sums() {
            return reply
                .send(Err(refused("a shard that applies slots one by one has no backups")));
        }
        let Some(version) = self.shard.version() else {
            return reply.send(Err(refused("a shard that has no parameters can't be the primary")));
        };
        if !self.replication.is_primary() {
            tracing::info!(view, version, "a backup is the primary of its shard now");
            self.shard.forget_unapplied();
            self.gate = self.gate.anew(version);
            self.replication.role = Replication::default().role;
        }
        self.replication.view.store(view, Ordering::Release);
        let known = self.replication.backups().to_vec();
        let stays = |backup: &Backup| {
            backup.is_synced && wanted.iter().any(|server| server.addr() == backup.server.addr())
        };
        let (mut backups, _): (Vec<_>, Vec<_>) = known.into_iter().partition(stays);
        let is_new =
            |server: &ActorRef<Self>| !backups.iter().any(|b| b.server.addr() == server.addr());
        let new = wanted.into_iter().filter(is_new);
        let new = new.map(|server| Backup {
            server,
            given: view,
            is_synced: false,
            stays: Arc::default(),
        });
        let new: Vec<_> = new.collect();
        backups.extend(new.iter().cloned());
        self.shard.hold_sums(!backups.is_empty());
        self.set_backups(backups, &new, context);
        let copies = match self.copies(view) {
            Ok(copies) => copies,
            Err(error) => return reply.send(Err(error)),
        };
        let me = context.me();
        let new: Vec<_> = new.iter().map(Told::new).collect();
        context.run(async move {
            let synced =
                stream::iter(new).map(|backup| copy_all(backup, view, copies.clone(), me.clone()));
            let synced = synced.buffer_unordered(2).try_collect::<Vec<()>>().await;
            reply.send(synced.map(drop));
            Ok(())
        });
    }
}

impl Handler<Copy> for ParameterServer {
    async fn handle(&mut self, copy: Copy, _: &Context<Self>) -> Taken {
        let Copy { view, chunk, state, history, squares } = copy;
        let given = match self.replication.heed(view) {
            Ok(given) => given,
            Err(taken) => return taken,
        };
        if given.get(&chunk) == Some(&view) {
            return Taken::Yes;
        }
        let (skipped, loss_scale) = (state.skipped, state.loss_scale);
        let replaced = self
            .restored(state)
            .and_then(|state| self.shard.replace(chunk as usize, state).map_err(PushError::from));
        if let Err(error) = replaced {
            return Taken::Refused(error.to_string());
        }
        // The same for all chunks.
        (self.skipped, self.loss_scale) = (skipped, loss_scale);
        if !history.is_empty() {
            self.history = history.into();
        }
        if squares.is_some() {
            self.gate.has_told_before(squares);
        }
        if let Role::Backup { given } = &mut self.replication.role {
            given.insert(chunk, view);
        }
        Taken::Yes
    }
}

impl Handler<Replicate> for ParameterServer {
    async fn handle(&mut self, told: Replicate, _: &Context<Self>) -> Taken {
        let Replicate { view, given: needs, record } = told;
        let given = match self.replication.heed(view) {
            Ok(given) => given,
            Err(taken) => return taken,
        };
        let is_given = |chunk: u32| given.get(&chunk) == Some(&needs);
        let all_are_given = match &record {
            Record::Sum { chunk, .. } => is_given(*chunk),
            Record::Verdict { .. } => self.shard.chunks().all(|chunk| is_given(chunk as u32)),
        };
        match all_are_given {
            true => self.follow(record),
            false => Taken::NotYet,
        }
    }
}

impl Handler<Heard> for ParameterServer {
    async fn handle(&mut self, heard: Heard, context: &Context<Self>) {
        match heard {
            Heard::Deposed { view } if view > self.replication.view() => {
                tracing::warn!(view, "another replica of this shard is its primary: this one ends");
                context.stop();
            }
            Heard::Deposed { .. } => {}
            Heard::Synced { backup, view } => {
                if let Role::Primary { backups, .. } = &mut self.replication.role {
                    let synced = backups
                        .iter_mut()
                        .filter(|known| known.server.addr() == backup && known.given == view);
                    synced.for_each(|backup| backup.is_synced = true);
                }
            }
            Heard::Taken { backup, key } => {
                let Role::Primary { unpublished, .. } = &mut self.replication.role else { return };
                let Some((_, missing)) = unpublished.get_mut(&key) else { return };
                missing.remove(&backup);
                if missing.is_empty()
                    && let Some((record, _)) = unpublished.remove(&key)
                {
                    self.publish(record, context);
                }
            }
        }
    }
}

impl ParameterServer {
    /// A step is known as a whole, or a chunk's sum where that is enough: it is published once all backups have it.
    pub(super) fn replicate(&mut self, record: Record, context: &Context<Self>) {
        if !self.replication.has_backups() {
            return self.publish(record, context);
        }
        for backup in self.replication.backups() {
            self.tell_backup(backup, record.clone(), context);
        }
        let missing =
            self.replication.backups().iter().map(|backup| backup.server.addr()).collect();
        if let (Role::Primary { unpublished, .. }, Some(key)) =
            (&mut self.replication.role, record.key())
        {
            unpublished.insert(key, (record, missing));
        }
    }

    /// The record of a chunk whose slots have been summed; none if there are no backups.
    pub(super) fn sum_record(
        &self,
        chunk: u32,
        waits: bool,
        done: Option<StepDone>,
    ) -> std::result::Result<Option<Record>, PushError> {
        let Some((step, sum)) = self.shard.sum_of(chunk as usize) else { return Ok(None) };
        Ok(Some(Record::Sum { step, chunk, sum: tensor(sum)?, waits, done }))
    }

    fn publish(&mut self, record: Record, context: &Context<Self>) {
        match record {
            Record::Sum { waits: true, .. } => {}
            Record::Sum { step, chunk, done, .. } => {
                match self.shard.decide_one(chunk as usize, step, Verdict::Apply(1.0)) {
                    Ok(()) => {
                        self.answer(chunk, context.system().pool());
                        self.told(done);
                        // What fails is told to those who pull.
                        let _ = self.advance(chunk, context);
                    }
                    // Told to those who pull.
                    Err(error) => drop(self.refuse(error)),
                }
            }
            Record::Verdict { step, verdict, done, .. } => {
                if let Err(error) = self.conclude(step, verdict) {
                    drop(self.refuse(error));
                    return;
                }
                let chunks: Vec<_> = self.shard.chunks().collect();
                for chunk in &chunks {
                    self.answer(*chunk as u32, context.system().pool());
                }
                self.told(done);
                for chunk in chunks {
                    // What fails is told to those who pull.
                    let _ = self.advance(chunk as u32, context);
                }
            }
        }
    }

    /// All chunks take a step, or leave it out.
    fn conclude(&mut self, step: u64, verdict: Verdict) -> std::result::Result<(), ShardError> {
        self.shard.decide(step, verdict)?;
        let skipped = verdict == Verdict::Skip;
        self.skipped = if skipped { self.skipped + 1 } else { 0 };
        self.loss_scale.step(skipped);
        Ok(())
    }

    /// As a backup.
    fn follow(&mut self, record: Record) -> Taken {
        let (followed, done) = match record {
            Record::Sum { step, chunk, sum, waits, done } => {
                let sum = match Floats::new(sum.into()) {
                    Ok(sum) => sum,
                    Err(error) => return Taken::Refused(error.to_string()),
                };
                let taken = self.shard.take_sum(chunk as usize, step, &sum);
                let followed = match taken {
                    Ok(true) if !waits => self
                        .shard
                        .decide_one(chunk as usize, step, Verdict::Apply(1.0))
                        .map(|()| true),
                    other => other.map(|is_new| is_new && !waits),
                };
                (followed, done)
            }
            Record::Verdict { step, verdict, squares, done } => {
                let is_new = self.shard.version().is_none_or(|version| version <= step);
                let followed = match is_new {
                    true => self.conclude(step, verdict).map(|()| true),
                    false => Ok(false),
                };
                if followed == Ok(true) {
                    self.gate.has_told_before(squares.map(|squares| *squares));
                }
                (followed, done)
            }
        };
        match followed {
            Ok(is_new) => {
                if is_new {
                    self.told(done);
                }
                Taken::Yes
            }
            Err(
                ShardError::NotInitialised { .. }
                | ShardError::FromTheFuture { .. }
                | ShardError::NotSummed { .. },
            ) => Taken::NotYet,
            // The primary, which has the same bits, finds it as well, and tells.
            Err(ShardError::NonFinite { .. }) => Taken::Yes,
            Err(error) => Taken::Refused(error.to_string()),
        }
    }

    /// From here on these are all backups. The new ones hear of what is not published yet.
    fn set_backups(&mut self, backups: Vec<Backup>, new: &[Backup], context: &Context<Self>) {
        let staged = self.shard.chunks().filter(|_| self.holds_for_verdict());
        let staged: Vec<_> =
            staged.filter_map(|chunk| self.sum_record(chunk as u32, true, None).ok()?).collect();
        let Role::Primary { backups: known, unpublished } = &mut self.replication.role else {
            return;
        };
        let addrs = |backups: &[Backup]| -> HashSet<_> {
            backups.iter().map(|backup| backup.server.addr()).collect()
        };
        let (all, added) = (addrs(&backups), addrs(new));
        *known = backups;
        for (_, missing) in unpublished.values_mut() {
            missing.retain(|backup| all.contains(backup));
            missing.extend(&added);
        }
        let records: Vec<_> = unpublished.values().map(|(record, _)| record.clone()).collect();
        let alone: Vec<_> =
            unpublished.extract_if(.., |_, (_, missing)| missing.is_empty()).collect();
        for backup in new {
            for record in staged.iter().chain(&records) {
                self.tell_backup(backup, record.clone(), context);
            }
        }
        for (_, (record, _)) in alone {
            self.publish(record, context);
        }
    }

    fn tell_backup(&self, backup: &Backup, record: Record, context: &Context<Self>) {
        let (view, me) = (self.replication.view.clone(), context.me());
        let (given, told) = (backup.given, Told::new(backup));
        context.run(async move {
            let key = record.key();
            let now =
                || Replicate { view: view.load(Ordering::Acquire), given, record: record.clone() };
            if tell(&told, now, &me).await
                && let Some(key) = key
            {
                hears(&me, Heard::Taken { backup: told.server.addr(), key }).await;
            }
            Ok(())
        });
    }

    /// The state of all chunks.
    fn copies(&self, view: u64) -> std::result::Result<Arc<Vec<Copy>>, PushError> {
        let mut history = Vec::from(self.history.clone());
        let mut squares = self.gate.before();
        let copies = self.shard.chunks().map(|chunk| {
            let state = self.saved(self.shard.state(chunk)?)?;
            let history = std::mem::take(&mut history);
            Ok(Copy { view, chunk: chunk as u32, state, history, squares: squares.take() })
        });
        copies.collect::<std::result::Result<Vec<_>, _>>().map(Arc::new)
    }
}

/// Gives a backup all that there is.
async fn copy_all(
    backup: Told,
    view: u64,
    copies: Arc<Vec<Copy>>,
    me: ActorRef<ParameterServer>,
) -> std::result::Result<(), PushError> {
    let (to, primary, addr) = (&backup, &me, backup.server.addr());
    let all = (0..copies.len()).map(|at| {
        let copies = copies.clone();
        async move { tell(to, || copies[at].clone(), primary).await }
    });
    let mut all = stream::iter(all).buffer_unordered(COPIES_AT_ONCE);
    while let Some(is_taken) = all.next().await {
        if !is_taken {
            return Err(refused(format!("the backup {addr} could not be given the state")));
        }
    }
    hears(&me, Heard::Synced { backup: addr, view }).await;
    Ok(())
}

/// A shard that ends meanwhile needs to hear nothing.
async fn hears(me: &ActorRef<ParameterServer>, heard: Heard) {
    let _ = me.call(heard).await;
}

/// A backup, as who tells it something knows it.
struct Told {
    server: ActorRef<ParameterServer>,
    stays: Weak<()>,
}

impl Told {
    fn new(backup: &Backup) -> Self {
        Told { server: backup.server.clone(), stays: Arc::downgrade(&backup.stays) }
    }

    fn is_over(&self) -> bool {
        self.stays.strong_count() == 0
    }
}

/// Tells a backup until it has taken it; false if it is lost, heeds another primary, or is no backup any more.
async fn tell<M: Message<Reply = Taken>, How: 'static>(
    backup: &Told,
    message: impl Fn() -> M,
    me: &ActorRef<ParameterServer>,
) -> bool
where
    ParameterServer: Receives<M, How>,
{
    while !backup.is_over() {
        match backup.server.call(message()).await {
            Ok(Taken::Yes) => return true,
            Ok(Taken::NotYet) => tokio::time::sleep(NOT_YET).await,
            Ok(Taken::Deposed(view)) => {
                hears(me, Heard::Deposed { view }).await;
                return false;
            }
            Ok(Taken::Refused(why)) => {
                tracing::error!(backup = %backup.server.addr(), why, "a backup refuses what its shard tells it");
                return false;
            }
            Err(error) => match error.cause() {
                Cause::TimedOut(_) => {}
                Cause::Unreachable(_) | Cause::CutOff { .. } | Cause::Overloaded => {
                    tokio::time::sleep(AGAIN).await;
                }
                // The trainer learns of it, too, and says who the backups are.
                _ => return false,
            },
        }
    }
    false
}
