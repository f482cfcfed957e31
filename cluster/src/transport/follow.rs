//! Windows of a bulk connection that follow what its path holds: bandwidth × delay.
//!
//! What may be under way is at first what [`transport_config`](super::endpoint::transport_config) says. A path that
//! holds more is then limited by that window and by nothing else, so the rate that is seen is the window a round
//! trip, and twice that is what the window grows to, until it is the path that limits. It never shrinks: a pause of
//! the sender's says nothing of the path. On loopback windows stay as they are.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::endpoint::{Purpose, connection_window};

/// How often a path is looked at; a long round trip less often.
const EVERY: Duration = Duration::from_millis(250);

/// Most that may be under way on one connection, in bytes: 10 Gbit/s over 200 ms.
pub(crate) const MOST: u32 = 256 << 20;

/// Which way the tensors of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// What a window should be, in bytes.
#[derive(Debug)]
struct Follower {
    window: u32,
    bytes: u64,
    at: Instant,
}

impl Follower {
    fn new(window: u32, bytes: u64) -> Self {
        Follower { window, bytes, at: Instant::now() }
    }

    /// So many bytes have crossed in all, with this round trip. Gives a window that is larger than before.
    fn look(&mut self, bytes: u64, round_trip: Duration) -> Option<u32> {
        let (crossed, past) = (bytes.saturating_sub(self.bytes), self.at.elapsed());
        (self.bytes, self.at) = (bytes, Instant::now());
        let rate = crossed as f64 / past.as_secs_f64().max(1e-3);
        let wanted = (2.0 * rate * round_trip.as_secs_f64()).min(f64::from(MOST)) as u32;
        if wanted <= self.window {
            return None;
        }
        self.window = wanted;
        Some(wanted)
    }
}

/// Follows the path of a bulk connection until it ends.
pub(crate) async fn follow(connection: quinn::Connection, way: Way) {
    if connection.remote_address().ip().to_canonical().is_loopback() {
        return;
    }
    let crossed = |stats: &quinn::ConnectionStats| match way {
        Way::Out => stats.udp_tx.bytes,
        Way::In => stats.udp_rx.bytes,
    };
    let window = connection_window(Purpose::Bulk);
    let mut follower = Follower::new(window, crossed(&connection.stats()));
    loop {
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            () = sleep(EVERY.max(2 * connection.rtt())) => {}
        }
        let stats = connection.stats();
        let Some(window) = follower.look(crossed(&stats), stats.path.rtt) else { continue };
        match way {
            Way::Out => connection.set_send_window(window.into()),
            Way::In => connection.set_receive_window(window.into()),
        }
        tracing::debug!(?way, window, rtt = ?stats.path.rtt, "a path holds more than its window");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MIB: u32 = 1 << 20;

    /// Moves as much as path and window allow, from look to look; gives the window at the end.
    async fn settle(path: f64, round_trip: Duration) -> u32 {
        let (mut follower, mut bytes) = (Follower::new(64 * MIB, 0), 0);
        for _ in 0..20 {
            let past = Duration::from_secs(1);
            advance(past).await;
            let by_window = f64::from(follower.window) / round_trip.as_secs_f64();
            bytes += (path.min(by_window) * past.as_secs_f64()) as u64;
            follower.look(bytes, round_trip);
        }
        follower.window
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_grows_to_twice_what_its_path_holds_and_no_further() {
        let trip = Duration::from_millis(200);
        // 4 Gbit/s hold 100 MB on the way there and back.
        let window = f64::from(settle(5e8, trip).await);
        assert!((window / 200e6 - 1.0).abs() < 0.01, "{window}");
        assert_eq!(settle(1e8, trip).await, 64 * MIB, "wide enough from the start");
        assert_eq!(settle(1e12, trip).await, MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_does_not_make_it_smaller() {
        let mut follower = Follower::new(64 * MIB, 0);
        advance(Duration::from_secs(1)).await;
        let wide = follower.look(1_000_000_000, Duration::from_millis(100)).unwrap();
        advance(Duration::from_secs(60)).await;
        assert_eq!(follower.look(1_000_000_000, Duration::from_millis(100)), None);
        assert_eq!(follower.window, wide);
    }
}
