//! The work with this project.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use footlight::{
    cluster::{SameHost, trust::StateDir},
    prelude::*,
    runtime::tensor::WireFormat,
};
use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    Outcome, Work, measure,
    raw::{CALLS, PUTS, RATE_FOR, WARM_CALLS, WARM_PUTS},
    ready,
    step::{self, Begin, Worker},
    until_stdin_ends,
};

/// Gives back what it gets.
#[derive(Serialize, Deserialize)]
pub struct Echo {
    /// What comes back.
    pub bytes: Bytes,
}
impl Message for Echo {
    type Reply = Bytes;
    const NAME: &'static str = "bench.echo";
}

/// A message without an answer.
#[derive(Serialize, Deserialize)]
pub struct Tick {
    /// Whatever; it is counted if there is anything.
    pub bytes: Bytes,
}
impl Message for Tick {
    type Reply = ();
    const NAME: &'static str = "bench.tick";
}

/// How many ticks have come.
#[derive(Serialize, Deserialize)]
pub struct Ticks;
impl Message for Ticks {
    type Reply = u64;
    const NAME: &'static str = "bench.ticks";
}

/// A tensor; the answer says how many bytes came.
#[derive(Serialize, Deserialize)]
pub struct Put {
    /// The tensor.
    pub tensor: HostTensor,
}
impl Message for Put {
    type Reply = u64;
    const NAME: &'static str = "bench.put";
}

/// The most memory that the process has had, in KiB.
#[derive(Serialize, Deserialize)]
struct Peak;
impl Message for Peak {
    type Reply = std::result::Result<f64, String>;
    const NAME: &'static str = "bench.peak";
}

impl Handler<Peak> for Echoes {
    async fn handle(&mut self, _: Peak, _: &Context<Self>) -> std::result::Result<f64, String> {
        peak_rss().map_err(|error| error.to_string())
    }
}

/// Answers all of these messages.
pub struct Echoes {
    ticks: u64,
}

impl Actor for Echoes {
    type Args = ();
    const NAME: &'static str = "bench.echoes";
    async fn start((): (), _: &Context<Self>) -> Result<Self> {
        Ok(Echoes { ticks: 0 })
    }
}

impl Handler<Echo> for Echoes {
    async fn handle(&mut self, echo: Echo, _: &Context<Self>) -> Bytes {
        echo.bytes
    }
}

impl Handler<Tick> for Echoes {
    async fn handle(&mut self, tick: Tick, _: &Context<Self>) {
        self.ticks += u64::from(!tick.bytes.is_empty());
    }
}

impl Handler<Ticks> for Echoes {
    async fn handle(&mut self, _: Ticks, _: &Context<Self>) -> u64 {
        self.ticks
    }
}

impl Handler<Put> for Echoes {
    async fn handle(&mut self, put: Put, _: &Context<Self>) -> u64 {
        put.tensor.bytes().len() as u64
    }
}

fn builder(args: NodeArgs) -> NodeBuilder {
    let builder = footlight::actors::stagehands(Node::builder(args));
    let builder = builder.register::<Worker>(|worker| worker.handles::<Begin>());
    builder.register::<Echoes>(|actor| {
        actor
            .handles::<Echo>()
            .handles::<Tick>()
            .handles::<Ticks>()
            .handles::<Put>()
            .handles::<Peak>()
    })
}

/// A node on loopback, alone.
///
/// # Errors
/// If it does not start.
pub async fn alone(state: &tempfile::TempDir) -> anyhow::Result<Node> {
    first_node(([127, 0, 0, 1], 0).into(), state).await
}

/// The first node of a cluster.
async fn first_node(addr: SocketAddr, state: &tempfile::TempDir) -> anyhow::Result<Node> {
    let args = NodeArgs {
        listen: Some(addr.to_string()),
        state: Some(state.path().to_owned()),
        ..NodeArgs::default()
    };
    Ok(builder(args).start().await?)
}

/// Both sides find the keys here.
fn state_dir(addr: SocketAddr) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("footlight-bench-{}", addr.port()))
}

