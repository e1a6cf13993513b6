"""`workers: auto`: all workers or one, decided by measuring both on the job's own steps.

A small network is faster on one worker: its steps are over before others have been woken. Nothing is lost by trying:
every step counts, and the weights do not depend on who computes them. No I/O and no clock here.
"""

from dataclasses import dataclass

CHUNK_S = 0.04  # a probe looks this often
MEASURE_S = 0.2  # of steps, with all workers and with one
WORTH_S = 5.0  # a job with less than this before it is not worth asking
LONG_STEP_S = 0.03  # where the steps of all workers take this long, it is arithmetic that does
MARGIN = 1.05  # all workers are to be faster by more than this: else the others are better used elsewhere


@dataclass(frozen=True)
class Choice:
    """How many workers the job goes on with, why, and the examples a second measured, by the number of workers."""

    workers: int
    reason: str
    rates: dict[int, float]


def choose(workers: int, all_rate: float, one_rate: float) -> Choice:
    """All `workers` or one, from the examples a second of each."""
    rates = {workers: all_rate, 1: one_rate}
    figures = f"{all_rate:,.0f} examples/s with {workers}, {one_rate:,.0f} with one"
    if all_rate > MARGIN * one_rate:
        return Choice(workers, figures, rates)
    return Choice(1, figures, rates)


class Probe:
    """A job's probe. After each chunk of steps `add` says with how many workers to go on."""

    def __init__(self, workers: int) -> None:
        """`workers`: how many the job has begun with."""
        self._all = self.wanted = workers
        self._rates: dict[int, float] = {}
        self._rows, self._seconds, self._is_warm = 0, 0.0, False
        self.choice: Choice | None = None if workers > 1 else Choice(1, "no more could be had", {})

    def add(self, workers: int, steps: int, rows: int, seconds: float, seconds_left: float) -> None:
        """A chunk of `steps` with `rows` in all, done by `workers` in `seconds`; `seconds_left`: of the whole job.

        Sets `wanted`; and `choice`, when it is made: then there is nothing to add any more.
        """
        if workers > self._all:  # who was late has joined
            self._all = self.wanted = workers
        if not self._is_warm or workers != self.wanted:  # the first chunk is slower, and so is one with a loss
            self._rows, self._seconds, self._is_warm = 0, 0.0, workers == self.wanted
            return
        self._rows, self._seconds = self._rows + rows, self._seconds + seconds
        step = seconds / steps
        if workers == self._all and step > LONG_STEP_S:
            self.choice = Choice(workers, f"a step takes {1000 * step:.0f} ms, and is cut well", {})
        elif workers == self._all and seconds_left < WORTH_S:
            self.choice = Choice(workers, f"only {seconds_left:.1f} s are left to gain in", {})
        elif self._seconds >= MEASURE_S:
            self._measured(workers)

    def _measured(self, workers: int) -> None:
        self._rates[workers] = self._rows / self._seconds
        self._rows, self._seconds, self._is_warm = 0, 0.0, False
        if workers == 1:
            self.choice = choose(self._all, self._rates[self._all], self._rates[1])
        self.wanted = 1 if self.choice is None else self.choice.workers
