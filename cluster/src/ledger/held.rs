//! Leases that a node keeps: one task renews them all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    LedgerError, LedgerId,
    client::{Client, Lease, PATIENCE},
    leases::LeaseTime,
    voter::lock,
};

/// Most leases in one question.
const BATCH: usize = 512;
/// After a renewal that nobody answered.
const AGAIN: Duration = Duration::from_millis(50);

/// A lease that is renewed until this is dropped.
///
/// Dropping it gives the lease back. Whoever acts under the lease must have stopped by then.
#[derive(Debug)]
pub struct HeldLease {
    lease: Lease,
    until: watch::Receiver<Instant>,
    keeper: Arc<Shared>,
    released: bool,
}

/// Renews the leases of one node.
#[derive(Debug)]
pub(super) struct Keeper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Weak<Client>,
    control: Handle,
    time: LeaseTime,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    leases: BTreeMap<(LedgerId, String, u64), watch::Sender<Instant>>,
    /// A task renews them.
    renews: bool,
}

impl Keeper {
    pub(super) fn new(client: Weak<Client>, control: Handle, time: LeaseTime) -> Self {
        Keeper(Arc::new(Shared { client, control, time, kept: Mutex::default() }))
    }

    pub(super) fn keep(&self, lease: Lease) -> HeldLease {
        let (sender, until) = watch::channel(lease.until);
        let key = (lease.ledger, lease.name.clone(), lease.generation);
        let mut kept = lock(&self.0.kept);
        kept.leases.insert(key, sender);
        if !std::mem::replace(&mut kept.renews, true) {
            self.0.control.spawn(renew(Arc::downgrade(&self.0), self.0.time));
        }
        HeldLease { lease, until, keeper: self.0.clone(), released: false }
    }
}

/// Renews all that is kept, again and again; ends when nothing is kept any more.
async fn renew(shared: Weak<Shared>, time: LeaseTime) {
    let mut pause = time.renewal();
    loop {
        sleep(pause).await;
        pause = time.renewal();
        let Some(shared) = shared.upgrade() else { return };
        let Some(client) = shared.client.upgrade() else { return };
        let ledgers = {
            let mut kept = lock(&shared.kept);
            if kept.leases.is_empty() {
                kept.renews = false;
                return;
            }
            let mut ledgers = BTreeMap::<LedgerId, Vec<(String, u64)>>::new();
            for (ledger, lease, generation) in kept.leases.keys() {
                ledgers.entry(*ledger).or_default().push((lease.clone(), *generation));
            }
            ledgers
        };
        let batches = ledgers.into_iter().flat_map(|(ledger, grants)| {
            let batches: Vec<_> = grants.chunks(BATCH).map(<[_]>::to_vec).collect();
            batches.into_iter().map(move |grants| (ledger, grants))
        });
        let asked = batches.map(async |(ledger, grants)| {
            let sent = Instant::now();
            let renewed = client.renew(grants.clone(), ledger, time.patience()).await;
            let Ok(held) = renewed else { return false };
            let mut kept = lock(&shared.kept);
            for ((lease, generation), held) in grants.into_iter().zip(held) {
                let key = (ledger, lease, generation);
                match (kept.leases.get(&key), held) {
                    (Some(until), true) => drop(until.send_replace(time.until(sent))),
                    // Its sender goes with it: the holder learns that it is lost.
                    (Some(_), false) => drop(kept.leases.remove(&key)),
                    (None, _) => {}
                }
            }
            true
        });
        if futures::future::join_all(asked).await.contains(&false) {
            pause = AGAIN;
        }
        // What could not be renewed in time is lost, whatever is heard later.
        let now = Instant::now();
        lock(&shared.kept).leases.retain(|_, until| *until.borrow() > now);
    }
}

impl HeldLease {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.lease.name
    }

    /// Which grant of the lease this is.
    pub fn generation(&self) -> u64 {
        self.lease.generation
    }

    /// Whether the holder may still act under it.
    pub fn is_held(&self) -> bool {
        // A lease that is known to be lost has no sender any more.
        self.until.has_changed().is_ok() && Instant::now() < *self.until.borrow()
    }

    /// Waits until the lease is lost: the holder must stop at once. It never is while a majority of
    /// the voters can be reached.
    pub async fn lost(&self) {
        let mut until = self.until.clone();
        loop {
            let end = *until.borrow_and_update();
            tokio::select! {
                biased;
                changed = until.changed() => if changed.is_err() { return },
                () = sleep_until(end) => return,
            }
        }
    }

    /// Gives it back; it is free for others when this returns.
    ///
    /// # Errors
    /// If the voters do not answer; then it is free when it has ended.
    pub async fn release(mut self) -> Result<(), LedgerError> {
        self.forget();
        let client = self.keeper.client.upgrade().ok_or(LedgerError::Ended)?;
        client.release(self.lease.name.clone(), self.lease.generation, PATIENCE).await
    }

    fn forget(&mut self) {
        self.released = true;
        let key = (self.lease.ledger, self.lease.name.clone(), self.lease.generation);
        lock(&self.keeper.kept).leases.remove(&key);
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.forget();
        let (name, generation) = (self.lease.name.clone(), self.lease.generation);
        if let Some(client) = self.keeper.client.upgrade() {
            self.keeper.control.spawn(async move {
                if let Err(error) = client.release(name, generation, PATIENCE).await {
                    tracing::debug!(%error, "a lease could not be given back: it ends by itself");
                }
            });
        }
    }
}
