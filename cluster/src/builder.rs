//! From options to a running node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use footlight_runtime::{
    Actor, ActorRef, NodeId, System,
    env::{Env, WallClock, deadline_after},
    registry::{Registration, Types},
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::{
    ClusterError, Node, NodeArgs,
    args::{DEFAULT_PORT, Preset},
    control::ControlThread,
    enroll::{
        self,
        entry::{Entered, Entry},
        joiner::Asker,
    },
    groups::{self, GroupKeeper},
    leaving::{DRAIN_TIMEOUT, HAS_ENDED},
    ledger::{Client, LedgerActor, LedgerSettings, Seat},
    load,
    membership::{MemberId, Settings, Swim},
    names::{NameKeeper, Names},
    network::{
        Network, accept, membership_task, past, records,
        seeds::{self, Progress, Seeds},
    },
    node_actor::{NODE_ACTOR, NodeActor},
    record::{Load, Record},
    resources::{Resources, detect},
    supervise::Supervisor,
    transport::{
        endpoint::{Endpoint, EndpointSettings, Purpose as Carries},
        handshake::{PROTOCOL_VERSION, Purpose},
        session::Session,
        socket::{NodeRuntime, Sockets, SystemSockets},
    },
    trust::{CERTIFICATE_LIFE, TokenSource, TrustError, tls},
};

/// How long a node that is [observed](NodeBuilder::observe) is waited for, unless told otherwise.
pub const OBSERVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes a [`Node`]: what it hosts, where it listens, whom it joins.
///
/// ```
/// use std::time::Duration;
/// use footlight_cluster::{Node, NodeArgs};
/// use footlight_runtime::{Actor, Context, Result};
///
/// struct Clerk;
/// impl Actor for Clerk {
///     type Args = ();
///     const NAME: &'static str = "office.clerk";
///     async fn start(_: (), _: &Context<Self>) -> Result<Self> { Ok(Clerk) }
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<()> {
/// # let keys = tempfile::tempdir()?;
/// # let (listen, state) = (Some("127.0.0.1:0".into()), Some(keys.path().into()));
/// # let args = NodeArgs { listen, state, ..Default::default() };
/// let node = Node::builder(args)                    // mostly a program's own options
///     .register::<Clerk>(|clerk| clerk)             // takes no messages from other nodes
///     .join_timeout(Duration::from_secs(15))
///     .start().await?;
/// assert!(node.is_seed() && node.members()[0].actors.contains(&"office.clerk".to_string()));
/// # node.leave().await
/// # }
/// ```
pub struct NodeBuilder {
    args: NodeArgs,
    types: Types,
    env: Option<Env>,
    sockets: Arc<dyn Sockets>,
    membership: Settings,
    /// None leaves it to the preset.
    ledger: Option<LedgerSettings>,
    join_timeout: Duration,
    drain_timeout: Duration,
    version: u16,
    http: Option<SocketAddr>,
    resources: Option<Resources>,
    purpose: Purpose,
    extensions: Vec<Extension>,
}

/// Lays one value beside a node's actors.
type Extension = Box<dyn FnOnce(&System) + Send>;

/// rustls asks for seconds where the node has a clock.
struct CertificateTime(Arc<dyn WallClock>);

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_micros(self.0.now_unix_micros())))
    }
}

impl fmt::Debug for CertificateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateTime")
    }
}

impl NodeBuilder {
    pub(crate) fn new(args: NodeArgs) -> Self {
        let mut types = Types::default();
        NodeActor::register(&mut types);
        LedgerActor::register(&mut types);
        NameKeeper::register(&mut types);
        GroupKeeper::register(&mut types);
        Supervisor::register(&mut types);
        NodeBuilder {
            args,
            types,
            env: None,
            sockets: Arc::new(SystemSockets::new()),
            membership: Settings::lan(),
            ledger: None,
            join_timeout: Duration::MAX,
            drain_timeout: DRAIN_TIMEOUT,
            version: PROTOCOL_VERSION,
            http: None,
            resources: None,
            purpose: Purpose::Member,
            extensions: Vec::new(),
        }
    }

