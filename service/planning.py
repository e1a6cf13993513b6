"""A resolved spec -> the training plan that a trainer gets."""

from typing import Any

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.preprocessing import PreprocessingSpec
from core.schedules import ScheduleSpec
from service.records import DatasetRecord, JobRecord
from service.settings import Settings
from worker.dataset import DataSpec
from worker.plan import EarlyStopping, TrainingPlan


def training_plan(job: JobRecord, dataset: DatasetRecord, settings: Settings) -> TrainingPlan:
    """What decides the job's weights, and where its data lies. The dataset is a ready one."""
    spec = job.spec
    training, distribution, split = spec["training"], spec["distribution"], spec["split"]
    targets = spec["target"] if isinstance(spec["target"], list) else [spec["target"]]
    data = DataSpec(
        dataset_folder=str(settings.datasets / dataset.id),
        dataset_sha256=dataset.sha256 or "",
        preprocessing=PreprocessingSpec(
            features=tuple(spec["features"]), targets=tuple(targets), task=spec["task"], **spec["preprocessing"]
        ),
        weight_column=spec["weight_column"],
        validation=split["validation"],
        test=split["test"],
        split_by=split["by"],
        split_column=split["column"],
        split_seed=split["seed"],
        cache_folder=str(settings.prepared),
    )
    return TrainingPlan(
        job_id=job.id,
        data=data,
        network=_network(spec, job.plan),
        optimizer=OptimizerSpec.from_json(spec["optimizer"]),
        schedule=ScheduleSpec.from_json(spec["schedule"]),
        epochs=training["epochs"],
        batch_size=training["batch_size"],
        shards=distribution["shards"],
        seed=training["seed"],
        threads_per_worker=distribution["threads_per_worker"],
        log_every_steps=training["log_every_steps"],
        early_stopping=EarlyStopping(**training["early_stopping"]) if training["early_stopping"] else None,
        max_seconds=training["max_seconds"],
        spec=spec,
    )


def _network(spec: dict[str, Any], plan: dict[str, Any]) -> NetworkSpec:
    """Inputs and outputs as the dataset's summary has them; the trainer puts the prepared widths in their place."""
    shapes = [layer["shape"] for layer in plan["layers"]]
    return NetworkSpec(
        inputs=shapes[0][0],
        outputs=shapes[-1][1],
        hidden=tuple(spec["network"]["hidden"]),
        activation=spec["network"]["activation"],
        initializer=spec["network"]["initializer"],
        loss=spec["loss"],
        dtype=spec["training"]["precision"],
    )
