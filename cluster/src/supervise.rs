//! Supervisors whose children live anywhere in the cluster.

use std::fmt;

use footlight_runtime::{
    Actor, Result,
    supervision::{ChildEvent, ChildSpec, Restart, Supervision, Supervisor},
};
use tokio::sync::mpsc;

use crate::{Node, Placement};

/// What happens to a supervisor's children, in order; ends when the supervisor has ended.
pub type ChildEvents = mpsc::UnboundedReceiver<ChildEvent>;

/// A supervisor that is being described; see [`Node::supervise`].
#[must_use = "nothing is started until `start`"]
pub struct SupervisorBuilder {
    node: Node,
    supervision: Supervision,
    children: Vec<ChildSpec>,
}

impl Node {
    /// Describes a supervisor on this node: which children it has, wherever they run, and what is
    /// started again when one ends. A child whose node is lost is started on another one that its
    /// placement allows.
    pub fn supervise(&self, supervision: Supervision) -> SupervisorBuilder {
        SupervisorBuilder { node: self.clone(), supervision, children: Vec::new() }
    }
}

impl SupervisorBuilder {
    /// A child that is always started again, with the same arguments and placement.
    pub fn child<A: Actor>(
        self,
        name: impl Into<String>,
        args: A::Args,
        placement: Placement,
    ) -> Self
    where
        A::Args: Clone + Sync,
    {
        self.child_with::<A>(name, Restart::Permanent, move |_| (args.clone(), placement.clone()))
    }

    /// A child whose arguments and placement are made for each start; `describe` gets the number of
    /// attempts before this one.
    pub fn child_with<A: Actor>(
        mut self,
        name: impl Into<String>,
        restart: Restart,
        describe: impl Fn(u32) -> (A::Args, Placement) + Send + Sync + 'static,
    ) -> Self {
        let node = self.node.clone();
        self.children.push(ChildSpec::new(name, restart, move |attempt| {
            let (args, placement) = describe(attempt.number);
            let node = node.clone();
            async move { Ok(node.spawn::<A>(args).on(placement).await?.addr()) }
        }));
        self
    }

    /// Starts the children and waits until each is up.
    ///
    /// # Errors
    /// If a child can't be started within the supervision's limits.
    pub async fn start(self) -> Result<(Supervisor, ChildEvents)> {
        let (events, received) = mpsc::unbounded_channel();
        let supervisor =
            Supervisor::start(self.node.system(), self.supervision, self.children, events).await?;
        Ok((supervisor, received))
    }
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder")
            .field("supervision", &self.supervision)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}
