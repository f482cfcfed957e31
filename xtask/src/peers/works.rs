//! What is measured, and who takes part: the table of issue and report.

use super::limits::Limit;
use crate::dataset::Name;
use Better::{Higher, Lower};
use Limit::{AtLeast, AtMost, TimesAtLeast, TimesAtMost};
use Participant::{
    DataLoader, Ddp, DdpTensors, Footlight, Gloo, Monarch, Ractor, RawMemory, RawQuinn, Ray,
    RaySharded, TorchRpc, TorchRpcSharded, TorchRpcTcp,
};
use Place::{Link, OneProcess, OwnProcesses, TwoProcesses};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Participant {
    Footlight,
    /// The same work on bare quinn, and nothing else.
    RawQuinn,
    /// The same work with what is read from the other process's memory, and nothing else.
    RawMemory,
    /// The actor library underneath, in one process.
    Ractor,
    Ray,
    Monarch,
    /// PyTorch's all-reduce over TCP.
    Gloo,
    /// PyTorch RPC as it chooses its transport: shared memory on one host.
    TorchRpc,
    /// PyTorch RPC over TCP.
    TorchRpcTcp,
    /// PyTorch RPC with a server beside each worker, as Footlight has them, instead of its tutorial's one server.
    TorchRpcSharded,
    /// Ray with two servers and without the copies of its example.
    RaySharded,
    /// PyTorch's DistributedDataParallel over gloo, with its data as PyTorch recommends it.
    Ddp,
    /// The same with batches that are cut from one tensor in memory.
    DdpTensors,
    /// PyTorch's DataLoader.
    DataLoader,
}

impl Participant {
    pub(crate) const ALL: [Self; 14] = [
        Footlight,
        RawQuinn,
        RawMemory,
        Ractor,
        Ray,
        Monarch,
        Gloo,
        TorchRpc,
        TorchRpcTcp,
        TorchRpcSharded,
        RaySharded,
        Ddp,
        DdpTensors,
        DataLoader,
    ];

    /// The name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Footlight => "footlight",
            RawQuinn => "raw_quinn",
            RawMemory => "raw_memory",
            Ractor => "ractor",
            Ray => "ray",
            Monarch => "monarch",
            Gloo => "gloo",
            TorchRpc => "torch_rpc",
            TorchRpcTcp => "torch_rpc_tcp",
            TorchRpcSharded => "torch_rpc_sharded",
            RaySharded => "ray_sharded",
            Ddp => "ddp",
            DdpTensors => "ddp_tensors",
            DataLoader => "dataloader",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|participant| participant.name() == name)
    }

    /// Whether it starts its other processes itself.
    pub(crate) fn starts_its_own(self) -> bool {
        matches!(self, Ray | RaySharded | Monarch)
    }
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

impl Better {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Lower => "lower",
            Higher => "higher",
        }
    }
}

/// Where the sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    OneProcess,
    /// Both on loopback.
    TwoProcesses,
    /// On loopback too, and each participant starts the processes that it needs.
    OwnProcesses,
    /// On two hosts with a link of 2 Gbit/s between them.
    Link,
}

/// One row of the report.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// What the programs are told to do.
    pub(crate) task: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) place: Place,
    /// The data set that the programs are given. Then Footlight's is the one with libtorch.
    pub(crate) data: Option<Name>,
    pub(crate) participants: &'static [Participant],
    pub(crate) limits: &'static [Limit],
}

impl Work {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        WORKS.iter().find(|work| work.name == name)
    }
}

