"""The specs for MNIST are such as the service takes, with MNIST's own test rows as their test rows."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from service.resolve import Limits, resolve
from service.schemas import JobSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def dataset():
    """What the service knows of the table that mnist_csv.py writes."""
    row = {"name": "row", "type": "integer", "missing": 0, "distinct": 70000, "minimum": 0, "maximum": 69999}
    label = {"name": "label", "type": "integer", "missing": 0, "distinct": 10, "values": list(range(10))}
    pixels = [{"name": f"pixel{k}", "type": "number", "missing": 0, "distinct": 256} for k in range(784)]
    return {"id": "ds_1", "name": "mnist", "rows": 70000, "columns": [row, label, *pixels]}


@pytest.mark.parametrize(("name", "hidden"), [("mnist", (256, 128)), ("mnist_best", (1024, 1024))])
def test_mnist_spec(name, hidden):
    spec = JobSpec.model_validate(YAML(typ="safe").load(EXAMPLES / f"{name}.yaml"))
    plan = resolve(spec, dataset(), Limits(max_parameters=10**9, worker_slots=16)).plan
    assert plan["rows"] == {"train": 60000, "validation": 0, "test": 10000}
    first, second = hidden
    assert plan["parameters"] == 785 * first + (first + 1) * second + (second + 1) * 10
    assert plan["spec"]["task"] == "classification"
    assert plan["spec"]["features"] == [f"pixel{k}" for k in range(784)]
