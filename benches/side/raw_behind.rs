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
        let incoming = tensors.accept().await.context("the endpoint has closed")?;
        take_tensors(&incoming.await?).await
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
    let (_endpoint, connection) = connect(addr, Purpose::Control).await?;
    let mut port = [0; 2];
    connection.accept_uni().await?.read_exact(&mut port).await?;
    let there = SocketAddr::new(addr.ip(), u16::from_le_bytes(port));
    let are_warm = Arc::new(AtomicBool::new(false));
    let transfers = on_a_thread({
        let are_warm = are_warm.clone();
        async move {
            let (_endpoint, tensors) = connect(there, Purpose::Bulk).await?;
            let tensor = Bytes::from(vec![5; BEHIND_MIB << 20]);
            put(&tensors, tensor.clone()).await?;
            are_warm.store(true, Ordering::Release);
            for _ in 0..TRANSFERS {
                put(&tensors, tensor.clone()).await?;
            }
            Ok(())
        }
    })?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut message = [7; 64];
    let mut samples = Vec::new();
    while !transfers.is_finished() {
        let began = Instant::now();
        send.write_all(&message).await?;
        recv.read_exact(&mut message).await?;
        if are_warm.load(Ordering::Acquire) {
            samples.push(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    transfers.join().map_err(|_| anyhow!("the thread of the transfers panicked"))??;
    Ok(measure::us(measure::percentile(&mut samples, 0.99)) / 1e3)
}

fn on_a_thread(
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(thread::Builder::new().name("tensors".to_owned()).spawn(move || runtime.block_on(work))?)
}
