//! A call within one process, and ractor's own beside it.

use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use footlight::prelude::*;
use ractor::rpc::CallResult;

use crate::{
    Outcome,
    footlight_side::{Echo, Echoes, alone},
    measure,
};

const ROUNDS: usize = 50;
const IN_A_ROUND: u32 = 5_000;

/// The median over rounds of the mean time of a call, in microseconds: one call alone is shorter than
/// the clock is exact.
fn median_of_means(mut means: Vec<std::time::Duration>) -> Outcome {
    Outcome::Value(measure::us(measure::percentile(&mut means, 0.5)))
}

/// Calls of this project.
///
/// # Errors
/// If the node can't start or a call fails.
pub fn footlight() -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let state = tempfile::tempdir()?;
        let node = alone(&state).await?;
        let echo = node.system().spawn::<Echoes>(()).await?;
        // A task of the runtime, as those that call in earnest are.
        let calls = tokio::spawn(async move {
            let mut means = Vec::new();
            for round in 0..=ROUNDS {
                let began = Instant::now();
                for _ in 0..IN_A_ROUND {
                    echo.call(Echo { bytes: Bytes::from_static(&[1; 8]) }).await?;
                }
                if round > 0 {
                    means.push(began.elapsed() / IN_A_ROUND);
                }
            }
            Ok::<_, CallError>(means)
        });
        let means = calls.await??;
        node.leave().await?;
        Ok(median_of_means(means))
    })
}

/// Gives back what it gets, with nothing but ractor.
#[derive(Debug)]
pub struct Bare;

impl ractor::Actor for Bare {
    /// For a cast there is no port.
    type Msg = (Bytes, Option<ractor::RpcReplyPort<Bytes>>);
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        (): (),
    ) -> Result<(), ractor::ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<Self::Msg>,
        (bytes, reply): Self::Msg,
        (): &mut (),
    ) -> Result<(), ractor::ActorProcessingErr> {
        if let Some(reply) = reply {
            reply.send(bytes)?;
        }
        Ok(())
    }
}

/// Calls of ractor.
///
/// # Errors
/// If a call fails.
pub fn ractor() -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (bare, _) = ractor::Actor::spawn(None, Bare, ()).await?;
        let calls = tokio::spawn(async move {
            let mut means = Vec::new();
            for round in 0..=ROUNDS {
                let began = Instant::now();
                for _ in 0..IN_A_ROUND {
                    // With a deadline, as every call of ours has one.
                    let patience = std::time::Duration::from_secs(30);
                    let ask = |reply| (Bytes::from_static(&[1; 8]), Some(reply));
                    let CallResult::Success(_) = bare.call(ask, Some(patience)).await? else {
                        anyhow::bail!("a call was not answered");
                    };
                }
                if round > 0 {
                    means.push(began.elapsed() / IN_A_ROUND);
                }
            }
            Ok(means)
        });
        Ok(median_of_means(calls.await.context("the calls panicked")??))
    })
}
