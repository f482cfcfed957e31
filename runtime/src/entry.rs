//! What a node knows of one running actor, its Rust type forgotten.

use std::{
    any::Any,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    actor::Actor,
    claim::Claim,
    id::ActorAddr,
    link::Links,
    mailbox::{Envelope, Life, Mailbox},
    remote::Batch,
    watch::Down,
    work::Work,
};

pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) mailbox: Arc<dyn Any + Send + Sync>,
    pub(crate) deliver: Box<dyn Fn(Batch) + Send + Sync>,
    pub(crate) cell: ractor::ActorCell,
    pub(crate) life: Arc<Life>,
    pub(crate) watchers: Mutex<Watchers>,
    /// Those whose failure is this actor's failure.
    pub(crate) links: Mutex<Links>,
    /// Tells the actor of the end of a linked one.
    pub(crate) link_down: Arc<dyn Fn(ActorAddr, Down) + Send + Sync>,
    /// The actor's tasks: cancelled before its end is told, whenever its state goes.
    pub(crate) tasks: CancellationToken,
    /// Counts what it has in hand; none for the node's own actors.
    pub(crate) work: Option<Arc<Work>>,
    /// It was stopped because its node leaves.
    pub(crate) dismissed: AtomicBool,
    claim: Option<Arc<dyn Claim>>,
}

impl Entry {
    pub(crate) fn new<A: Actor>(
        mailbox: Arc<Mailbox<A>>,
        tasks: CancellationToken,
        claim: Option<Arc<dyn Claim>>,
    ) -> Self {
        let (queue, linked) = (mailbox.clone(), mailbox.clone());
        Entry {
            name: A::NAME,
            cell: mailbox.queue.get_cell(),
            deliver: Box::new(move |batch| queue.put_batch(batch)),
            life: mailbox.life.clone(),
            work: mailbox.work.clone(),
            dismissed: AtomicBool::new(false),
            link_down: Arc::new(move |who, down| linked.put(Envelope::LinkDown(who, down))),
            mailbox,
            watchers: Mutex::default(),
            links: Mutex::default(),
            tasks,
            claim,
        }
    }

    /// Asks the actor to stop after the message in hand.
    pub(crate) fn stop(&self) {
        self.life.stop();
        self.cell.stop(None);
    }

    /// The actor has ended: ends its tasks, gives back what it had, then tells all who watch it.
    pub(crate) fn end(self, down: Down) {
        self.tasks.cancel();
        if let Some(claim) = self.claim {
            claim.give_back();
        }
        let watchers = self.watchers.into_inner().unwrap_or_else(|poison| poison.into_inner());
        for watcher in watchers.senders {
            let _ = watcher.send(down.clone());
        }
    }
}

/// Those who wait for an actor's end. Those who no longer do are forgotten from time to time, so
/// that an actor that lives long may be watched often.
#[derive(Default)]
pub(crate) struct Watchers {
    senders: Vec<oneshot::Sender<Down>>,
    /// The length at which to look for those that gave up.
    sweep_at: usize,
}

impl Watchers {
    pub(crate) fn push(&mut self, watcher: oneshot::Sender<Down>) {
        if self.senders.len() >= self.sweep_at {
            self.senders.retain(|watcher| !watcher.is_closed());
            self.sweep_at = (2 * self.senders.len()).max(8);
        }
        self.senders.push(watcher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_that_gave_up_do_not_pile_up_and_the_others_stay() {
        let mut watchers = Watchers::default();
        let mut staying = Vec::new();
        for number in 0..10_000 {
            let (sender, watcher) = oneshot::channel();
            watchers.push(sender);
            if number % 1000 == 0 {
                staying.push(watcher);
            }
            assert!(watchers.senders.len() <= 32, "{} after {number}", watchers.senders.len());
        }
        let told: Vec<_> = watchers.senders.into_iter().map(|w| w.send(Down::Stopped)).collect();
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), staying.len());
    }
}
