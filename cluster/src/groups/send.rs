//! Messages to one member of a group, and to all.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use footlight_runtime::{
    Actor, ActorAddr, ActorRef, CallError, Cause, Fate, Message, actor::Receives,
    actor_ref::CALL_TIMEOUT, env::deadline_after,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{
    Group, GroupError, Pick, Shared,
    keeper::Outstanding,
    pick::{self, Candidate},
};

/// What became of a message to all: for each member, by address.
pub type ToEach<A, R> = Vec<(ActorRef<A>, Result<R, CallError>)>;

impl<A: Actor> Group<A> {
    /// Calls one member, within 30 s in all. If the message was certainly not handled (the member
    /// has ended a moment ago, its node can't be reached or leaves, its mailbox is full), the next
    /// one is asked, each at most once; if it may have been, none.
    ///
    /// # Errors
    /// [`GroupError::Empty`], [`GroupError::NobodyTook`], or [`GroupError::Call`] of the member that
    /// may have handled it.
    pub async fn call_one<M: Message + Clone, How: 'static>(
        &self,
        pick: Pick,
        message: M,
    ) -> Result<M::Reply, GroupError>
    where
        A: Receives<M, How>,
    {
        self.call_one_within(pick, message, CALL_TIMEOUT).await
    }

    /// As [`call_one`](Self::call_one), within `patience` in all.
    ///
    /// # Errors
    /// As [`call_one`](Self::call_one).
    pub async fn call_one_within<M: Message + Clone, How: 'static>(
        &self,
        pick: Pick,
        message: M,
        patience: Duration,
    ) -> Result<M::Reply, GroupError>
    where
        A: Receives<M, How>,
    {
        let deadline = deadline_after(patience);
        let call = move |member: ActorRef<A>| {
            let message = message.clone();
            async move {
                let left = deadline.saturating_duration_since(Instant::now());
                member.call_within(message, left).await
            }
        };
        self.one_after_another(pick, deadline, call).await
    }

    /// Sends a message to one member and waits only until it is accepted here, as
    /// [`ActorRef::cast`] does. If it certainly was not, the next member is tried, as in
    /// [`call_one`](Self::call_one).
    ///
    /// # Errors
    /// [`GroupError::Empty`] and [`GroupError::NobodyTook`]. `Ok` is no promise that it will be
    /// handled.
    pub async fn cast_one<M: Message + Clone, How: 'static>(
        &self,
        pick: Pick,
        message: M,
    ) -> Result<(), GroupError>
    where
        A: Receives<M, How>,
    {
        let deadline = deadline_after(CALL_TIMEOUT);
        let cast = move |member: ActorRef<A>| {
            let message = message.clone();
            async move { member.cast(message).await }
        };
        self.one_after_another(pick, deadline, cast).await
    }

    async fn one_after_another<R, F>(
        &self,
        how: Pick,
        deadline: Instant,
        send: impl Fn(ActorRef<A>) -> F,
    ) -> Result<R, GroupError>
    where
        F: Future<Output = Result<R, CallError>>,
    {
        let Shared { name, kind, system, .. } = &*self.shared;
        let mut tried = BTreeSet::new();
        let mut last: Option<CallError> = None;
        loop {
            let in_time = tried.is_empty() || Instant::now() < deadline;
            let Some((actor, outstanding)) = self.shared.next(how, &tried).filter(|_| in_time)
            else {
                let group = name.clone();
                return Err(match last {
                    None => GroupError::Empty { group, kind: (*kind).to_owned() },
                    Some(last) => {
                        let (tried, last) = (tried.len(), last.to_string());
                        GroupError::NobodyTook { group, tried, last }
                    }
                });
            };
            tried.insert(actor);
            let sent = send(ActorRef::at(actor, system)).await;
            drop(outstanding);
            match sent {
                Ok(reply) => return Ok(reply),
                Err(error) if error.fate() == Fate::NotSent && is_of_one(error.cause()) => {
                    tracing::debug!(group = name, %error, "the next member is tried");
                    last = Some(error);
                }
                Err(error) => return Err(GroupError::call(name, &error)),
            }
        }
    }

    /// Calls all members at once, each within 30 s, and waits for all answers.
    ///
    /// # Errors
    /// [`GroupError::Empty`]. What went wrong with one member stands with that one.
    pub async fn call_all<M: Message + Clone, How: 'static>(
        &self,
        message: M,
    ) -> Result<ToEach<A, M::Reply>, GroupError>
    where
        A: Receives<M, How>,
    {
        self.call_all_within(message, CALL_TIMEOUT).await
    }

    /// As [`call_all`](Self::call_all), each within `patience`.
    ///
    /// # Errors
    /// As [`call_all`](Self::call_all).
    pub async fn call_all_within<M: Message + Clone, How: 'static>(
        &self,
        message: M,
        patience: Duration,
    ) -> Result<ToEach<A, M::Reply>, GroupError>
    where
        A: Receives<M, How>,
    {
        let sent = self.to_each(move |member: ActorRef<A>| {
            let message = message.clone();
            async move { member.call_within(message, patience).await }
        })?;
        Ok(sent.await)
    }

    /// Sends a message to all members at once and waits only until each is accepted here, or can't
    /// be within 30 s. Each member that is seen here gets it once at most.
    ///
    /// # Errors
    /// [`GroupError::Empty`]. What went wrong with one member stands with that one.
    pub async fn cast_all<M: Message + Clone, How: 'static>(
        &self,
        message: M,
    ) -> Result<ToEach<A, ()>, GroupError>
    where
        A: Receives<M, How>,
    {
        let sent = self.to_each(move |member: ActorRef<A>| {
            let message = message.clone();
            async move { member.cast(message).await }
        })?;
        Ok(sent.await)
    }

    fn to_each<R, F, S>(
        &self,
        send: S,
    ) -> Result<impl Future<Output = ToEach<A, R>> + use<'_, A, R, F, S>, GroupError>
    where
        S: Fn(ActorRef<A>) -> F,
        F: Future<Output = Result<R, CallError>>,
    {
        let Shared { name, kind, system, groups, .. } = &*self.shared;
        let members = self.shared.look();
        if members.is_empty() {
            return Err(GroupError::Empty { group: name.clone(), kind: (*kind).to_owned() });
        }
        let each: Vec<_> = members
            .iter()
            .map(|member| {
                let to = ActorRef::at(member.actor, system);
                let (outstanding, sent) = (groups.sending(member.actor), send(to.clone()));
                async move {
                    let _outstanding = outstanding;
                    (to, sent.await)
                }
            })
            .collect();
        Ok(join_all(each))
    }
}

/// Whether another member may take what one did not.
fn is_of_one(cause: &Cause) -> bool {
    !matches!(cause, Cause::CannotEncode(_))
}

impl Shared {
    /// Whose turn it is, of those who were not tried; the message to it counts already.
    fn next(&self, how: Pick, tried: &BTreeSet<ActorAddr>) -> Option<(ActorAddr, Outstanding<'_>)> {
        let members = self.look();
        let groups = &self.groups;
        // One at a time: who comes next sees what this one has chosen.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let untried = members.iter().filter(|seen| !tried.contains(&seen.actor));
        let candidates: Vec<Candidate> = untried
            .map(|seen| Candidate { seen: *seen, outstanding: groups.outstanding(seen.actor) })
            .collect();
        let chosen = pick::pick(&candidates, how, *last, |below| groups.random(below))?;
        if how == Pick::RoundRobin {
            *last = Some(chosen);
        }
        Some((chosen, groups.sending(chosen)))
    }
}
