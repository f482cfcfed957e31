//! A running node: spawn actors, watch members, leave.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, Weak, atomic::Ordering},
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorRef, Error, NodeId, Result, System, Watch, env::deadline_after, id::Incarnation,
    telemetry::Counts,
};
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    NodeArgs, NodeBuilder,
    control::ControlThread,
    groups::Groups,
    leaving::Departure,
    ledger::{Client, Ledger, Seat},
    network::{Network, events::Events, view::Member},
    node_actor::{AskStatus, FindActors, NodeActor, Status},
    placement, singleton,
    spawn::{Host, Tally},
    transport::handshake::Purpose,
};

/// A node has so long to tell which actors it has.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);

/// A node of a cluster. Cheap to clone; the node lives until [`leave`](Node::leave), or until its
/// last clone is dropped, which looks to the others like a crash.
///
/// ```
/// use std::time::Duration;
/// use footlight_cluster::{Node, NodeArgs};
/// # #[tokio::main]
/// # async fn main() -> footlight_runtime::Result<()> {
/// # let keys = tempfile::tempdir()?;
/// # let (listen, state) = (Some("127.0.0.1:0".into()), Some(keys.path().into()));
/// # let args = NodeArgs { listen, state, ..Default::default() };
///
/// let seed = Node::builder(args.clone()).start().await?;
/// let other = NodeArgs { seeds: vec![seed.addr().to_string()], ..args };
/// let other = Node::builder(other).start().await?;
///
/// let patience = Duration::from_secs(10);
/// let members = seed.wait_for_members(patience, |members| members.len() == 2).await?;
/// assert_eq!(members[1].id, other.id());
/// other.leave().await?;
/// # seed.leave().await
/// # }
/// ```
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    system: System,
    network: Arc<Network>,
    ledger: Arc<Client>,
    /// Its place among the ledger's voters; one who only asks has none.
    seat: Option<Arc<Seat>>,
    /// Its part of the cluster's singletons; one who only asks has none.
    singletons: Option<singleton::Manager>,
    /// What it does for those who start actors on it.
    host: Arc<Host>,
    /// Its part of the groups.
    groups: Arc<Groups>,
    /// What was placed from here.
    tally: Arc<Tally>,
    requests: Mutex<ChaCha12Rng>,
    threads: Mutex<Option<[ControlThread; 2]>>,
    control_handle: Handle,
    seed: OnceLock<NodeId>,
    departure: Departure,
}

