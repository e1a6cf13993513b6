"""Resolution: every `auto` by the contract's formulas, every refusal by the field's name, nothing allocated."""

import math
import time
from typing import Any

import pytest

from service.errors import SpecError
from service.resolve import Limits, Resolved, resolve
from service.schemas import JobSpec

LIMITS = Limits(max_parameters=10**8, worker_slots=16)


def column(name: str, kind: str, distinct: int, missing: int = 0, **more: Any) -> dict[str, Any]:
    listed: dict[str, Any] = {"values": []} if distinct <= 1000 else {}
    return {"name": name, "type": kind, "distinct": distinct, "missing": missing, "file": "c0.npy", **listed, **more}


COLUMNS = [
    column("area", "number", 900),
    column("rooms", "integer", 9, missing=3),
    column("city", "text", 5),
    column("rent", "number", 950, missing=20),
    column("kind", "text", 3, missing=10, values=["a", "b", "c"]),
    column("sold", "boolean", 2, values=[False, True]),
    column("stars", "integer", 20, values=list(range(20))),
    column("year", "integer", 21),
    column("weight", "number", 4, minimum=0.0),
]


def dataset(rows: int = 1000, columns: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"id": "ds_1", "name": "flats", "rows": rows, "columns": columns or COLUMNS}


def resolved(data: dict[str, Any] | None = None, limits: Limits = LIMITS, **fields: Any) -> Resolved:
    spec = JobSpec.model_validate({"dataset": "flats", "target": "rent", **fields})
    return resolve(spec, data or dataset(), limits)


def refused(data: dict[str, Any] | None = None, **fields: Any) -> SpecError:
    with pytest.raises(SpecError) as refusal:
        resolved(data, **fields)
    return refusal.value


def test_names_are_filled_in_from_the_dataset() -> None:
    found = resolved()
    assert (found.spec["dataset"], found.spec["name"], found.spec["experiment"]) == ("ds_1", "flats", "flats")
    assert found.spec["model"] == {"name": "flats", "deploy": "never"}
    assert found.model_name == "flats"
    named = resolved(name="mine", model={"name": "other"}).spec
    assert (named["name"], named["model"]["name"], named["experiment"]) == ("mine", "other", "other")
    assert resolved(name="mine").spec["model"]["name"] == "mine"
    without = resolved(model=None, name="mine")
    assert (without.model_name, without.spec["experiment"]) == (None, "mine")


@pytest.mark.parametrize(
    ("target", "task", "loss"),
    [
        ("kind", "classification", "cross_entropy"),
        ("sold", "classification", "cross_entropy"),
        ("stars", "classification", "cross_entropy"),
        ("year", "regression", "squared_error"),
        ("rent", "regression", "squared_error"),
        (["rent", "area"], "regression", "squared_error"),
        (["stars", "rooms"], "regression", "squared_error"),
        (["rent"], "regression", "squared_error"),
    ],
)
def test_the_task_follows_from_the_target(target: str | list[str], task: str, loss: str) -> None:
    found = resolved(target=target).spec
    assert (found["task"], found["loss"], found["target"]) == (task, loss, target)


def test_features_are_all_but_target_and_weight_in_the_datasets_order() -> None:
    every = [entry["name"] for entry in COLUMNS]
    assert resolved().spec["features"] == [name for name in every if name != "rent"]
    found = resolved(weight_column="weight", features={"exclude": ["city", "kind"]})
    assert found.spec["features"] == ["area", "rooms", "sold", "stars", "year"]
    assert resolved(features=["city", "area"]).spec["features"] == ["city", "area"]


@pytest.mark.parametrize(
    ("rows", "batch_size"),
    [(20, 16), (100, 32), (1000, 32), (2400, 32), (2401, 64), (4800, 64), (4801, 128), (9601, 256), (10**7, 256)],
)
def test_batch_size_is_the_power_of_two_nearest_to_a_fiftieth_of_the_rows(rows: int, batch_size: int) -> None:
    """Within 32 to 256, and never more rows than train."""
    assert resolved(dataset(rows), target="sold").spec["training"]["batch_size"] == batch_size


