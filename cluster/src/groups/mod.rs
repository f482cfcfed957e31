//! Groups: actors of one type under one name, on whatever nodes, for those who want one of them or
//! all. The anchors are Erlang's `pg` and Akka's group routers.
//!
//! ```text
//! join ──► keeper of the actor's node ──► its record ── gossip ──► every node's view
//!                 │ watches the actor                                   │
//!                 └─ takes it out when it ends          Group: members, changes, one, all
//! ```
//!
//! Who is in a group stands in the record of the member's own node and nowhere
//! else, so nothing has to be agreed on and no ledger is asked:
//!
//! - **GR-1** An actor is in a group from the moment in which `join` has returned, as its own node
//!   sees it; the others see it as soon as they have heard the record, mostly within 0.2 s.
//! - **GR-2** It is in no group any more when it has ended, or its life of its node is over: the
//!   others learn the first by the record, the second by membership. A node that drains counts no
//!   longer: its actors take nothing new.
//! - **GR-3** So what is seen may be a moment old. A message to a member that has ended a moment
//!   ago is *not sent*, and [`Group::call_one`] then asks the next one. It never asks a second one
//!   when the first may have run.
//! - **GR-4** All members of a group are of one type. The first one decides, as far as its node has
//!   been heard of; joining as another type is refused. If two types come together from two sides
//!   all the same, each [`Group`] sees the members of its own.
//!
//! Each node tells its own members, so a node has a bound: [`MAX_GROUPS`] bytes for all groups that
//! its actors are in, which is some 3,000 members; past that `join` is refused.

mod changes;
mod error;
mod keeper;
mod members;
mod part;
mod pick;
mod send;

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use footlight_runtime::{Actor, ActorAddr, ActorRef, System, env::deadline_after};

pub use changes::{GroupChange, GroupChanges};
pub use error::GroupError;
pub use keeper::{GroupKeeper, Join};
pub(crate) use keeper::{Groups, KEEPER};
pub(crate) use part::Parts;
pub use part::{Backlog, GroupPart, MAX_GROUPS};
pub use pick::Pick;
pub use send::ToEach;

use self::{keeper::check, members::Members};
use crate::{Node, network::Network};

/// Longest name of a group, in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// The actors of one type that have joined under one name, anywhere in the cluster. Cheap to clone.
///
/// Clones share where [`Pick::RoundRobin`] stands; each call of [`Node::group`] begins anew, at a
/// random member. Keep one, also because it remembers what it has looked up.
pub struct Group<A: Actor> {
    shared: Arc<Shared>,
    actor: PhantomData<fn() -> A>,
}

struct Shared {
    name: String,
    /// The registered name of the members' type.
    kind: &'static str,
    system: System,
    network: Weak<Network>,
    groups: Arc<Groups>,
    members: Mutex<Members>,
    /// Whose turn it was last.
    last: Mutex<Option<ActorAddr>>,
    /// Members of another type were told of in the log.
    warned: AtomicBool,
}

/// One actor of a group, as it is seen here.
pub struct GroupMember<A: Actor> {
    /// The actor.
    pub actor: ActorRef<A>,
    /// How many messages it has in hand, as its node told last: waiting, handled, or taken and not
    /// answered. Told once a second, and only when it has reached another power of two.
    pub backlog: Backlog,
}

impl Node {
    /// A group of actors of type `A`. Nothing has to be made first: a group is there while it has a
    /// member.
    pub fn group<A: Actor>(&self, name: impl Into<String>) -> Group<A> {
        Group {
            shared: Arc::new(Shared {
                name: name.into(),
                kind: A::NAME,
                system: self.system().clone(),
                network: Arc::downgrade(self.network()),
                groups: self.groups().clone(),
                members: Mutex::new(Members::new(self.network())),
                last: Mutex::default(),
                warned: AtomicBool::new(false),
            }),
            actor: PhantomData,
        }
    }
}

