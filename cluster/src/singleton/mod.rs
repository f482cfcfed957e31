//! Actors of which the cluster runs exactly one.
//!
//! What is to run stands in the [ledger](crate::ledger), so it outlives every node but the majority of
//! the voters:
//!
//! ```text
//! Node::singleton(name, args) ──► ledger: singleton/<name> = what, where, how long
//!                                             │ watched by every node
//!                                             ▼
//!        each node that fits ── acquires the lease singleton/<name> ──► one holder
//!                                             │ starts the actor under the lease's generation
//!                                             ▼
//!        ledger: singleton-at/<name> = its address ──► SingletonRef of whoever asks
//! ```
//!
//! The holder renews the lease twice a second and counts its time from when it *sent* the renewal. It
//! kills the actor before that time is over, and the ledger gives the lease to nobody else before. So
//! the side of a partition that has no majority of voters has stopped its singletons when the other
//! side may start them. What such an actor still sends (a handler that computes without an await can't
//! be killed) carries an old [generation](footlight_runtime::fence), and receivers that have heard
//! from the new one refuse it.
//!
//! Promises that the tests cite:
//! - **SG-1** At any time at most one node runs the actor, as long as clocks of different machines run
//!   at the same speed within 10 %.
//! - **SG-2** When its node is lost, frozen or cut off, the actor runs elsewhere within 5 s, if a
//!   majority of the voters and a node that fits are left.
//! - **SG-3** Every message that it sends carries its lease's generation, and generations only grow.
//! - **SG-4** What was asked for runs until it ends by itself or is ended by name: no node and no
//!   process has to stay for it.

mod manager;
mod reference;
mod spec;
mod tenure;

use std::{marker::PhantomData, time::Duration};

use footlight_runtime::{
    Actor, Error, Result, codec, env::deadline_after, message::fingerprint_of,
};

pub(crate) use manager::Manager;
pub use reference::SingletonRef;
use spec::{At, Spec};
pub use spec::{SingletonInfo, SingletonPolicy, SingletonState};

use crate::{
    Needs, Node, Placement,
    ledger::{Expect, LedgerError},
};

/// How long [`SingletonBuilder::start`] waits until the actor runs somewhere.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A singleton that is being described; see [`Node::singleton`].
#[must_use = "nothing is started until `start`"]
pub struct SingletonBuilder<'a, A: Actor> {
    node: &'a Node,
    name: String,
    args: A::Args,
    placement: Placement,
    needs: Needs,
    policy: SingletonPolicy,
    actor: PhantomData<fn() -> A>,
}

impl Node {
    /// Describes an actor of which the cluster is to run exactly one, under a name.
    ///
    /// It does not belong to this node: it is started on one that fits, and on another one when that
    /// is lost.
    pub fn singleton<A: Actor>(
        &self,
        name: impl Into<String>,
        args: A::Args,
    ) -> SingletonBuilder<'_, A> {
        SingletonBuilder {
            node: self,
            name: name.into(),
            args,
            placement: Placement::anywhere(),
            needs: Needs::none(),
            policy: SingletonPolicy::default(),
            actor: PhantomData,
        }
    }

    /// A reference to a singleton, wherever it runs, now and later.
    pub fn singleton_ref<A: Actor>(&self, name: impl Into<String>) -> SingletonRef<A> {
        SingletonRef::new(self, name.into())
    }

    /// Ends a singleton for good: its actor is stopped, and none is started again. Waits until it has
    /// ended. Nothing happens if there is none of this name.
    ///
    /// # Errors
    /// If the ledger can't be reached.
    pub async fn end_singleton(&self, name: &str) -> Result<()> {
        let ledger = self.ledger();
        ledger.delete(&spec::key(name), Expect::Any).await?;
        let mut changes = ledger.watch(&spec::at_key(name));
        while let SingletonState::Running { .. } = self.find_singleton(name).await? {
            // A change, or a watch that had to begin anew: either way, look again.
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.next()).await;
        }
        Ok(())
    }

    /// How a singleton is, and where.
    ///
    /// # Errors
    /// If the ledger can't be reached.
    pub async fn find_singleton(&self, name: &str) -> Result<SingletonState> {
        let ledger = self.ledger();
        let at = ledger.get(&spec::at_key(name)).await?;
        match at.map(|at| At::decode(&at.value)).transpose()? {
            Some(At::Running { actor, generation }) => {
                return Ok(SingletonState::Running { actor, generation });
            }
            // Of an earlier one, if another is wanted by now.
            Some(At::Failed { why, .. }) => {
                return Ok(match ledger.get(&spec::key(name)).await? {
                    Some(_) => SingletonState::Waiting,
                    None => SingletonState::Failed(why),
                });
            }
            None => {}
        }
        Ok(match ledger.get(&spec::key(name)).await? {
            Some(_) => SingletonState::Waiting,
            None => SingletonState::Unknown,
        })
    }

    /// The singletons of the cluster and where they run, by name.
    ///
    /// # Errors
    /// If the ledger can't be reached.
    pub async fn singletons(&self) -> Result<Vec<SingletonInfo>> {
        let ledger = self.ledger();
        let mut found = Vec::new();
        for (key, value) in ledger.list(spec::KEYS).await? {
            let name = key.strip_prefix(spec::KEYS).unwrap_or(&key).to_owned();
            let spec = Spec::decode(&value.value)?;
            let state = self.find_singleton(&name).await?;
            found.push(SingletonInfo { name, actor: spec.actor, state });
        }
        Ok(found)
    }
}

