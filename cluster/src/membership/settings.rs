//! How fast failures are noticed, and at what price.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{Config, PeriodicParams};

use super::MAX_PACKET;

/// News of a loss may be so late on a busy machine.
const LATE: Duration = Duration::from_millis(700);

/// SWIM's settings. All members of a cluster have the same.
///
/// A crashed node is probed within about two probe periods, gets no answer until the period ends,
/// and stays suspect for [`suspicion`](Self::suspicion) before it is declared down: so detection
/// takes about `2 × probe_period + suspicion`, plus the gossip that tells the others. A node that
/// only stands still (swapping, a stopped process) is declared down if it does so for about as long
/// as the suspicion lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// One member is probed every such period.
    pub probe_period: Duration,
    /// How long a direct answer is waited for before others are asked to probe. Less than the
    /// period, and more than nearly every round trip.
    pub probe_timeout: Duration,
    /// How long a suspect has to speak up.
    pub suspicion: Duration,
    /// How often each member passes on one piece of news. More members need more.
    pub max_transmissions: u8,
    /// How many others are asked to probe a member that does not answer.
    pub indirect_probes: usize,
    /// News is sent this often, besides travelling on probes.
    pub gossip_period: Duration,
    /// To so many members at a time.
    pub gossip_members: usize,
    /// One member is asked this often for all that it knows.
    pub announce_period: Duration,
    /// Two members that are down are called this often: a healed partition is found so.
    pub reconnect_period: Duration,
    /// A member that is down is forgotten after this long.
    pub forget_after: Duration,
    /// How often [`super::Swim::join`] asks again until somebody answers.
    pub join_period: Duration,
}

/// Why settings can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// A number that must be positive is zero.
    #[error("membership setting `{0}` is zero: it must be positive")]
    Zero(&'static str),
    /// The probe's timeout is not less than its period.
    #[error("membership setting `probe_timeout` must be less than `probe_period`")]
    Timeout,
}

impl Settings {
    /// One machine or one rack, round trips below some 20 ms: the default.
    ///
    /// A crash is seen by all within about 1.3 s (5 to 50 nodes; simulated, see
    /// docs/architecture.md); a standstill of up to 0.7 s is borne; no false alarm at 10 % loss.
    /// Costs a node about 40 packets/s, of at most 1.1 kB each.
    pub const fn lan() -> Self {
        Self {
            probe_period: Duration::from_millis(100),
            probe_timeout: Duration::from_millis(40),
            suspicion: Duration::from_millis(800),
            max_transmissions: 15,
            indirect_probes: 3,
            gossip_period: Duration::from_millis(100),
            gossip_members: 4,
            announce_period: Duration::from_secs(10),
            reconnect_period: Duration::from_secs(2),
            forget_after: Duration::from_secs(3600),
            join_period: Duration::from_millis(250),
        }
    }

    /// Several sites, round trips up to some 300 ms.
    ///
    /// A crash is seen by all within about 7 s; a standstill of up to 3.5 s is borne; no false alarm
    /// at 10 % loss (simulated with 5 nodes). The period is as short as the timeout allows: it may
    /// take five until somebody probes a node that has crashed, and gets no answer.
    pub const fn wan() -> Self {
        Self {
            probe_period: Duration::from_millis(600),
            probe_timeout: Duration::from_millis(400),
            suspicion: Duration::from_secs(4),
            max_transmissions: 30,
            gossip_period: Duration::from_millis(250),
            announce_period: Duration::from_secs(30),
            reconnect_period: Duration::from_secs(10),
            join_period: Duration::from_secs(1),
            ..Self::lan()
        }
    }

    /// How long nothing may come over a connection before it is given up, and the member at its other
    /// end may be called unreachable. Longer than it takes to declare one down that nobody reaches:
    /// of that one it would not be true. 2 s ([`lan`](Self::lan)) and 7.7 s ([`wan`](Self::wan)).
    pub fn silence(&self) -> Duration {
        // By chance it may take so long until somebody has probed it in vain.
        let probed = self.probe_period.saturating_mul(5);
        probed.saturating_add(self.suspicion).saturating_add(LATE)
    }

    pub(super) fn to_foca(self) -> Result<Config, InvalidSettings> {
        for (name, duration) in [
            ("probe_period", self.probe_period),
            ("probe_timeout", self.probe_timeout),
            ("suspicion", self.suspicion),
            ("gossip_period", self.gossip_period),
            ("announce_period", self.announce_period),
            ("reconnect_period", self.reconnect_period),
            ("forget_after", self.forget_after),
            ("join_period", self.join_period),
        ] {
            if duration.is_zero() {
                return Err(InvalidSettings::Zero(name));
            }
        }
        if self.probe_timeout >= self.probe_period {
            return Err(InvalidSettings::Timeout);
        }
        let positive = |name, number| NonZeroUsize::new(number).ok_or(InvalidSettings::Zero(name));
        let periodic = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
        let mut config = Config::simple();
        config.probe_period = self.probe_period;
        config.probe_rtt = self.probe_timeout;
        config.num_indirect_probes = positive("indirect_probes", self.indirect_probes)?;
        config.max_transmissions = NonZeroU8::new(self.max_transmissions)
            .ok_or(InvalidSettings::Zero("max_transmissions"))?;
        config.suspect_to_down_after = self.suspicion;
        config.remove_down_after = Some(self.forget_after);
        config.max_packet_size = positive("MAX_PACKET", MAX_PACKET)?;
        // Without it, a node that was cut off would never learn that it has to come back as new.
        config.notify_down_members = true;
        config.periodic_announce = periodic(self.announce_period, NonZeroUsize::MIN);
        config.periodic_announce_to_down_members =
            periodic(self.reconnect_period, positive("2", 2)?);
        config.periodic_gossip =
            periodic(self.gossip_period, positive("gossip_members", self.gossip_members)?);
        Ok(config)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::lan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_may_be_silent_longer_than_it_takes_to_declare_its_node_down() {
        assert_eq!(Settings::lan().silence(), Duration::from_secs(2));
        assert_eq!(Settings::wan().silence(), Duration::from_millis(7700));
    }

    #[test]
    fn presets_are_valid_and_settings_that_cannot_work_are_named() {
        assert!(Settings::lan().to_foca().is_ok());
        assert!(Settings::wan().to_foca().is_ok());
        let none = Settings { gossip_members: 0, ..Settings::lan() };
        assert_eq!(none.to_foca().unwrap_err(), InvalidSettings::Zero("gossip_members"));
        let late = Settings { probe_timeout: Duration::from_millis(100), ..Settings::lan() };
        assert_eq!(late.to_foca().unwrap_err(), InvalidSettings::Timeout);
    }
}
