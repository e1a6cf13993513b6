import json
import math
import pickle

import pytest

from core.errors import SpecificationError
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec
from core.specification import Choice

SPECS = [
    NetworkSpec(4, 3, (8, 5), "tanh", "glorot", "squared_error", "float64"),
    NetworkSpec(4, 3, ()),
    NetworkSpec(4, 3, (8,), Choice("leaky_relu", (("negative_slope", 0.2),))),
    OptimizerSpec("sgd", 0.1, momentum=0.9, nesterov=True, clip_norm=1.0),
    OptimizerSpec("adamw", 1),
    OptimizerSpec("adam", 0.1, l1=0.1, max_norm=2.0),
    ScheduleSpec("cosine", 0.05),
    ScheduleSpec("step", 0.05, 0.5, 0.1),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_json_and_back(spec):
    again = type(spec).from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_unknown_field_is_refused(spec):
    with pytest.raises(SpecificationError, match="colour is 'red'"):
        type(spec).from_json(spec.to_json() | {"colour": "red"})


def test_missing_field_is_refused():
    with pytest.raises(SpecificationError) as caught:
        NetworkSpec.from_json({"inputs": 1, "hidden": []})
    assert caught.value.field == "outputs"


@pytest.mark.parametrize(
    ("kind", "valid", "field", "value"),
    [
        (NetworkSpec, {"inputs": 2, "outputs": 2, "hidden": [3]}, field, value)
        for field, value in [
            ("inputs", 0),
            ("inputs", 2.0),
            ("inputs", True),
            ("outputs", -1),
            ("hidden", [0]),
            ("hidden", [3, "4"]),
            ("hidden", 3),
            ("hidden", "34"),
            ("activation", "selu?"),
            ("activation", None),
            ("activation.name", {"name": "selu?"}),
            ("activation.negative_slope", {"name": "leaky_relu", "negative_slope": 1.5}),
            ("activation.beta", {"name": "leaky_relu", "beta": 1.0}),
            ("activation.beta", {"name": "relu", "beta": 1.0}),
            ("activation.beta", {"name": "softplus", "beta": "2"}),
            ("initializer", "ones"),
            ("loss", "hinge"),
            ("dtype", "float16"),
        ]
    ]
    + [
        (OptimizerSpec, {"name": "sgd", "learning_rate": 0.1}, field, value)
        for field, value in [
            ("name", "sgdd"),
            ("learning_rate", -1),
            ("learning_rate", 0),
            ("learning_rate", math.nan),
            ("learning_rate", math.inf),
            ("learning_rate", "0.1"),
            ("learning_rate", True),
            ("momentum", 1.0),
            ("nesterov", 1),
            ("weight_decay", -0.1),
            ("beta1", 1.5),
            ("beta2", -0.1),
            ("epsilon", 0),
            ("clip_norm", 0.0),
            ("l1", -0.1),
            ("max_norm", 0.0),
        ]
    ]
    + [
        (ScheduleSpec, {"name": "constant"}, field, value)
        for field, value in [("name", "up"), ("warmup", 1.0), ("factor", 0.0), ("factor", 1.0), ("every", 0)]
    ],
)
def test_wrong_value_names_the_field(kind, valid, field, value):
    kind.from_json(valid)
    with pytest.raises(SpecificationError) as caught:
        kind.from_json(valid | {field.partition(".")[0]: value})
    assert caught.value.field == field
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_limits_are_put_into_words():
    with pytest.raises(SpecificationError, match="a finite number of at least 0 and below 1"):
        ScheduleSpec("cosine", -1.0)
    with pytest.raises(SpecificationError, match=r"a finite number of at least 0 and at most 0\.999"):
        NetworkSpec(1, 1, dropout=-1.0)


def test_an_activation_with_numbers_has_one_form():
    numbered = {"name": "softplus", "beta": 2.0}
    spec = NetworkSpec(4, 3, (8,), numbered)
    assert spec == NetworkSpec(4, 3, (8,), Choice("softplus", (("beta", 2.0),)))
    assert spec.to_json()["activation"] == numbered
    assert NetworkSpec(4, 3, (8,), {"name": "tanh"}).activation == "tanh"