/// All works, in the order of the report.
#[rustfmt::skip]
pub(crate) static WORKS: &[Work] = &[
    work("call_rtt", "us", Lower, TwoProcesses, &[Footlight, RawQuinn, Ray, Monarch],
        // "At least 5 times faster" is a fifth of the time.
        &[TimesAtMost(1.3, RawQuinn), TimesAtMost(0.2, Ray), TimesAtMost(0.2, Monarch)]),
    work("calls_per_second", "1/s", Higher, TwoProcesses, &[Footlight, Ray, Monarch],
        &[AtLeast(400_000.0)]),
    work("casts_per_second", "1/s", Higher, TwoProcesses, &[Footlight, RawQuinn],
        &[AtLeast(1_200_000.0)]),
    work("tensor_put_100mib", "GB/s", Higher, TwoProcesses, &[Footlight, RawQuinn, Ray, Monarch],
        &[TimesAtLeast(0.9, RawQuinn), TimesAtLeast(1.0, Ray), TimesAtLeast(1.0, Monarch)]),
    work("tensor_put_same_host", "GB/s", Higher, TwoProcesses, &[Footlight, Ray, Monarch],
        &[TimesAtLeast(1.0, Ray), TimesAtLeast(1.0, Monarch)]),
    work("call_behind_bulk_p99", "ms", Lower, TwoProcesses, &[Footlight, RawQuinn], &[AtMost(3.0)]),
    work("parameter_step_f32", "ms", Lower, TwoProcesses, &[Footlight, RawQuinn, Gloo, TorchRpc, TorchRpcTcp, TorchRpcSharded, Ray, RaySharded],
        &[TimesAtMost(1.3, Gloo), TimesAtMost(0.6, TorchRpc), TimesAtMost(0.6, TorchRpcTcp), TimesAtMost(0.3, Ray)]),
    work("parameter_step_replicated", "ms", Lower, TwoProcesses, &[Footlight], &[]),
    work("parameter_step_bf16", "ms", Lower, TwoProcesses, &[Footlight, RawQuinn, Gloo],
        &[TimesAtMost(0.8, Gloo)]),
    Work { task: "parameter_step_f32",
        ..work("parameter_step_f32_2gbit", "ms", Lower, Link, &[Footlight, RawQuinn, Gloo], &[TimesAtMost(1.03, Gloo)]) },
    Work { task: "parameter_step_bf16",
        ..work("parameter_step_bf16_2gbit", "ms", Lower, Link, &[Footlight, RawQuinn, Gloo], &[TimesAtMost(0.55, Gloo)]) },
    work("parameter_step_same_host", "ms", Lower, TwoProcesses, &[Footlight, RawMemory, Gloo],
        &[TimesAtMost(0.7, Gloo)]),
    Work { data: Some(Name::Mnist),
        ..work("train_lenet", "samples/s", Higher, OwnProcesses, &[Footlight, Ddp, DdpTensors], &[TimesAtLeast(1.0, Ddp)]) },
    Work { data: Some(Name::Mnist),
        ..work("load_mnist_processes", "samples/s", Higher, OwnProcesses, &[Footlight, DataLoader], &[TimesAtLeast(3.0, DataLoader)]) },
    Work { data: Some(Name::Mnist),
        ..work("load_mnist_in_process", "samples/s", Higher, OneProcess, &[Footlight, DataLoader], &[TimesAtLeast(3.0, DataLoader)]) },
    work("peak_memory_256mib", "MiB", Lower, TwoProcesses, &[Footlight], &[AtMost(256.0 + 32.0)]),
    work("local_call", "us", Lower, OneProcess, &[Footlight, Ractor], &[TimesAtMost(1.5, Ractor)]),
];

const fn work(
    name: &'static str,
    unit: &'static str,
    better: Better,
    place: Place,
    participants: &'static [Participant],
    limits: &'static [Limit],
) -> Work {
    Work { name, task: name, unit, better, place, data: None, participants, limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_itself() {
        for work in WORKS {
            let found = Work::named(work.name);
            assert!(found.is_some_and(|found| std::ptr::eq(found, work)), "{}", work.name);
            assert_eq!(work.participants.first(), Some(&Footlight), "{}", work.name);
            for limit in work.limits {
                let peer = limit.peer();
                assert!(peer.is_none_or(|peer| work.participants.contains(&peer)), "{}", work.name);
                // A figure that should be low has a highest value, and the other way round.
                assert_eq!(limit.is_upper(), work.better == Lower, "{}", work.name);
            }
        }
        for participant in Participant::ALL {
            assert_eq!(Participant::named(participant.name()), Some(participant));
        }
    }
}
