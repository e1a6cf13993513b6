"""The exchange beside a copy: both do what is measured."""

import numpy as np
import pytest

from benchmarks import exchange_alone
from benchmarks.distribution import WORKERS, mnist_like, step_plan
from benchmarks.exchange_alone import Copying, Exchanging, ready_gradient
from core.network import initial_parameters
from worker.plan import StepPlan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StepPlan:
    return step_plan(mnist_like(tmp_path_factory.mktemp("data")), exchange_alone.BATCH, WORKERS)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_alone, "STEPS", 7)


def test_the_exchange_commits_steps_of_the_gradients_that_are_ready(plan: StepPlan) -> None:
    exchanging = Exchanging(plan)
    try:
        assert exchanging.run() > 0
        reports = exchanging._exchange.run_steps(1)
        ready = ready_gradient(exchanging._exchange.parameters().size, 0)
        assert reports[0].step == 8
        assert reports[0].gradient_norm == pytest.approx(np.linalg.norm(2 * ready / exchange_alone.BATCH), rel=1e-4)
    finally:
        exchanging.close()


def test_a_copy_is_of_all_parameters(plan: StepPlan) -> None:
    copying = Copying(plan)
    try:
        committed, other = copying._segment.buffers[:, 0]
        committed[...] = initial_parameters(plan.network, 0)
        assert copying.run() > 0
        assert (other == committed).all()
        assert [slot.any() for slot in copying._segment.slots] == [True] * WORKERS
    finally:
        copying.close()