    /// Registers an actor type: nodes may spawn it here by its name and send it the messages that
    /// `describe` names. A program registers the same types on all nodes.
    #[must_use]
    pub fn register<A: Actor>(
        mut self,
        describe: impl FnOnce(Registration<A>) -> Registration<A>,
    ) -> Self {
        self.types.register(describe);
        self
    }

    /// Registers what a library of actors brings: `f` gets the builder and gives it back.
    #[must_use]
    pub fn with(self, f: impl FnOnce(Self) -> Self) -> Self {
        f(self)
    }

    /// Lays something beside the node's actors before it meets other nodes, one value of each type;
    /// actors find it with [`System::extension`].
    #[must_use]
    pub fn extension<T: Send + Sync + 'static>(mut self, value: Arc<T>) -> Self {
        self.extensions.push(Box::new(move |system| system.extend(value)));
        self
    }

    /// Clock, randomness and spawner from outside; by default the system's.
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// Sockets from outside; by default the system's.
    #[must_use]
    pub fn sockets(mut self, sockets: Arc<dyn Sockets>) -> Self {
        self.sockets = sockets;
        self
    }

    /// How fast failures are noticed; the same on all nodes. Default: [`Settings::lan`]; the
    /// option `--network` comes first.
    #[must_use]
    pub fn membership(mut self, settings: Settings) -> Self {
        self.membership = settings;
        self
    }

    /// How the ledger works; the same on all nodes. Default: as the option `--network` says, else
    /// [`LedgerSettings::lan`].
    #[must_use]
    pub fn ledger(mut self, settings: LedgerSettings) -> Self {
        self.ledger = Some(settings);
        self
    }

    /// How long [`start`](Self::start) looks for a seed before it fails; the option `--join-timeout`
    /// comes first. Default: for ever, so that nodes may be started in any order; a node that waits
    /// says so as a warning in the log, after three seconds and then less and less often. A program
    /// that has something to ask should not wait so long.
    #[must_use]
    pub fn join_timeout(mut self, timeout: Duration) -> Self {
        self.join_timeout = timeout;
        self
    }

    /// How long this node, once it is asked to [drain](Node::drain), has for what it has in hand.
    /// Default: [`DRAIN_TIMEOUT`]; the option `--drain-timeout` comes first.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Where this node answers over HTTP, for others to know.
    #[must_use]
    pub fn http(mut self, addr: SocketAddr) -> Self {
        self.http = Some(addr);
        self
    }

    /// What actors may reserve on this node. Default: as the options say, else what the process may
    /// use of the machine.
    #[must_use]
    pub fn resources(mut self, resources: Resources) -> Self {
        self.resources = Some(resources);
        self
    }

    /// Speaks as another version of the protocol: for tests of what other versions are told.
    #[doc(hidden)]
    #[must_use]
    pub fn protocol_version(mut self, version: u16) -> Self {
        self.version = version;
        self
    }

    /// Starts the node; with seeds, waits until one has taken it into its cluster. A node that is one
    /// of its own seeds does not wait: all seeds may be started with the same list.
    ///
    /// # Errors
    /// What is wrong with the address, the port, the state directory or the seeds, each in one
    /// sentence that says what to do.
    pub async fn start(mut self) -> footlight_runtime::Result<Node> {
        let timeout = self.patience();
        self.join_timeout = timeout;
        let mut seeds = Seeds::new(&self.args.seeds, self.sockets.clone())?;
        seeds.look_up().await;
        let node = self.bring_up(None, &seeds.addrs()).await?;
        if let Err(error) = join(&node, seeds, timeout).await {
            node.halt().await;
            return Err(error.into());
        }
        Ok(node)
    }

    /// Connects with a running node only to ask it: the result is no member, hosts nothing for
    /// others and is not seen by them.
    ///
    /// # Errors
    /// As [`start`](Self::start); nobody is waited for longer than [`OBSERVE_TIMEOUT`], unless
    /// [`join_timeout`](Self::join_timeout) says otherwise.
    pub async fn observe(mut self, target: &str) -> footlight_runtime::Result<(Node, Observed)> {
        self.purpose = Purpose::Observer;
        self.args.listen = Some("127.0.0.1:0".to_owned());
        let timeout = match self.patience() {
            Duration::MAX => OBSERVE_TIMEOUT,
            told => told,
        };
        self.join_timeout = timeout;
        let deadline = deadline_after(timeout);
        let mut seeds = Seeds::new(&[target.to_owned()], self.sockets.clone())?;
        seeds.look_up().await;
        if seeds.addrs().iter().any(|addr| !addr.ip().is_loopback()) {
            // A loopback socket reaches nobody else; this one takes no connections that matter.
            self.args.listen = Some("0.0.0.0:0".to_owned());
        }
        let (sockets, version) = (self.sockets.clone(), self.version);
        let node = self.bring_up(Some(target.to_owned()), &BTreeSet::new()).await?;
        let reached = seeds.reach(node.network().clone(), timeout, deadline);
        match node.control().spawn(reached).await {
            Ok(Ok(session)) => {
                let (tls, control) = (node.network().keyring.tls().clone(), node.control().clone());
                let asker = Asker { sockets, tls, version, control };
                enroll::upkeep::renew_if_due(node.network(), &asker, session.peer.addr).await;
                Ok((node, Observed(session)))
            }
            Ok(Err(error)) => {
                node.halt().await;
                Err(error.into())
            }
            Err(_) => Err(footlight_runtime::Error::other("the node ended meanwhile")),
        }
    }

    /// How long a seed is looked for: what the options say, else what the program says.
    fn patience(&self) -> Duration {
        self.args.join_timeout.map_or(self.join_timeout, Duration::from_secs_f64)
    }

    /// Starts all that a node has; `target` is whom one that only asks is going to ask, `seeds` are
    /// the addresses of its seeds, as far as they are known.
    async fn bring_up(
        self,
        target: Option<String>,
        seeds: &BTreeSet<SocketAddr>,
    ) -> footlight_runtime::Result<Node> {
        let env = match self.env {
            Some(env) => env,
            None => Env::system().map_err(footlight_runtime::Error::other)?,
        };
        let listen = listen_addr(&self.args, self.purpose, &*self.sockets).await?;
        let resources = resources(&self.args, self.purpose, self.resources).await?;
        let tls = tls::TlsSettings {
            alpn: b"footlight".to_vec(),
            provider: Arc::new(tls::crypto_provider()),
            clock: Arc::new(CertificateTime(env.wall_clock.clone())),
            revoked: Arc::default(),
        };
        let token = self.args.token.as_ref().map(TokenSource::read).transpose();
        let entry = Entry {
            listen,
            state: self.args.state.clone(),
            token: token.map_err(TrustError::from).map_err(ClusterError::from)?,
            seeds: target.map_or_else(|| self.args.seeds.clone(), |target| vec![target]),
            purpose: self.purpose,
            patience: self.join_timeout,
            life: self.args.certificate_life.unwrap_or(CERTIFICATE_LIFE),
            words: self.args.roles.clone(),
        };
        let control = ControlThread::start("footlight-control")?;
        let entered =
            entry.enter(&env, tls.clone(), self.sockets.clone(), self.version, control.handle());
        let Entered { identity, keyring, ledger_dir } = entered.await?;
        let (credentials, keyring) = (keyring.shown(), Arc::new(keyring));

        let bulk_connections = self.args.bulk_connections();
        let bulk_thread = ControlThread::start_many("footlight-bulk", bulk_connections)?;
        let bind = |listen: SocketAddr, purpose: Carries, driver: &Handle, name: &str| {
            let runtime = Arc::new(NodeRuntime::new(driver.clone()));
            let settings = EndpointSettings {
                listen,
                purpose,
                congestion: self.args.congestion.unwrap_or_default(),
                seed: env.seeds.bytes(name),
                credentials: &credentials,
                tls: tls.clone(),
            };
            Endpoint::bind(settings, &*self.sockets, runtime)
                .map_err(|error| ClusterError::Socket(error.to_string()))
        };
        let endpoint = bind(listen, Carries::Control, control.handle(), "control endpoint")?;
        let beside = SocketAddr::new(listen.ip(), 0);
        let actors = env.spawner.handle();
        let messages = bind(beside, Carries::Messages, actors, "message endpoint")?;
        let bulk = bind(beside, Carries::Bulk, bulk_thread.handle(), "bulk endpoint")?;

        let (id, incarnation) = (identity.id, identity.incarnation);
        let system = System::start(id, incarnation, self.types, env.clone()).await?;
        for extend in self.extensions {
            extend(&system);
        }
        let addr = endpoint.local_addr();
        // Nobody dials one who only asks.
        if addr.ip().is_unspecified() && self.purpose == Purpose::Member {
            tracing::warn!(%addr, "listening on a wildcard address: name one that others can dial");
        }
        let record = Record {
            node: id,
            incarnation,
            version: 1,
            addr,
            message_addr: messages.local_addr(),
            bulk_addr: bulk.local_addr(),
            http: self.http,
            roles: self.args.roles.clone(),
            labels: self.args.labels(),
            actors: system.catalog().actors.keys().cloned().collect(),
            free: resources.clone(),
            resources,
            load: Load::default(),
            leaving: false,
            unreachable: Vec::new(),
            groups: BTreeMap::new(),
            ledger: None,
        };
        record.check().map_err(footlight_runtime::Error::other)?;
        let preset = self.args.network;
        let settings = preset.map_or(self.membership, Preset::membership);
        let ledger_settings =
            self.ledger.unwrap_or_else(|| preset.map_or_else(LedgerSettings::lan, Preset::ledger));
        let (membership, inputs) = mpsc::unbounded_channel();
        let network = Network::new(
            system.clone(),
            record,
            self.version,
            self.purpose,
            endpoint,
            messages,
            bulk,
            identity,
            keyring,
            control.handle().clone(),
            bulk_thread.handle().clone(),
            membership,
            settings.silence(),
            bulk_connections,
            self.args.same_host.unwrap_or_default(),
        );
        system.connect(network.clone());
        if self.purpose == Purpose::Member {
            let me = MemberId::new(id, incarnation, addr);
            let swim = Swim::new(me, settings, &mut env.seeds.stream("membership"))
                .map_err(footlight_runtime::Error::other)?;
            control.handle().spawn(membership_task::run(Arc::downgrade(&network), swim, inputs));
            control.handle().spawn(records::run(Arc::downgrade(&network)));
            control.handle().spawn(load::run(Arc::downgrade(&network)));
        }
        if self.purpose == Purpose::Member {
            control.handle().spawn(accept::accept(network.clone()));
        } else {
            control.handle().spawn(accept::refuse_all(network.clone()));
        }
        control.handle().spawn(accept::accept_messages(network.clone()));
        bulk_thread.handle().spawn(accept::accept_bulk(network.clone()));
        control.handle().spawn(past::run(Arc::downgrade(&network)));
        let ledger = Client::new(&network, ledger_settings.lease);
        // A seed among seeds need not wait for the others: whoever is first is the cluster.
        let is_own_seed = seeds.contains(&addr);
        let mut seat = None;
        if self.purpose == Purpose::Member {
            let first = self.args.seeds.is_empty();
            let place = Seat::new(&network, ledger.clone(), ledger_dir, ledger_settings, first);
            place.clone().begin(&system).await?;
            seat = Some(place);
            Names::begin(&network, ledger.clone()).await?;
        }
        let asker = Asker {
            sockets: self.sockets,
            tls,
            version: self.version,
            control: control.handle().clone(),
        };
        let given = self.args.drain_timeout.map(Duration::from_secs_f64);
        let drain_timeout = given.unwrap_or(self.drain_timeout);
        let threads = [control, bulk_thread];
        let node = Node::assemble(system, network, ledger, seat, threads, drain_timeout);
        if self.purpose == Purpose::Member {
            enroll::upkeep::begin(&node, asker);
            node.system().spawn_well_known::<GroupKeeper>(groups::KEEPER, ()).await?;
        }
        if is_own_seed || self.args.seeds.is_empty() {
            node.set_seed(node.id());
        }
        if is_own_seed && let Some(seat) = node.seat() {
            seat.is_one_of_the_first();
        }
        node.system().spawn_well_known::<NodeActor>(NODE_ACTOR, ()).await?;
        Ok(node)
    }
}