/// One side's part of a work.
///
/// # Errors
/// What went wrong with it.
pub fn run(work: Work, rank: u8, addr: SocketAddr) -> anyhow::Result<Outcome> {
    // As many threads as each process has cores: two share two.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let state = Some(state_dir(addr));
        if rank == 0 {
            // Off loopback, an authority that was there before.
            StateDir::create(state.as_deref())?;
            let (listen, same_host) = (Some(addr.to_string()), Some(same_host(work)));
            let args = NodeArgs { listen, state, same_host, ..NodeArgs::default() };
            let node = builder(args).start().await?;
            ready();
            until_stdin_ends().await;
            node.leave().await?;
            let _ = std::fs::remove_dir_all(state_dir(addr));
            return Ok(Outcome::Served);
        }
        let node = join(addr, same_host(work)).await?;
        let step = match work {
            Work::ParameterStepF32
            | Work::ParameterStepReplicated
            | Work::ParameterStepSameHost => Some(WireFormat::F32),
            Work::ParameterStepBf16 => Some(WireFormat::Bf16),
            _ => None,
        };
        if let Some(format) = step {
            let there = node.spawn::<Worker>(()).on(Placement::seed()).await?;
            let median =
                step::measure(&node, &there, format, work == Work::ParameterStepReplicated).await?;
            node.leave().await?;
            return Ok(Outcome::Value(median));
        }
        let echo = node.spawn::<Echoes>(()).on(Placement::seed()).await?;
        let other = node.spawn::<Echoes>(()).on(Placement::seed()).await?;
        // The first call makes the connection; and a task of the runtime calls, as in earnest.
        let measured = tokio::spawn(async move {
            match work {
                Work::CallRtt => round_trips(&echo).await.map(Some),
                Work::CallsPerSecond => pipelined(&echo).await.map(Some),
                Work::CastsPerSecond => casts(&echo).await.map(Some),
                Work::TensorPut100mib | Work::TensorPutSameHost => puts(&echo).await.map(Some),
                Work::CallBehindBulkP99 => behind_bulk(&echo, &other).await.map(Some),
                Work::PeakMemory256mib => peak_memory(&echo).await.map(Some),
                _ => Ok(None),
            }
        });
        let measured = measured.await.context("the measurement panicked")??;
        node.leave().await?;
        Ok(measured.map_or(Outcome::Cannot, Outcome::Value))
    })
}

/// Both sides are on one host, and most works are to tell how fast the network is.
fn same_host(work: Work) -> SameHost {
    match work {
        Work::ParameterStepSameHost | Work::TensorPutSameHost => SameHost::Memory,
        _ => SameHost::Network,
    }
}

/// A node that joins the one at `addr`, which has found its keys where this one looks for them.
pub(crate) async fn join(addr: SocketAddr, same_host: SameHost) -> anyhow::Result<Node> {
    // The address that this host has on the way to the other.
    let way = std::net::UdpSocket::bind("0.0.0.0:0")?;
    way.connect(addr)?;
    let args = NodeArgs {
        listen: Some(SocketAddr::new(way.local_addr()?.ip(), 0).to_string()),
        seeds: vec![addr.to_string()],
        state: Some(state_dir(addr)),
        same_host: Some(same_host),
        ..NodeArgs::default()
    };
    Ok(builder(args).start().await?)
}

async fn round_trips(echo: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let mut samples = Vec::new();
    for round in 0..WARM_CALLS + CALLS {
        let (echoed, took) =
            measure::timed(echo.call(Echo { bytes: Bytes::from_static(&[7; 64]) })).await;
        echoed?;
        if round >= WARM_CALLS {
            samples.push(took);
        }
    }
    Ok(measure::us(measure::percentile(&mut samples, 0.5)))
}

const IN_FLIGHT: usize = 256;

