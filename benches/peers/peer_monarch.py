"""Monarch: an actor in a process of its own, on this host, and its buffers for what is large.

Without network cards for RDMA its buffers go over TCP; that is still faster than a tensor in a message.
"""

import contextlib

import common
import numpy as np
from monarch.actor import Actor, endpoint, this_host
from monarch.rdma import RDMABuffer


class Echo(Actor):
    @endpoint
    def echo(self, payload):
        return payload


class Receiver(Actor):
    # Told its size: the process that it runs in does not find this folder's modules.
    def __init__(self, size):
        self.tensor = np.zeros(size, dtype=np.float32)

    @endpoint
    async def fetch(self, buffer):
        await buffer.read_into(memoryview(self.tensor).cast("B"))
        return float(self.tensor[::1024].sum())


@contextlib.contextmanager
def spawned(actor, *arguments):
    """An actor in a process of its own, which is ended in the end."""
    process = this_host().spawn_procs(per_host={"gpus": 1})
    try:
        yield process.spawn(actor.__name__.lower(), actor, *arguments)
    finally:
        process.stop().get()


def call_rtt(given):
    with spawned(Echo) as actor:
        return common.microseconds_a_call(lambda: actor.echo.call_one(common.PAYLOAD).get())


def calls_per_second(given):
    with spawned(Echo) as actor:
        call = lambda: actor.echo.call_one(common.PAYLOAD)
        finish = lambda calls: [call.get() for call in calls]
        # Taking the answers one at a time halves the rate.
        return common.calls_a_second(call, finish, at_once=128)


def tensor_put(given):
    with spawned(Receiver, common.TENSOR) as actor:
        tensor = np.ones(common.TENSOR, dtype=np.float32)
        buffer = RDMABuffer(memoryview(tensor).cast("B"))
        return common.gigabytes_a_second(lambda: actor.fetch.call_one(buffer).get())


common.run(
    {
        "call_rtt": call_rtt,
        "calls_per_second": calls_per_second,
        "tensor_put_100mib": tensor_put,
        "tensor_put_same_host": tensor_put,
    }
)
