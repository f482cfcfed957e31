"""MNIST as tensors, and LeNet-5 as Footlight's own is built, for the peers that train or load."""

import os

import torch
from torch import nn


def idx(folder, name):
    """One of the four files."""
    with open(os.path.join(folder, name), "rb") as file:
        content = file.read()
    # A magic number, whose last byte is the number of axes, and their lengths.
    axes = content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return torch.frombuffer(bytearray(content[4 + 4 * axes :]), dtype=torch.uint8).reshape(shape)


def mnist(folder, split):
    """The images as they are stored and their labels; the split is `train` or `t10k`."""
    labels = idx(folder, f"{split}-labels-idx1-ubyte")
    return idx(folder, f"{split}-images-idx3-ubyte"), labels.to(torch.int64)


def normalised(images):
    """To zero mean and unit variance, by those of the training images."""
    return ((images.to(torch.float32) / 255 - 0.1307) / 0.3081).unsqueeze(1)


def lenet5():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )
