//! How the shards of a job come to one verdict on a step's gradient: each tells all others the squares of its part,
//! and does not stop until they know. The sum is exact, so all come to the same verdict, bit for bit, and so they
//! would if they were more or fewer.

use std::time::Duration;

use footlight_runtime::{ActorRef, Cause, Message, Result};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    server::{ParameterServer, PushError},
    square_sum::SquareSum,
};

/// After a connection broke.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// All shards of a job, for each of them to know the others. Sent before the first gradient.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Meet {
    /// In the layout's order.
    pub shards: Vec<ActorRef<ParameterServer>>,
}

impl Message for Meet {
    type Reply = std::result::Result<(), PushError>;
    const NAME: &'static str = "parameters.meet";
}

/// What one shard tells the others of its part of a step's gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TellSquares {
    /// Which step.
    pub step: u64,
    /// Which shard.
    pub shard: u32,
    /// The squares of all numbers of its chunks.
    pub squares: SquareSum,
    /// The first chunk with a number that is not finite.
    pub not_finite: Option<u32>,
}

impl Message for TellSquares {
    type Reply = std::result::Result<(), PushError>;
    const NAME: &'static str = "parameters.squares";
}

/// What a step's verdict waits for.
#[derive(Debug)]
pub(crate) struct Gate {
    step: u64,
    /// This shard's part so far, and how many of its chunks are still to come.
    own: TellSquares,
    chunks: usize,
    missing: usize,
    told: Vec<Option<TellSquares>>,
    /// What was told of steps after this one: in a job whose workers may be ahead, another shard may have all of a step
    /// that is still to come here.
    early: Vec<TellSquares>,
    /// For so many steps.
    window: u64,
    /// What was told of the step before: somebody may have to be told again.
    before: Option<TellSquares>,
}

/// What is known of a step's whole gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Whole {
    pub(crate) step: u64,
    pub(crate) norm: f64,
    /// The first chunk with a number that is not finite.
    pub(crate) not_finite: Option<u32>,
}

/// What no shard of this job can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum GateError {
    #[error("step {got} is told of, and step {due} is due")]
    Future { got: u64, due: u64 },
    #[error("there is no shard {0}")]
    Shard(u32),
    #[error("shard {0} has told twice of a step, each time otherwise")]
    Twice(u32),
}

impl Gate {
    /// For shard `shard` of `shards`, which has so many chunks, and may be so many steps behind another.
    pub(crate) fn new(shard: u32, shards: usize, chunks: usize, window: u64) -> Self {
        let squares = SquareSum::default();
        let own = TellSquares { step: 0, shard, squares, not_finite: None };
        Gate {
            step: 0,
            own,
            chunks,
            missing: chunks,
            told: vec![None; shards],
            early: Vec::new(),
            window,
            before: None,
        }
    }

    /// The same shard's, at a step of which nothing is known but what was told of the one before.
    pub(crate) fn anew(&self, step: u64) -> Self {
        let mut gate = Gate::new(self.own.shard, self.told.len(), self.chunks, self.window);
        gate.before = self.before;
        gate.begin(step);
        gate
    }

    /// What this shard has told the others of the step before and of this one.
    pub(crate) fn has_told(&self) -> impl Iterator<Item = TellSquares> {
        let own = (self.missing == 0).then_some(self.own);
        self.before.into_iter().chain(own)
    }

    /// What this shard has told the others of the last step whose verdict is known.
    pub(crate) fn before(&self) -> Option<TellSquares> {
        self.before
    }

    /// This shard has told that as another actor.
    pub(crate) fn has_told_before(&mut self, told: Option<TellSquares>) {
        self.before = told;
    }

    /// Steps before this one were taken elsewhere: the first to be told of is this one.
    pub(crate) fn begin(&mut self, step: u64) {
        if step > self.step {
            (self.step, self.own.step) = (step, step);
        }
    }

    /// The squares of one of this shard's chunks, each once a step. Gives what is to be told to the others, with the
    /// last.
    pub(crate) fn sum(&mut self, chunk: u32, squares: &SquareSum) -> Option<TellSquares> {
        self.own.squares.merge(squares);
        if !squares.is_finite() {
            self.own.not_finite = Some(self.own.not_finite.map_or(chunk, |first| first.min(chunk)));
        }
        self.missing = self.missing.checked_sub(1)?;
        (self.missing == 0).then_some(self.own)
    }

    /// One shard has told. Of a step that is over all is known already.
    pub(crate) fn told(&mut self, told: TellSquares) -> std::result::Result<(), GateError> {
        let shard = told.shard;
        let place = self.told.get_mut(shard as usize).ok_or(GateError::Shard(shard))?;
        if told.step > self.step {
            if told.step - self.step > self.window {
                return Err(GateError::Future { got: told.step, due: self.step });
            }
            // Told again, as nobody knew whether the first time arrived.
            if !self.early.contains(&told) {
                self.early.push(told);
            }
            return Ok(());
        }
        match place {
            _ if told.step < self.step => {}
            Some(before) if *before != told => return Err(GateError::Twice(shard)),
            place => *place = Some(told),
        }
        Ok(())
    }

