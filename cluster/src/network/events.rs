//! Changes in the cluster, as a stream.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use footlight_runtime::NodeId;
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::sync::broadcast::{self, error::RecvError};

use super::view::Member;

/// A change in the cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// Membership knows a node that has not told about itself yet.
    Joining(Member),
    /// A member is up and has told about itself; or it was a suspect, and has answered.
    Up(Member),
    /// A member does not answer.
    Suspect(Member),
    /// A member drains, and leaves then.
    Leaving(Member),
    /// A member has left of its own will.
    Left(Member),
    /// A member was declared down.
    Down(Member),
    /// A member tells something else of itself: resources, load, groups, …
    Changed(Member),
    /// Two members can't reach each other, though others reach both. Told by `from`.
    Unreachable {
        /// Who can't reach.
        from: NodeId,
        /// Whom.
        to: NodeId,
    },
    /// `from` reaches `to` again.
    Reachable {
        /// Who reaches.
        from: NodeId,
        /// Whom.
        to: NodeId,
    },
    /// The listener was slower than the cluster: so many events before the next one are lost to it.
    /// [`Node::members`](crate::Node::members) tells how things are now.
    Missed(u64),
}

/// A stream of [`ClusterEvent`]s; ends with the node.
pub struct Events(BoxStream<'static, ClusterEvent>);

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<ClusterEvent>) -> Self {
        let events = futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(missed)) => Some((ClusterEvent::Missed(missed), receiver)),
                Err(RecvError::Closed) => None,
            }
        });
        Events(events.boxed())
    }

    /// The next event; `None` once the node has ended. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<ClusterEvent> {
        self.0.next().await
    }
}

impl Stream for Events {
    type Item = ClusterEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ClusterEvent>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_events_it_missed_and_goes_on() {
        let (sender, receiver) = broadcast::channel(4);
        let mut events = Events::new(receiver);
        let reach = |from| ClusterEvent::Reachable { from: NodeId(from), to: NodeId(1) };
        for from in 2..=11 {
            sender.send(reach(from)).unwrap();
        }
        assert_eq!(events.next().await, Some(ClusterEvent::Missed(6)));
        for from in 8..=11 {
            assert_eq!(events.next().await, Some(reach(from)));
        }
        drop(sender);
        assert_eq!(events.next().await, None);
    }
}
