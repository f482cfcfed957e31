"""PyTorch's DataLoader: MNIST in batches of 64, shuffled anew in each epoch. Nothing is computed with them.

The samples are in memory, one byte a pixel, in a TensorDataset; two worker processes, which stay for all epochs, or none.
"""

import time

import common
import lenet
import torch
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64
# The first one does not count.
EPOCHS = 4


def load(given, workers):
    torch.set_num_threads(1)
    images, labels = lenet.mnist(given.data, "train")
    loader = DataLoader(
        TensorDataset(images, labels),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    received, total = 0, 0
    for epoch in range(EPOCHS):
        if epoch == 1:
            begun, received = time.perf_counter(), 0
        for batch, target in loader:
            received += len(target)
            total += int(batch[0, 14, 14])
    taken = time.perf_counter() - begun
    assert received == (EPOCHS - 1) * len(images) and total > 0
    return received / taken


common.run(
    {
        "load_mnist_processes": lambda given: load(given, 2),
        "load_mnist_in_process": lambda given: load(given, 0),
    }
)