/// A node that is observed, not joined.
#[derive(Clone, Debug)]
pub struct Observed(Arc<Session>);

impl Observed {
    /// The actor of the observed node that answers questions, as seen from the node that observes.
    pub fn actor(&self, observer: &Node) -> ActorRef<NodeActor> {
        NodeActor::of(self.0.peer.node, self.0.peer.incarnation, observer.system())
    }

    /// Which node it is.
    pub fn node(&self) -> NodeId {
        self.0.peer.node
    }

    /// Waits until the node says that it has ended.
    ///
    /// # Errors
    /// If the connection ended otherwise, and why: what has become of the node is not known then.
    pub async fn gone(&self) -> Result<(), String> {
        self.0.ended().await;
        match self.0.end() {
            Some(why) if !why.contains(HAS_ENDED) => Err(why),
            _ => Ok(()),
        }
    }
}

/// What actors may reserve here. One who only asks hosts nothing.
async fn resources(
    args: &NodeArgs,
    purpose: Purpose,
    given: Option<Resources>,
) -> footlight_runtime::Result<Resources> {
    match (purpose, given) {
        (Purpose::Observer, _) => Ok(Resources::default()),
        (Purpose::Member, Some(given)) => Ok(given),
        (Purpose::Member, None) => {
            let told = args.told();
            let looked = tokio::task::spawn_blocking(move || detect(told)).await;
            looked.map_err(|error| footlight_runtime::Error::other(error.to_string()))
        }
    }
}

