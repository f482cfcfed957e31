//! Sockets of nodes in this process, between which nothing passes if a test says so.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll},
};

use footlight::cluster::transport::socket::{SocketError, Sockets, SystemSockets};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller, udp};

/// From where to where nothing passes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts(Arc<Mutex<BTreeSet<(SocketAddr, SocketAddr)>>>);

impl Cuts {
    /// For a node that is to be cut off from others.
    pub(crate) fn sockets(&self) -> Arc<dyn Sockets> {
        Arc::new(Lossy(SystemSockets::new(), self.clone()))
    }

    /// From now on nothing passes from the first to the second.
    pub(crate) fn cut_one_way(&self, from: SocketAddr, to: SocketAddr) {
        self.0.lock().unwrap().insert((from, to));
    }

    /// From now on nothing passes between these two.
    pub(crate) fn cut(&self, one: SocketAddr, other: SocketAddr) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// From now on all passes.
    pub(crate) fn heal(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// The system's sockets, some of whose packets are lost.
#[derive(Debug)]
struct Lossy(SystemSockets, Cuts);

impl Sockets for Lossy {
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn Runtime,
    ) -> Result<Arc<dyn AsyncUdpSocket>, SocketError> {
        let socket = self.0.bind(addr, runtime)?;
        Ok(Arc::new(LossySocket { socket, cuts: self.1.clone() }))
    }
}

struct LossySocket {
    socket: Arc<dyn AsyncUdpSocket>,
    cuts: Cuts,
}

impl fmt::Debug for LossySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl AsyncUdpSocket for LossySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        let way = (self.socket.local_addr()?, transmit.destination);
        if self.cuts.0.lock().unwrap().contains(&way) {
            Ok(())
        } else {
            self.socket.try_send(transmit)
        }
    }

    fn poll_recv(
        &self,
        task: &mut Task<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(task, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
