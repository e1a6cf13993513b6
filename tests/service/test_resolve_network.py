"""Networks by three notations: every layer in full, refusals by place, sizes before anything is allocated."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from core.activations import ACTIVATIONS
from core.network import Network, NetworkSpec, initial_parameters, parameter_count
from service.bodies import validated
from service.errors import SpecError
from service.resolve import resolve
from service.resolve_network import network_spec
from service.schemas import JobSpec

from .test_resolve import LIMITS, dataset, refused, resolved

RESIDUAL: dict[str, Any] = {
    "activation": "gelu",
    "graph": [
        {"name": "c", "inputs": ["a", "b"], "operation": "sum", "activation": "relu"},
        {"name": "a", "inputs": ["features"], "units": 6},
        {"name": "b", "inputs": ["a"], "units": 6, "layer_norm": True, "dropout": 0.5, "activation": "sigmoid"},
    ],
}
LAYERS: dict[str, Any] = {
    "activation": {"name": "leaky_relu", "negative_slope": 0.2},
    "dropout": 0.25,
    "layers": [
        {"units": 7},
        {"units": 5, "activation": "tanh", "dropout": 0.0, "layer_norm": True},
        {"units": 3, "initializer": "orthogonal"},
    ],
}
NETWORKS: list[dict[str, Any]] = [
    {},
    {"hidden": []},
    {"hidden": [4, 4], "activation": "elu", "input_dropout": 0.1, "dropout": 0.2, "layer_norm": True},
    {"initializer": "lecun"},
    RESIDUAL,
    RESIDUAL | {"input_noise": 0.2, "input_dropout": 0.3, "hidden": []},
    RESIDUAL | {"input_noise": 0.2, "hidden": []},
    LAYERS,
    LAYERS | {"input_dropout": 0.3, "initializer": "glorot"},
]


def engines(spec: dict[str, Any], inputs: int = 14, outputs: int = 1) -> NetworkSpec:
    return network_spec(spec["network"], spec["loss"], spec["training"]["precision"], inputs, outputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_initializer_is_the_activations(activation: str) -> None:
    wanted = ACTIVATIONS[activation].initializer
    assert resolved(network={"activation": activation}).spec["network"]["initializer"] == wanted
    found = resolved(network={"activation": "relu", "layers": [{"units": 3, "activation": activation}]}).spec["network"]
    assert (found["initializer"], found["layers"][0]["initializer"]) == ("he", wanted)


def test_every_layer_is_written_in_full() -> None:
    found = resolved(network=LAYERS).spec["network"]
    leaky = {"name": "leaky_relu", "negative_slope": 0.2}
    assert found["hidden"] == []
    assert found["layers"] == [
        {"units": 7, "activation": leaky, "dropout": 0.25, "layer_norm": False, "initializer": "he"},
        {"units": 5, "activation": "tanh", "dropout": 0.0, "layer_norm": True, "initializer": "glorot"},
        {"units": 3, "activation": leaky, "dropout": 0.25, "layer_norm": False, "initializer": "orthogonal"},
    ]


def test_every_node_is_written_in_full_in_the_users_order() -> None:
    found = resolved(network=RESIDUAL).spec["network"]["graph"]
    assert [node["name"] for node in found] == ["c", "a", "b"]
    assert found[0] == {
        "name": "c",
        "inputs": ["a", "b"],
        "operation": "sum",
        "units": None,
        "activation": "relu",
        "dropout": 0.0,
        "layer_norm": False,
        "initializer": None,
    }
    assert (found[1]["activation"], found[1]["initializer"], found[1]["operation"]) == ("gelu", "he", "affine")
    assert (found[2]["initializer"], found[2]["layer_norm"], found[2]["dropout"]) == ("glorot", True, 0.5)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_network_in_full_is_the_network_that_was_meant(network: dict[str, Any]) -> None:
    """Other words, the same layers: what `auto` became is what the engine would have made of it."""
    found = resolved(dataset(5000), network=network).spec
    meant = {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
    if "layers" not in meant and "graph" not in meant:
        meant = {"hidden": (256, 128)} | meant
    engine = NetworkSpec(14, 1, loss="squared_error", **meant)
    assert parameter_count(engines(found)) == parameter_count(engine)
    ours, theirs = (Network(spec, 3) for spec in (engines(found), engine))
    assert ours.graph.order == theirs.graph.order
    np.testing.assert_array_equal(*(initial_parameters(spec, 3) for spec in (engines(found), engine)))


def test_the_plan_of_a_graph() -> None:
    plan = resolved(network=RESIDUAL).plan
    rows = [(layer["name"], layer["shape"], layer["parameters"], layer["flops"]) for layer in plan["layers"]]
    assert rows == [
        ("c", [12, 6], 0, 0),
        ("a", [14, 6], 15 * 6, 4 * 14 * 6),
        ("b", [6, 6], 7 * 6 + 2 * 6, 6 * 6 * 6),
        ("outputs", [6, 1], 7, 6 * 6),
    ]
    assert plan["parameters"] == 90 + 54 + 7
    assert plan["flops_per_step"] == 32 * (336 + 216 + 36)


def test_the_plan_of_a_binary_classification_has_one_output_unit() -> None:
    assert resolved(target="sold", loss="binary_cross_entropy").plan["layers"][-1]["shape"] == [128, 1]
    assert resolved(target="sold").plan["layers"][-1]["shape"] == [128, 2]


@pytest.mark.parametrize("network", [*NETWORKS, {"hidden": [64] * 9, "activation": "silu"}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_planned_memory_is_what_a_worker_takes(network: dict[str, Any], precision: str) -> None:
    """About: what the engine's operations need beside their values is not known here."""
    wide = {"layers": [layer | {"units": 64} for layer in LAYERS["layers"]]} if "layers" in network else {}
    training = {"batch_size": 256, "precision": precision}
    found = resolved(network=network | wide, training=training, distribution={"shards": 2})
    spec = engines(found.spec)
    Network(spec, 2)
    tracemalloc.start()
    networks = [Network(spec, rows) for rows in (128, 512)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(networks) == 2
    own = 600_000 if spec.graph else 100_000  # graphs and calls
    assert 0.6 * (taken - own) < found.plan["memory_bytes"]["worker"] < 1.5 * taken


def test_float64_takes_twice_the_memory() -> None:
    single, double = (resolved(training={"precision": name}).plan["memory_bytes"] for name in ("float32", "float64"))
    assert double == {name: 2 * size for name, size in single.items()}


SPECS: list[dict[str, Any]] = [
    {},
    *({"network": network} for network in NETWORKS),
    {"target": "sold", "loss": "binary_cross_entropy", "training": {"class_weight": "balanced"}},
    {"target": "kind", "training": {"class_weight": {"a": 2.0}}},
    {"loss": {"name": "huber", "delta": 2.0}, "schedule": {"name": "step", "factor": 0.5}},
    {"optimizer": {"name": "sgd", "momentum": 0.5, "reference_batch_size": 64, "l1": 0.1, "max_norm": 2.0}},
    {"optimizer": {"reference_batch_size": 128}, "training": {"precision": "float64"}, "schedule": "one_cycle"},
    {"target": ["rent", "area"], "model": None, "features": {"exclude": ["city"]}, "weight_column": "weight"},
    {"schedule": {"name": "inverse", "warmup": 0.1}, "split": {"validation": 0.0}, "name": "mine"},
]


@pytest.mark.parametrize("fields", SPECS, ids=lambda fields: f"{fields!s:.60}")
@pytest.mark.parametrize("rows", [200, 5000])
def test_a_resolved_spec_resolves_to_itself(fields: dict[str, Any], rows: int) -> None:
    first = resolved(dataset(rows), **fields)
    again = resolve(JobSpec.model_validate(first.spec), dataset(rows), LIMITS)
    assert again == first


NODE = {"name": "a", "inputs": ["features"], "units": 4}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("network.layers", {"hidden": [256, 128], "layers": [{"units": 5}]}, "hidden is given as well"),
    ("network.graph", {"hidden": [5], "graph": [NODE]}, "hidden is given as well"),
    ("network.graph", {"layers": [{"units": 5}], "graph": [NODE]}, "layers is given as well"),
    ("network.graph", {"graph": [NODE | {"inputs": ["b"]}, {"name": "b", "inputs": ["a"], "units": 4}]}, "b -> a"),
    ("network.graph[0].inputs", {"graph": [NODE | {"inputs": ["zzz"]}]}, "'zzz'"),
    ("network.graph[1].name", {"graph": [NODE, NODE]}, "'a'"),
    ("network.graph[0].name", {"graph": [NODE | {"name": "features"}]}, "'features'"),
    ("network.graph[0].name", {"graph": [NODE | {"name": "a b"}]}, "'a b'"),
    ("network.graph[0].units", {"graph": [NODE | {"units": None}]}, "at least 1"),
    ("network.graph[0].units", {"graph": [NODE | {"operation": "concatenate"}]}, "got 4"),
    ("network.graph[0].inputs", {"graph": [NODE | {"inputs": ["features", "features"]}]}, "exactly 1"),
    ("network.graph[0].initializer", {"graph": [NODE | {"operation": "concatenate", "initializer": "he"}]}, "he"),
    ("network.graph", {"graph": [NODE, NODE | {"name": "b"}]}, "'a, b'"),
    (
        "network.graph[2].inputs",
        {"graph": [NODE, NODE | {"name": "b", "units": 5}, {"name": "c", "inputs": ["a", "b"], "operation": "sum"}]},
        "'a (4), b (5)'",
    ),
    (
        "network.graph[0].inputs",
        {"graph": [{"name": "c", "inputs": ["a", "features"], "operation": "product"}, NODE]},
        "'a (4), features (14)'",
    ),
]


