//! One running actor: a user's type inside a ractor actor.

use std::{
    collections::{HashMap, VecDeque},
    marker::PhantomData,
    sync::Arc,
};

use ractor::{ActorProcessingErr, SupervisionEvent};
use tokio_util::sync::CancellationToken;

use crate::{
    Context,
    actor::Actor,
    claim::Claim,
    entry::Entry,
    env::Spawner,
    error::{Cause, Error, Failure},
    fence,
    id::{ActorId, Fence, Incarnation, NodeId},
    mailbox::{Envelope, Mailbox, Queued},
    registry::Handlers,
    remote::Incoming,
    reply::{ReplyTo, WirePort},
    system::System,
    watch::Down,
    work::{InHand, Work},
};

/// The ractor actor that runs a user's actor. Stateless: ractor shares it between threads.
pub(crate) struct Cell<A>(PhantomData<fn() -> A>);

impl<A> Cell<A> {
    pub(crate) fn new() -> Self {
        Cell(PhantomData)
    }
}

pub(crate) struct Birth<A: Actor> {
    pub(crate) id: ActorId,
    /// The life of the node in which the actor was asked for.
    pub(crate) incarnation: Incarnation,
    pub(crate) args: A::Args,
    /// The lease under which it acts.
    pub(crate) fence: Option<Fence>,
    pub(crate) claim: Option<Arc<dyn Claim>>,
    pub(crate) system: System,
}

/// The state as ractor holds it. Wherever ractor drops it (in the actor's task, in the guardian's,
/// which a panic would end and every actor with it), the user's part is dropped elsewhere: it may
/// take long and hold up the news of the end, or panic.
pub(crate) struct Living<A: Actor> {
    /// There until the drop.
    running: Option<Running<A>>,
    spawner: Spawner,
}

impl<A: Actor> Drop for Living<A> {
    fn drop(&mut self) {
        self.spawner.discard(self.running.take());
    }
}

pub(crate) struct Running<A: Actor> {
    actor: A,
    context: Context<A>,
    handlers: Option<Arc<Handlers<A>>>,
    /// The lease under which it acts.
    fence: Option<Fence>,
    /// The greatest generation seen of each lease.
    fences: HashMap<u64, u64>,
    /// What nodes have sent that are slow to read their answers, in order.
    aside: HashMap<NodeId, VecDeque<Queued>>,
}

/// Why an actor of a past life of the node does not start.
pub(crate) const BEGAN_ANEW: &str = "the node began a new life meanwhile";

/// An error that the actor itself gave, to tell it from a panic's text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct GaveUp(pub(crate) String);

impl<A: Actor> ractor::Actor for Cell<A> {
    type Msg = Envelope<A>;
    type State = Living<A>;
    type Arguments = Birth<A>;

    async fn pre_start(
        &self,
        myself: ractor::ActorRef<Envelope<A>>,
        birth: Birth<A>,
    ) -> Result<Living<A>, ActorProcessingErr> {
        let Birth { id, incarnation, args, fence, claim, system } = birth;
        let mailbox = Arc::new(Mailbox::new(myself.clone(), system.is_counted(id)));
        let tasks = CancellationToken::new();
        // Known before it starts, so that `start` can hand out references to itself.
        let entry = Entry::new(mailbox.clone(), tasks.clone(), claim.clone());
        system.enter(id, entry, myself.get_id());
        let unregister = Unregister { system: &system, id, armed: true };
        // A new life kills the actors that it finds; one that enters later finds the new life.
        if system.is_of_past_life(id, incarnation) {
            return Err(GaveUp(BEGAN_ANEW.to_owned()).into());
        }
        let context = Context::new(id, mailbox, tasks, claim, system.clone());
        let actor = fence::under(fence, A::start(args, &context))
            .await
            .map_err(|error| GaveUp(error.to_string()))?;
        unregister.disarm();
        let handlers = system.handlers::<A>();
        let spawner = system.env().spawner.clone();
        let running = Running {
            actor,
            context,
            handlers,
            fence,
            fences: HashMap::new(),
            aside: HashMap::new(),
        };
        Ok(Living { running: Some(running), spawner })
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Envelope<A>>,
        envelope: Envelope<A>,
        living: &mut Living<A>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(running) = &mut living.running else { return Ok(()) };
        fence::under(running.fence, running.handle(envelope)).await
    }

    async fn post_stop(
        &self,
        _: ractor::ActorRef<Envelope<A>>,
        living: &mut Living<A>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(running) = &mut living.running else { return Ok(()) };
        running.context.cancel_tasks();
        fence::under(running.fence, running.actor.stopped(&running.context)).await;
        Ok(())
    }
}

impl<A: Actor> Running<A> {
    async fn handle(&mut self, envelope: Envelope<A>) -> Result<(), ActorProcessingErr> {
        match envelope {
            Envelope::Local { message, fence, permit } => {
                let in_hand = self.context.in_hand();
                drop(permit);
                match self.pass(fence) {
                    Ok(()) => message.deliver(&mut self.actor, &self.context, in_hand).await,
                    Err(failure) => message.refuse(failure),
                }
                self.context.system().telemetry().messages_handled.add(1);
            }
            Envelope::Wire(queued) => {
                let from = queued.from().filter(|_| !self.aside.is_empty());
                match from.and_then(|node| self.aside.get_mut(&node)) {
                    Some(line) => line.push_back(queued),
                    None => self.wires(queued, VecDeque::new()).await,
                }
            }
            Envelope::GoOn(node) => {
                let mut line = self.aside.remove(&node).unwrap_or_default();
                if let Some(first) = line.pop_front() {
                    self.wires(first, line).await;
                }
            }
            Envelope::Down(who, down) => self
                .actor
                .down(who, down, &self.context)
                .await
                .map_err(|error| GaveUp(error.to_string()))?,
            // It may have been unlinked meanwhile.
            Envelope::LinkDown(who, down) => {
                if self.context.system().drop_half_link(self.context.me().addr().actor, who) {
                    return Err(GaveUp(format!("linked {who} ended: {down}")).into());
                }
            }
            Envelope::Fail(why) => return Err(GaveUp(why).into()),
        }
        Ok(())
    }

