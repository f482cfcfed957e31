//! From options to a running node.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use footlight_runtime::{
    Actor, System,
    env::{Env, WallClock, deadline_after},
    registry::{Registration, Types},
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    ClusterError, Node, NodeArgs,
    args::DEFAULT_PORT,
    control::ControlThread,
    membership::{MemberId, Settings, Swim},
    network::{
        Network, dial,
        membership_task::{self, Input},
    },
    node_actor::{NODE_ACTOR, NodeActor},
    transport::{
        endpoint::{Endpoint, EndpointSettings, Purpose as Carries},
        handshake::{NodeRecord, PROTOCOL_VERSION, Purpose},
        socket::{NodeRuntime, Sockets, SystemSockets},
    },
    trust::{NodeIdentity, Role, StateDir, tls},
};

/// How long a node looks for a seed before it gives up.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Makes a [`Node`]: what it hosts, where it listens, whom it joins.
pub struct NodeBuilder {
    args: NodeArgs,
    types: Types,
    env: Option<Env>,
    sockets: Arc<dyn Sockets>,
    membership: Settings,
    join_timeout: Duration,
    version: u16,
    http: Option<SocketAddr>,
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
        NodeBuilder {
            args,
            types,
            env: None,
            sockets: Arc::new(SystemSockets::new()),
            membership: Settings::lan(),
            join_timeout: JOIN_TIMEOUT,
            version: PROTOCOL_VERSION,
            http: None,
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

    /// How fast failures are noticed; the same on all nodes. Default: [`Settings::lan`].
    #[must_use]
    pub fn membership(mut self, settings: Settings) -> Self {
        self.membership = settings;
        self
    }

    /// How long to look for a seed. Default: [`JOIN_TIMEOUT`].
    #[must_use]
    pub fn join_timeout(mut self, timeout: Duration) -> Self {
        self.join_timeout = timeout;
        self
    }

    /// Where this node answers over HTTP, for others to know.
    #[must_use]
    pub fn http(mut self, addr: SocketAddr) -> Self {
        self.http = Some(addr);
        self
    }

    /// Speaks as another version of the protocol: for tests of what other versions are told.
    #[doc(hidden)]
    #[must_use]
    pub fn protocol_version(mut self, version: u16) -> Self {
        self.version = version;
        self
    }

    /// Starts the node; with seeds, waits until one has taken it into its cluster.
    ///
    /// # Errors
    /// What is wrong with the address, the port, the state directory or the seeds, each in one
    /// sentence that says what to do.
    pub async fn start(self) -> footlight_runtime::Result<Node> {
        let join_timeout = self.join_timeout;
        let seeds = self.args.seeds.clone();
        let node = self.bring_up().await?;
        if let Err(error) = join(&node, &seeds, join_timeout).await {
            node.halt().await;
            return Err(error.into());
        }
        Ok(node)
    }

    /// Connects with a running node only to ask it: the result is no member, hosts nothing for
    /// others and is not seen by them.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn observe(mut self, target: &str) -> footlight_runtime::Result<(Node, Observed)> {
        self.purpose = Purpose::Observer;
        self.args.listen = Some("127.0.0.1:0".to_owned());
        let timeout = self.join_timeout;
        let addrs = resolve(target).await?;
        if addrs.iter().any(|addr| !addr.ip().is_loopback()) {
            // A loopback socket reaches nobody else; this one takes no connections that matter.
            self.args.listen = Some("0.0.0.0:0".to_owned());
        }
        let node = self.bring_up().await?;
        match reach(&node, &[target.to_owned()], timeout).await {
            Ok(record) => Ok((node, Observed(record))),
            Err(error) => {
                node.halt().await;
                Err(match error {
                    ClusterError::NoSeed { waited, seeds } => {
                        ClusterError::NoAnswer { waited, node: seeds }
                    }
                    other => other,
                }
                .into())
            }
        }
    }

