//! What a node counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of one node; they only grow.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Messages handled by local actors.
    pub messages_handled: Counter,
    /// Messages sent to other nodes.
    pub messages_sent: Counter,
    /// Messages received from other nodes.
    pub messages_received: Counter,
    /// Bytes sent in UDP payloads, encryption and acknowledgements included.
    pub wire_bytes_sent: Counter,
    /// Bytes received in UDP payloads.
    pub wire_bytes_received: Counter,
    /// Bytes of large tensors that other processes of this host have read from this one's memory.
    pub memory_bytes_sent: Counter,
    /// Bytes of large tensors that were read from the memory of other processes of this host.
    pub memory_bytes_received: Counter,
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages handled by local actors.
    pub messages_handled: u64,
    /// Messages sent to other nodes.
    pub messages_sent: u64,
    /// Messages received from other nodes.
    pub messages_received: u64,
    /// Bytes sent in UDP payloads.
    pub wire_bytes_sent: u64,
    /// Bytes received in UDP payloads.
    pub wire_bytes_received: u64,
    /// Bytes of large tensors that other processes of this host have read from this one's memory.
    pub memory_bytes_sent: u64,
    /// Bytes of large tensors that were read from the memory of other processes of this host.
    pub memory_bytes_received: u64,
}

impl Telemetry {
    /// The counters now.
    pub fn counts(&self) -> Counts {
        Counts {
            messages_handled: self.messages_handled.get(),
            messages_sent: self.messages_sent.get(),
            messages_received: self.messages_received.get(),
            wire_bytes_sent: self.wire_bytes_sent.get(),
            wire_bytes_received: self.wire_bytes_received.get(),
            memory_bytes_sent: self.memory_bytes_sent.get(),
            memory_bytes_received: self.memory_bytes_received.get(),
        }
    }
}
