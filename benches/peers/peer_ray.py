"""Ray: actors, and its object store in shared memory for what is large.

A part of the store that was never used is slow, as the kernel has yet to find memory for it. So the stores here are small
enough to have been used all through once when the clock starts.
"""

import contextlib
import os

# Nothing is sent to Ray's makers, and no key is left in the user's home.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"

import common
import numpy as np
import ray


@contextlib.contextmanager
def started(store):
    """Ray on this machine, with so many MiB of store; it is ended here, and not left to notice that it is alone."""
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=store * 2**20)
    try:
        yield
    finally:
        ray.shutdown()


@ray.remote
class Receiver:
    def echo(self, payload):
        return payload

    def put(self, tensor):
        # One number of each page: the pages are there.
        return float(tensor[::1024].sum())


def call_rtt(given):
    with started(store=256):
        receiver = Receiver.remote()
        return common.microseconds_a_call(lambda: ray.get(receiver.echo.remote(common.PAYLOAD)))


def calls_per_second(given):
    with started(store=256):
        receiver = Receiver.remote()
        call = lambda: receiver.echo.remote(common.PAYLOAD)
        # Answers are cheaper to get several at once.
        return common.calls_a_second(call, ray.get, at_once=64)


def tensor_put(given):
    with started(store=1024):
        receiver = Receiver.remote()
        tensor = np.ones(common.TENSOR, dtype=np.float32)
        put = lambda: ray.get(receiver.put.remote(ray.put(tensor)))
        return common.gigabytes_a_second(put, warm_up=16)


def model():
    """All parameters as a PyTorch model, with a gradient."""
    import torch

    torch.set_num_threads(1)
    net = torch.nn.Module()
    net.weight = torch.nn.Parameter(torch.zeros(common.PARAMETERS))
    net.weight.grad = torch.full((common.PARAMETERS,), 1e-6)
    return torch, net


@ray.remote
class ParameterServer:
    """As in Ray's example of a synchronous parameter server."""

    def __init__(self):
        self.torch, self.net = model()
        self.sgd = self.torch.optim.SGD(self.net.parameters(), lr=common.LEARNING_RATE / 2)

    def weights(self):
        return {name: tensor.cpu() for name, tensor in self.net.state_dict().items()}

    def apply(self, *gradients):
        summed = [np.stack(of_one).sum(axis=0) for of_one in zip(*gradients)]
        self.sgd.zero_grad()
        for gradient, parameter in zip(summed, self.net.parameters()):
            parameter.grad = self.torch.from_numpy(gradient)
        self.sgd.step()
        return self.weights()


@ray.remote
class Worker:
    """As in that example, but that its gradients are there already."""

    def __init__(self):
        self.torch, self.net = model()

    def gradients(self, weights):
        self.net.load_state_dict(weights)
        return [parameter.grad.cpu().numpy() for parameter in self.net.parameters()]


def recipe():
    server, workers = ParameterServer.remote(), [Worker.remote(), Worker.remote()]
    weights = server.weights.remote()

    def step():
        nonlocal weights
        weights = server.apply.remote(*[worker.gradients.remote(weights) for worker in workers])
        ray.wait([weights], fetch_local=False)

    return step


@ray.remote
class Shard:
    """One half of the parameters in numpy arrays, which Ray hands on without a copy at the reader."""

    def __init__(self, size):
        self.parameters = np.zeros(size, dtype=np.float32)
        self.sum = np.zeros(size, dtype=np.float32)

    def weights(self):
        return self.parameters

    def apply(self, first, second):
        np.add(first, second, out=self.sum)
        self.sum *= np.float32(common.LEARNING_RATE / 2)
        self.parameters -= self.sum
        return self.parameters


@ray.remote
class ShardedWorker:
    def __init__(self, size):
        self.halves = [np.full(size, 1e-6, dtype=np.float32) for _ in range(2)]

    def gradients(self, *weights):
        return self.halves


def sharded():
    half = common.PARAMETERS // 2
    shards = [Shard.remote(half) for _ in range(2)]
    workers = [ShardedWorker.remote(half) for _ in range(2)]
    weights = [shard.weights.remote() for shard in shards]

    def step():
        nonlocal weights
        pushed = [worker.gradients.options(num_returns=2).remote(*weights) for worker in workers]
        weights = [shard.apply.remote(*halves) for shard, halves in zip(shards, zip(*pushed))]
        ray.wait(weights, num_returns=2, fetch_local=False)

    return step


def parameter_step(given):
    with started(store=2048):
        step = sharded() if given.sharded else recipe()
        return common.milliseconds_a_step(step, warm_up=10)


common.run(
    {
        "call_rtt": call_rtt,
        "calls_per_second": calls_per_second,
        "tensor_put_100mib": tensor_put,
        "tensor_put_same_host": tensor_put,
        "parameter_step_f32": parameter_step,
    },
    flags=("sharded",),
)
