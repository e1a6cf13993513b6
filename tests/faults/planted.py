"""A controller that dies at one point: `python -m tests.faults.planted POINT`, in the environment of the first one.

A real one, with everything that belongs to it; it stands by until the first is gone, leads, and is killed by SIGKILL
right after the call that POINT names. No code of the service knows of it.
"""

import importlib
import os
import signal
import sys
from typing import Any

from service import controller

# The method, `module:class.method`, whose first return is its caller's last; a claim of nothing does not count.
POINTS = {
    "claimed": "service.store:Store.claim_job",
    "started": "worker.cluster:Cluster.start",  # before the first heartbeat: nobody has polled the trainer yet
    "recorded a start": "service.store:Store.set_progress",
    "polled": "worker.cluster:TrainerHandle.poll",
    "kept the model": "service.artifacts:ArtifactStore.put",
    "trained": "service.store:Store.set_result",
    "begun a run": "service.tracking:Tracking.start_run",
    "registered": "service.tracking:Tracking.register",  # and not recorded
    "recorded the version": "service.store:Store.record_version",
    "finished": "service.store:Store.finish_job",
}


def plant(point: str) -> None:
    """From now on this process dies there."""
    module, _, path = POINTS[point].partition(":")
    name, _, method = path.partition(".")
    owner = getattr(importlib.import_module(module), name)
    real = getattr(owner, method)

    def last(*arguments: Any, **named: Any) -> Any:
        answer = real(*arguments, **named)
        if point != "claimed" or answer is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, method, last)


if __name__ == "__main__":
    plant(sys.argv[1])
    controller.STAND_BY_SECONDS = 0.02  # to lead before the successor of the one that is killed
    sys.exit(controller.main())
