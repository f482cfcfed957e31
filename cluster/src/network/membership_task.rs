//! Membership on the control thread: feeds [`Swim`] with packets and timers and does what it says.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use footlight_runtime::NodeId;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Network, view::Standing};
use crate::membership::{MemberId, Swim, SwimAction, SwimTimer};

/// Members that have gone are shown for so long, and so many of them.
const SHOW_GONE: Duration = Duration::from_secs(3600);
const MOST_GONE: usize = 256;

/// What happens to membership.
pub(crate) enum Input {
    /// A packet came by the connection of this node.
    Packet { from: NodeId, data: Bytes },
    /// Join the cluster of this member.
    Join(MemberId),
    /// A member has said that it leaves.
    Leaving(MemberId),
    /// A node was thrown out.
    Revoked(NodeId),
    /// Leave the cluster; answered when the goodbyes are on their way.
    Leave(oneshot::Sender<()>),
}

/// Timers by their deadline; equal deadlines keep their order.
#[derive(Default)]
struct Timers {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    timers: BTreeMap<u64, SwimTimer>,
    next: u64,
}

impl Timers {
    fn set(&mut self, after: Duration, timer: SwimTimer) {
        self.next += 1;
        self.due.push(Reverse((Instant::now() + after, self.next)));
        self.timers.insert(self.next, timer);
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    fn take_due(&mut self, now: Instant) -> Option<SwimTimer> {
        let Reverse((at, number)) = *self.due.peek()?;
        if at > now {
            return None;
        }
        self.due.pop();
        self.timers.remove(&number)
    }
}

/// Runs until the node has gone.
pub(crate) async fn run(
    network: Weak<Network>,
    mut swim: Swim,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    let mut timers = Timers::default();
    loop {
        let next = timers.next_due();
        let input = tokio::select! {
            biased;
            // First: a flood of packets must not hold back probes and suspicions.
            () = until(next) => None,
            input = inputs.recv() => match input {
                Some(input) => Some(input),
                None => return,
            },
        };
        let Some(network) = network.upgrade() else { return };
        match input {
            Some(Input::Packet { from, data }) => {
                network.packets.fetch_sub(1, Ordering::AcqRel);
                if let Err(error) = swim.handle_data(from, &data) {
                    tracing::warn!(%error, "a membership packet was ignored");
                }
            }
            Some(Input::Join(member)) => swim.join(member),
            Some(Input::Leaving(member)) => swim.peer_left(member),
            Some(Input::Revoked(node)) => swim.expel(node),
            Some(Input::Leave(done)) => {
                swim.leave();
                perform(&network, &mut swim, &mut timers);
                let _ = done.send(());
            }
            None => {
                let now = Instant::now();
                while let Some(timer) = timers.take_due(now) {
                    swim.handle_timer(timer);
                    perform(&network, &mut swim, &mut timers);
                }
                network.view.forget_gone(Instant::now(), SHOW_GONE, MOST_GONE);
            }
        }
        perform(&network, &mut swim, &mut timers);
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn perform(network: &Network, swim: &mut Swim, timers: &mut Timers) {
    for action in swim.take_actions() {
        match action {
            SwimAction::Send { to, data, must_arrive } => {
                network.send_packet(to, data, must_arrive);
            }
            SwimAction::SetTimer { after, timer } => timers.set(after, timer),
            SwimAction::Up(member) => up(network, member),
            SwimAction::Suspect(member) => network.view.set(member, Standing::Suspect),
            SwimAction::Cleared(member) => network.view.set(member, Standing::Up),
            SwimAction::Down(member) => over(network, member, Standing::Down),
            SwimAction::Left(member) => over(network, member, Standing::Left),
            SwimAction::Renamed { old, new } => {
                over(network, old, Standing::Down);
                up(network, new);
            }
            SwimAction::Rejoined(me) => {
                tracing::warn!(
                    incarnation = me.incarnation.0,
                    "this node had been declared down while it was alive: its actors are stopped \
                     and it goes on under a new incarnation"
                );
                network.renew(me.incarnation);
            }
        }
    }
}

fn up(network: &Network, member: MemberId) {
    tracing::debug!(%member, "up");
    network.meet(member);
    network.view.up(member, network.record_up(member));
}

fn over(network: &Network, member: MemberId, standing: Standing) {
    tracing::debug!(%member, ?standing, "gone");
    network.view.set(member, standing);
    network.record_gone(member);
    network.lost(member);
}
