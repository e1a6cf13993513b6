"""The process of one contender of a race, which takes a turn for each line on its standard input."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import contenders, node_contenders, peers, ray_peers, two_workers
from benchmarks.contenders import Case, Contender, hold_to_threads
from benchmarks.race import CLOCKS, Options, rows_for

CONTENDERS = (
    contenders.CONTENDERS
    | peers.PEERS
    | two_workers.TWO_WORKERS
    | ray_peers.RAY_PEERS
    | node_contenders.NODE_CONTENDERS
)


def main(task: str) -> None:
    """The process of one contender: a line when ready, and one for each line that it is sent."""
    described = json.loads(task)
    case = Case(**described["case"] | {"sizes": tuple(described["case"]["sizes"])})
    options, name = Options(**described["options"]), described["name"]
    clock, tell = CLOCKS[options.clock], own_stdout()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ending what it has started
    hold_to_threads(case.threads)
    try:
        contender = CONTENDERS[name](case, *rows_for(case, options.mnist))
    except ImportError as error:
        tell(missing=f"{error.name} is not installed" if error.name else str(error))
        return
    try:
        steps = _steps_within(contender, options.seconds)
        tell(steps=steps)
        for _ in sys.stdin:
            start = clock()
            examples = contender.run(steps)
            tell(examples=examples, seconds=clock() - start)
    except ImportError as error:
        tell(missing=f"{error.name} is not installed")
    finally:
        contender.close()


def own_stdout() -> Callable[..., None]:
    """What writes lines to the standard output; what libraries print goes to the standard error from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    return tell


def _steps_within(contender: Contender, seconds: float) -> int:
    """How many steps take about `seconds`, after a warm-up in which everything is compiled.

    Seconds of processor time, which other work on the machine does not add to, where it is this process's.
    """
    clock, threads = time.process_time, contender.case.threads
    if contender.in_other_processes:
        clock, threads = time.perf_counter, 1
    contender.run(3)
    steps = 4
    while True:
        start = clock()
        examples = contender.run(steps)
        taken = (clock() - start) / threads
        if taken > seconds / 4:
            done = max(steps, examples / contender.case.batch) if examples > steps else steps
            return max(1, round(done * seconds / taken))
        steps *= 2


if __name__ == "__main__":
    main(sys.argv[1])