    /// Handles what has come from one node, as far as it reads its answers.
    async fn wires(&mut self, mut queued: Queued, mut rest: VecDeque<Queued>) {
        loop {
            let work = queued.work();
            // A stop is heeded after each message, as for those that come one by one.
            while !self.context.is_stopping() {
                if let Some(room) = queued.must_wait()
                    && let Some(node) = queued.from()
                {
                    rest.push_front(queued);
                    self.aside.insert(node, rest);
                    return self.context.go_on_after(room, node);
                }
                let Some(incoming) = queued.take() else { break };
                self.wire(incoming, work.as_ref()).await;
                self.context.system().telemetry().messages_handled.add(1);
            }
            match rest.pop_front() {
                Some(next) => queued = next,
                None => return,
            }
        }
    }

    /// Refuses what is sent under a lease that another holder has since taken over.
    fn pass(&mut self, fence: Option<Fence>) -> Result<(), Failure> {
        let Some(Fence { lease, generation }) = fence else { return Ok(()) };
        let greatest = self.fences.entry(lease).or_insert(generation);
        if generation < *greatest {
            return Err(Failure::not_sent(Cause::Refused(format!(
                "sent under generation {generation} of a lease that is at generation {greatest} now"
            ))));
        }
        *greatest = generation;
        Ok(())
    }

    async fn wire(&mut self, incoming: Incoming, work: Option<&Arc<Work>>) {
        let Incoming { key, fence, parcel, reply, .. } = incoming;
        // A call counts until it is answered, whenever that is; a cast until it is handled.
        let (reply, _in_hand) = match reply {
            Some(port) => {
                let in_hand = work.cloned().map(InHand::of_many);
                (Some(WirePort { port, in_hand }), None)
            }
            None => (None, work.map(|work| InHand::of_many(&**work))),
        };
        let handler = self.handlers.as_ref().and_then(|handlers| handlers.get(key));
        let refusal = match (handler, self.pass(fence)) {
            (_, Err(failure)) => failure,
            (None, _) => Failure::not_sent(Cause::Refused(format!(
                "{} takes no such message here: register it with `.handles::<…>()`",
                A::NAME
            ))),
            (Some(handler), Ok(())) => {
                return handler(&mut self.actor, parcel, reply, &self.context).await;
            }
        };
        match reply {
            Some(port) => ReplyTo::<()>::wire(port).fail(refusal),
            None => tracing::warn!(actor = A::NAME, %refusal, "a cast was refused"),
        }
    }
}

/// Forgets an actor whose `start` failed, panicked or was cancelled.
struct Unregister<'a> {
    system: &'a System,
    id: ActorId,
    armed: bool,
}

impl Unregister<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Unregister<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.system.leave(self.id, Down::Failed("it did not start".into()));
        }
    }
}

/// The root that every actor of a node is linked to. It restarts nothing (supervisors do): it turns
/// ractor's events into [`Down`].
pub(crate) struct Guardian;

impl ractor::Actor for Guardian {
    type Msg = ();
    type State = System;
    type Arguments = System;

    async fn pre_start(
        &self,
        _: ractor::ActorRef<()>,
        system: System,
    ) -> Result<System, ActorProcessingErr> {
        Ok(system)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ractor::ActorRef<()>,
        event: SupervisionEvent,
        system: &mut System,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                let down = match reason.as_deref() {
                    // The second is ractor's word for a task that was dropped or panicked outside
                    // the actor's own code.
                    Some("killed" | "actor_task_cancelled") => Down::Killed,
                    _ => Down::Stopped,
                };
                system.leave_by_pid(who.get_id(), down);
            }
            SupervisionEvent::ActorFailed(who, error) => {
                let down = match error.downcast_ref::<GaveUp>() {
                    Some(GaveUp(why)) => Down::Failed(why.clone()),
                    None => Down::Panicked(error.to_string()),
                };
                system.leave_by_pid(who.get_id(), down.shortened());
            }
            _ => {}
        }
        Ok(())
    }
}

/// What `start` said, as an error of ours.
pub(crate) fn start_error<A: Actor>(error: ractor::SpawnErr) -> Error {
    let why = match error {
        ractor::SpawnErr::StartupFailed(why) => match why.downcast_ref::<GaveUp>() {
            Some(GaveUp(why)) => why.clone(),
            // These two are ractor's own words.
            None => match why.to_string().as_str() {
                "Actor killed during startup" => "it was killed meanwhile".to_owned(),
                "Supervisor is shutting down" => "the node ended meanwhile".to_owned(),
                text => format!("panicked: {text}"),
            },
        },
        other => other.to_string(),
    };
    Error::Start { actor: A::NAME.to_owned(), why }
}
