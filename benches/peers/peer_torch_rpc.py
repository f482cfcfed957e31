"""A parameter server with PyTorch RPC, as its tutorial on asynchronous execution has it: the server waits for the gradients
of both workers, applies SGD, and answers both with the parameters. One server, in a process of its own.

`--sharded`: two servers instead, one beside each worker in its process, and each for one half of the parameters.
`--tcp`: tensors go over TCP. Otherwise TensorPipe chooses, and on one host takes its shared memory.
"""

import multiprocessing
import os
import threading

import common

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("TP_SOCKET_IFNAME", "lo")

import torch
import torch.distributed.rpc as rpc


class Server:
    """Some of the parameters, or all."""

    def __init__(self, size):
        self.lock = threading.Lock()
        self.parameters = torch.zeros(size)
        self.waiting = None

    def push(self, gradient):
        """Takes a worker's gradient; the future has the parameters when the other's is there too."""
        with self.lock:
            if self.waiting is None:
                self.waiting = (gradient, torch.futures.Future())
                return self.waiting[1]
            (first, future), self.waiting = self.waiting, None
        for one in (first, gradient):
            self.parameters.add_(one, alpha=-common.LEARNING_RATE / 2)
        # No copy: nobody changes them before both workers have them and have pushed again.
        future.set_result(self.parameters)
        return future


# The one of this process.
server = None


@rpc.functions.async_execution
def push(gradient):
    """What a worker in another process calls."""
    return server.push(gradient)


def join(rank, world, addr, tcp):
    """Connects this process with the others."""
    torch.set_num_threads(1)
    tcp_only = {"_transports": ["uv"], "_channels": ["basic"]} if tcp else {}
    # Over TCP a time-out of 0, which means none, breaks the connection.
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://{addr}", rpc_timeout=60, **tcp_only
    )
    rpc.init_rpc(f"rank{rank}", rank=rank, world_size=world, rpc_backend_options=options)


def worker(rank, addr, tcp):
    """One of the two, where the server is rank 0."""
    join(rank, 3, addr, tcp)
    gradient = torch.full((common.PARAMETERS,), 1e-6)
    value = common.milliseconds_a_step(lambda: rpc.rpc_sync("rank0", push, (gradient,)))
    rpc.shutdown()
    return value


def one_server(given):
    global server
    if given.rank == 1:
        return worker(1, given.addr, given.tcp)
    server = Server(common.PARAMETERS)
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=worker, args=(2, given.addr, given.tcp))
    other.start()
    common.ready()
    join(0, 3, given.addr, given.tcp)
    # Waits until the workers are done.
    rpc.shutdown()
    other.join()


def a_server_beside_each(given):
    global server
    half = common.PARAMETERS // 2
    server = Server(half)
    if given.rank == 0:
        common.ready()
    join(given.rank, 2, given.addr, given.tcp)
    near, far = torch.full((half,), 1e-6), torch.full((half,), 1e-6)

    def step():
        answer = rpc.rpc_async(f"rank{1 - given.rank}", push, (far,))
        # The server of this process needs no call.
        server.push(near).wait()
        answer.wait()

    value = common.milliseconds_a_step(step)
    rpc.shutdown()
    return value


def parameter_step(given):
    return a_server_beside_each(given) if given.sharded else one_server(given)


# Not where `multiprocessing` loads this file for the other worker.
if __name__ == "__main__":
    common.run({"parameter_step_f32": parameter_step}, flags=("tcp", "sharded"))
