"""PyTorch's DistributedDataParallel over gloo: two processes, each with one thread and half of each batch.

The data comes as PyTorch recommends it, by a DataLoader with a DistributedSampler, in the process itself: there is a core
for each of the two, and none for loaders of their own. The images are normalised once, ahead of time.
`--tensors`: batches are cut from one tensor instead, which no PyTorch tutorial does, and which is faster.
"""

import os
import time

import common

# Otherwise gloo takes the interface that the host's name belongs to.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import lenet
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

WORLD = 2
# Of both together.
BATCH = 128
EPOCHS = 2
# In the first steps of each epoch nothing counts, as for Footlight.
WARM_STEPS = 100


def recommended(images, labels, rank):
    """The batches of an epoch."""
    dataset = TensorDataset(images, labels)
    sampler = DistributedSampler(dataset, WORLD, rank, shuffle=True)
    loader = DataLoader(dataset, batch_size=BATCH // WORLD, sampler=sampler)

    def epoch(number):
        sampler.set_epoch(number)
        return loader

    return epoch


def tensors(images, labels, rank):
    """The same without loader and sampler."""

    def epoch(number):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))
        for mine in order[rank::WORLD].split(BATCH // WORLD):
            yield images[mine], labels[mine]

    return epoch


def train(rank, addr, data, as_tensors, figures):
    """One of the two processes. The second one measures."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{addr}", rank=rank, world_size=WORLD)
    torch.manual_seed(1)
    images, labels = lenet.mnist(data, "train")
    epoch = (tensors if as_tensors else recommended)(lenet.normalised(images), labels, rank)
    model = DistributedDataParallel(lenet.lenet5())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    loss_of = nn.CrossEntropyLoss()
    taken = 0.0
    for number in range(EPOCHS):
        for step, (batch, target) in enumerate(epoch(number)):
            if step == WARM_STEPS:
                begun = time.perf_counter()
            optimizer.zero_grad()
            loss_of(model(batch), target).backward()
            optimizer.step()
            schedule.step()
        taken += time.perf_counter() - begun
    if rank == 1:
        samples = EPOCHS * (len(images) - WARM_STEPS * BATCH)
        images, labels = lenet.mnist(data, "t10k")
        with torch.no_grad():
            right = model.module(lenet.normalised(images)).argmax(-1) == labels
        figures.put({"value": samples / taken, "accuracy": right.float().mean().item()})
    dist.destroy_process_group()


def train_lenet(given):
    spawn = multiprocessing.get_context("spawn")
    figures = spawn.SimpleQueue()
    arguments = (given.addr, given.data, given.tensors, figures)
    processes = [spawn.Process(target=train, args=(rank, *arguments)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"a process of the two ended with {process.exitcode}")
    return figures.get()


# Not where `multiprocessing` loads this file for the two.
if __name__ == "__main__":
    common.run({"train_lenet": train_lenet}, flags=("tensors",))
