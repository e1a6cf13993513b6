"""Step plans over the small tables, as a trainer would make them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from worker.dataset import PreparedDataset, prepare
from worker.plan import StepPlan, TrainingPlan
from worker.sampling import Sampling

MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]


@pytest.fixture
def make_step_plan(make_plan: Callable[..., TrainingPlan]) -> MakeStepPlan:
    """The step plan of `make_plan`'s plan, and its prepared dataset; `dtype`: the network's."""

    def make(table: str = "classes", dtype: str = "float32", **changes: Any) -> tuple[StepPlan, PreparedDataset]:
        plan = make_plan(table, **changes)
        prepared = prepare(plan.data)
        fitted = prepared.preprocessing
        sampling = Sampling(prepared.rows["train"], plan.batch_size, plan.shards, plan.seed)
        network = replace(plan.network, inputs=fitted.width, outputs=fitted.outputs, dtype=dtype)
        steps = plan.epochs * sampling.steps_per_epoch
        folder = str(prepared.folder)
        return (
            StepPlan(folder, network, sampling, plan.optimizer, plan.schedule, steps, plan.threads_per_worker),
            prepared,
        )

    return make
