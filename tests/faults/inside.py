"""A fault inside an actor's own process: `python -m tests.faults.inside exit`, in the environment of a controller.

It happens when a line comes on standard input. The first actor of that kind that has a job is told by Ray, as a
controller would, on the thread that answers beside the one that works: no code of the service knows of it.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import ray

from worker.cluster import Cluster
from worker.pool import NOBODY, TRAINER, WORKER, kind_of
from worker.ray_actors import ACTORS, HEALTH, RayRemote

DEADLINE_S = 60.0


def leave(worker: Any) -> None:
    """The process ends on its own account, in the middle of whatever it does."""
    os._exit(3)


def run_out_of_memory(worker: Any) -> None:
    """From now on no gradient finds the memory it needs."""

    def gradient(*arguments: Any) -> None:
        raise MemoryError("Unable to allocate 7.28 TiB for an array")  # NumPy's words

    worker.gradient = gradient


def die_at(trainer: Any, call: str, turn: str, when: str) -> None:
    """SIGKILL before or after the `turn`-th of the process's next calls of `os.<call>`, or of `run_steps`."""
    import os  # by name: this function travels without its module
    import signal

    from worker.shared_memory import SharedMemoryExchange

    place = SharedMemoryExchange if call == "run_steps" else os
    real, left = getattr(place, call), [int(turn)]

    def killed(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, call, killed)


FAULTS: dict[str, tuple[str, Callable[..., None]]] = {
    "exit": (WORKER, leave),
    "memory": (WORKER, run_out_of_memory),
    "die": (TRAINER, die_at),
}


def at_work(kind: str) -> str:
    """The name of an actor of that kind that is somebody's."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        names = sorted(name for name in ACTORS.names() if kind_of(name) == kind)
        if kind == TRAINER:
            busy = sorted(ACTORS.crews(names))
        else:
            busy = [name for name, holder in sorted(ACTORS.holders(names, 1.0).items()) if holder != NOBODY]
        if busy:
            return busy[0]
    raise TimeoutError(f"no {kind} has a job within {DEADLINE_S:g} s")


def main() -> None:
    cluster = Cluster(os.environ["FALLLINE_RAY_ADDRESS"], orphan_seconds=60)
    sys.stdout.write("joined\n")
    sys.stdout.flush()
    sys.stdin.readline()
    kind, fault = FAULTS[sys.argv[1]]
    actor = RayRemote(at_work(kind)).handle
    told = actor.__ray_call__.options(concurrency_group=HEALTH).remote(fault, *sys.argv[2:])
    try:
        ray.get(told, timeout=DEADLINE_S)
    except ray.exceptions.RayActorError:
        pass  # it has left: that was the fault
    cluster.close()


if __name__ == "__main__":
    main()
