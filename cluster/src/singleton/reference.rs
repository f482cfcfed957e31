//! A reference to a singleton, wherever it runs.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, CallError, Cause, Error, Fate, Message, Result, System,
    actor::Receives, actor_ref::CALL_TIMEOUT, env::deadline_after,
};
use tokio::time::Instant;

use super::spec::{self, At};
use crate::{Node, ledger::Ledger};

/// A singleton that could not be reached is looked for again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A reference to a singleton by its name: calls find it wherever it runs at that time.
///
/// Cheap to clone. Holding one keeps nothing alive.
pub struct SingletonRef<A: Actor> {
    system: System,
    ledger: Ledger,
    name: Arc<str>,
    /// Where it was found last.
    found: Arc<Mutex<Option<ActorAddr>>>,
    actor: std::marker::PhantomData<fn() -> A>,
}

impl<A: Actor> SingletonRef<A> {
    pub(super) fn new(node: &Node, name: String) -> Self {
        SingletonRef {
            system: node.system().clone(),
            ledger: node.ledger(),
            name: name.into(),
            found: Arc::default(),
            actor: std::marker::PhantomData,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The actor where the ledger says that it runs; waits until it runs somewhere, at most
    /// `patience`.
    ///
    /// # Errors
    /// If it does not run in time.
    pub async fn actor(&self, patience: Duration) -> Result<ActorRef<A>> {
        *self.found() = None;
        self.find(deadline_after(patience)).await
    }

    async fn find(&self, deadline: Instant) -> Result<ActorRef<A>> {
        let found = *self.found();
        if let Some(addr) = found {
            return Ok(ActorRef::at(addr, &self.system));
        }
        let key = spec::at_key(&self.name);
        let mut changes = None;
        loop {
            let at = tokio::time::timeout_at(deadline, self.ledger.get(&key)).await;
            let trouble = match at {
                Ok(Ok(Some(at))) => match At::decode(&at.value)? {
                    At::Running { actor, .. } => {
                        *self.found() = Some(actor);
                        return Ok(ActorRef::at(actor, &self.system));
                    }
                    At::Failed { why, .. } => why,
                },
                Ok(Ok(None)) => "it runs nowhere".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the ledger does not answer".to_owned(),
            };
            // The watch begins with the present state: nothing is missed between the two.
            let changes = changes.get_or_insert_with(|| self.ledger.watch(&key));
            if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                let name = &self.name;
                return Err(Error::other(format!("singleton `{name}` was not found: {trouble}")));
            }
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<ActorAddr>> {
        self.found.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Calls it where it runs, within 30 s. A call that certainly was not handled, because the
    /// singleton had gone, is made again where it runs next.
    ///
    /// # Errors
    /// As [`ActorRef::call`], and if it runs nowhere in time.
    pub async fn call<M: Message + Clone, How: 'static>(&self, message: M) -> Result<M::Reply>
    where
        A: Receives<M, How>,
    {
        self.call_within(message, CALL_TIMEOUT).await
    }

    /// Calls it where it runs, within `patience` in all.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_within<M: Message + Clone, How: 'static>(
        &self,
        message: M,
        patience: Duration,
    ) -> Result<M::Reply>
    where
        A: Receives<M, How>,
    {
        let deadline = deadline_after(patience);
        loop {
            let actor = self.find(deadline).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            match actor.call_within(message.clone(), left).await {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    self.forget(actor.addr(), &error);
                    if !moved(&error) || Instant::now() + LOOK_AGAIN >= deadline {
                        return Err(error.into());
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The next call looks for it anew.
    fn forget(&self, addr: ActorAddr, error: &CallError) {
        let mut found = self.found();
        if *found == Some(addr) && is_gone(error.cause()) {
            *found = None;
        }
    }
}

fn is_gone(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::NodeLost(_)
            | Cause::NoSuchActor
            | Cause::Stopped
            | Cause::Unreachable(_)
            | Cause::CutOff { .. }
    )
}

/// Whether the call can be made again where the singleton runs now.
fn moved(error: &CallError) -> bool {
    error.fate() == Fate::NotSent && is_gone(error.cause())
}

impl<A: Actor> Clone for SingletonRef<A> {
    fn clone(&self) -> Self {
        SingletonRef {
            system: self.system.clone(),
            ledger: self.ledger.clone(),
            name: self.name.clone(),
            found: self.found.clone(),
            actor: std::marker::PhantomData,
        }
    }
}

impl<A: Actor> fmt::Debug for SingletonRef<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "singleton `{}` ({})", self.name, A::NAME)
    }
}
