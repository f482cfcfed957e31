//! Who joins a group and who goes, as a stream.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use footlight_runtime::{Actor, ActorAddr, ActorRef};
use futures::{Stream, StreamExt, stream::BoxStream};

use super::Group;

/// A change of who is in a group, as one node sees it.
pub enum GroupChange<A: Actor> {
    /// It is in the group now.
    Joined(ActorRef<A>),
    /// It is not any more: it left, it ended, or its node leaves or is lost.
    Left(ActorRef<A>),
}

/// Changes of a group. The stream ends with its node.
pub struct GroupChanges<A: Actor>(BoxStream<'static, GroupChange<A>>);

impl<A: Actor> Group<A> {
    /// First those who are in it, each as one that [joined](GroupChange::Joined), then what
    /// changes. Who joined and went while nobody looked is not told of.
    pub fn changes(&self) -> GroupChanges<A> {
        let state = self.shared.changes().map(|mut news| {
            news.mark_changed();
            State { group: self.clone(), news, known: BTreeSet::new(), untold: VecDeque::new() }
        });
        let Some(state) = state else { return GroupChanges(futures::stream::empty().boxed()) };
        let told = futures::stream::unfold(state, |mut state| async move {
            let change = state.next().await?;
            Some((change, state))
        });
        GroupChanges(told.boxed())
    }
}

struct State<A: Actor> {
    group: Group<A>,
    news: tokio::sync::watch::Receiver<()>,
    known: BTreeSet<ActorAddr>,
    untold: VecDeque<GroupChange<A>>,
}

impl<A: Actor> State<A> {
    async fn next(&mut self) -> Option<GroupChange<A>> {
        loop {
            if let Some(change) = self.untold.pop_front() {
                return Some(change);
            }
            self.news.changed().await.ok()?;
            let shared = &self.group.shared;
            let now: BTreeSet<ActorAddr> = shared.look().iter().map(|seen| seen.actor).collect();
            let at = |addr: &ActorAddr| ActorRef::at(*addr, &shared.system);
            let gone = self.known.difference(&now).map(|addr| GroupChange::Left(at(addr)));
            let come = now.difference(&self.known).map(|addr| GroupChange::Joined(at(addr)));
            self.untold.extend(gone.chain(come));
            self.known = now;
        }
    }
}

impl<A: Actor> GroupChanges<A> {
    /// The next change; `None` once the node has ended. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<GroupChange<A>> {
        self.0.next().await
    }
}

impl<A: Actor> Stream for GroupChanges<A> {
    type Item = GroupChange<A>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

// By hand: nothing is asked of `A`.
impl<A: Actor> GroupChange<A> {
    fn parts(&self) -> (&'static str, &ActorRef<A>) {
        match self {
            GroupChange::Joined(actor) => ("Joined", actor),
            GroupChange::Left(actor) => ("Left", actor),
        }
    }
}

impl<A: Actor> Clone for GroupChange<A> {
    fn clone(&self) -> Self {
        match self {
            GroupChange::Joined(actor) => GroupChange::Joined(actor.clone()),
            GroupChange::Left(actor) => GroupChange::Left(actor.clone()),
        }
    }
}

impl<A: Actor> PartialEq for GroupChange<A> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl<A: Actor> fmt::Debug for GroupChange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, actor) = self.parts();
        f.debug_tuple(what).field(actor).finish()
    }
}

impl<A: Actor> fmt::Debug for GroupChanges<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupChanges")
    }
}
