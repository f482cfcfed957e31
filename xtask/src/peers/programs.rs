//! How each participant is started: a program of Footlight's for three of them, a Python script for the others.

use super::venv::{Package, Venv};
use super::works::{Participant, Work};
use crate::dataset::Name;
use crate::demo::target_directory;
use crate::{command, paths, setup};
use anyhow::Result;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

/// What is ready to be started.
pub(crate) struct Programs {
    venv: Venv,
    /// Footlight's two programs: that without libtorch, and that with it, which is given data.
    bench: Option<PathBuf>,
    training: Option<PathBuf>,
    mnist: Option<PathBuf>,
    scripts: PathBuf,
}

impl Programs {
    /// Installs, fetches and builds what the works need.
    pub(crate) fn prepare(works: &[&Work]) -> Result<Self> {
        let participants = works.iter().flat_map(|work| work.participants);
        let mut packages: Vec<Package> = participants.filter_map(|who| package(*who)).collect();
        packages.sort_unstable();
        packages.dedup();
        let venv = Venv::prepare(&packages)?;
        let benches = paths::root().join("benches");
        let build = |wanted: bool, manifest: &str, package: &str, program: &str| {
            let there = wanted && benches.join(manifest).is_file();
            there.then(|| build(package, program)).transpose()
        };
        let with_data = works.iter().any(|work| work.data.is_some());
        let mnist = with_data.then(|| setup::prepare(None, Name::Mnist, None)).transpose()?;
        let without = works.iter().any(|work| work.data.is_none());
        Ok(Self {
            venv,
            bench: build(without, "Cargo.toml", BENCHES, "footlight-bench")?,
            training: build(
                with_data,
                "training/Cargo.toml",
                TRAINING,
                "footlight-training-bench",
            )?,
            mnist: mnist.map(|ready| ready.data),
            scripts: benches.join("peers"),
        })
    }

    /// Why a participant cannot be started.
    pub(crate) fn lacks(&self, work: &Work, who: Participant) -> Option<String> {
        if let Some(package) = package(who) {
            return self.venv.lacks(package).map(str::to_owned);
        }
        let package = if work.data.is_some() { TRAINING } else { BENCHES };
        let lacks = || format!("this checkout has no package {package}");
        self.own(work).is_none().then(lacks)
    }

    /// Footlight's program for a work.
    fn own(&self, work: &Work) -> Option<&PathBuf> {
        if work.data.is_some() { self.training.as_ref() } else { self.bench.as_ref() }
    }

    /// A participant's side of a work.
    pub(crate) fn command(
        &self,
        who: Participant,
        work: &Work,
        rank: u8,
        addr: SocketAddr,
    ) -> Command {
        let script = |name: &str| {
            let mut python = self.venv.python();
            python.arg(self.scripts.join(name));
            python
        };
        let (mut command, more) = match who {
            Participant::Footlight
            | Participant::RawQuinn
            | Participant::RawMemory
            | Participant::Ractor => {
                let mut bench = Command::new(self.own(work).cloned().unwrap_or_default());
                bench.arg(who.name());
                (bench, None)
            }
            Participant::Ray => (script("peer_ray.py"), None),
            Participant::Monarch => (script("peer_monarch.py"), None),
            Participant::Gloo => (script("peer_gloo.py"), None),
            Participant::TorchRpc => (script("peer_torch_rpc.py"), None),
            Participant::TorchRpcTcp => (script("peer_torch_rpc.py"), Some("--tcp")),
            Participant::TorchRpcSharded => (script("peer_torch_rpc.py"), Some("--sharded")),
            Participant::RaySharded => (script("peer_ray.py"), Some("--sharded")),
            Participant::Ddp => (script("peer_ddp.py"), None),
            Participant::DdpTensors => (script("peer_ddp.py"), Some("--tensors")),
            Participant::DataLoader => (script("peer_dataloader.py"), None),
        };
        command.arg(work.task).args(["--rank", &rank.to_string(), "--addr", &addr.to_string()]);
        command.args(more);
        if let (Some(_), Some(folder)) = (work.data, &self.mnist) {
            command.arg("--data").arg(folder);
        }
        command
    }
}

const BENCHES: &str = "footlight-benches";
const TRAINING: &str = "footlight-training-benches";

fn build(package: &str, program: &str) -> Result<PathBuf> {
    let package = format!("--package={package}");
    command::openly(command::cargo().args([
        "build",
        "--profile=bench",
        &package,
        "--bin",
        program,
    ]))?;
    Ok(target_directory()?.join("release").join(program))
}

/// The package that a participant is in; Footlight's own program needs none.
fn package(who: Participant) -> Option<Package> {
    match who {
        Participant::Footlight
        | Participant::RawQuinn
        | Participant::RawMemory
        | Participant::Ractor => None,
        Participant::Ray | Participant::RaySharded => Some(Package::Ray),
        Participant::Monarch => Some(Package::Monarch),
        Participant::Gloo
        | Participant::TorchRpc
        | Participant::TorchRpcTcp
        | Participant::TorchRpcSharded
        | Participant::Ddp
        | Participant::DdpTensors
        | Participant::DataLoader => Some(Package::Torch),
    }
}
