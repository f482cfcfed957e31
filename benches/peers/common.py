"""What the scripts of the peers share: the command line, the clock, the one line of result.

`cargo xtask peers` starts each as `PEER.py WORK --rank R --addr HOST:PORT`. Rank 0 comes first and prints `ready`; then
rank 1 measures and prints `{"value": number}`. A peer that cannot do a work says so and exits with 3. A peer that starts
its own processes has a rank 1 only. Standard input stays open as long as the harness lives.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time

# One thread to compute with for each process, as for everybody here. The libraries read this when they are loaded.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

PAYLOAD = b"x" * 64
IN_FLIGHT = 256
# 100 MiB of f32.
TENSOR = 25 * 2**20
# ResNet-50 has as many.
PARAMETERS = 25_600_000
LEARNING_RATE = 0.01


def run(works, flags=()):
    """Does the work that the command line names. A work is a function of what the command line says: rank, address, and
    the flags of this peer. Rank 1's returns its figure, or several by name of which one is the value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--rank", type=int, choices=(0, 1), required=True)
    parser.add_argument("--addr", default="127.0.0.1:7411", metavar="HOST:PORT")
    parser.add_argument("--data", metavar="DIR", help="the four files of MNIST, where a work needs them")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    given = parser.parse_args()
    if given.work not in works:
        print(f"{os.path.basename(sys.argv[0])} does not do {given.work}", file=sys.stderr)
        sys.exit(3)
    end_with_the_harness()
    figure = works[given.work](given)
    if given.rank == 1:
        print(json.dumps(figure if isinstance(figure, dict) else {"value": figure}), flush=True)


def ready():
    """Tells the harness that rank 1 may be started."""
    print("ready", flush=True)


def end_with_the_harness():
    """Ends this process, and those it has started, when standard input ends: the harness is done with it, or gone."""

    def wait():
        while os.read(0, 4096):
            pass
        # The harness gives each side a process group of its own; a shell that runs a script does not.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def times(step, count):
    """How long each of `count` runs of `step` takes, in seconds."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return taken


def microseconds_a_call(call):
    """The p50 of one call after another."""
    times(call, 200)
    return statistics.median(times(call, 2000)) * 1e6


def calls_a_second(begin, finish, calls=10_000, at_once=1):
    """The rate of calls of which 256 are under way: `begin` starts one, `finish` waits for the oldest `at_once`."""
    under_way = [begin() for _ in range(IN_FLIGHT)]

    def turn():
        finish(under_way[:at_once])
        del under_way[:at_once]
        under_way.extend(begin() for _ in range(at_once))

    times(turn, 1000 // at_once)
    turns = calls // at_once
    taken = sum(times(turn, turns))
    finish(under_way)
    return turns * at_once / taken


def gigabytes_a_second(put, warm_up=3, count=10):
    """The rate at which `put` moves a tensor of 100 MiB; beside it, what it was before everything had been used once."""
    rate = lambda taken: TENSOR * 4 / statistics.median(taken) / 1e9
    cold = times(put, warm_up)
    return {"value": rate(times(put, count)), "cold": rate(cold)}


def milliseconds_a_step(step, warm_up=3, count=10):
    """A parameter step's time."""
    times(step, warm_up)
    return statistics.median(times(step, count)) * 1e3
