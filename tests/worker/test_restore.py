"""An exchange's snapshot is all that the steps after it follow from, whichever exchange goes on with it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from core.optimizers import OptimizerSpec
from worker import futex
from worker.exchange import Exchange, InProcessExchange
from worker.plan import StepPlan

SEED, STEPS = 5, 12
Open = Callable[[StepPlan], Exchange]
NEEDS_FUTEX = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")


@pytest.fixture(params=["in process", "objects", "sockets", pytest.param("shared memory", marks=NEEDS_FUTEX)])
def open_exchange(
    request: pytest.FixtureRequest, open_over: Callable[[str, StepPlan, int], Exchange]
) -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(plan: StepPlan) -> Exchange:
            exchange = open_over(request.param, plan, SEED)
            stack.callback(exchange.close)
            return exchange

        yield opened


@pytest.fixture(
    params=[
        (OptimizerSpec("sgd", 0.02, momentum=0.9), {}),
        (OptimizerSpec("adam", 1e-3), {"dropout": 0.3}),
        (OptimizerSpec("sgd", 0.05), {}),
    ],
    ids=["momentum", "adam, dropout", "no state"],
)
def stateful(request: pytest.FixtureRequest, plan: StepPlan) -> StepPlan:
    optimizer, network = request.param
    return replace(plan, optimizer=optimizer, network=replace(plan.network, **network))


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_steps_after_a_restored_snapshot_are_the_steps_that_would_have_come(
    open_exchange: Open, stateful: StepPlan, cut: int
) -> None:
    whole = open_exchange(stateful)
    reports = whole.run_steps(cut)
    whole.keep_best()
    snapshot, best = whole.snapshot(), whole.parameters("best")
    reports += whole.run_steps(STEPS - cut)
    resumed = open_exchange(stateful)
    resumed.restore(cut, snapshot, best)
    assert resumed.parameters().tobytes() == snapshot[0].tobytes()
    assert resumed.run_steps(STEPS - cut) == reports[cut:]
    for which in ("current", "best"):
        assert resumed.parameters(which).tobytes() == whole.parameters(which).tobytes()
        assert resumed.evaluate("validation", which).tobytes() == whole.evaluate("validation", which).tobytes()
    assert resumed.diagnose() == whole.diagnose()
    assert resumed.snapshot().tobytes() == whole.snapshot().tobytes()


def test_a_snapshot_is_a_contiguous_copy_that_any_exchange_takes(open_exchange: Open, stateful: StepPlan) -> None:
    exchange = open_exchange(stateful)
    exchange.run_steps(3)
    snapshot = exchange.snapshot()
    kept = snapshot.tobytes()
    assert snapshot.flags.c_contiguous
    exchange.run_steps(2)
    assert snapshot.tobytes() == kept
    oracle = InProcessExchange(stateful, SEED)
    oracle.restore(3, snapshot, None)
    oracle.run_steps(2)
    np.testing.assert_array_equal(oracle.snapshot(), exchange.snapshot(), strict=True)
    oracle.close()