impl<A: Actor> SingletonBuilder<'_, A> {
    /// Where it may run. Default: on any node that hosts the type. Relative places ([`Placement::here`],
    /// [`Placement::seed`]) mean this node and its seed, and nothing else: they are lost with it.
    pub fn on(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// What is reserved for it on the node where it runs, until it ends; a node that has not so much
    /// left does not start it. [`Granted::of`](crate::Granted::of) tells the actor what it got.
    /// Default: nothing.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// What happens when the actor ends by itself. Default: [`SingletonPolicy::Always`].
    pub fn policy(mut self, policy: SingletonPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Writes it into the ledger and waits until it runs, at most [`START_TIMEOUT`].
    ///
    /// A singleton of the same name, type and arguments that is there already is taken as this one.
    ///
    /// # Errors
    /// If another one has the name, the ledger can't be reached, the arguments hold tensors or
    /// streams, or what the actor's start said. If it does not run in time, it is still wanted: it
    /// starts as soon as a node fits.
    pub async fn start(self) -> Result<SingletonRef<A>> {
        let SingletonBuilder { node, name, args, placement, needs, policy, .. } = self;
        let asked = match needs.is_nothing() {
            true => placement.to_string(),
            false => format!("{placement} with {needs}"),
        };
        let system = node.system();
        system.may_spawn(A::NAME)?;
        let encoded = codec::encode(&args)?;
        if !(encoded.segments.is_empty() && encoded.streams.is_empty()) {
            return Err(Error::other(format!(
                "singleton `{name}`: its arguments hold tensors or streams, which the ledger can't \
                 keep: give it the place where it finds them"
            )));
        }
        let spec = Spec {
            actor: A::NAME.to_owned(),
            args_shape: fingerprint_of::<A::Args>(system),
            args: encoded.body.to_vec(),
            placement: placement.settled(node),
            needs,
            policy,
            submission: node.unique_number(),
        };
        let ledger = node.ledger();
        let deadline = deadline_after(START_TIMEOUT);
        let mut changes = ledger.watch(&spec::at_key(&name));
        let written = ledger.put(&spec::key(&name), spec.encode(), Expect::Absent, None).await;
        let submission = match written {
            Ok(_) => spec.submission,
            Err(LedgerError::Conflict { .. }) => {
                let there = ledger.get(&spec::key(&name)).await?;
                let there = there.map(|there| Spec::decode(&there.value)).transpose()?;
                match there {
                    Some(there) if there.is_like(&spec) => there.submission,
                    _ => {
                        return Err(Error::other(format!(
                            "there is another singleton `{name}` already: choose another name, or \
                             end that one first"
                        )));
                    }
                }
            }
            Err(error) => return Err(error.into()),
        };
        loop {
            let at = ledger.get(&spec::at_key(&name)).await?;
            match at.map(|at| At::decode(&at.value)).transpose()? {
                Some(At::Running { .. }) => return Ok(SingletonRef::new(node, name)),
                Some(At::Failed { submission: failed, why }) if failed == submission => {
                    ledger.delete(&spec::at_key(&name), Expect::Any).await?;
                    return Err(Error::Start { actor: A::NAME.to_owned(), why });
                }
                _ => {}
            }
            if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                return Err(Error::other(format!(
                    "singleton `{name}` does not run after {START_TIMEOUT:?}: no node that fits has \
                     started it (asked for {asked}); it stays wanted until it is ended by name"
                )));
            }
        }
    }
}

impl<A: Actor> std::fmt::Debug for SingletonBuilder<'_, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingletonBuilder")
            .field("name", &self.name)
            .field("actor", &A::NAME)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}