async fn listen_addr(
    args: &NodeArgs,
    purpose: Purpose,
    sockets: &dyn Sockets,
) -> Result<SocketAddr, ClusterError> {
    let port = if args.seeds.is_empty() && purpose == Purpose::Member { DEFAULT_PORT } else { 0 };
    let Some(listen) = &args.listen else { return Ok(SocketAddr::from(([127, 0, 0, 1], port))) };
    let wrong = |why: String| ClusterError::Address { given: listen.clone(), why };
    let found = sockets.look_up(listen).await.map_err(|error| wrong(error.to_string()))?;
    found.first().copied().ok_or_else(|| wrong("the name has no address".to_owned()))
}

/// Calls the seeds from now on, and waits until one of them has taken this node into its cluster.
async fn join(node: &Node, seeds: Seeds, timeout: Duration) -> Result<(), ClusterError> {
    let deadline = deadline_after(timeout);
    let network = node.network();
    let (progress, mut watched) = watch::channel(Progress::default());
    if !seeds.is_empty() {
        node.control().spawn(seeds::keep(Arc::downgrade(network), seeds, progress));
    }
    if node.is_seed() {
        return Ok(());
    }
    let mut changes = network.view.changes();
    while !network.view.others().iter().any(|member| member.is_up()) {
        let changed = async {
            tokio::select! {
                biased;
                changed = changes.changed() => changed,
                changed = watched.changed() => changed,
            }
        };
        let changed = tokio::time::timeout_at(deadline, changed).await;
        let Progress { troubles, through, thrown_out } = watched.borrow().clone();
        if let Some(why) = thrown_out {
            return Err(ClusterError::ThrownOut(why));
        }
        if !matches!(changed, Ok(Ok(()))) {
            let seeds = match through {
                Some(node) => format!("node {node} took the connection but not this node"),
                None => troubles,
            };
            return Err(ClusterError::NoSeed { waited: timeout, seeds });
        }
    }
    if let Some(through) = watched.borrow().through {
        node.set_seed(through);
    }
    Ok(())
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("args", &self.args).field("types", &self.types).finish()
    }
}