    async fn bring_up(self) -> footlight_runtime::Result<Node> {
        let env = match self.env {
            Some(env) => env,
            None => Env::system().map_err(footlight_runtime::Error::other)?,
        };
        let listen = listen_addr(&self.args, self.purpose).await?;
        let clock = Arc::new(CertificateTime(env.wall_clock.clone()));
        let now_micros = env.wall_clock.now_unix_micros();
        let state = self.args.state.clone();
        let (purpose, mut rng) = (self.purpose, env.seeds.stream("node id"));
        let opened = tokio::task::spawn_blocking({
            let clock = clock.clone();
            move || -> Result<_, ClusterError> {
                let state = StateDir::open(state.as_deref(), &*clock)?;
                if purpose == Purpose::Member {
                    state.allows_bind(&listen)?;
                }
                let identity = NodeIdentity::claim(&state, listen, now_micros, &mut rng)?;
                let now = UnixTime::since_unix_epoch(Duration::from_micros(now_micros));
                let credentials = state.authority().issue(identity.id, Role::Node, now)?;
                Ok((identity, credentials))
            }
        });
        let (identity, credentials) =
            opened.await.map_err(|error| footlight_runtime::Error::other(error.to_string()))??;

        let control = ControlThread::start("footlight-control")?;
        let bulk_thread = ControlThread::start("footlight-bulk")?;
        let bind = |listen: SocketAddr, purpose: Carries, thread: &ControlThread, name: &str| {
            let runtime = Arc::new(NodeRuntime::new(thread.handle().clone()));
            let settings = EndpointSettings {
                listen,
                purpose,
                seed: env.seeds.bytes(name),
                credentials: &credentials,
                tls: tls::TlsSettings {
                    alpn: b"footlight".to_vec(),
                    provider: Arc::new(tls::crypto_provider()),
                    clock: clock.clone(),
                },
            };
            Endpoint::bind(settings, &*self.sockets, runtime)
                .map_err(|error| ClusterError::Socket(error.to_string()))
        };
        let endpoint = bind(listen, Carries::Control, &control, "control endpoint")?;
        let bulk = SocketAddr::new(listen.ip(), 0);
        let bulk = bind(bulk, Carries::Bulk, &bulk_thread, "bulk endpoint")?;

        let (id, incarnation) = (identity.id, identity.incarnation);
        let system = System::start(id, incarnation, self.types, env.clone()).await?;
        for extend in self.extensions {
            extend(&system);
        }
        let addr = advertised(endpoint.local_addr());
        let record = NodeRecord {
            node: id,
            incarnation,
            addr,
            bulk_addr: advertised(bulk.local_addr()),
            roles: self.args.roles.clone(),
            labels: self.args.labels(),
            http: self.http,
            catalog: system.catalog().clone(),
        };
        let (membership, inputs) = mpsc::unbounded_channel();
        let network = Network::new(
            system.clone(),
            record,
            self.version,
            self.purpose,
            endpoint,
            bulk,
            identity,
            control.handle().clone(),
            bulk_thread.handle().clone(),
            membership,
        );
        system.connect(network.clone());
        if self.purpose == Purpose::Member {
            let me = MemberId::new(id, incarnation, addr);
            let swim = Swim::new(me, self.membership, &mut env.seeds.stream("membership"))
                .map_err(footlight_runtime::Error::other)?;
            control.handle().spawn(membership_task::run(Arc::downgrade(&network), swim, inputs));
        }
        if self.purpose == Purpose::Member {
            control.handle().spawn(dial::accept(network.clone()));
        } else {
            control.handle().spawn(dial::refuse_all(network.clone()));
        }
        bulk_thread.handle().spawn(dial::accept_bulk(network.clone()));
        let threads = [control, bulk_thread];
        let node = Node::assemble(system, network, threads, self.args.seeds.is_empty());
        node.system().spawn_well_known::<NodeActor>(NODE_ACTOR, ()).await?;
        Ok(node)
    }
}

/// A node that is observed, not joined.
#[derive(Clone, Debug)]
pub struct Observed(pub(crate) NodeRecord);

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ClusterError> {
    let wrong = |why: String| ClusterError::Address { given: address.to_owned(), why };
    let found = tokio::net::lookup_host(address).await.map_err(|error| wrong(error.to_string()))?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() { Err(wrong("the name has no address".to_owned())) } else { Ok(found) }
}

async fn listen_addr(args: &NodeArgs, purpose: Purpose) -> Result<SocketAddr, ClusterError> {
    let port = if args.seeds.is_empty() && purpose == Purpose::Member { DEFAULT_PORT } else { 0 };
    match &args.listen {
        Some(listen) => resolve(listen).await?.first().copied().ok_or(ClusterError::Address {
            given: listen.clone(),
            why: "the name has no address".to_owned(),
        }),
        None => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
    }
}

/// The address that others are told. A wildcard is no address to dial: this machine's name must
/// stand in the options then.
fn advertised(local: SocketAddr) -> SocketAddr {
    if local.ip().is_unspecified() {
        tracing::warn!(%local, "listening on a wildcard address: name one that others can dial");
    }
    local
}

/// Joins the cluster of any of the seeds.
async fn join(node: &Node, seeds: &[String], timeout: Duration) -> Result<(), ClusterError> {
    if seeds.is_empty() {
        return Ok(());
    }
    let deadline = deadline_after(timeout);
    let record = reach(node, seeds, timeout).await?;
    let member = MemberId::new(record.node, record.incarnation, record.addr);
    let _ = node.network().membership.send(Input::Join(member));
    node.set_seed(record.node);
    let mut changes = node.network().view.changes();
    while !node.network().view.others().iter().any(|member| member.is_up()) {
        if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            let seeds = format!("{} took the connection but not this node", record.addr);
            return Err(ClusterError::NoSeed { waited: timeout, seeds });
        }
    }
    Ok(())
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

/// Connects with the first of the seeds that answers, trying all again and again.
async fn reach(
    node: &Node,
    seeds: &[String],
    timeout: Duration,
) -> Result<NodeRecord, ClusterError> {
    let deadline = deadline_after(timeout);
    let mut troubles = vec![String::new(); seeds.len()];
    let mut retry = FIRST_RETRY;
    let mut told = false;
    loop {
        for (seed, trouble) in seeds.iter().zip(&mut troubles) {
            let addrs = match resolve(seed).await {
                Ok(addrs) => addrs,
                // What is no address will not become one; a name may be found later.
                Err(error) if !has_port(seed) => return Err(error),
                Err(error) => {
                    *trouble = error.to_string();
                    continue;
                }
            };
            for addr in addrs {
                let network = node.network().clone();
                let dialed =
                    node.control().spawn(async move { dial::dial(&network, addr, None).await });
                let dialed = tokio::time::timeout_at(deadline, dialed).await;
                *trouble = match dialed {
                    Ok(Ok(Ok(session))) => return Ok(session.peer.clone()),
                    Ok(Ok(Err(error))) => error.to_string(),
                    Ok(Err(_)) | Err(_) => format!("{addr}: nobody answers"),
                };
            }
        }
        if Instant::now() + retry >= deadline {
            let seeds = troubles.join("; ");
            return Err(ClusterError::NoSeed { waited: timeout, seeds });
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(seeds = troubles.join("; "), "no seed answers yet; trying again");
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("args", &self.args).field("types", &self.types).finish()
    }
}
