//! Calls among the members that go on while something else happens, and must not notice it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use footlight::{cluster::Events, prelude::*, runtime::NodeId};
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::*;

/// One call on each way in so much time.
const PACE: Duration = Duration::from_millis(20);

/// Calls under way: from the node of this process to each of the others, and from there to the next.
pub(crate) struct Steady {
    calls: JoinSet<Duration>,
    answered: Arc<AtomicU64>,
    events: Events,
    over: CancellationToken,
}

impl Steady {
    pub(crate) async fn begin(here: &Node, nodes: &[NodeId]) -> Self {
        let (over, answered) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let mut calls = JoinSet::new();
        let spawn =
            async |node: NodeId| soon(here.spawn::<Probe>(()).on(Placement::node(node))).await;
        for (number, node) in nodes.iter().enumerate() {
            let probe = spawn(*node).await.unwrap();
            // One of its own: one that calls answers nobody meanwhile.
            let next = spawn(nodes[(number + 1) % nodes.len()]).await.unwrap();
            let (over, answered) = (over.clone(), answered.clone());
            calls.spawn(async move {
                let mut slowest = Duration::ZERO;
                while !over.is_cancelled() {
                    let asked = Instant::now();
                    // An error in here is a failed call, between whichever two.
                    soon(probe.call(Relay { to: next.clone() })).await.unwrap().unwrap();
                    answered.fetch_add(1, Relaxed);
                    slowest = slowest.max(asked.elapsed());
                    tokio::time::sleep(PACE.saturating_sub(asked.elapsed())).await;
                }
                slowest
            });
        }
        Steady { calls, answered, events: here.events(), over }
    }

    /// How many calls were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Ends the calls. None has failed, some were answered, and no member was lost meanwhile.
    pub(crate) async fn end(mut self) {
        self.over.cancel();
        let mut slowest = Duration::ZERO;
        while let Some(ended) = self.calls.join_next().await {
            slowest = slowest.max(ended.expect("a call among the members failed"));
        }
        let answered = self.answered();
        assert!(answered > 0, "no call was answered");
        println!("{answered} calls among the members answered, the slowest within {slowest:?}");
        while let Some(Some(event)) = self.events.next().now_or_never() {
            let lost = matches!(event, ClusterEvent::Down(_) | ClusterEvent::Left(_));
            assert!(!lost, "{event:?}");
        }
    }
}
