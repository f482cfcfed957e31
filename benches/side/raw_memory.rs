//! The floor of a parameter step within one host: each process reads what it needs from the other's memory, sums, and
//! takes the step; no message, no actor. A byte over TCP says that the other may read.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process,
    time::Instant,
};

use anyhow::{Context as _, ensure};

use crate::{
    Outcome, Work, measure, ready,
    step::{self, GRADIENT, PARAMETERS, RATE, STEPS, WARM_STEPS},
};

const HALF: usize = PARAMETERS / 2;
/// Read at once: as much as stays in a core's cache until it is added.
const PIECE: usize = 64 << 10;

/// One side's part of a work.
///
/// # Errors
/// What went wrong with it.
pub fn run(work: Work, rank: u8, addr: SocketAddr) -> anyhow::Result<Outcome> {
    if work != Work::ParameterStepSameHost {
        return Ok(Outcome::Cannot);
    }
    if rank == 0 {
        let listener = TcpListener::bind(addr)?;
        ready();
        let (stream, _) = listener.accept()?;
        let Some(mut steps) = Steps::begin(stream, 0)? else { return Ok(Outcome::Cannot) };
        for _ in 0..WARM_STEPS + STEPS {
            steps.step()?;
        }
        // Whoever started this closes it when all is done.
        io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(Outcome::Served);
    }
    let Some(mut steps) = Steps::begin(TcpStream::connect(addr)?, 1)? else {
        return Ok(Outcome::Cannot);
    };
    let mut samples = Vec::new();
    for step in 0..WARM_STEPS + STEPS {
        let began = Instant::now();
        steps.step()?;
        if step >= WARM_STEPS {
            samples.push(began.elapsed());
        }
    }
    step::check(&steps.parameters)?;
    Ok(Outcome::Value(measure::us(measure::percentile(&mut samples, 0.5)) / 1e3))
}

struct Steps {
    other: TcpStream,
    rank: usize,
    process: i32,
    /// Where the other's are.
    their_gradient: usize,
    their_parameters: usize,
    gradient: Vec<f32>,
    parameters: Vec<f32>,
    piece: Vec<u8>,
}

impl Steps {
    /// `None` where the system does not let a process read another's memory.
    fn begin(mut other: TcpStream, rank: usize) -> anyhow::Result<Option<Self>> {
        other.set_nodelay(true)?;
        let (gradient, parameters) = (vec![GRADIENT; PARAMETERS], vec![0.0f32; PARAMETERS]);
        for own in
            [process::id() as usize, gradient.as_ptr() as usize, parameters.as_ptr() as usize]
        {
            other.write_all(&(own as u64).to_le_bytes())?;
        }
        let mut told = [0usize; 3];
        for told in &mut told {
            let mut bytes = [0; 8];
            other.read_exact(&mut bytes)?;
            *told = usize::try_from(u64::from_le_bytes(bytes))?;
        }
        let [process, their_gradient, their_parameters] = told;
        let process = i32::try_from(process)?;
        if read(process, their_gradient, &mut [0; 4]).is_err() {
            return Ok(None);
        }
        let piece = vec![0; PIECE * size_of::<f32>()];
        Ok(Some(Steps {
            other,
            rank,
            process,
            their_gradient,
            their_parameters,
            gradient,
            parameters,
            piece,
        }))
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let own = self.rank * HALF;
        for begin in (own..own + HALF).step_by(PIECE) {
            let end = (begin + PIECE).min(own + HALF);
            let piece = &mut self.piece[..(end - begin) * size_of::<f32>()];
            read(self.process, self.their_gradient + begin * size_of::<f32>(), piece)?;
            let theirs = piece.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let parameters = self.parameters[begin..end].iter_mut();
            for ((parameter, own), their) in parameters.zip(&self.gradient[begin..end]).zip(theirs)
            {
                *parameter -= RATE * (own + their);
            }
        }
        self.meet()?;
        let others = (1 - self.rank) * HALF;
        let mut at = self.their_parameters + others * size_of::<f32>();
        for parameters in self.parameters[others..others + HALF].chunks_mut(PIECE) {
            let piece = &mut self.piece[..size_of_val(parameters)];
            read(self.process, at, piece)?;
            at += piece.len();
            for (parameter, bytes) in parameters.iter_mut().zip(piece.as_chunks::<4>().0) {
                *parameter = f32::from_le_bytes(*bytes);
            }
        }
        // Nothing is overwritten while it is read.
        self.meet()
    }

    fn meet(&mut self) -> anyhow::Result<()> {
        self.other.write_all(&[1])?;
        self.other.read_exact(&mut [0]).context("the other side is gone")?;
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn read(process: i32, at: usize, into: &mut [u8]) -> anyhow::Result<()> {
    use nix::{
        sys::uio::{RemoteIoVec, process_vm_readv},
        unistd::Pid,
    };
    let remote = [RemoteIoVec { base: at, len: into.len() }];
    let expected = into.len();
    let mut local = [io::IoSliceMut::new(into)];
    let copied = process_vm_readv(Pid::from_raw(process), &mut local, &remote)?;
    ensure!(copied == expected, "{copied} bytes of {expected} were read");
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn read(_: i32, _: usize, _: &mut [u8]) -> anyhow::Result<()> {
    anyhow::bail!("the memory of another process can be read on Linux only")
}
