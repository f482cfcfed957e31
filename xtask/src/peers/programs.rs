//! How each participant is started: Footlight's own program for three of them, a Python script for the others.

use super::venv::{Package, Venv};
use super::works::{Participant, Work};
use crate::demo::target_directory;
use crate::{command, paths};
use anyhow::Result;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

/// What is ready to be started.
pub(crate) struct Programs {
    venv: Venv,
    bench: Option<PathBuf>,
    scripts: PathBuf,
}

impl Programs {
    /// Installs and builds what the works need.
    pub(crate) fn prepare(works: &[&Work]) -> Result<Self> {
        let participants = works.iter().flat_map(|work| work.participants);
        let mut packages: Vec<Package> = participants.filter_map(|who| package(*who)).collect();
        packages.sort_unstable();
        packages.dedup();
        let venv = Venv::prepare(&packages)?;
        let benches = paths::root().join("benches");
        let bench = benches.join("Cargo.toml").is_file().then(build).transpose()?;
        Ok(Self { venv, bench, scripts: benches.join("peers") })
    }

    /// Why a participant cannot be started.
    pub(crate) fn lacks(&self, who: Participant) -> Option<String> {
        match package(who) {
            Some(package) => self.venv.lacks(package).map(str::to_owned),
            None if self.bench.is_some() => None,
            None => Some("this checkout has no package footlight-benches".to_owned()),
        }
    }

    /// A participant's side of a work.
    pub(crate) fn command(
        &self,
        who: Participant,
        task: &str,
        rank: u8,
        addr: SocketAddr,
    ) -> Command {
        let script = |name: &str| {
            let mut python = self.venv.python();
            python.arg(self.scripts.join(name));
            python
        };
        let (mut command, more) = match who {
            Participant::Footlight | Participant::RawQuinn | Participant::Ractor => {
                let mut bench = Command::new(self.bench.clone().unwrap_or_default());
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
        };
        command.arg(task).args(["--rank", &rank.to_string(), "--addr", &addr.to_string()]);
        command.args(more);
        command
    }
}

fn build() -> Result<PathBuf> {
    command::openly(command::cargo().args([
        "build",
        "--profile=bench",
        "--package=footlight-benches",
    ]))?;
    Ok(target_directory()?.join("release/footlight-bench"))
}

/// The package that a participant is in; Footlight's own program needs none.
fn package(who: Participant) -> Option<Package> {
    match who {
        Participant::Footlight | Participant::RawQuinn | Participant::Ractor => None,
        Participant::Ray | Participant::RaySharded => Some(Package::Ray),
        Participant::Monarch => Some(Package::Monarch),
        Participant::Gloo
        | Participant::TorchRpc
        | Participant::TorchRpcTcp
        | Participant::TorchRpcSharded => Some(Package::Torch),
    }
}
