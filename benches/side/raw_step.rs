//! The floor of a parameter step on QUIC: what must cross, the sums and the optimiser on bare quinn, and nothing else.
//!
//! Each of two processes is a worker and the server of one half of the parameters. The other half's gradient goes to
//! the other process piece by piece, a stream each; what comes is added to one's own, SGD follows, and the piece's new
//! parameters go back on a stream of their own, while other pieces are still under way.

use std::{cell::RefCell, ops::Range};

use anyhow::Context as _;
use bytes::Bytes;
use footlight::runtime::tensor::WireFormat;
use futures::{StreamExt, stream::FuturesUnordered};
use quinn::{Connection, RecvStream};
use tokio::sync::mpsc;

use crate::{
    Work, measure,
    step::{self, GRADIENT, PARAMETERS, RATE, STEPS, WARM_STEPS},
};

/// Pieces of each half, of 3.2 MB in f32: as large as those of a shard, about.
const PIECES: usize = 16;
const HALF: usize = PARAMETERS / 2;
const PIECE: usize = HALF / PIECES;
/// Before a piece: whether it is of the parameters, and its number.
const HEADER: usize = 2;

/// The format of a work's step.
pub(crate) fn format(work: Work) -> Option<WireFormat> {
    match work {
        Work::ParameterStepF32 => Some(WireFormat::F32),
        Work::ParameterStepBf16 => Some(WireFormat::Bf16),
        _ => None,
    }
}

/// What a piece is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gradient,
    Parameters,
}

/// One process's part of the steps.
pub(crate) struct Steps<'a> {
    connection: &'a Connection,
    format: WireFormat,
    /// Which half is served here.
    rank: usize,
    gradient: Bytes,
    parameters: Vec<f32>,
    /// Own and others' gradients of a piece.
    sums: Vec<f32>,
    /// Memory that pieces came into, used again.
    destinations: RefCell<Vec<Vec<u8>>>,
}

fn piece(half: usize, piece: usize) -> Range<usize> {
    let begin = half * HALF + piece * PIECE;
    begin..begin + PIECE
}

impl<'a> Steps<'a> {
    pub(crate) fn new(connection: &'a Connection, format: WireFormat, rank: u8) -> Self {
        let gradient = GRADIENT.to_le_bytes().repeat(PARAMETERS);
        Steps {
            connection,
            format,
            rank: usize::from(rank),
            gradient: gradient.into(),
            parameters: vec![0.0; PARAMETERS],
            sums: vec![0.0; PIECE],
            destinations: RefCell::default(),
        }
    }

    /// Steps until the other side goes.
    pub(crate) async fn serve(mut self) -> anyhow::Result<()> {
        while self.connection.close_reason().is_none() {
            if let Err(error) = self.step().await
                && self.connection.close_reason().is_none()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The median of a step, in ms.
    pub(crate) async fn measure(mut self) -> anyhow::Result<f64> {
        let mut samples = Vec::new();
        for step in 0..WARM_STEPS + STEPS {
            let (done, took) = measure::timed(self.step()).await;
            done?;
            if step >= WARM_STEPS {
                samples.push(took);
            }
        }
        step::check(&self.parameters)?;
        Ok(measure::us(measure::percentile(&mut samples, 0.5)) / 1e3)
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        let (connection, format, rank) = (self.connection, self.format, self.rank);
        let encoded = format.encoded_len(PIECE);
        let own_gradient = self.gradient.clone();
        let gradient = |half: usize, at: usize| {
            let range = piece(half, at);
            own_gradient.slice(range.start * 4..range.end * 4)
        };
        let (updated, mut to_send) = mpsc::unbounded_channel::<(usize, Bytes)>();

        let sending = async {
            for at in 0..PIECES {
                let raw = gradient(1 - rank, at);
                let bytes = match format {
                    WireFormat::F32 => raw,
                    _ => encode(format, &floats(&raw))?,
                };
                send(connection, Kind::Gradient, at, bytes).await?;
                // What is ready to go back does not wait for the rest.
                while let Ok((at, bytes)) = to_send.try_recv() {
                    send(connection, Kind::Parameters, at, bytes).await?;
                }
            }
            while let Some((at, bytes)) = to_send.recv().await {
                send(connection, Kind::Parameters, at, bytes).await?;
            }
            anyhow::Ok(())
        };
        let (parameters, sums) = (&mut self.parameters, &mut self.sums);
        let destinations = &self.destinations;
        let receiving = async move {
            let mut reads = FuturesUnordered::new();
            let (mut begun, mut done) = (0, 0);
            while done < 2 * PIECES {
                let read = tokio::select! {
                    stream = connection.accept_uni(), if begun < 2 * PIECES => {
                        begun += 1;
                        let warm = destinations.borrow_mut().pop();
                        reads.push(receive(stream?, warm.unwrap_or_else(|| vec![0; encoded])));
                        continue;
                    }
                    Some(read) = reads.next() => read,
                };
                let (kind, at, bytes) = read?;
                done += 1;
                if kind == Kind::Parameters {
                    format.decode_into(&bytes, &mut parameters[piece(1 - rank, at)])?;
                } else {
                    let own = gradient(rank, at);
                    WireFormat::F32.decode_into(&own, sums)?;
                    format.add_decoded_into(&bytes, sums)?;
                    let parameters = &mut parameters[piece(rank, at)];
                    for (parameter, sum) in parameters.iter_mut().zip(sums.iter()) {
                        *parameter -= RATE * sum;
                    }
                    updated.send((at, encode(format, parameters)?)).context("nobody sends")?;
                }
                destinations.borrow_mut().push(bytes);
            }
            Ok(())
        };
        tokio::try_join!(sending, receiving)?;
        Ok(())
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn encode(format: WireFormat, values: &[f32]) -> anyhow::Result<Bytes> {
    let mut bytes = vec![0; format.encoded_len(values.len())];
    format.encode_into(values, &mut bytes)?;
    Ok(bytes.into())
}

async fn send(connection: &Connection, kind: Kind, at: usize, bytes: Bytes) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(&[u8::from(kind == Kind::Parameters), at as u8]).await?;
    stream.write_chunk(bytes).await?;
    stream.finish()?;
    Ok(())
}

/// Reads a piece into memory that has been used before.
async fn receive(
    mut stream: RecvStream,
    mut into: Vec<u8>,
) -> anyhow::Result<(Kind, usize, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let kind = if header[0] == 0 { Kind::Gradient } else { Kind::Parameters };
    let mut filled = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        let end = filled + chunk.bytes.len();
        let into = into.get_mut(filled..end).context("a piece is longer than it should be")?;
        into.copy_from_slice(&chunk.bytes);
        filled = end;
    }
    anyhow::ensure!(filled == into.len(), "a piece is shorter than it should be");
    Ok((kind, usize::from(header[1]), into))
}
