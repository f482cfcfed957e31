//! The other side of a measurement, in a process of its own that ends with this one.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use footlight::{cluster::SameHost, prelude::*};

use crate::{
    Work,
    footlight_side::{self, Echoes},
    raw, raw_behind,
};

/// A process that serves one work until it is dropped.
#[derive(Debug)]
pub struct Served {
    addr: SocketAddr,
    process: Child,
}

impl Served {
    /// Starts `program` (`footlight-bench`) as rank 0 of a participant and waits until it is ready.
    fn start(program: &Path, participant: &str, work: &str) -> anyhow::Result<Self> {
        // Free now, and for the moment that it takes to start.
        let addr = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = Command::new(program)
            .args([participant, work, "--rank", "0", "--addr", &addr.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} can't be started", program.display()))?;
        let output = process.stdout.take().context("it has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let served = Served { addr, process };
        anyhow::ensure!(line.trim() == "ready", "{participant} is not ready for {work}: {line:?}");
        Ok(served)
    }

    /// Bare quinn that does rank 0's part of `work`, and a connection with it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn raw(program: &Path, work: Work) -> anyhow::Result<(Self, raw::Client)> {
        use clap::ValueEnum;
        let name = work.to_possible_value().context("it has no name")?;
        let served = Self::start(program, "raw_quinn", name.get_name())?;
        let client = raw::Client::connect(work, served.addr).await?;
        Ok((served, client))
    }

    /// Bare quinn that takes tensors and answers calls meanwhile, and a connection for either.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn raw_behind(program: &Path) -> anyhow::Result<(Self, raw_behind::Client)> {
        let served = Self::start(program, "raw_quinn", "call_behind_bulk_p99")?;
        let client = raw_behind::Client::connect(served.addr).await?;
        Ok((served, client))
    }

    /// A node, another one in this process, and `actors` actors on the former.
    ///
    /// # Errors
    /// If a node or an actor does not start.
    pub async fn node(
        program: &Path,
        actors: usize,
    ) -> anyhow::Result<(Self, Node, Vec<ActorRef<Echoes>>)> {
        let served = Self::start(program, "footlight", "call_rtt")?;
        let node = footlight_side::join(served.addr, SameHost::Network).await?;
        let mut echoes = Vec::new();
        for _ in 0..actors {
            echoes.push(node.spawn::<Echoes>(()).on(Placement::seed()).await?);
        }
        Ok((served, node, echoes))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
