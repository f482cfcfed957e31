"""PyTorch's all-reduce over gloo (TCP), then SGD on each worker: what data-parallel training without a server does.

The sums travel in f32 in every work; this is what the others are measured against.
"""

import os

import common

# Otherwise gloo takes the interface that the host's name belongs to. Between two hosts the harness sets it.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.distributed as dist


def parameter_step(given):
    torch.set_num_threads(1)
    if given.rank == 0:
        # It waits for rank 1 by itself.
        common.ready()
    dist.init_process_group(
        "gloo", init_method=f"tcp://{given.addr}", rank=given.rank, world_size=2
    )
    parameters = torch.zeros(common.PARAMETERS)
    gradient = torch.full((common.PARAMETERS,), 1e-6)

    def step():
        dist.all_reduce(gradient)
        parameters.add_(gradient, alpha=-common.LEARNING_RATE / 2)

    value = common.milliseconds_a_step(step)
    dist.barrier()
    return value


common.run(
    {
        "parameter_step_f32": parameter_step,
        "parameter_step_bf16": parameter_step,
        "parameter_step_same_host": parameter_step,
    }
)
