//! How soon all is whole again after a fault has ended: one time, counted from the heal, whatever
//! happens within it.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout_at};

/// One look may take so long, then it is begun anew: what it asked may have been lost with the fault.
const LOOK: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A fault that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    healed: Instant,
    within: Duration,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// From the heal until all was whole, and stayed so.
    pub(crate) took: Duration,
    /// What was seen when all had been whole and then was not.
    pub(crate) relapse: Option<String>,
}

impl Recovery {
    /// All must be whole within this time after the heal.
    pub(crate) fn since(healed: Instant, within: Duration) -> Self {
        Recovery { healed, within }
    }

    /// Waits until all is whole; gives how long that took since the heal.
    ///
    /// # Errors
    /// What was seen instead when the time was over.
    pub(crate) async fn wait(
        &self,
        look: &impl AsyncFn() -> Result<(), String>,
    ) -> Result<Duration, String> {
        let deadline = self.healed + self.within;
        let mut seen = "nothing".to_owned();
        loop {
            let end = deadline.min(Instant::now() + LOOK);
            match timeout_at(end.into(), look()).await {
                Ok(Ok(())) => {
                    let took = self.healed.elapsed();
                    let late = || format!("whole, but only after {took:.1?}");
                    return if took <= self.within { Ok(took) } else { Err(late()) };
                }
                Ok(Err(what)) => seen = what,
                Err(_) => seen = format!("a question was not answered; before that: {seen}"),
            }
            if Instant::now() >= deadline {
                return Err(seen);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until all is whole, and looks again after the pause: late news of the fault may still
    /// move something. Then it has to be whole again within the same time.
    ///
    /// # Errors
    /// What was seen instead.
    pub(crate) async fn lasting(
        &self,
        pause: Duration,
        look: impl AsyncFn() -> Result<(), String>,
    ) -> Result<Recovered, String> {
        let took = self.wait(&look).await?;
        sleep(pause).await;
        let Err(what) = look().await else { return Ok(Recovered { took, relapse: None }) };
        let again = self.wait(&look).await;
        let took = again.map_err(|now| format!("whole, and then not: {what}; at last: {now}"))?;
        Ok(Recovered { took, relapse: Some(what) })
    }
}