async fn pipelined(echo: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let call = || echo.call(Echo { bytes: Bytes::from_static(&[7; 64]) });
    let mut calls: FuturesUnordered<_> = (0..IN_FLIGHT).map(|_| call()).collect();
    let (warm_up, mut begun) = (Instant::now(), None);
    let mut answered = 0u64;
    loop {
        calls.next().await.context("no call is under way")??;
        calls.push(call());
        answered += 1;
        // The clock is looked at now and then only.
        if answered.is_multiple_of(1024) {
            match begun {
                None if warm_up.elapsed() > RATE_FOR / 5 => {
                    begun = Some(Instant::now());
                    answered = 0;
                }
                Some(since) if since.elapsed() > RATE_FOR => {
                    return Ok(answered as f64 / since.elapsed().as_secs_f64());
                }
                _ => {}
            }
        }
    }
}

async fn casts(echo: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let (echo, feeding) = (echo.clone(), echo.clone());
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let feed = tokio::spawn(async move {
        loop {
            if feeding.cast(Tick { bytes: Bytes::from_static(&[3; 100]) }).await.is_err() {
                return;
            }
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::time::sleep(RATE_FOR / 5).await;
    let before = echo.call(Ticks).await?;
    let began = Instant::now();
    tokio::time::sleep(RATE_FOR).await;
    // What has arrived, not what was sent.
    let after = echo.call(Ticks).await?;
    let rate = (after - before) as f64 / began.elapsed().as_secs_f64();
    feed.abort();
    Ok(rate)
}

/// So many MiB of f32.
pub(crate) fn tensor(mib: usize) -> HostTensor {
    HostTensor::from_vec(vec![1.0f32; mib << 18], &[mib << 18]).expect("the shape fits")
}

async fn puts(echo: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let tensor = tensor(100);
    let mut samples = Vec::new();
    for round in 0..WARM_PUTS + PUTS {
        let put = Put { tensor: tensor.clone() };
        let (bytes, took) = measure::timed(echo.call(put)).await;
        anyhow::ensure!(bytes? == 100 << 20, "the tensor came in part");
        if round >= WARM_PUTS {
            samples.push(took);
        }
    }
    let median = measure::percentile(&mut samples, 0.5);
    Ok((100u64 << 20) as f64 / median.as_secs_f64() / 1e9)
}

/// How large a tensor is that calls are made behind, in MiB.
pub(crate) const BEHIND_MIB: usize = 256;
/// How many of them go while calls count.
pub(crate) const TRANSFERS: usize = 8;

/// The 99th percentile of calls to another actor while such tensors go to one, in ms.
async fn behind_bulk(echo: &ActorRef<Echoes>, other: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let tensor = tensor(BEHIND_MIB);
    other.call(Put { tensor: tensor.clone() }).await?;
    let transfers = other.clone();
    let bulk = tokio::spawn(async move {
        for _ in 0..TRANSFERS {
            transfers.call(Put { tensor: tensor.clone() }).await?;
        }
        Ok::<_, CallError>(())
    });
    let mut samples = Vec::new();
    while !bulk.is_finished() {
        let (echoed, took) =
            measure::timed(echo.call(Echo { bytes: Bytes::from_static(&[7; 64]) })).await;
        echoed?;
        samples.push(took);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bulk.await??;
    Ok(measure::us(measure::percentile(&mut samples, 0.99)) / 1e3)
}

/// By how much a process's peak grows while 256 MiB that the sender has already go to the other: the
/// greater of the two.
async fn peak_memory(echo: &ActorRef<Echoes>) -> anyhow::Result<f64> {
    let (small, tensor) = (tensor(1), tensor(256));
    // The connections that tensors go over are there, as in every other work.
    echo.call(Put { tensor: small }).await?;
    let there = echo.call(Peak).await?.map_err(anyhow::Error::msg)?;
    let here = peak_rss()?;
    echo.call(Put { tensor }).await?;
    let there = echo.call(Peak).await?.map_err(anyhow::Error::msg)? - there;
    let here = peak_rss()? - here;
    Ok(there.max(here) / 1024.0)
}

/// The most that this process has had in memory, in KiB.
fn peak_rss() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib = line.split_whitespace().nth(1).context("no figure behind VmHWM")?;
    Ok(kib.parse()?)
}
