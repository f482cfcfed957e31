//! One actor to be started: which node takes it, and what became of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use footlight_runtime::{
    ActorAddr, ActorRef, CallError, Cause, Claim, Error, Fate, NodeId, Result, System,
    codec::Opaque, env::deadline_after, message::Fingerprint,
};
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    message::{Abandon, Owner, Refusal, RequestId, Spawn},
    requests::REMEMBERED,
};
use crate::{
    ClusterError, Node, NodeActor, Placement,
    network::view::Member,
    placement::{Candidates, Request, candidates, may_be_up},
    resources::Needs,
};

/// Starting an actor on another node may take so long (a model may have to be loaded).
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A node whose answer was lost is asked again for so long. By then it is mostly known to be lost.
const LOST_ANSWER: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A node has so long to hear that a request is abandoned, before it is told again.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that can't be reached is told for so long.
const ABANDON_FOR: Duration = REMEMBERED;
/// Who waits for a node that fits looks again when something has changed, at most this often, and
/// at least this often.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Most nodes that an error names.
const MOST_NAMED: usize = 20;

/// How an actor is to be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    pub(crate) placement: Placement,
    pub(crate) needs: Needs,
    pub(crate) owner: Option<Owner>,
    /// For a node that fits.
    pub(crate) wait: Duration,
    /// Ends the wait for one.
    pub(crate) called_off: CancellationToken,
}

/// An actor that can be started, here and elsewhere.
pub(crate) trait What: Send {
    /// The registered name of its type.
    fn name(&self) -> &str;
    /// The shape of its arguments.
    fn shape(&mut self, system: &System) -> Fingerprint;
    /// Its arguments, to be sent.
    fn args(&mut self) -> Result<Opaque>;
    fn start_here<'a>(
        &'a mut self,
        system: &'a System,
        claim: Arc<dyn Claim>,
    ) -> BoxFuture<'a, Result<ActorAddr>>;
}

pub(super) fn used_up() -> Error {
    Error::other("the arguments went into a start that failed")
}

/// Starts an actor on the first node that takes it, waiting for one as the order says.
///
/// # Errors
/// What its start said; or that no node takes it, with a reason for each.
pub(crate) async fn start(node: &Node, what: &mut dyn What, order: &Order) -> Result<ActorAddr> {
    node.system().may_spawn(what.name())?;
    let deadline = deadline_after(order.wait);
    let mut changes = node.network().view.changes();
    let mut told = order.wait.is_zero();
    loop {
        changes.mark_unchanged();
        let nobody = match try_all(node, what, order).await? {
            Ok(actor) => return Ok(actor),
            Err(nobody) => nobody,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%nobody, "waiting for a node that fits");
        }
        let (at_most, at_least) = LOOK_AGAIN;
        let look = async {
            tokio::time::sleep(at_most).await;
            let _ = tokio::time::timeout(at_least, changes.changed()).await;
        };
        tokio::select! {
            biased;
            () = order.called_off.cancelled() => return Err(nobody.into()),
            () = tokio::time::sleep_until(deadline) => return Err(nobody.into()),
            () = look => {}
        }
    }
}

/// Tries the nodes that fit, one after the other. The inner error is that none takes it.
async fn try_all(
    node: &Node,
    what: &mut dyn What,
    order: &Order,
) -> Result<Result<ActorAddr, ClusterError>> {
    let name = what.name().to_owned();
    let mut refused = BTreeMap::<NodeId, String>::new();
    loop {
        let members = node.members();
        let me = members.iter().find(|member| member.id == node.id());
        let unreachable = me.map(|me| me.unreachable.clone()).unwrap_or_default();
        let choose = |placed: &BTreeMap<NodeId, u32>| {
            let request = Request::new(&order.placement, &name, node.id(), node.seed())
                .needing(order.needs.clone())
                .unreachable(&unreachable)
                .placed(placed);
            let found = candidates(&members, &request);
            (found.fit.iter().copied().find(|id| !refused.contains_key(id)), found)
        };
        let (chosen, found) = if order.placement.counts() {
            let (chosen, found) = node.tally().place(&name, choose);
            (chosen.map(|(id, assumed)| (id, Some(assumed))), found)
        } else {
            let (chosen, found) = choose(&BTreeMap::new());
            (chosen.map(|id| (id, None)), found)
        };
        let member = chosen.and_then(|(id, assumed)| {
            Some((members.iter().find(|member| member.id == id)?, assumed))
        });
        let Some((member, assumed)) = member else {
            return Ok(Err(nobody(&members, &name, order, &found, &refused)));
        };
        let attempt = if member.id == node.id() {
            start_here(node, what, order).await
        } else {
            start_there(node, what, order, member).await
        };
        match attempt? {
            Ok(actor) => {
                if let Some(assumed) = assumed {
                    assumed.settle(node.system().watch(actor));
                }
                return Ok(Ok(actor));
            }
            Err(why) => drop(refused.insert(member.id, why)),
        }
    }
}

/// What became of one node. The inner error says why it does not take the actor, and another may;
/// the outer one is the end.
type Attempt = Result<Result<ActorAddr, String>>;