@pytest.mark.parametrize("rows", [100, 1000, 5000, 30_000, 10**6])
def test_epochs_early_stopping_shards_and_log_interval(rows: int) -> None:
    found = resolved(dataset(rows), target="sold")
    training = found.spec["training"]
    steps_per_epoch = math.ceil(found.plan["rows"]["train"] / training["batch_size"])
    epochs = min(200, max(20, math.ceil(2000 / steps_per_epoch)))
    assert training["epochs"] == epochs
    assert found.plan["steps"] == epochs * steps_per_epoch
    enough = found.plan["rows"]["validation"] >= 50
    assert training["early_stopping"] == ({"patience": max(10, epochs // 5)} if enough else None)
    assert training["log_every_steps"] == math.ceil(found.plan["steps"] / 1000)
    shards = min(8, max(1, training["batch_size"] // 64))
    assert (found.spec["distribution"]["shards"], found.plan["useful_workers"]) == (shards, shards)
    assert found.spec["distribution"]["workers"] == "auto"  # the cluster's business


def test_with_local_steps_a_step_is_a_round() -> None:
    """As many epochs as without; a round ends with its epoch; the exchange's optimizer is in the segment."""
    sync, sgd = resolved(dataset(5000), target="sold"), {"name": "sgd", "momentum": 0.9}
    per_epoch, epochs = math.ceil(sync.plan["rows"]["train"] / 128), sync.spec["training"]["epochs"]
    vector = 4 * sync.plan["parameters"]
    for wanted, steps, outer, optimizer, state, own in (
        (1, per_epoch, "average", "auto", 0, 6),
        (16, math.ceil(per_epoch / 16), "average", sgd, 0, 4),
        (16, math.ceil(per_epoch / 16), "nesterov", "sgd", 1, 2),
        (10_000, 1, "nesterov", "auto", 1, 6),
    ):
        given = {"mode": "local", "local_steps": wanted, "outer": outer}
        found = resolved(dataset(5000), target="sold", distribution=given, optimizer=optimizer)
        assert found.spec["distribution"] == sync.spec["distribution"] | given
        assert (found.spec["training"]["epochs"], found.plan["steps"]) == (epochs, epochs * steps)
        assert found.plan["flops_per_step"] == min(wanted, per_epoch) * sync.plan["flops_per_step"]
        memory, without = found.plan["memory_bytes"], sync.plan["memory_bytes"]
        assert memory["shared"] == vector * (found.plan["useful_workers"] + 3 + 2 * state)
        assert memory["worker"] == without["worker"] + own * vector


def test_what_is_for_local_steps_is_refused_without_them() -> None:
    steps = refused(distribution={"local_steps": 16})
    assert (steps.param, steps.message) == (
        "distribution.local_steps",
        "16 is for mode local; mode sync exchanges every step: 1, or set mode: local",
    )
    assert refused(distribution={"mode": "sync", "outer": "nesterov"}).param == "distribution.outer"


def test_without_validation_nothing_stops_early() -> None:
    split = {"validation": 0.0}
    assert resolved(split=split).spec["training"]["early_stopping"] is None
    assert refused(split=split, training={"early_stopping": {"patience": 3}}).param == "training.early_stopping"
    given = resolved(training={"early_stopping": {"patience": 3}}).spec["training"]
    assert given["early_stopping"] == {"patience": 3}


@pytest.mark.parametrize(
    ("given", "name", "rate", "decay", "clip"),
    [
        ("auto", "adamw", 1e-3, 0.01, 1.0),
        ({"learning_rate": 0.5}, "adamw", 0.5, 0.01, 1.0),
        ({"clip_norm": None}, "adamw", 1e-3, 0.01, None),
        ({"clip_norm": 2.0}, "adamw", 1e-3, 0.01, 2.0),
        ("adamw", "adamw", 1e-3, 0.01, None),
        ("adam", "adam", 1e-3, 0.0, None),
        ("sgd", "sgd", 0.1, 0.0, None),
        ({"name": "sgd", "momentum": 0.9}, "sgd", 0.02, 0.0, None),
        ({"name": "sgd", "momentum": 0.9, "learning_rate": 0.3, "weight_decay": 0.1}, "sgd", 0.3, 0.1, None),
        ({"name": "adamw", "weight_decay": 0.0}, "adamw", 1e-3, 0.0, None),
    ],
)
def test_an_optimizer_brings_its_own_numbers(
    given: Any, name: str, rate: float, decay: float, clip: float | None
) -> None:
    found = resolved(optimizer=given).spec["optimizer"]
    assert (found["name"], found["learning_rate"], found["weight_decay"], found["clip_norm"]) == (
        name,
        rate,
        decay,
        clip,
    )


def test_schedule_and_initializer() -> None:
    assert resolved().spec["schedule"] == {"name": "cosine", "warmup": 0.05}
    assert resolved(schedule={"warmup": 0.2}).spec["schedule"] == {"name": "cosine", "warmup": 0.2}
    assert resolved(schedule="constant").spec["schedule"] == {"name": "constant", "warmup": 0.0}
    for rows, activation in ((100, "tanh"), (1249, "tanh"), (1250, "relu"), (10_000, "relu")):  # a fifth validates
        assert resolved(dataset(rows), target="sold").spec["network"]["activation"] == activation
    assert resolved(network={"initializer": "glorot"}).spec["network"]["initializer"] == "glorot"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("step", {"factor": 0.1, "every": 0.25}),
        ("exponential", {"factor": 0.1}),
        ("inverse", {"factor": 0.1}),
        ("cosine", {}),
        ("one_cycle", {}),
    ],
)
def test_a_schedule_has_the_numbers_that_it_uses(name: str, numbers: dict[str, float]) -> None:
    assert resolved(schedule=name).spec["schedule"] == {"name": name, "warmup": 0.0} | numbers
    for number in numbers:
        given = resolved(schedule={"name": name, number: 0.5}).spec["schedule"]
        assert given == {"name": name, "warmup": 0.0} | numbers | {number: 0.5}


@pytest.mark.parametrize(("given", "rate"), [({"learning_rate": 0.3}, 0.3), ("auto", 1e-3), ({"name": "sgd"}, 0.1)])
def test_a_learning_rate_is_scaled_to_the_batch_size(given: Any, rate: float) -> None:
    given = {"reference_batch_size": 256} | ({"name": given} if isinstance(given, str) else given)
    found = resolved(optimizer=given, training={"batch_size": 64}).spec["optimizer"]
    assert (found["learning_rate"], found["reference_batch_size"]) == (rate / 4, None)


def test_l1_and_max_norm() -> None:
    found = resolved(optimizer={"l1": 0.01, "max_norm": 3}).spec["optimizer"]
    assert (found["l1"], found["max_norm"], found["clip_norm"]) == (0.01, 3.0, 1.0)


def test_losses_by_name_and_number() -> None:
    assert resolved(loss="huber").spec["loss"] == "huber"
    assert resolved(loss={"name": "huber", "delta": 2}).spec["loss"] == {"name": "huber", "delta": 2.0}
    assert resolved(target="sold", loss="binary_cross_entropy").spec["loss"] == "binary_cross_entropy"


@pytest.mark.parametrize(
    ("target", "given", "found"),
    [
        ("kind", "balanced", "balanced"),
        ("kind", {"b": 2}, {"b": 2.0}),
        ("sold", {True: 2, "false": 0.5}, {"true": 2.0, "false": 0.5}),
        ("stars", {3: 2, "4.0": 0.5}, {"3": 2.0, "4": 0.5}),
    ],
)
def test_class_weights_are_by_the_classes_of_the_target(target: str, given: Any, found: Any) -> None:
    assert resolved(target=target, training={"class_weight": given}).spec["training"]["class_weight"] == found


def test_the_classes_that_a_weight_may_be_for_are_told() -> None:
    refusal = refused(target="kind", training={"class_weight": {"d": 2.0}})
    assert refusal.message == "'d' is no class of 'kind', which has a, b, c"


def test_nothing_but_the_workers_is_left_to_decide() -> None:
    def autos(value: Any, path: str = "") -> list[str]:
        if isinstance(value, dict):
            return [found for key, held in value.items() for found in autos(held, f"{path}.{key}")]
        return [path] if value == "auto" else []

    assert autos(resolved().spec) == [".distribution.workers"]


def test_the_plan_counts_rows_parameters_and_memory() -> None:
    found = resolved(
        target="kind", features=["area", "city"], network={"hidden": [4]}, split={"validation": 0.2, "test": 0.1}
    )
    plan = found.plan
    assert plan["rows"] == {"train": 693, "validation": 198, "test": 99}  # of the 990 that have a target
    assert [layer["shape"] for layer in plan["layers"]] == [[6, 4], [4, 3]]  # city is one-hot
    assert plan["parameters"] == 7 * 4 + 5 * 3
    assert plan["flops_per_step"] == 32 * (4 * 6 * 4 + 6 * 4 * 3)
    assert plan["memory_bytes"]["shared"] == 4 * plan["parameters"] * (1 + 3 + 2 * 2)  # adamw keeps two vectors
    assert plan["spec"] == found.spec


def test_resolution_is_pure() -> None:
    data = dataset()
    before = repr(data)
    assert resolved(data) == resolved(data)
    assert repr(data) == before
    assert resolved(limits=Limits(10**8, 1)).spec == resolved(limits=Limits(10**8, 1000)).spec


def test_networks_of_any_size_are_refused_before_anything_is_allocated() -> None:
    begun = time.perf_counter()
    for hidden in ([10**6, 10**6], [10**12], [2**53] * 100):
        refusal = refused(network={"hidden": hidden})
        assert refusal.param == "network.hidden"
        assert "100,000,000" in refusal.message
    assert time.perf_counter() - begun < 1.0


def test_a_name_that_is_nearly_right_is_proposed() -> None:
    refusal = refused(target="rnt")
    assert "did you mean 'rent'" in refusal.message
    assert refusal.details["columns"] == [entry["name"] for entry in COLUMNS]
    assert "it has area, rooms" in refused(target="zzzzzz").message


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("target", {"target": "rnt"}),
    ("target[1]", {"target": ["rent", "rnt"]}),
    ("target[1]", {"target": ["rent", "rent"]}),
    ("target", {"target": ["kind", "sold"], "task": "classification"}),
    ("target[1]", {"target": ["rent", "kind"]}),
    ("target", {"target": "kind", "task": "regression"}),
    ("features[0]", {"features": ["rent"]}),
    ("features[1]", {"features": ["area", "are"]}),
    ("features[1]", {"features": ["area", "area"]}),
    ("features[0]", {"features": ["weight"], "weight_column": "weight"}),
    ("features.exclude[0]", {"features": {"exclude": ["are"]}}),
    ("features", {"features": {"exclude": [entry["name"] for entry in COLUMNS]}}),
    ("weight_column", {"weight_column": "wait"}),
    ("weight_column", {"weight_column": "city"}),
    ("weight_column", {"weight_column": "rooms"}),
    ("loss", {"loss": "cross_entropy"}),
    ("loss", {"loss": "squared_error", "target": "kind"}),
    ("loss", {"loss": {"name": "huber", "delta": 2.0}, "target": "kind"}),
    ("loss", {"loss": "binary_cross_entropy"}),
    ("loss", {"loss": "binary_cross_entropy", "target": "kind"}),
    ("split", {"split": {"validation": 0.5, "test": 0.5}}),
    ("split.column", {"split": {"by": "time"}}),
    ("split.column", {"split": {"by": "time", "column": "yaer"}}),
    ("split.column", {"split": {"by": "time", "column": "rooms"}}),
    ("split.column", {"split": {"column": "year"}}),
    ("split.by", {"split": {"by": "stratified"}}),
    ("training.batch_size", {"training": {"batch_size": 785}}),
    ("distribution.shards", {"distribution": {"shards": 33}}),
    ("distribution.workers", {"distribution": {"workers": 17}}),
    ("distribution.workers.max", {"distribution": {"workers": {"min": 1, "max": 17}}}),
    ("optimizer.momentum", {"optimizer": {"name": "adam", "momentum": 0.9}}),
    ("optimizer.momentum", {"optimizer": {"momentum": 0.9}}),
    ("optimizer.nesterov", {"optimizer": {"name": "sgd", "nesterov": True}}),
    ("optimizer.learning_rate", {"optimizer": {"learning_rate": 1e308, "reference_batch_size": 1}}),
    ("optimizer.learning_rate", {"optimizer": {"learning_rate": 5e-324, "reference_batch_size": 10**7}}),
    ("schedule.factor", {"schedule": {"factor": 0.5}}),
    ("schedule.factor", {"schedule": {"name": "one_cycle", "factor": 0.5}}),
    ("schedule.every", {"schedule": {"name": "inverse", "every": 0.5}}),
    ("training.class_weight", {"training": {"class_weight": "balanced"}}),
    ("training.class_weight.d", {"target": "kind", "training": {"class_weight": {"a": 1.0, "d": 2.0}}}),
    ("training.class_weight.0", {"target": "sold", "training": {"class_weight": {0: 1.0}}}),
    ("training.class_weight.True", {"target": "sold", "training": {"class_weight": {"True": 1.0}}}),
    ("training.class_weight.3.0", {"target": "stars", "training": {"class_weight": {"3": 1.0, "3.0": 2.0}}}),
    ("training.class_weight.20", {"target": "stars", "training": {"class_weight": {"20": 1.0}}}),
]


@pytest.mark.parametrize(("param", "fields"), REFUSED, ids=lambda part: f"{part!s:.60}")
def test_what_does_not_suit_the_dataset_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    refusal = refused(**fields)
    assert (refusal.param, refusal.code) == (param, "invalid_spec")


def test_a_target_that_is_empty_in_every_row_is_refused_as_that() -> None:
    for kind in ("number", "text"):
        data = dataset(50, [column("area", "number", 50), column("rent", kind, 0, missing=50)])
        refusal = refused(data)
        assert (refusal.param, "empty in every row" in refusal.message) == ("target", True)
    two = dataset(50, [column("a", "number", 9), column("b", "number", 9), column("rent", "number", 0, missing=50)])
    assert refused(two, target=["b", "rent"]).param == "target[1]"


def test_a_target_of_one_class_or_of_too_many_is_refused() -> None:
    one = dataset(50, [column("area", "number", 50), column("rent", "text", 1)])
    assert "1 different value" in refused(one).message
    many = dataset(5000, [column("area", "number", 50), column("rent", "integer", 5000)])
    assert "too many to be classes" in refused(many, task="classification").message


def test_a_feature_that_is_empty_in_every_row_says_nothing_and_is_refused_only_where_it_is_all_there_is() -> None:
    empty = [column("note", "number", 0, missing=50), column("words", "text", 0, missing=50)]
    data = dataset(50, [column("area", "number", 50), *empty, column("rent", "number", 50)])
    assert resolved(data).plan["layers"][0]["shape"][0] == 2
    for name in ("note", "words"):
        refusal = refused(data, features=[name])
        assert (refusal.param, "empty in every row" in refusal.message) == ("features", True)


def test_too_many_categories_are_refused_with_the_way_out() -> None:
    data = dataset(50_000, [column("id", "text", 10_001), column("rent", "number", 50)])
    refusal = refused(data)
    assert refusal.param == "features"
    assert "exclude: [id]" in refusal.message


def test_a_negative_weight_is_refused() -> None:
    data = dataset(50, [column("a", "number", 9), column("rent", "number", 9), column("w", "number", 9, minimum=-0.5)])
    assert "-0.5" in refused(data, weight_column="w").message


def test_a_job_that_the_machine_cannot_hold_is_refused_with_both_numbers() -> None:
    needed = sum(resolved().plan["memory_bytes"].values())
    assert resolved(limits=Limits(10**8, 16, needed)).plan == resolved().plan
    with pytest.raises(SpecError) as small:
        resolved(limits=Limits(10**8, 16, needed - 1))
    assert small.value.param == "network"
    big = {"network": {"hidden": [4000, 4000]}, "training": {"batch_size": 64}, "distribution": {"shards": 64}}
    with pytest.raises(
        SpecError, match=r"16,\d+,\d+ parameters in 64 shards take 4\.\d+ GiB.* has 2\.00 GiB"
    ) as shards:
        resolved(limits=Limits(10**8, 16, 2 * 2**30), **big)
    assert shards.value.param == "distribution.shards"
