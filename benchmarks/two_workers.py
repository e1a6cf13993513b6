"""Our contenders of two processes: workers that exchange through shared memory, and two that never communicate."""

import tempfile
from pathlib import Path
from typing import ClassVar

from benchmarks.contenders import Contender
from benchmarks.distribution import WORKERS, Apart, Together, step_plan
from benchmarks.prepared_arrays import write_prepared


class TwoWorkers(Contender):
    """One shard and one BLAS thread a worker, every commit checked, as in the service."""

    in_other_processes: ClassVar[bool] = True
    together: ClassVar[bool] = True

    def prepare(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        data = write_prepared(Path(self._folder.name) / "data", self.features, self.targets)
        batch = self.case.batch
        self._crew = Together(step_plan(data, batch, WORKERS)) if self.together else Apart(data, batch, WORKERS)

    def run(self, steps: int) -> int:
        self._crew.run(steps)
        return steps * self.case.batch

    def close(self) -> None:
        self._crew.close()
        self._folder.cleanup()


class TwoApart(TwoWorkers):
    """The same two, each with half of the minibatch, and nothing between them: what no exchange can surpass."""

    together = False


TWO_WORKERS: dict[str, type[Contender]] = {"ours, 2 workers": TwoWorkers, "ours, 2 apart": TwoApart}
