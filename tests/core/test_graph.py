import itertools

import pytest

from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.operations import Add, Cos, Exp, Multiply, Square


def test_order_puts_every_node_after_its_parents_however_declared():
    graph = Graph(
        Node("f", Add(), "y", "e"),
        Node("e", Exp(), "xy"),
        Node("xy", Multiply(), "x", "y"),
        Node("y", Square(), "t"),
        Node("x", Cos(), "t"),
        Parameter("t"),
    )
    assert set(graph.order) == {"f", "e", "xy", "y", "x", "t"}
    for name in graph.order:
        for parent in graph[name].parents:
            assert graph.order.index(parent) < graph.order.index(name)


def test_order_of_a_deep_graph_needs_no_recursion():
    names = [f"n{k}" for k in range(5000)]
    graph = Graph(*(Node(b, Exp(), a) for a, b in itertools.pairwise(names)), Parameter("n0"))
    assert graph.order == tuple(names)


def test_relations():
    graph = Graph(
        Input("a"), Parameter("b"), Node("c", Add(), "a", "b"), Node("d", Multiply(), "c", "c"), Node("e", Exp(), "a")
    )
    assert graph.children["c"] == ("d", "d")
    assert graph.children["d"] == ()
    assert graph.ancestors("d") == {"a", "b", "c", "d"}
    assert graph.descendants("b") == {"b", "c", "d"}
    assert [parameter.name for parameter in graph.parameters] == ["b"]


def test_cycle_is_named():
    with pytest.raises(GraphError, match="itself") as caught:
        Graph(Input("a"), Node("b", Add(), "a", "d"), Node("c", Exp(), "b"), Node("d", Exp(), "c"))
    assert set(caught.value.nodes) == {"b", "c", "d"}


def test_unknown_input_is_named():
    with pytest.raises(GraphError, match="unknown input nowhere") as caught:
        Graph(Node("b", Exp(), "nowhere"))
    assert caught.value.nodes == ("b", "nowhere")


def test_a_name_stands_for_one_node():
    with pytest.raises(GraphError, match="one name") as caught:
        Graph(Input("a"), Parameter("a"))
    assert caught.value.nodes == ("a",)
