//! How a supervisor starts its children, and makes sure that what it replaces is over.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use footlight_runtime::{
    ActorAddr, CallError, Cause, Claim, Error, NodeId, Result, System,
    codec::Opaque,
    message::Fingerprint,
    supervision::{Attempt, ChildSpec},
};
use futures::future::{BoxFuture, join_all};

use super::{
    Supervisor,
    spec::{Child, Lost, SupervisorSpec},
};
use crate::{
    ClusterError, Member, Node, NodeActor,
    network::view::{are_cut, cut_between},
    spawn::{EndFor, EndOwned, Order, Owner, What, knows, start},
};

/// A host ends a child by itself when it has been cut off from the supervisor's node for so long.
/// The supervisor mostly has it ended sooner, through a third node.
const CUT_PATIENCE: Duration = Duration::from_secs(5);
/// The two sides may see a cut so much apart.
const CUT_SEEN: Duration = Duration::from_secs(10);
/// Nobody waits longer than this for a child to stop that can't be reached.
const CUT_STOP: Duration = Duration::from_secs(60);
/// Before a supervisor is started again, a member has so long to end what the lost one had there.
const END_OWNED: Duration = Duration::from_secs(15);

/// An actor whose type is known by its name only.
struct Named<'a> {
    actor: &'a str,
    shape: Fingerprint,
    args: Opaque,
}

impl What for Named<'_> {
    fn name(&self) -> &str {
        self.actor
    }

    fn shape(&mut self, _: &System) -> Fingerprint {
        self.shape
    }

    fn args(&mut self) -> Result<Opaque> {
        Ok(self.args.again()?)
    }

    fn start_here<'a>(
        &'a mut self,
        system: &'a System,
        claim: Arc<dyn Claim>,
    ) -> BoxFuture<'a, Result<ActorAddr>> {
        Box::pin(async move {
            knows(system, self.actor, self.shape).map_err(ClusterError::from)?;
            system.spawn_by_name_with_claim(self.actor, self.args.again()?, Some(claim)).await
        })
    }
}

/// The child as the runtime's supervisor takes it. It belongs to `owner`; `again` is whether the
/// supervisor was up before.
pub(super) fn described(system: &System, child: Child, owner: ActorAddr, again: bool) -> ChildSpec {
    let (name, restart, stop_within) = (child.name.clone(), child.restart, child.stop_within);
    let lost = child.lost;
    let child = Arc::new(child);
    let before = Arc::new(Mutex::new(None));
    let starts = system.clone();
    let spec = ChildSpec::new(name, restart, move |mut attempt| {
        let (child, system, before) = (child.clone(), starts.clone(), before.clone());
        attempt.was_up |= again;
        async move { start_child(&system, &child, owner, attempt, &before).await }
    });
    let spec = spec.stop_within(stop_within);
    match lost {
        Lost::Down => spec,
        Lost::Unreachable => {
            let (sees, ends) = (system.clone(), system.clone());
            let cut = move |actor: ActorAddr| {
                let system = sees.clone();
                async move { cut_between(&system, system.node(), actor.node, Duration::ZERO).await }
            };
            spec.lost_when(cut, move |actor| {
                let system = ends.clone();
                async move { end_across_a_cut(&system, actor, stop_within).await }
            })
        }
    }
}

async fn start_child(
    system: &System,
    child: &Child,
    owner: ActorAddr,
    attempt: Attempt,
    before: &Mutex<Option<ActorAddr>>,
) -> Result<ActorAddr> {
    // Not kept by the supervisor: a node lives as long as its user wants.
    let node = Node::of(system).ok_or_else(|| Error::other("the node is ending"))?;
    let last = *before.lock().unwrap_or_else(|poison| poison.into_inner());
    let is_supervisor = child.actor == <Supervisor as footlight_runtime::Actor>::NAME;
    if is_supervisor && let Some(last) = last {
        end_what_it_had(&node, last).await;
    }
    let args = child.args.again()?;
    let mut what = Named {
        actor: &child.actor,
        shape: child.args_shape,
        args: match is_supervisor && attempt.was_up {
            true => SupervisorSpec::started_again(args, system)?,
            false => args,
        },
    };
    let unreachable = (child.lost == Lost::Unreachable).then_some(CUT_PATIENCE);
    let order = Order {
        placement: child.placement.clone(),
        needs: child.needs.clone(),
        owner: Some(Owner { actor: owner, unreachable, stop_within: child.stop_within }),
        wait: if attempt.was_up { Duration::MAX } else { child.wait },
        called_off: attempt.called_off,
    };
    let started = start(&node, &mut what, &order).await?;
    *before.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(started);
    Ok(started)
}

/// Members to be asked for something.
fn others(node: &Node, unfit: impl Fn(&[Member], &Member) -> bool) -> Vec<Member> {
    let members = node.members();
    let fit = |member: &&Member| !member.state.is_gone() && !unfit(&members, member);
    members.iter().filter(fit).cloned().collect()
}

/// A supervisor of this name may have ended a moment ago, or was lost with its node, and not all who
/// host its children know: each is told, and waited for, so that no child is started while the one
/// before may live. Nodes that can't be reached from here are left out.
async fn end_what_it_had(node: &Node, owner: ActorAddr) {
    let asked = others(node, |members, member| are_cut(members, node.id(), member.id));
    let told = asked.iter().map(async |member| {
        let there = NodeActor::of(member.id, member.incarnation, node.system());
        let told = there.call_within(EndOwned { owner }, END_OWNED).await;
        match told.as_ref().map_err(CallError::cause) {
            Ok(()) | Err(Cause::NodeLost(_)) => {}
            Err(why) => tracing::warn!(
                node = %member.id, supervisor = %owner, %why,
                "children of a supervisor that has ended may still run there"
            ),
        }
    });
    join_all(told).await;
}

/// A child whose node can't be reached from here is ended through a node that reaches both. If none
/// answers, its own node ends it for the same reason: that is waited for. Says what became of it.
async fn end_across_a_cut(system: &System, actor: ActorAddr, stop_within: Duration) -> String {
    let why = format!("node {} can't be reached from node {}", actor.node, system.node());
    let Some(node) = Node::of(system) else { return why };
    let me = node.id();
    let through = others(&node, |members, member| {
        member.id == me
            || member.id == actor.node
            || are_cut(members, me, member.id)
            || are_cut(members, actor.node, member.id)
    });
    let alone = CUT_PATIENCE + CUT_SEEN + stop_within.min(CUT_STOP);
    let asked = through.iter().map(|member| {
        Box::pin(async {
            let there = NodeActor::of(member.id, member.incarnation, system);
            there.call_within(EndFor { actor, stop_within }, alone).await.map(|_| member.id)
        })
    });
    let asked: Vec<_> = asked.collect();
    let ended: Option<NodeId> = match asked.is_empty() {
        true => None,
        // The first answer is enough.
        false => futures::future::select_ok(asked).await.ok().map(|(through, _)| through),
    };
    match ended {
        Some(through) => format!("{why}: ended through node {through}"),
        None => {
            tokio::time::sleep(alone).await;
            format!("{why}: left to its node to end")
        }
    }
}
