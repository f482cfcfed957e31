//! The floor of a small call behind a large transfer: a call on one bare connection while tensors go over another, which
//! has a thread of its own on each side, as a node's have.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use footlight_cluster::transport::endpoint::Purpose;

use crate::{
    footlight_side::{BEHIND_MIB, TRANSFERS},
    measure,
    raw::{connect, echo, endpoint, put, take_tensors},
    ready, until_stdin_ends,
};

/// Rank 0: echoes on one connection and takes tensors on another.
pub(crate) async fn serve(addr: SocketAddr) -> anyhow::Result<()> {
    let calls = endpoint(addr, Purpose::Control)?;
    let (tell, told) = tokio::sync::oneshot::channel();
    // Ends with the process.
    let _tensors = on_a_thread(async move {
        let tensors = endpoint(SocketAddr::new(addr.ip(), 0), Purpose::Bulk)?;
        let _ = tell.send(tensors.local_addr()?.port());
        // One after the other: each measurement has a connection of its own.
        while let Some(incoming) = tensors.accept().await {
            take_tensors(&incoming.await?).await?;
        }
        Ok(())
    })?;
    let port = told.await.context("there is no endpoint for tensors")?;
    ready();
    let serve = async {
        let connection = calls.accept().await.context("the endpoint has closed")?.await?;
        let mut tell = connection.open_uni().await?;
        tell.write_all(&port.to_le_bytes()).await?;
        tell.finish()?;
        echo(&connection).await
    };
    tokio::select! {
        served = serve => served?,
        () = until_stdin_ends() => return Ok(()),
    }
    until_stdin_ends().await;
    Ok(())
}

/// Rank 1: the p99 of a call, in ms.
pub(crate) async fn measure(addr: SocketAddr) -> anyhow::Result<f64> {
    let client = Client::connect(addr).await?;
    let mut transfers = client.transfers(Some(TRANSFERS)).await?;
    let mut calls = client.calls().await?;
    let mut samples = Vec::new();
    while !transfers.are_over() {
        samples.push(calls.call().await?);
    }
    transfers.end()?;
    Ok(measure::us(measure::percentile(&mut samples, 0.99)) / 1e3)
}

/// This side of the two connections.
#[derive(Debug)]
pub struct Client {
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    /// Where tensors go.
    tensors: SocketAddr,
}

impl Client {
    /// Connects with the other side at `addr`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let (endpoint, connection) = connect(addr, Purpose::Control).await?;
        let mut port = [0; 2];
        connection.accept_uni().await?.read_exact(&mut port).await?;
        let tensors = SocketAddr::new(addr.ip(), u16::from_le_bytes(port));
        Ok(Client { _endpoint: endpoint, connection, tensors })
    }

    /// So many calls behind tensors: the time that the calls took.
    ///
    /// # Errors
    /// If a connection ends.
    pub async fn calls_behind(&self, count: u64) -> anyhow::Result<Duration> {
        let mut transfers = self.transfers(None).await?;
        let mut calls = self.calls().await?;
        let mut took = Duration::ZERO;
        for _ in 0..count {
            took += calls.call().await?;
        }
        transfers.end()?;
        Ok(took)
    }

    async fn calls(&self) -> anyhow::Result<Calls> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok(Calls { send, recv })
    }

    /// Begins to put tensors, so many or until told to end; the first one, which is not counted, is there.
    async fn transfers(&self, most: Option<usize>) -> anyhow::Result<Transfers> {
        let there = self.tensors;
        let (warm, is_warm) = tokio::sync::oneshot::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let is_ending = ends.clone();
        let thread = on_a_thread(async move {
            let (endpoint, tensors) = connect(there, Purpose::Bulk).await?;
            let tensor = Bytes::from(vec![5; BEHIND_MIB << 20]);
            put(&tensors, tensor.clone()).await?;
            let _ = warm.send(());
            let mut left = most.unwrap_or(usize::MAX);
            while left > 0 && !is_ending.load(Ordering::Acquire) {
                put(&tensors, tensor.clone()).await?;
                left -= 1;
            }
            // The other side frees its memory, and takes the next one's.
            tensors.close(0u32.into(), b"done");
            endpoint.wait_idle().await;
            Ok(())
        })?;
        is_warm.await.context("the first tensor did not arrive")?;
        Ok(Transfers { thread: Some(thread), ends })
    }
}

struct Calls {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl Calls {
    /// A call, after a pause as between calls in earnest; how long it took.
    async fn call(&mut self) -> anyhow::Result<Duration> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut message = [7; 64];
        let began = Instant::now();
        self.send.write_all(&message).await?;
        self.recv.read_exact(&mut message).await?;
        Ok(began.elapsed())
    }
}

/// Tensors on their way, until dropped.
struct Transfers {
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    ends: Arc<AtomicBool>,
}

impl Transfers {
    fn are_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the tensor that is on its way.
    fn end(&mut self) -> anyhow::Result<()> {
        self.ends.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the thread of the transfers panicked"))?
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
    }
}

fn on_a_thread(
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(thread::Builder::new().name("tensors".to_owned()).spawn(move || runtime.block_on(work))?)
}