    /// The step's whole gradient, once all have told; then the next step's is waited for.
    pub(crate) fn take(&mut self) -> Option<Whole> {
        if !self.told.iter().all(Option::is_some) {
            return None;
        }
        let mut sum = SquareSum::default();
        let all = || self.told.iter().flatten();
        all().for_each(|told| sum.merge(&told.squares));
        let not_finite = all().filter_map(|told| told.not_finite).min();
        let whole = Whole { step: self.step, norm: sum.norm(), not_finite };
        let (before, early) = (Some(self.own), std::mem::take(&mut self.early));
        *self = Gate { before, ..self.anew(self.step + 1) };
        for told in early {
            // The same shard can't have told otherwise meanwhile: nothing was known of this step.
            let _ = self.told(told);
        }
        Some(whole)
    }
}

/// Tells all others, each until it knows. One that is lost ends the job, which is told elsewhere.
pub(super) async fn tell(others: Vec<ActorRef<ParameterServer>>, told: TellSquares) -> Result<()> {
    join_all(others.iter().map(|other| tell_one(other, told))).await;
    Ok(())
}

async fn tell_one(other: &ActorRef<ParameterServer>, told: TellSquares) {
    loop {
        let error = match other.call(told).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let shard = other.addr();
                tracing::error!(%error, %shard, "a shard refuses what another one tells of a step");
                return;
            }
            Err(error) => error,
        };
        match error.cause() {
            Cause::TimedOut(_) => {}
            Cause::Unreachable(_) | Cause::CutOff { .. } | Cause::Overloaded => {
                tokio::time::sleep(TELL_AGAIN).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(numbers: &[f32]) -> SquareSum {
        let mut sum = SquareSum::default();
        sum.add(numbers, numbers.len());
        sum
    }

    fn told(step: u64, shard: u32, number: f32) -> TellSquares {
        let not_finite = (!number.is_finite()).then_some(shard);
        TellSquares { step, shard, squares: squares(&[number]), not_finite }
    }

    #[test]
    fn a_shard_tells_when_all_its_chunks_are_summed_and_each_step_anew() {
        let mut gate = Gate::new(1, 2, 2, 0);
        for step in 0..2 {
            assert_eq!(gate.sum(3, &squares(&[f32::NAN])), None);
            let own = gate.sum(1, &squares(&[4.0])).unwrap();
            assert_eq!((own.step, own.shard, own.not_finite), (step, 1, Some(3)));
            gate.told(own).unwrap();
            gate.told(told(step, 0, 3.0)).unwrap();
            let whole = gate.take().unwrap();
            assert_eq!((whole.step, whole.norm.is_nan(), whole.not_finite), (step, true, Some(3)));
        }
    }

    #[test]
    fn a_norm_is_known_when_every_shard_has_told() {
        let mut gate = Gate::new(0, 2, 1, 0);
        let own = gate.sum(0, &squares(&[3.0])).unwrap();
        gate.told(own).unwrap();
        assert_eq!(gate.take(), None);
        gate.told(told(0, 1, 4.0)).unwrap();
        gate.told(told(0, 1, 4.0)).unwrap();
        assert_eq!(gate.take(), Some(Whole { step: 0, norm: 5.0, not_finite: None }));
        // Told again, as nobody knew whether the first time arrived.
        gate.told(told(0, 1, 4.0)).unwrap();
        assert_eq!(gate.take(), None);
    }

    #[test]
    fn a_job_that_goes_on_tells_of_its_first_step_first() {
        let mut gate = Gate::new(0, 2, 1, 0);
        // Once for each chunk.
        for step in [7, 7] {
            gate.begin(step);
        }
        let own = gate.sum(0, &squares(&[3.0])).unwrap();
        assert_eq!(own.step, 7);
        gate.told(own).unwrap();
        gate.told(told(7, 1, 4.0)).unwrap();
        assert_eq!(gate.take(), Some(Whole { step: 7, norm: 5.0, not_finite: None }));
        assert_eq!(gate.sum(0, &squares(&[3.0])).unwrap().step, 8);
    }

    #[test]
    fn where_workers_may_be_ahead_a_shard_may_tell_of_a_step_to_come() {
        let mut gate = Gate::new(0, 2, 1, 2);
        for early in [told(2, 1, 12.0), told(1, 1, 8.0), told(1, 1, 8.0)] {
            gate.told(early).unwrap();
        }
        assert_eq!(gate.told(told(3, 1, 1.0)), Err(GateError::Future { got: 3, due: 0 }));
        gate.told(told(0, 1, 4.0)).unwrap();
        for (step, own, norm) in [(0, 3.0, 5.0), (1, 6.0, 10.0), (2, 9.0, 15.0)] {
            let own = gate.sum(0, &squares(&[own])).unwrap();
            gate.told(own).unwrap();
            assert_eq!(gate.take(), Some(Whole { step, norm, not_finite: None }));
        }
        assert_eq!(gate.take(), None);
    }

    #[test]
    fn what_no_shard_can_tell_is_refused() {
        let mut gate = Gate::new(0, 2, 1, 0);
        gate.told(told(0, 1, 4.0)).unwrap();
        assert_eq!(gate.told(told(0, 1, 5.0)), Err(GateError::Twice(1)));
        assert_eq!(gate.told(told(0, 2, 4.0)), Err(GateError::Shard(2)));
        assert_eq!(gate.told(told(1, 1, 4.0)), Err(GateError::Future { got: 1, due: 0 }));
    }
}
