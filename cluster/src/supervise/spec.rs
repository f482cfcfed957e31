//! What a supervisor is to keep up: data that can be sent.

use std::time::Duration;

use footlight_runtime::{
    Actor, Error, Result, System,
    codec::Opaque,
    message::{Fingerprint, fingerprint_of},
    supervision::{Restart, STOP_PATIENCE, Supervision},
};
use serde::{Deserialize, Serialize, Serializer, ser::Error as _};

use super::Supervisor;
use crate::{Needs, Node, Placement};

/// A supervisor and its children, some of which may be supervisors. Made by
/// [`SupervisorBuilder::spec`](super::SupervisorBuilder::spec).
#[derive(Debug, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// Strategy, limit and back-off. The supervisor lives until it is stopped or gives up, whether
    /// it has children or not.
    pub supervision: Supervision,
    /// The children, in the order in which they are started.
    pub children: Vec<Child>,
    /// It was up before: its children wait for nodes that fit them.
    pub(super) again: bool,
}

/// When a child counts as lost with its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Lost {
    /// When membership declares the node down.
    #[default]
    Down,
    /// Also when the supervisor's node and the child's can't reach each other, though both are
    /// members: after about 2 to 5 s without a packet. The child is ended, through a third node or
    /// by its own, and started on a node that the supervisor can reach.
    Unreachable,
}

/// One child of a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Child {
    pub(super) name: String,
    /// The registered name of its type.
    pub(super) actor: String,
    pub(super) args_shape: Fingerprint,
    #[serde(serialize_with = "again")]
    pub(super) args: Opaque,
    pub(super) placement: Placement,
    pub(super) needs: Needs,
    pub(super) restart: Restart,
    pub(super) lost: Lost,
    pub(super) wait: Duration,
    pub(super) stop_within: Duration,
}

/// Arguments go out at each start, not only once.
fn again<S: Serializer>(args: &Opaque, serializer: S) -> Result<S::Ok, S::Error> {
    args.again().map_err(S::Error::custom)?.serialize(serializer)
}

impl SupervisorSpec {
    /// What these bytes describe, as of one that was up before.
    pub(super) fn started_again(args: Opaque, system: &System) -> Result<Opaque> {
        let spec = args.decode::<SupervisorSpec>(system)?;
        Ok(Opaque::of(&SupervisorSpec { again: true, ..spec })?)
    }
}

impl Child {
    /// A child of a type that the nodes have registered, under a name of its own. Where the methods
    /// below don't say otherwise, it runs on the supervisor's node and is always restarted.
    ///
    /// # Errors
    /// If the arguments can't be encoded, or hold a stream: they are needed for each start.
    pub fn of<A: Actor>(node: &Node, name: impl Into<String>, args: &A::Args) -> Result<Self> {
        let name = name.into();
        let encoded = Opaque::of(args).and_then(|args| args.again().map(|_| args));
        let args = encoded.map_err(|error| Error::other(format!("child `{name}`: {error}")))?;
        Ok(Child {
            name,
            actor: A::NAME.to_owned(),
            args_shape: fingerprint_of::<A::Args>(node.system()),
            args,
            placement: Placement::here(),
            needs: Needs::none(),
            restart: Restart::Permanent,
            lost: Lost::Down,
            wait: Duration::ZERO,
            stop_within: STOP_PATIENCE,
        })
    }

    /// A child that is a supervisor itself. It is given all the time that its children need to stop.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn supervisor(node: &Node, name: impl Into<String>, spec: &SupervisorSpec) -> Result<Self> {
        Ok(Child::of::<Supervisor>(node, name, spec)?.stop_within(Duration::MAX))
    }

    /// Its name and that of its type.
    pub(super) fn named(&self) -> (String, String) {
        (self.name.clone(), self.actor.clone())
    }

    /// Where it runs, chosen anew at each start. [`Placement::here`] and [`Placement::seed`] mean
    /// the supervisor's node and its seed. Default: the supervisor's node.
    pub fn on(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// What is reserved for it on its node. Default: nothing.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// Whether it is restarted when it ends. Default: always.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// When it counts as lost with its node. Default: [`Lost::Down`].
    pub fn lost_when(mut self, lost: Lost) -> Self {
        self.lost = lost;
        self
    }

    /// How long its first start waits for a node that fits. Default: not at all, so that a mistake
    /// is told. Once it was up, every further start waits until there is one.
    pub fn wait(mut self, patience: Duration) -> Self {
        self.wait = patience;
        self
    }

    /// How long it has to stop before it is killed. Default: 5 s, and for a supervisor without end.
    pub fn stop_within(mut self, patience: Duration) -> Self {
        self.stop_within = patience;
        self
    }
}