@pytest.mark.parametrize(("param", "network", "words"), WRONG, ids=lambda part: f"{part!s:.40}")
def test_what_is_wrong_between_layers_is_named(param: str, network: dict[str, Any], words: str) -> None:
    refusal = refused(network=network)
    assert (refusal.param, refusal.code) == (param, "invalid_spec")
    assert words in refusal.message


def chained(operation: str, inputs: int) -> list[dict[str, Any]]:
    """A graph of 200 nodes, each of the `inputs` before it."""
    nodes = [{"name": "n0", "inputs": ["features"], "units": 10}]
    for number in range(1, 200):
        before = [f"n{max(0, number - 1 - place)}" for place in range(inputs)]
        nodes.append({"name": f"n{number}", "inputs": before, "operation": operation})
    return nodes


@pytest.mark.parametrize(
    ("notation", "network"),
    [
        ("layers", [{"units": 2**53}] * 100),
        ("graph", chained("concatenate", 100)),
        ("graph", [NODE | {"units": 10**12}]),
    ],
    ids=["layers", "graph", "node"],
)
def test_networks_of_any_size_are_refused_before_anything_is_allocated(notation: str, network: Any) -> None:
    tracemalloc.start()
    refusal = refused(network={notation: network})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusal.param == f"network.{notation}"
    assert "100,000,000" in refusal.message
    assert len(refusal.message) < 400
    assert peak < 50 * 2**20


