//! Supervisors: actors that keep other actors up, wherever these run.
//!
//! ```text
//! node.supervise(OneForOne::new()).child::<A>(…).supervisor("inner", node.supervise(…)…).start()
//!     │ a SupervisorSpec: data, sent to the node that `on` says
//!     ▼
//! Supervisor (an actor) ── starts ──► children on any nodes, which belong to it
//!     │ ends: failed, with the child and the reason       │ one of them may be a Supervisor, and
//!     ▼                                                   ▼ its failure is a child's failure
//! its own supervisor, and all who watch it
//! ```
//!
//! ```no_run
//! # use std::time::Duration;
//! # use footlight_cluster::{Node, Placement, supervise::{Child, Lost}};
//! # use footlight_runtime::{Actor, Result, supervision::{OneForAll, OneForOne}};
//! # async fn run<Probe: Actor<Args = u32>>(node: &Node) -> Result<()> {
//! let probes = node.supervise(OneForAll::new())
//!     .child::<Probe>("probe-0", 0, Placement::label("zone", "a"))
//!     .with(Child::of::<Probe>(node, "probe-1", &1)?
//!         .on(Placement::label("zone", "b"))
//!         .lost_when(Lost::Unreachable));
//! let top = node.supervise(OneForOne::new().at_most(5, Duration::from_secs(60)))
//!     .supervisor("probes", probes, Placement::role("server"))
//!     .start().await?;
//! let probe = top.supervisor("probes").await?.child::<Probe>("probe-0").await?;
//! # let _ = probe;
//! top.ended().await // an error that says which child, and why
//! # }
//! ```
//!
//! What to do when a child ends is decided by the runtime's
//! [`strategy`](footlight_runtime::supervision::strategy) (SV-1 to SV-10). Here stands what spans
//! nodes:
//!
//! - **SU-1** A supervisor that gives up stops its children, then fails with a text that names the
//!   child and how that ended. To the supervisor above it that is one failure of a child: it starts
//!   it again, with all its children, or gives up in turn. So the text of the topmost one tells the
//!   chain down to the actor that began it.
//! - **SU-2** Children belong to their supervisor: however it ends, with its node too, each host ends
//!   them.
//! - **SU-3** A supervisor that is a child is started again only when the members have said that
//!   nothing of the one before is left with them. Not asked are those that can't be reached; not
//!   waited for beyond 15 s are those that don't answer.
//! - **SU-4** The first start of a supervisor is an error if a child can't be started. Once it was up,
//!   a child for which no node fits waits until there is one, without a limit, and the same holds for
//!   all below it.
//! - **SU-5** A child that is [`Lost::Unreachable`] when its node is cut from the supervisor's is ended
//!   through a node that reaches both, and only then started elsewhere. If no such node answers, it
//!   is started elsewhere 15 s later, and the time that it has to stop: by then its own node has seen
//!   the cut too and ended it, unless that one stands still.

mod actor;
mod reference;
mod spec;
mod start;

use std::fmt;

use footlight_runtime::{Actor, ActorAddr, ActorRef, Result, supervision::Supervision};

pub use actor::{AddChild, AskChildren, ChildInfo, Follow, RemoveChild, Supervisor};
pub use reference::{ChildEvents, SupervisorRef};
pub use spec::{Child, Lost, SupervisorSpec};

use crate::{Node, Placement};

/// A supervisor that is being described; see [`Node::supervise`].
#[must_use = "nothing is started until `start`"]
pub struct SupervisorBuilder {
    node: Node,
    supervision: Supervision,
    children: Result<Vec<Child>>,
    placement: Placement,
    owner: Option<ActorAddr>,
}

impl Node {
    /// Describes a supervisor: which children it has, wherever they run, and what is started again
    /// when one ends. A child whose node is lost is started on another one that its placement allows.
    pub fn supervise(&self, supervision: Supervision) -> SupervisorBuilder {
        SupervisorBuilder {
            node: self.clone(),
            supervision,
            children: Ok(Vec::new()),
            placement: Placement::here(),
            owner: None,
        }
    }
}

impl SupervisorBuilder {
    fn and(mut self, child: impl FnOnce(&Node) -> Result<Child>) -> Self {
        let node = &self.node;
        self.children = self.children.and_then(|mut children| {
            children.push(child(node)?);
            Ok(children)
        });
        self
    }

    /// A child that is always started again, with the same arguments and placement. Its type must be
    /// registered on the nodes, the supervisor's too.
    pub fn child<A: Actor>(
        self,
        name: impl Into<String>,
        args: A::Args,
        placement: Placement,
    ) -> Self {
        self.and(|node| Ok(Child::of::<A>(node, name, &args)?.on(placement)))
    }

    /// A child that is a supervisor itself, on a node that the placement allows. Where and with whom
    /// `inner` was to run otherwise does not count.
    pub fn supervisor(
        self,
        name: impl Into<String>,
        inner: SupervisorBuilder,
        placement: Placement,
    ) -> Self {
        self.and(|node| Ok(Child::supervisor(node, name, &inner.spec()?)?.on(placement)))
    }

    /// A child with all that can be said of one.
    pub fn with(self, child: Child) -> Self {
        self.and(|_| Ok(child))
    }

    /// Where the supervisor itself runs. Default: on this node.
    pub fn on(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// The supervisor is stopped, and its children with it, when the owner has ended or was lost with
    /// its node. Default: it lives until it is stopped or gives up.
    pub fn owned_by<A: Actor>(mut self, owner: &ActorRef<A>) -> Self {
        self.owner = Some(owner.addr());
        self
    }

    /// The supervisor as data: to be added to another one, or started as a singleton.
    ///
    /// # Errors
    /// If the arguments of a child can't be encoded.
    pub fn spec(self) -> Result<SupervisorSpec> {
        let SupervisorBuilder { supervision, children, .. } = self;
        Ok(SupervisorSpec { supervision, children: children?, again: false })
    }

    /// Starts the supervisor and its children, and waits until each is up.
    ///
    /// # Errors
    /// If two children have one name, if a child can't be started within the supervision's limits,
    /// or if no node takes the supervisor.
    pub async fn start(self) -> Result<SupervisorRef> {
        let (node, placement, owner) = (self.node.clone(), self.placement.clone(), self.owner);
        let started = node.spawn::<Supervisor>(self.spec()?).on(placement).owned_by_any(owner);
        Ok(started.await?.into())
    }
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder")
            .field("supervision", &self.supervision)
            .field("children", &self.children)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}
