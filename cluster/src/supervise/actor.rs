//! The supervisor as an actor, and what can be said to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use footlight_runtime::{
    Actor, ActorAddr, Context, DeferredHandler, Handler, Message, ReplyTo, Result, Streamed,
    registry::Types,
    supervision::{self, ChildError, ChildEvent},
};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};

use super::{
    spec::{Child, SupervisorSpec},
    start::described,
};

/// Events that a slow listener may be behind before it misses some.
const EVENTS: usize = 1024;

/// The actor that keeps the children of a [`SupervisorSpec`] up. It is started when all of them are
/// up, and its start fails if that takes more restarts than are allowed.
///
/// It ends with [`Down::Stopped`](footlight_runtime::Down::Stopped) when it is stopped, and with
/// `Down::Failed` when it gives up. Either way its children are down before.
pub struct Supervisor {
    /// There until it is stopped.
    running: Option<supervision::Supervisor>,
    told: Arc<Told>,
}

/// Tell which children there are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AskChildren;

impl Message for AskChildren {
    /// In the order in which they are started.
    type Reply = Vec<ChildInfo>;
    const NAME: &'static str = "supervisor.ask_children";
}

/// A child as its supervisor tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// Its name.
    pub name: String,
    /// The registered name of its type.
    pub kind: String,
    /// Where it is; none while it is not up.
    pub actor: Option<ActorAddr>,
    /// Why it ended or could not be started, the last time.
    pub last: Option<String>,
}

/// Start one more child, behind all others. Answered when it is up.
#[derive(Debug, Serialize, Deserialize)]
pub struct AddChild {
    /// The child.
    pub child: Child,
}

impl Message for AddChild {
    type Reply = Result<ActorAddr, ChildError>;
    const NAME: &'static str = "supervisor.add_child";
}

/// Stop a child and forget it. Answered when it has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveChild {
    /// Its name.
    pub name: String,
}

impl Message for RemoveChild {
    type Reply = Result<(), ChildError>;
    const NAME: &'static str = "supervisor.remove_child";
}

/// Tell what happens to the children: first a [`ChildEvent::Started`] for each that is up, then what
/// comes. A listener that is 1,024 events behind misses some, and is told how many.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Follow;

impl Message for Follow {
    /// Ends with the supervisor.
    type Reply = Streamed<ChildEvent>;
    const NAME: &'static str = "supervisor.follow";
}

impl Supervisor {
    pub(crate) fn register(types: &mut Types) {
        types.register::<Supervisor>(|supervisor| {
            supervisor
                .handles::<AskChildren>()
                .defers::<AddChild>()
                .defers::<RemoveChild>()
                .handles::<Follow>()
        });
    }
}

impl Actor for Supervisor {
    type Args = SupervisorSpec;
    const NAME: &'static str = "cluster.supervisor";

    async fn start(spec: SupervisorSpec, context: &Context<Self>) -> Result<Self> {
        let SupervisorSpec { supervision, children, again } = spec;
        let (system, me) = (context.system(), context.me());
        let (events, happened) = mpsc::unbounded_channel();
        let told = Arc::new(Told::default());
        system.env().spawner.spawn(told.clone().tell(happened));
        told.lock().kinds.extend(children.iter().map(Child::named));
        let children = children.into_iter();
        let children = children.map(|child| described(system, child, me.addr(), again)).collect();
        let running =
            supervision::Supervisor::start(system, supervision.stays(), children, events).await?;
        let ended = running.ended();
        context.run(async move {
            ended.await?;
            me.stop();
            Ok(())
        });
        Ok(Supervisor { running: Some(running), told })
    }

    async fn stopped(&mut self, _: &Context<Self>) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }
}

impl Handler<AskChildren> for Supervisor {
    async fn handle(&mut self, _: AskChildren, _: &Context<Self>) -> Vec<ChildInfo> {
        let Some(running) = &self.running else { return Vec::new() };
        let told = self.told.lock();
        let places = running.places().all().into_iter();
        places
            .map(|(name, actor)| ChildInfo {
                kind: told.kinds.get(&name).cloned().unwrap_or_default(),
                last: told.last.get(&name).cloned(),
                name,
                actor,
            })
            .collect()
    }
}

