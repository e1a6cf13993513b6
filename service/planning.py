"""A resolved spec -> the training plan that a trainer gets."""

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.preprocessing import PreprocessingSpec
from core.schedules import ScheduleSpec
from service.records import DatasetRecord, JobRecord
from service.resolve_data import resolve_data
from service.resolve_network import network_spec
from service.schemas import JobSpec
from service.settings import Settings
from worker.dataset import DataSpec
from worker.plan import EarlyStopping, TrainingPlan
from worker.warm_start import FOLDER, Kept


def training_plan(job: JobRecord, dataset: DatasetRecord, settings: Settings) -> TrainingPlan:
    """What decides the job's weights, and where its data lies. The dataset is a ready one."""
    spec = job.spec
    training, distribution, split = spec["training"], spec["distribution"], spec["split"]
    optimizer = {name: value for name, value in spec["optimizer"].items() if name != "reference_batch_size"}
    weight = training["class_weight"]
    targets = spec["target"] if isinstance(spec["target"], list) else [spec["target"]]
    start = job.plan.get("warm_start")  # hashes of what was kept when the job was submitted
    kept = str(settings.checkpoints / job.id / FOLDER)
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
        class_weight=tuple(sorted(weight.items())) if isinstance(weight, dict) else weight,
        fitted=None if start is None else Kept(kept, start["preprocessing_sha256"]),
    )
    return TrainingPlan(
        job_id=job.id,
        data=data,
        network=_network(job, dataset),
        optimizer=OptimizerSpec.from_json(optimizer),
        schedule=ScheduleSpec.from_json(spec["schedule"]),
        epochs=training["epochs"],
        batch_size=training["batch_size"],
        shards=distribution["shards"],
        seed=training["seed"],
        threads_per_worker=distribution["threads_per_worker"],
        local_steps=distribution["local_steps"] if distribution["mode"] == "local" else None,
        outer=distribution.get("outer", "average"),
        half_gradients=distribution.get("gradient_precision", "full") == "half",
        auto_workers=distribution["workers"] == "auto",
        log_every_steps=training["log_every_steps"],
        early_stopping=EarlyStopping(**training["early_stopping"]) if training["early_stopping"] else None,
        max_seconds=training["max_seconds"],
        warm_start=None if start is None else Kept(kept, start["weights_sha256"]),
        checkpoint_folder=str(settings.checkpoints / job.id),
        checkpoint_every_seconds=training["checkpoint_every_seconds"],
        spec=spec,
    )


def _network(job: JobRecord, dataset: DatasetRecord) -> NetworkSpec:
    """Inputs and outputs as the dataset's summary has them; the trainer puts the prepared widths in their place."""
    spec = job.spec
    summary = {"rows": dataset.rows, "columns": dataset.columns}
    data = resolve_data(JobSpec.model_validate(spec), summary)
    return network_spec(spec["network"], spec["loss"], spec["training"]["precision"], data.width, data.outputs)