async fn start_here(node: &Node, what: &mut dyn What, order: &Order) -> Attempt {
    let granted = match node.host().admit(&order.needs) {
        Ok(granted) => granted,
        Err(refusal) => return Ok(Err(refusal.to_string())),
    };
    let belonging = node.host().belongs_to(order.owner).map_err(ClusterError::from)?;
    let actor = what.start_here(node.system(), granted).await?;
    if let Some(belonging) = belonging {
        belonging.started(node.system(), actor);
    }
    Ok(Ok(actor))
}

async fn start_there(node: &Node, what: &mut dyn What, order: &Order, member: &Member) -> Attempt {
    let system = node.system();
    let there = NodeActor::of(member.id, member.incarnation, system);
    let request = RequestId(node.secret_number());
    let deadline = Instant::now() + START_TIMEOUT;
    // From the first message on, until it is known what became of it.
    let mut unknown: Option<Unknown> = None;
    let mut lost_since = None;
    loop {
        let spawn = Spawn {
            request,
            actor: what.name().to_owned(),
            args_shape: what.shape(system),
            args: what.args()?,
            needs: order.needs.clone(),
            owner: order.owner,
        };
        unknown.get_or_insert_with(|| Unknown {
            system: system.clone(),
            there: there.clone(),
            request,
            known: false,
        });
        let patience = deadline.saturating_duration_since(Instant::now());
        let error = match there.call_within(spawn, patience).await {
            Ok(outcome) => {
                unknown.take().into_iter().for_each(Unknown::settle);
                return match outcome {
                    Ok(actor) => Ok(Ok(actor)),
                    Err(refusal) if refusal.is_of_this_node() => Ok(Err(refusal.to_string())),
                    Err(Refusal::Failed(why)) => {
                        Err(Error::Start { actor: what.name().to_owned(), why })
                    }
                    Err(refusal) => Err(ClusterError::from(refusal).into()),
                };
            }
            Err(error) => error,
        };
        match what_now(&error, lost_since.is_some()) {
            Now::TryAnother => {
                unknown.take().into_iter().for_each(Unknown::settle);
                return Ok(Err(error.failure.to_string()));
            }
            Now::GiveUp => return Err(error.into()),
            Now::AskAgain => {
                let since = *lost_since.get_or_insert_with(Instant::now);
                if since.elapsed() > LOST_ANSWER || Instant::now() >= deadline {
                    return Err(error.into());
                }
                tracing::debug!(%error, "asking again");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

enum Now {
    /// Nothing was started there.
    TryAnother,
    /// It may have been started: the same request tells.
    AskAgain,
    GiveUp,
}

/// What a failed request means, if an earlier one may have arrived or not.
fn what_now(error: &CallError, may_run_already: bool) -> Now {
    match (error.fate(), error.cause()) {
        // That life of the node is over, and with it whatever it started.
        (_, Cause::NodeLost(_)) => Now::TryAnother,
        (_, Cause::CannotEncode(_) | Cause::CannotDecode(_) | Cause::TimedOut(_)) => Now::GiveUp,
        (Fate::NotSent, _) if !may_run_already => Now::TryAnother,
        _ => Now::AskAgain,
    }
}

/// A request of which it is not known what became. Dropped so, it is abandoned: its node ends what
/// it has started for it, as soon as it can be reached.
struct Unknown {
    system: System,
    there: ActorRef<NodeActor>,
    request: RequestId,
    known: bool,
}

impl Unknown {
    fn settle(mut self) {
        self.known = true;
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        if self.known {
            return;
        }
        let (there, request) = (self.there.clone(), self.request);
        self.system.env().spawner.spawn(async move {
            let mut pause = ASK_AGAIN;
            let until = Instant::now() + ABANDON_FOR;
            while Instant::now() < until {
                let told = there.call_within(Abandon { request }, ABANDON_TIMEOUT).await;
                match told.as_ref().map_err(CallError::cause) {
                    Ok(()) | Err(Cause::NodeLost(_)) => return,
                    Err(_) => tokio::time::sleep(pause).await,
                }
                pause = (pause * 2).min(ABANDON_TIMEOUT);
            }
        });
    }
}

/// The error that nobody takes an actor: what was asked, and what there is.
fn nobody(
    members: &[Member],
    actor: &str,
    order: &Order,
    found: &Candidates,
    refused: &BTreeMap<NodeId, String>,
) -> ClusterError {
    let up = || members.iter().filter(|member| may_be_up(member));
    let hosted = |member: &Member| member.actors.iter().any(|name| name == actor);
    let asked = match order.needs.is_nothing() {
        true => order.placement.to_string(),
        false => format!("{} with {}", order.placement, order.needs),
    };
    let actor = actor.to_owned();
    if !order.placement.is_here() && !up().any(hosted) {
        let mut names: Vec<&str> =
            up().flat_map(|member| member.actors.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        let hosted = names.join(", ");
        return ClusterError::NotHosted { actor, hosted };
    }
    let mut reasons: Vec<String> =
        refused.iter().map(|(id, why)| format!("node {id}: {why}")).collect();
    let unfit = found.unfit.iter().filter(|(id, _)| !refused.contains_key(id));
    reasons.extend(unfit.map(|(id, why)| format!("node {id}: {why}")));
    let more = reasons.len().saturating_sub(MOST_NAMED);
    reasons.truncate(MOST_NAMED);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    let there = match reasons.is_empty() {
        true => "there are no members".to_owned(),
        false => reasons.join("; "),
    };
    ClusterError::NoNode { actor, asked, there }
}