NAMES = st.sampled_from(["features", "a", "b", "c", "outputs", "", "a b"])
ANYTHING = st.sampled_from([None, True, 0, 1, -1, 0.5, 1.0, 2**60, 10**400, float("nan"), "auto", "relu", [], {}])
NUMBERS = st.dictionaries(st.sampled_from(["alpha", "beta", "negative_slope", "name", "x"]), ANYTHING, max_size=2)
TREATMENT = {
    "activation": st.sampled_from([*ACTIVATIONS]) | ANYTHING | NUMBERS,
    "dropout": st.sampled_from([0.0, 0.5]) | ANYTHING,
    "layer_norm": st.booleans() | ANYTHING,
    "initializer": st.sampled_from(["he", "orthogonal"]) | ANYTHING,
}
LAYER = st.fixed_dictionaries({"units": st.integers(1, 9) | ANYTHING}, optional=TREATMENT)
GRAPH_NODE = st.fixed_dictionaries(
    {"name": NAMES, "inputs": st.lists(NAMES, max_size=3) | ANYTHING},
    optional={
        "units": st.just(4) | ANYTHING,
        "operation": st.sampled_from(["affine", "sum", "product", "concatenate"]) | ANYTHING,
        **TREATMENT,
    },
)
SIMPLE_NODES = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from("abcd"),
            "inputs": st.lists(st.sampled_from(["features", *"abcd"]), min_size=1, max_size=2),
            "operation": st.sampled_from(["sum", "product", "concatenate"]),
        }
    )
    | st.fixed_dictionaries(
        {
            "name": st.sampled_from("abcd"),
            "inputs": st.lists(st.sampled_from(["features", *"abcd"]), min_size=1, max_size=1),
            "units": st.just(14),
        },
        optional={"layer_norm": st.booleans()},
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda node: str(node["name"]),
)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "hidden": st.lists(st.integers(0, 9), max_size=3) | ANYTHING,
        "layers": st.lists(LAYER, max_size=3) | ANYTHING,
        "graph": st.lists(GRAPH_NODE, max_size=4) | ANYTHING,
        "input_dropout": st.just(0.5) | ANYTHING,
        "input_noise": st.just(0.5) | ANYTHING,
        **TREATMENT,
    },
)


@settings(max_examples=300)
@given(section=SECTIONS | SIMPLE_NODES.map(lambda nodes: {"graph": nodes}))
def test_any_network_is_refused_by_place_or_can_be_built(section: dict[str, Any]) -> None:
    refusal = None
    try:
        spec = validated(JobSpec, {"dataset": "flats", "target": "rent", "network": section})
        found = resolve(spec, dataset(), LIMITS)
    except SpecError as error:
        refusal = error
    event("built" if refusal is None else "refused")
    if refusal is not None:
        assert (refusal.param or "").startswith("network")
        assert len(refusal.message) < 600
        return
    network = Network(engines(found.spec), 2)
    assert network.layout.size == found.plan["parameters"]
    assert resolve(JobSpec.model_validate(found.spec), dataset(), LIMITS) == found


def test_a_graph_may_have_two_hundred_nodes() -> None:
    assert len(resolved(network={"graph": chained("sum", 2)}).plan["layers"]) == 201
