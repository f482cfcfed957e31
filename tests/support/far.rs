//! Sockets that are far from each other: what a node sends takes its time, until the node is cut off.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as Task, Poll},
    time::Duration,
};

use footlight::cluster::transport::socket::{SocketError, Sockets, SystemSockets};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller, udp};
use tokio::{sync::mpsc, time::Instant};

/// The sockets of one node.
#[derive(Clone, Debug)]
pub(crate) struct Far {
    one_way: Duration,
    cut_off: Arc<AtomicBool>,
}

impl Far {
    pub(crate) fn new(one_way: Duration) -> Self {
        Far { one_way, cut_off: Arc::default() }
    }

    /// From now on nothing leaves the node and nothing reaches it: to the others it has crashed.
    pub(crate) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::Release);
    }
}

impl Sockets for Far {
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn Runtime,
    ) -> Result<Arc<dyn AsyncUdpSocket>, SocketError> {
        let socket = SystemSockets::new().bind(addr, runtime)?;
        let (under_way, packets) = mpsc::unbounded_channel();
        runtime.spawn(Box::pin(travel(socket.clone(), packets)));
        Ok(Arc::new(FarSocket { socket, far: self.clone(), under_way }))
    }
}

/// A packet, or several for the same address, and when they arrive.
struct Packet {
    arrives: Instant,
    destination: SocketAddr,
    ecn: Option<udp::EcnCodepoint>,
    contents: Vec<u8>,
    segment_size: Option<usize>,
}

/// All take the same time, so their order stays.
async fn travel(socket: Arc<dyn AsyncUdpSocket>, mut packets: mpsc::UnboundedReceiver<Packet>) {
    let mut poller = socket.clone().create_io_poller();
    while let Some(packet) = packets.recv().await {
        tokio::time::sleep_until(packet.arrives).await;
        let transmit = udp::Transmit {
            destination: packet.destination,
            ecn: packet.ecn,
            contents: &packet.contents,
            segment_size: packet.segment_size,
            src_ip: None,
        };
        while let Err(error) = socket.try_send(&transmit) {
            // Any other error loses the packet, as a network may.
            if error.kind() != io::ErrorKind::WouldBlock {
                break;
            }
            let _ = std::future::poll_fn(|task| poller.as_mut().poll_writable(task)).await;
        }
    }
}

struct FarSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    far: Far,
    under_way: mpsc::UnboundedSender<Packet>,
}

impl fmt::Debug for FarSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// There is always room for one more.
#[derive(Debug)]
struct Room;

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for FarSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room)
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        if !self.far.cut_off.load(Ordering::Acquire) {
            let _ = self.under_way.send(Packet {
                arrives: Instant::now() + self.far.one_way,
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents: transmit.contents.to_vec(),
                segment_size: transmit.segment_size,
            });
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        task: &mut Task<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_recv(task, bufs, meta) {
                Poll::Ready(Ok(_)) if self.far.cut_off.load(Ordering::Acquire) => {}
                other => return other,
            }
        }
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