impl<A: Actor> Group<A> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Takes an actor in, on whatever node it lives; it is out again when it ends. To join twice is
    /// no error, and the same as once. An actor may be in several groups.
    ///
    /// # Errors
    /// [`GroupError::Length`] of the name, [`GroupError::OtherType`], [`GroupError::Ended`],
    /// [`GroupError::Full`] if the actor's node can't tell of more, and
    /// [`GroupError::Unavailable`] if it does not answer: then the actor may have joined.
    pub async fn join(&self, actor: &ActorRef<A>) -> Result<(), GroupError> {
        self.ask(actor, true).await
    }

    /// Takes an actor out; if it is not in, nothing happens.
    ///
    /// # Errors
    /// [`GroupError::Unavailable`] if the actor's node does not answer.
    pub async fn leave(&self, actor: &ActorRef<A>) -> Result<(), GroupError> {
        self.ask(actor, false).await
    }

    async fn ask(&self, actor: &ActorRef<A>, member: bool) -> Result<(), GroupError> {
        let Shared { name, system, .. } = &*self.shared;
        check(name)?;
        let addr = actor.addr();
        let keeper = ActorRef::<GroupKeeper>::at(ActorAddr { actor: KEEPER, ..addr }, system);
        let kind = A::NAME.to_owned();
        let asked = Join { group: name.clone(), actor: addr, kind, member };
        let answer = keeper.call(asked).await;
        answer.map_err(|error| GroupError::Unavailable(error.to_string()))?
    }

    /// Who is in it, as this node sees it now, by address. Members on nodes that leave don't count.
    pub fn members(&self) -> Vec<GroupMember<A>> {
        let system = &self.shared.system;
        let members = self.shared.look();
        let member = |seen: &members::Seen| GroupMember {
            actor: ActorRef::at(seen.actor, system),
            backlog: seen.backlog,
        };
        members.iter().map(member).collect()
    }

    /// Waits until this node sees at least `count` members.
    ///
    /// # Errors
    /// [`GroupError::Missing`] after `patience`, [`GroupError::Unavailable`] if the node has ended.
    pub async fn wait_for(
        &self,
        count: usize,
        patience: Duration,
    ) -> Result<Vec<GroupMember<A>>, GroupError> {
        let deadline = deadline_after(patience);
        let mut changes = self.shared.changes().ok_or_else(GroupError::no_node)?;
        loop {
            changes.mark_unchanged();
            let members = self.members();
            if members.len() >= count {
                return Ok(members);
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(GroupError::no_node()),
                Err(_) => {
                    let (group, there) = (self.name().to_owned(), members.len());
                    return Err(GroupError::Missing { group, wanted: count, there, patience });
                }
            }
        }
    }
}

impl Shared {
    /// The members as they are seen now.
    fn look(&self) -> Arc<[members::Seen]> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, strangers) = members.look(&self.network, &self.name, self.kind);
        if strangers > 0 && !self.warned.swap(true, Ordering::Relaxed) {
            let (group, kind) = (&self.name, self.kind);
            tracing::warn!(group, kind, strangers, "members of another type are not counted");
        }
        seen
    }

    /// Told when the members may have changed; `None` if the node has ended.
    fn changes(&self) -> Option<tokio::sync::watch::Receiver<()>> {
        self.network.upgrade().map(|network| network.view.changes())
    }
}

impl<A: Actor> Clone for Group<A> {
    fn clone(&self) -> Self {
        Group { shared: self.shared.clone(), actor: PhantomData }
    }
}

// By hand: nothing is asked of `A`.
impl<A: Actor> Clone for GroupMember<A> {
    fn clone(&self) -> Self {
        GroupMember { actor: self.actor.clone(), backlog: self.backlog }
    }
}

impl<A: Actor> PartialEq for GroupMember<A> {
    fn eq(&self, other: &Self) -> bool {
        self.actor == other.actor && self.backlog == other.backlog
    }
}

impl<A: Actor> fmt::Debug for GroupMember<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {} in hand", self.actor, self.backlog)
    }
}

impl<A: Actor> fmt::Debug for Group<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group `{}` of {}", self.shared.name, A::NAME)
    }
}