/// How an actor finds the node it runs on, without keeping it alive.
struct Found(Weak<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Node {
    /// A node as the options say: register actor types on the result, then start it.
    pub fn builder(args: NodeArgs) -> NodeBuilder {
        NodeBuilder::new(args)
    }

    pub(crate) fn assemble(
        system: System,
        network: Arc<Network>,
        ledger: Arc<Client>,
        seat: Option<Arc<Seat>>,
        threads: [ControlThread; 2],
        drain_timeout: Duration,
    ) -> Self {
        let control = threads[0].handle().clone();
        let singletons = seat.is_some().then(|| {
            singleton::Manager::start(system.clone(), Ledger::new(ledger.clone()), &control)
        });
        let inner = Arc::new(Inner {
            control_handle: control,
            threads: Mutex::new(Some(threads)),
            ledger,
            seat,
            singletons,
            host: Arc::new(Host::new(&network)),
            groups: Arc::new(Groups::new(&network)),
            tally: Arc::default(),
            requests: Mutex::new(system.env().seeds.stream("spawn requests")),
            system,
            network,
            seed: OnceLock::new(),
            departure: Departure::new(drain_timeout),
        });
        inner.system.extend(inner.groups.clone());
        inner.system.extend(Arc::new(Found(Arc::downgrade(&inner))));
        Node(inner)
    }

    /// The node that an actor runs on.
    ///
    /// `None` while the node is ending, and in a runtime without a cluster.
    pub fn of(system: &System) -> Option<Node> {
        system.extension::<Found>()?.0.upgrade().map(Node)
    }

    /// The node's identifier.
    pub fn id(&self) -> NodeId {
        self.0.system.node()
    }

    /// Which life of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        self.0.system.incarnation()
    }

    /// Where it takes connections.
    pub fn addr(&self) -> SocketAddr {
        self.0.network.greeting().addr
    }

    /// Whether it was started without a seed to join, or is one of its own seeds.
    pub fn is_seed(&self) -> bool {
        self.0.seed.get() == Some(&self.id())
    }

    /// The node through which this one joined; on a seed, itself.
    pub fn seed(&self) -> NodeId {
        self.0.seed.get().copied().unwrap_or_else(|| self.id())
    }

    pub(crate) fn set_seed(&self, seed: NodeId) {
        let _ = self.0.seed.set(seed);
    }

    /// Its actors.
    pub fn system(&self) -> &System {
        &self.0.system
    }

    pub(crate) fn seat(&self) -> Option<&Arc<Seat>> {
        self.0.seat.as_ref()
    }

    pub(crate) fn network(&self) -> &Arc<Network> {
        &self.0.network
    }

    pub(crate) fn control(&self) -> &Handle {
        &self.0.control_handle
    }

    pub(crate) fn singleton_manager(&self) -> Option<&singleton::Manager> {
        self.0.singletons.as_ref()
    }

    pub(crate) fn departure(&self) -> &Departure {
        &self.0.departure
    }

    pub(crate) fn take_threads(&self) -> impl Iterator<Item = ControlThread> + use<> {
        lock(&self.0.threads).take().into_iter().flatten()
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.0.host
    }

    pub(crate) fn groups(&self) -> &Arc<Groups> {
        &self.0.groups
    }

    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.0.tally
    }

    /// A number that nobody can guess.
    pub(crate) fn secret_number(&self) -> u128 {
        lock(&self.0.requests).random()
    }

    /// The cluster's ledger: leases, and the few keys that all nodes must agree on.
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.0.ledger.clone())
    }

    /// A number that this node gives only once. Those of two nodes, or of two lives of one, begin at
    /// random, so that they hardly meet.
    pub fn unique_number(&self) -> u64 {
        self.0.network.number()
    }

    /// Told after each change of what this node knows of the members.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.network.view.changes()
    }

    /// Its counters.
    pub fn counts(&self) -> Counts {
        self.0.network.counts()
    }

    /// The members as this node sees them: itself first, then the others by id, those that are gone
    /// included for an hour (the latest 256).
    pub fn members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        if self.0.network.purpose == Purpose::Member {
            members.push(Member::own(&self.0.network.own()));
        }
        members.extend(self.0.network.view.others());
        members
    }

    /// Changes in the cluster from now on. A listener that is 1,024 events behind misses some, and
    /// is told how many ([`ClusterEvent::Missed`](crate::ClusterEvent::Missed)).
    pub fn events(&self) -> Events {
        self.0.network.view.subscribe()
    }

    /// Waits until the members satisfy a condition.
    ///
    /// # Errors
    /// After `patience`, with the members that there are.
    pub async fn wait_for_members(
        &self,
        patience: Duration,
        enough: impl Fn(&[Member]) -> bool,
    ) -> Result<Vec<Member>> {
        let deadline = deadline_after(patience);
        let mut changes = self.0.network.view.changes();
        loop {
            let members = self.members();
            if enough(&members) {
                return Ok(members);
            }
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(Error::other(format!(
                    "the cluster did not become as expected within {patience:?}; members: {}",
                    placement::describe(&members)
                )));
            }
        }
    }

    /// Learns of the end of an actor, wherever it is. The same as [`ActorRef::watch`].
    pub fn watch<A: Actor>(&self, actor: &ActorRef<A>) -> Watch {
        self.0.system.watch(actor.addr())
    }

    /// Asks a node how it and its cluster are.
    ///
    /// # Errors
    /// If the node is not known here or does not answer.
    pub async fn status_of(&self, node: NodeId) -> Result<Status> {
        let members = self.members();
        let incarnation = members.iter().find(|member| member.id == node);
        let incarnation = incarnation.map(|member| member.incarnation);
        let incarnation =
            incarnation.ok_or_else(|| Error::other(format!("node {node} is not known here")))?;
        let asked = NodeActor::of(node, incarnation, &self.0.system);
        Ok(asked.call(AskStatus).await?)
    }

    /// Finds the actors of a type on one node.
    ///
    /// # Errors
    /// If the node is not known here or does not answer.
    pub async fn find_on<A: Actor>(
        &self,
        node: NodeId,
    ) -> std::result::Result<Vec<ActorRef<A>>, footlight_runtime::CallError> {
        let system = &self.0.system;
        let members = self.members();
        let incarnation = members.iter().find(|member| member.id == node);
        // Of a node that is not known, none: the call says that it is lost.
        let incarnation = incarnation.map(|member| member.incarnation).unwrap_or_default();
        let asked = NodeActor::of(node, incarnation, system);
        let find = FindActors { actor: A::NAME.to_owned() };
        let found = asked.call_within(find, FIND_TIMEOUT).await?;
        Ok(found.into_iter().map(|addr| ActorRef::at(addr, system)).collect())
    }

    /// Finds the actors of a type on all nodes that are up. A node that does not answer is left out.
    pub async fn find<A: Actor>(&self) -> Vec<ActorRef<A>> {
        let members = self.members().into_iter().filter(Member::is_up);
        let asked = members.map(|member| self.find_on(member.id));
        futures::future::join_all(asked).await.into_iter().flatten().flatten().collect()
    }
}

impl Drop for Inner {
    /// A node that was not told to leave ends here all the same: to the others it crashes.
    fn drop(&mut self) {
        self.system.kill_all();
        self.system.disconnect();
        self.system.env().spawner.stopping().cancel();
        self.network.leaving.store(true, Ordering::Release);
        self.network.close_sessions("the node was dropped");
        self.network.endpoint.quinn().close(0u32.into(), b"the node was dropped");
        self.network.messages.quinn().close(0u32.into(), b"the node was dropped");
        self.network.bulk.quinn().close(0u32.into(), b"the node was dropped");
        // The threads end when what tells them to goes with this.
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).field("addr", &self.addr()).finish()
    }
}
