"""A fault inside a worker's own process: `python -m tests.faults.inside exit`, in the environment of a controller.

The first worker that has a job is told by Ray, as a controller would, on the thread that answers beside the one that
trains: no code of the service knows of it.
"""

import os
import sys
import time
from typing import Any

import ray

from worker.cluster import ACTORS, HEALTH, Cluster, RayRemote
from worker.pool import NOBODY, WORKER, kind_of

DEADLINE_S = 60.0


def leave(worker: Any) -> None:
    """The process ends on its own account, in the middle of whatever it does."""
    os._exit(3)


def run_out_of_memory(worker: Any) -> None:
    """From now on no gradient finds the memory it needs."""

    def gradient(*arguments: Any) -> None:
        raise MemoryError("Unable to allocate 7.28 TiB for an array")  # NumPy's words

    worker.gradient = gradient


FAULTS = {"exit": leave, "memory": run_out_of_memory}


def at_work() -> str:
    """The name of a worker that is somebody's."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        workers = {name for name in ACTORS.names() if kind_of(name) == WORKER}
        for name, holder in sorted(ACTORS.holders(workers, 1.0).items()):
            if holder != NOBODY:
                return name
    raise TimeoutError(f"no worker has a job within {DEADLINE_S:g} s")


def main() -> None:
    cluster = Cluster(os.environ["FALLLINE_RAY_ADDRESS"], orphan_seconds=60)
    worker = RayRemote(at_work()).handle
    told = worker.__ray_call__.options(concurrency_group=HEALTH).remote(FAULTS[sys.argv[1]])
    try:
        ray.get(told, timeout=DEADLINE_S)
    except ray.exceptions.RayActorError:
        pass  # it has left: that was the fault
    cluster.close()


if __name__ == "__main__":
    main()
