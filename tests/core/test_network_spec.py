import json

import pytest

from core.errors import SpecificationError
from core.layer_spec import LayerSpec, NodeSpec
from core.network_spec import NetworkSpec, blocks
from core.specification import Choice

RESIDUAL = (
    {"name": "a", "inputs": ["features"], "units": 6},
    {"name": "b", "inputs": ["a"], "units": 6, "activation": "identity"},
    {"name": "c", "inputs": ["a", "b"], "operation": "sum", "activation": "relu"},
)


def spec_of(*graph):
    return NetworkSpec.from_json({"inputs": 4, "outputs": 3, "graph": list(graph)})


def test_what_was_written_before_keeps_its_form():
    assert list(NetworkSpec(4, 3, (8,)).to_json()) == [
        "inputs",
        "outputs",
        "hidden",
        "activation",
        "initializer",
        "loss",
        "dtype",
    ]


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(4, 3, layers=(LayerSpec(8, "tanh", 0.5, True, "glorot"), LayerSpec(5))),
        NetworkSpec(4, 3, layers=(LayerSpec(8, Choice("elu", (("alpha", 0.5),))),), dropout=0.1, layer_norm=True),
        NetworkSpec(4, 3, loss="huber", huber_delta=0.5, graph=RESIDUAL),
    ],
)
def test_json_and_back(spec):
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


def test_json_holds_what_was_given():
    assert spec_of(*RESIDUAL).to_json()["graph"] == [dict(node) for node in RESIDUAL]
    layers = [{"units": 8}, {"units": 5, "activation": {"name": "elu", "alpha": 2.0}}]
    assert NetworkSpec.from_json({"inputs": 4, "outputs": 3, "layers": layers}).to_json()["layers"] == layers


def test_hidden_is_shorthand_for_layers():
    assert blocks(NetworkSpec(4, 3, (8, 5), "tanh")) == blocks(
        NetworkSpec(4, 3, (), "tanh", layers=(LayerSpec(8), LayerSpec(5)))
    )


def test_layers_take_the_networks_ways_but_for_their_own():
    own = LayerSpec(5, "tanh", 0.0, False, "he")
    first, second, outputs = blocks(
        NetworkSpec(4, 3, (), "gelu", dropout=0.5, layer_norm=True, layers=(LayerSpec(8), own))
    )
    assert (first.activation, first.dropout, first.layer_norm, first.initializer) == ("gelu", 0.5, True, "he")
    assert (second.activation, second.dropout, second.layer_norm, second.initializer) == ("tanh", 0.0, False, "he")
    assert (outputs.activation, outputs.dropout, outputs.layer_norm, outputs.inputs) == (None, 0.0, False, ("hidden2",))
    assert second.inputs == ("hidden1.dropped",)


def test_a_graph_may_be_declared_in_any_order():
    forward, backward = blocks(spec_of(*RESIDUAL)), blocks(spec_of(*reversed(RESIDUAL)))
    assert set(forward) == set(backward)
    assert forward[-1].inputs == ("c",)
    assert [block.sends for block in forward] == [False, True, True, True]


def test_widths_of_a_graph():
    found = blocks(
        spec_of(
            {"name": "a", "inputs": ["features"], "units": 6},
            {"name": "b", "inputs": ["features"], "units": 6},
            {"name": "p", "inputs": ["a", "b"], "operation": "product"},
            {"name": "q", "inputs": ["p", "features", "a"], "operation": "concatenate"},
        )
    )
    assert [(block.name, block.width, block.units) for block in found] == [
        ("a", 4, 6),
        ("b", 4, 6),
        ("p", 12, 6),
        ("q", 16, 16),
        ("outputs", 16, 3),
    ]


A = {"name": "a", "inputs": ["features"], "units": 6}


@pytest.mark.parametrize(
    ("graph", "field", "words"),
    [
        ([A, A], "graph.a.name", "each"),
        ([A | {"inputs": ["nowhere"]}], "graph.a.inputs", "nowhere"),
        ([A | {"inputs": ["b"]}, A | {"name": "b", "inputs": ["a"]}], "graph", "a -> b -> a|b -> a -> b"),
        ([A, A | {"name": "b"}], "graph", "a, b"),
        (
            [A, A | {"name": "b", "units": 5}, {"name": "c", "inputs": ["a", "b"], "operation": "sum"}],
            "graph.c.inputs",
            r"a \(6\), b \(5\)",
        ),
        ([A | {"units": None}], "graph[0].units", "None"),
        ([A | {"inputs": ["features", "features"]}], "graph[0].inputs", "exactly 1"),
        ([A | {"inputs": "features"}], "graph[0].inputs", "list"),
        ([A | {"operation": "sum", "inputs": ["features"]}], "graph[0].inputs", "at least 2"),
        ([A | {"operation": "concatenate"}], "graph[0].units", "wide"),
        ([A | {"operation": "attention"}], "graph[0].operation", "affine, sum"),
        ([A | {"name": "loss"}], "graph[0].name", "none of"),
        ([A | {"name": "a.b"}], "graph[0].name", "letter"),
        ([A | {"activation": {"name": "elu", "alpha": -1}}], "graph[0].activation.alpha", "above 0"),
        ([A | {"dropout": 0.9995}], "graph[0].dropout", "at most 0.999"),
        ([A | {"colour": "red"}], "graph[0].colour", "fields"),
        (["a"], "graph[0]", "mapping"),
    ],
)
def test_faults_of_a_graph_are_named(graph, field, words):
    with pytest.raises(SpecificationError, match=words) as caught:
        spec_of(*graph)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hidden": [3], "layers": [{"units": 3}]}, "layers"),
        ({"hidden": [3], "graph": [A]}, "graph"),
        ({"layers": [{"units": 0}]}, "layers[0].units"),
        ({"layers": [{"activation": "tanh"}]}, "layers[0].units"),
        ({"layers": {"units": 3}}, "layers"),
        ({"dropout": 0.9995}, "dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"input_dropout": 0.9995}, "input_dropout"),
        ({"layers": [{"units": 3, "dropout": 0.9995}]}, "layers[0].dropout"),
        ({"input_noise": -0.1}, "input_noise"),
        ({"layer_norm": 1}, "layer_norm"),
        ({"huber_delta": 0.0}, "huber_delta"),
        ({"loss": "binary_cross_entropy"}, "outputs"),
    ],
)
def test_faults_are_named(fields, field):
    with pytest.raises(SpecificationError) as caught:
        NetworkSpec.from_json({"inputs": 4, "outputs": 3} | fields)
    assert caught.value.field == field


def test_node_specs_can_be_made_by_hand():
    assert spec_of(*RESIDUAL).graph[0] == NodeSpec("a", ("features",), units=6)
