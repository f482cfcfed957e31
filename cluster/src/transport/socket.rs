//! The sockets and the runtime under quinn: the two seams at which a simulation takes over.

use std::{
    fmt,
    future::Future,
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures::future::BoxFuture;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;

/// What is asked of the kernel for each direction of a socket, in bytes.
///
/// The usual default of 208 KiB loses packets as soon as a peer on the same machine sends a tensor.
const WANTED_BUFFER: usize = 8 << 20;
/// Below this, in bytes, a user is told how to grant more.
const ENOUGH_BUFFER: usize = 2 << 20;

/// Why a node has no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody listens there already.
    #[error(
        "{addr} is in use by another process: stop it (`ss -ulpn 'sport = :{port}'` tells which), \
         or listen on another port (port 0 takes a free one)", port = addr.port()
    )]
    InUse {
        /// The address that was asked for.
        addr: SocketAddr,
    },
    /// The address is of no interface of this machine.
    #[error("{addr} is no address of this machine: listen on one that `ip address` shows")]
    NotHere {
        /// The address that was asked for.
        addr: SocketAddr,
    },
    /// The port is reserved, or a policy of the system forbids it.
    #[error("this user may not listen on {addr}: take a port above 1023")]
    Forbidden {
        /// The address that was asked for.
        addr: SocketAddr,
    },
    /// Anything else that the system said.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// The address that was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl SocketError {
    fn new(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { addr },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { addr },
            io::ErrorKind::PermissionDenied => Self::Forbidden { addr },
            _ => Self::Io { addr, source },
        }
    }
}

/// Where a node's UDP sockets and the addresses behind names come from: the system, or a simulated
/// network.
pub trait Sockets: Send + Sync + fmt::Debug + 'static {
    /// Opens a socket at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`SocketError`], which names the address and what to do.
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn Runtime,
    ) -> Result<Arc<dyn AsyncUdpSocket>, SocketError>;

    /// The addresses of `HOST:PORT`, as they are now: by default those that the system's resolver
    /// finds.
    ///
    /// # Errors
    /// What the resolver says.
    fn look_up<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }
}

/// The kernel's sockets, with buffers as large as it grants.
#[derive(Debug, Default)]
pub struct SystemSockets {
    warned: AtomicBool,
}

impl SystemSockets {
    /// Sockets of the system. Small buffers are reported by the first socket only.
    pub fn new() -> Self {
        Self::default()
    }

    fn open(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            // `[::]` serves IPv4 too where the system can; where it can't, IPv6 alone is fine.
            let _ = socket.set_only_v6(false);
        }
        // The kernel cuts a wish to its limit, or refuses it: both leave a socket that works.
        let _ = socket.set_recv_buffer_size(WANTED_BUFFER);
        let _ = socket.set_send_buffer_size(WANTED_BUFFER);
        self.report(granted(socket.recv_buffer_size()?), granted(socket.send_buffer_size()?));
        socket.bind(&addr.into())?;
        Ok(socket.into())
    }

    fn report(&self, receive: usize, send: usize) {
        if receive.min(send) < ENOUGH_BUFFER && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                receive_bytes = receive,
                send_bytes = send,
                "the system grants small socket buffers, so fast transfers lose packets and slow \
                 down: as root, run `sysctl -w net.core.rmem_max={WANTED_BUFFER} \
                 net.core.wmem_max={WANTED_BUFFER}`"
            );
        }
    }
}

/// What a socket option's value means in payload: Linux doubles the wish, for its own bookkeeping.
fn granted(reported: usize) -> usize {
    if cfg!(target_os = "linux") { reported / 2 } else { reported }
}

impl Sockets for SystemSockets {
    fn bind(
        &self,
        addr: SocketAddr,
        runtime: &dyn Runtime,
    ) -> Result<Arc<dyn AsyncUdpSocket>, SocketError> {
        self.open(addr)
            .and_then(|socket| runtime.wrap_udp_socket(socket))
            .map_err(|error| SocketError::new(addr, error))
    }
}

/// Runs quinn's drivers and timers on one given tokio runtime, whichever thread asks for it.
///
/// `quinn::TokioRuntime` spawns where the caller happens to be: a connection opened from an actor
/// would then be driven by the actors' threads, and starve with them. Clock and timers are tokio's,
/// so a paused clock moves them.
#[derive(Clone, Debug)]
pub struct NodeRuntime {
    handle: Handle,
}

impl NodeRuntime {
    /// Drives connections on the runtime of `handle`: the node's control thread.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

impl Runtime for NodeRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _context = self.handle.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _context = self.handle.enter();
        socket.set_nonblocking(true)?;
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        let _context = self.handle.enter();
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(addr: &str) -> Result<SocketAddr, SocketError> {
        let runtime = NodeRuntime::new(Handle::current());
        let socket = SystemSockets::new().bind(addr.parse().unwrap(), &runtime)?;
        Ok(socket.local_addr().unwrap())
    }

    #[tokio::test]
    async fn a_port_in_use_and_a_foreign_address_say_so_and_what_to_do() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let error = bind(&addr).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }));
        assert!(error.to_string().starts_with(&format!("{addr} is in use")), "{error}");
        // 192.0.2.0/24 is reserved for documentation (RFC 5737).
        assert!(matches!(bind("192.0.2.1:0"), Err(SocketError::NotHere { .. })));
        assert_ne!(bind("127.0.0.1:0").unwrap().port(), 0);
    }

    #[test]
    fn a_driver_runs_on_the_runtime_of_the_handle_whatever_thread_spawns_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("control")
            .build()
            .unwrap();
        let node = NodeRuntime::new(runtime.handle().clone());
        let (tell, told) = std::sync::mpsc::channel();
        // This thread is in no runtime at all: quinn's own would panic here.
        let timer = node.new_timer(node.now());
        node.spawn(Box::pin(async move {
            let mut timer = timer;
            std::future::poll_fn(|context| timer.as_mut().poll(context)).await;
            tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }));
        assert_eq!(told.recv().unwrap().as_deref(), Some("control"));
    }
}
