//! A supervisor as its users see it, on whatever node it runs.

use std::time::Duration;

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, Down, Error, Result, Streamed, supervision::ChildEvent,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::{
    Child, Supervisor,
    actor::{AddChild, AskChildren, ChildInfo, Follow, RemoveChild},
};

/// A child may take so long to start or to stop until the one who asked for it gives up.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(150);

/// A supervisor somewhere in the cluster. Cheap to clone; can travel in a message. It does not stop
/// when this is dropped: [`stop`](Self::stop) it, or let it end with an
/// [owner](super::SupervisorBuilder::owned_by).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupervisorRef(ActorRef<Supervisor>);

impl From<ActorRef<Supervisor>> for SupervisorRef {
    fn from(actor: ActorRef<Supervisor>) -> Self {
        SupervisorRef(actor)
    }
}

impl SupervisorRef {
    /// The supervisor as an actor: to be watched, linked, named or placed beside.
    pub fn actor(&self) -> &ActorRef<Supervisor> {
        &self.0
    }

    /// The children and where they are, in the order in which they are started.
    ///
    /// # Errors
    /// If the supervisor can't be asked.
    pub async fn children(&self) -> Result<Vec<ChildInfo>> {
        Ok(self.0.call(AskChildren).await?)
    }

    /// Where a child is now; none while it is not up, or if there is none of this name.
    ///
    /// # Errors
    /// If the supervisor can't be asked.
    pub async fn place(&self, child: &str) -> Result<Option<ActorAddr>> {
        let children = self.children().await?;
        Ok(children.into_iter().find(|info| info.name == child).and_then(|info| info.actor))
    }

    /// A child as it is now: the next start makes another actor.
    ///
    /// # Errors
    /// If the supervisor can't be asked, there is no child of this name and type, or it is not up:
    /// then how it ended the last time.
    pub async fn child<A: Actor>(&self, name: &str) -> Result<ActorRef<A>> {
        let children = self.children().await?;
        let Some(child) = children.into_iter().find(|child| child.name == name) else {
            return Err(Error::other(format!("there is no child called `{name}`")));
        };
        match child.actor {
            _ if child.kind != A::NAME => Err(Error::other(format!(
                "the child `{name}` is a {}, not a {}",
                child.kind,
                A::NAME
            ))),
            Some(actor) => Ok(ActorRef::at(actor, self.0.system())),
            None => {
                let last = child.last.unwrap_or_else(|| "it has not been up yet".to_owned());
                Err(Error::other(format!("the child `{name}` is not up: {last}")))
            }
        }
    }

    /// A child that is a supervisor.
    ///
    /// # Errors
    /// As [`child`](Self::child).
    pub async fn supervisor(&self, name: &str) -> Result<SupervisorRef> {
        Ok(SupervisorRef(self.child(name).await?))
    }

    /// Adds a child behind all others and waits until it is up.
    ///
    /// # Errors
    /// If there is a child of this name, or its start fails: then it is not added, and that is no
    /// failure of the supervisor. If the supervisor can't be asked, or does not answer within 150 s.
    pub async fn add_child(&self, child: Child) -> Result<ActorAddr> {
        Ok(self.0.call_within(AddChild { child }, CHANGE_TIMEOUT).await??)
    }

    /// Takes a child away: stops it, if it is up, and waits until it has ended.
    ///
    /// # Errors
    /// If there is no child of this name, the supervisor can't be asked, or does not answer within
    /// 150 s.
    pub async fn remove_child(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        Ok(self.0.call_within(RemoveChild { name }, CHANGE_TIMEOUT).await??)
    }

    /// What happens to the children: first that those are up which are, then what comes.
    ///
    /// # Errors
    /// If the supervisor can't be asked.
    pub async fn events(&self) -> Result<ChildEvents> {
        Ok(ChildEvents(self.0.call(Follow).await?))
    }

    /// Waits until the supervisor has ended. It need not be called before that.
    ///
    /// # Errors
    /// If it ended otherwise than by a stop. When it gave up: on which child, and how that ended; of
    /// nested supervisors the whole chain.
    pub async fn ended(&self) -> Result<()> {
        match self.0.watch().await {
            Down::Stopped => Ok(()),
            Down::Failed(why) => Err(Error::other(why)),
            down => Err(Error::other(format!("the supervisor {}: {down}", self.0.addr()))),
        }
    }

    /// Stops it: the children first, the last one first. Waits until it has ended.
    ///
    /// # Errors
    /// If it ended otherwise, or before.
    pub async fn stop(&self) -> Result<()> {
        self.0.stop();
        self.ended().await
    }
}

/// What happens to a supervisor's children, in order.
#[derive(Debug)]
pub struct ChildEvents(Streamed<ChildEvent>);

impl ChildEvents {
    /// The next event; none when the supervisor has ended.
    ///
    /// # Errors
    /// If the connection with the supervisor's node broke or that node was lost: no more come. Ask
    /// for the [events](SupervisorRef::events) again.
    pub async fn next(&mut self) -> Result<Option<ChildEvent>> {
        match self.0.next().await {
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(failure)) => Err(Error::other(failure)),
            None => Ok(None),
        }
    }
}