impl DeferredHandler<AddChild> for Supervisor {
    async fn handle(
        &mut self,
        add: AddChild,
        reply: ReplyTo<<AddChild as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let Some(running) = &self.running else { return reply.send(Err(ChildError::Ended)) };
        let (system, me) = (context.system(), context.me().addr());
        let (name, kind) = add.child.named();
        let added = running.add(described(system, add.child, me, false));
        let told = self.told.clone();
        system.env().spawner.spawn(async move {
            let added = added.await;
            if added.is_ok() {
                told.lock().kinds.insert(name, kind);
            }
            reply.send(added);
        });
    }
}

impl DeferredHandler<RemoveChild> for Supervisor {
    async fn handle(
        &mut self,
        remove: RemoveChild,
        reply: ReplyTo<<RemoveChild as Message>::Reply>,
        context: &Context<Self>,
    ) {
        let Some(running) = &self.running else { return reply.send(Err(ChildError::Ended)) };
        let removed = running.remove(&remove.name);
        let told = self.told.clone();
        context.system().env().spawner.spawn(async move {
            let removed = removed.await;
            if removed.is_ok() {
                let mut told = told.lock();
                told.kinds.remove(&remove.name);
                told.last.remove(&remove.name);
            }
            reply.send(removed);
        });
    }
}

impl Handler<Follow> for Supervisor {
    async fn handle(&mut self, _: Follow, _: &Context<Self>) -> Streamed<ChildEvent> {
        self.told.follow()
    }
}

/// What has happened, for those who ask and those who listen.
#[derive(Debug, Default)]
struct Told(Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// The type of each child.
    kinds: BTreeMap<String, String>,
    /// How each ended last.
    last: BTreeMap<String, String>,
    /// The latest start of those that are up, in their order.
    up: Vec<ChildEvent>,
    /// None once the supervisor has ended.
    listeners: Option<broadcast::Sender<ChildEvent>>,
}

impl Default for Known {
    fn default() -> Self {
        Known {
            kinds: BTreeMap::new(),
            last: BTreeMap::new(),
            up: Vec::new(),
            listeners: Some(broadcast::Sender::new(EVENTS)),
        }
    }
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    async fn tell(self: Arc<Self>, mut happened: mpsc::UnboundedReceiver<ChildEvent>) {
        while let Some(event) = happened.recv().await {
            self.lock().note(event);
        }
        self.lock().listeners = None;
    }

    fn follow(&self) -> Streamed<ChildEvent> {
        let known = self.lock();
        let now = stream::iter(known.up.clone());
        let Some(listeners) = &known.listeners else { return Streamed::from_stream(now) };
        let later = stream::unfold(listeners.subscribe(), |mut events| async move {
            match events.recv().await {
                Ok(event) => Some((event, events)),
                Err(RecvError::Lagged(missed)) => Some((ChildEvent::Missed(missed), events)),
                Err(RecvError::Closed) => None,
            }
        });
        Streamed::from_stream(now.chain(later))
    }
}

impl Known {
    fn note(&mut self, event: ChildEvent) {
        match &event {
            ChildEvent::Started { .. } => self.up.push(event.clone()),
            ChildEvent::Down { child, actor, down } => self.ended(child, *actor, down.to_string()),
            ChildEvent::Abandoned { child, actor, why } => self.ended(child, *actor, why.clone()),
            ChildEvent::StartFailed { child, why } => {
                self.last.insert(child.clone(), why.clone());
            }
            _ => {}
        }
        if let Some(listeners) = &self.listeners {
            // Nobody may be listening.
            let _ = listeners.send(event);
        }
    }

    fn ended(&mut self, name: &str, gone: ActorAddr, how: String) {
        self.up.retain(|up| !matches!(up, ChildEvent::Started { actor, .. } if *actor == gone));
        self.last.insert(name.to_owned(), how);
    }
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("running", &self.running).finish_non_exhaustive()
    }
}
