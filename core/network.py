"""Networks: from a specification to a planned graph that computes loss and gradient, predictions and metrics."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activations import ACTIVATIONS
from .errors import GraphError, SpecificationError
from .graph import AnyNode, Graph, Input, Node, Parameter
from .initializers import INITIALIZERS
from .losses import LOSSES, Huber, Loss
from .metrics import metric_sums, zero_sums
from .operations import Affine, WeightedSum
from .parameters import ParameterLayout, RecentViews
from .plan import Plan
from .specification import (
    Choice,
    Specification,
    added,
    make_kind,
    require_choice,
    require_kind,
    require_number,
    require_whole,
)
from .storage import ROWS, Array, Storage

# Plans kept for numbers of rows: a training has two (full and last batch), a server one for each size of micro-batch.
_PLANS_KEPT = 64
# The first word of the seed sequence that initial parameters are drawn from: "init", told apart from all other draws.
_INITIALIZATION = 0x696E6974


@dataclass(frozen=True)
class NetworkSpec(Specification):
    """A perceptron: `inputs` numbers, hidden layers of `hidden` units with one activation, `outputs` numbers."""

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    activation: str | Choice = "relu"  # a name, or {name: leaky_relu, negative_slope: 0.01}
    initializer: str = "auto"  # what suits the activation: he for relu's family, else glorot
    loss: str = "cross_entropy"
    dtype: str = "float32"
    huber_delta: float = added(1.0)  # beyond this error, in standardized units, the loss huber is linear

    def __post_init__(self) -> None:
        require_whole("inputs", self.inputs, 1)
        require_whole("outputs", self.outputs, 1)
        if not isinstance(self.hidden, tuple):
            raise SpecificationError("hidden", self.hidden, "a list of whole numbers")
        for units in self.hidden:
            require_whole("hidden", units, 1)
        object.__setattr__(self, "activation", require_kind("activation", self.activation, ACTIVATIONS))
        require_choice("initializer", self.initializer, ("auto", *INITIALIZERS))
        require_choice("loss", self.loss, LOSSES)
        require_choice("dtype", self.dtype, ("float32", "float64"))
        require_number("huber_delta", self.huber_delta, above=0.0)
        if self.loss == "binary_cross_entropy" and self.outputs != 2:
            raise SpecificationError("outputs", self.outputs, "2, the classes of binary_cross_entropy (by one unit)")

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, units) of each layer, the output layer last."""
        return list(itertools.pairwise((self.inputs, *self.hidden, self.make_loss().units(self.outputs))))

    def make_loss(self) -> Loss:
        """The loss by its name and number."""
        return Huber(self.huber_delta) if self.loss == "huber" else LOSSES[self.loss]()


def parameter_count(spec: NetworkSpec) -> int:
    """P, exactly, without building anything."""
    return sum((inputs + 1) * units for inputs, units in spec.layers)


def summary(spec: NetworkSpec) -> list[dict[str, Any]]:
    """One row a layer: name, shape of its weights, parameters, FLOPs a row of one training step.

    FLOPs are 6 a weight (2 forward, 4 backward), in the first layer 4: its input needs no error signal.
    """
    return [
        {
            "name": f"layer{number}",
            "shape": [inputs, units],
            "parameters": (inputs + 1) * units,
            "flops": (4 if number == 1 else 6) * inputs * units,
        }
        for number, (inputs, units) in enumerate(spec.layers, start=1)
    ]


def network_graph(spec: NetworkSpec) -> Graph:
    """The graph of a perceptron: features -> layer1 -> hidden1 -> layer2 -> ... -> outputs -> predictions.

    With targets and weights: outputs -> losses -> loss. Layer k, the output layer included, has the parameters
    layer<k>.weights (inputs, units) and layer<k>.bias (units,).
    """
    nodes: list[AnyNode] = [Input("features", (ROWS, spec.inputs))]
    previous, last = "features", len(spec.layers)
    for number, (inputs, units) in enumerate(spec.layers, start=1):
        layer = f"layer{number}" if number < last else "outputs"
        weights, bias = f"layer{number}.weights", f"layer{number}.bias"
        nodes += [Parameter(weights, (inputs, units)), Parameter(bias, (units,))]
        nodes += [Node(layer, Affine(), previous, weights, bias)]
        if number < last:
            previous = f"hidden{number}"
            nodes += [Node(previous, make_kind(spec.activation, ACTIVATIONS), layer)]
    loss = spec.make_loss()
    if loss.prediction is not None:
        nodes += [Node("predictions", loss.prediction(), "outputs")]
    nodes += [Input("targets", loss.target_shape(spec.outputs), np.int32 if loss.classes else None)]
    nodes += [Node("losses", loss, "outputs", "targets")]
    nodes += [Input("weights", (ROWS,)), Node("loss", WeightedSum(), "losses", "weights")]
    return Graph(*nodes)


def initial_parameters(spec: NetworkSpec, seed: int) -> NDArray[Any]:
    """The flat parameter vector (P,) before the first step, by `spec` and `seed` >= 0 alone; biases are 0."""
    layout = parameter_layout(network_graph(spec))
    flat = np.zeros(layout.size, spec.dtype)
    views = layout.views(flat)
    suited = make_kind(spec.activation, ACTIVATIONS).initializer
    initialize = INITIALIZERS[suited if spec.initializer == "auto" else spec.initializer]
    for number, (inputs, units) in enumerate(spec.layers, start=1):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _INITIALIZATION, number))))
        views[f"layer{number}.weights"][...] = initialize(generator, inputs, units)
    return flat


def parameter_layout(graph: Graph) -> ParameterLayout:
    """The parameters of `graph` in the order in which they were declared."""
    names = tuple(parameter.name for parameter in graph.parameters)
    return ParameterLayout(names, tuple(parameter.shape for parameter in graph.parameters))


class Network:
    """A network for minibatches of at most `rows` rows. Not to be used by two threads at once.

    Every buffer is allocated at the first use of a number of rows; a step after that allocates nothing. The arrays that
    it was last given are referred to until others take their place.
    """

    def __init__(self, spec: NetworkSpec, rows: int) -> None:
        self.spec, self.rows = spec, rows
        self.graph = network_graph(spec)
        self.layout = parameter_layout(self.graph)
        self._predictions = "outputs" if spec.make_loss().prediction is None else "predictions"
        self._storage = Storage(spec.dtype)
        self._plans: OrderedDict[int, tuple[Plan, Array]] = OrderedDict()
        self._parameter_views = RecentViews(self.layout, spec.dtype)
        self._gradient_views = RecentViews(self.layout, spec.dtype)
        self._plan(rows)

    @np.errstate(all="ignore")
    def loss_and_gradient(
        self,
        parameters: NDArray[Any],
        gradient: NDArray[Any],
        features: NDArray[Any],
        targets: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> float:
        """The weighted sum over the rows of their losses; `gradient` (P,) is overwritten with its derivative.

        `parameters` (P,) may be read-only. `features` (n, inputs), 0 <= n <= rows. `targets`: int32 (n,) class numbers
        within [0, outputs), which is not checked, or values (n, outputs). `weights` (n,), None meaning ones. All but
        class numbers are of the network's dtype, else GraphError is raised. Sums, not means: the sum over the parts of
        a minibatch is that of the whole. What is not finite passes through without a warning: check the results.
        """
        if len(features) == 0:
            gradient.fill(0)
            return 0.0
        plan = self._bind(parameters, features, targets, weights)
        plan.bind_gradients(self._gradient_views(gradient))
        loss = float(plan.forward("loss"))
        plan.backward()
        return loss

    @np.errstate(all="ignore")
    def predict(self, parameters: NDArray[Any], features: NDArray[Any]) -> NDArray[Any]:
        """A fresh array (n, outputs) for any n: probabilities (classification) or values (regression)."""
        result = np.empty((len(features), self.spec.outputs), self.spec.dtype)
        views = self._parameter_views(parameters)
        for part in self._parts(len(features)):
            plan, _ = self._plan(part.stop - part.start)
            plan.bind_parameters(views)
            plan.inputs["features"].bind(features[part])
            result[part] = plan.forward(self._predictions)
        return result

    @np.errstate(all="ignore")
    def evaluate(
        self,
        parameters: NDArray[Any],
        features: NDArray[Any],
        targets: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> NDArray[np.float64]:
        """The metric sums (see `metrics`) over any number of rows; arrays as for `loss_and_gradient`."""
        sums = zero_sums(self.spec.loss, self.spec.outputs)
        for part in self._parts(len(features)):
            part_weights = None if weights is None else weights[part]
            plan = self._bind(parameters, features[part], targets[part], part_weights)
            loss = float(plan.forward("loss"))
            sums += metric_sums(self.spec.loss, loss, plan.value("outputs"), targets[part], part_weights)
        return sums

    def _parts(self, count: int) -> Iterator[slice]:
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))

    def _bind(
        self,
        parameters: NDArray[Any],
        features: NDArray[Any],
        targets: NDArray[Any],
        weights: NDArray[Any] | None,
    ) -> Plan:
        plan, ones = self._plan(len(features))
        plan.bind_parameters(self._parameter_views(parameters))
        plan.inputs["features"].bind(features)
        plan.inputs["targets"].bind(targets)
        plan.inputs["weights"].bind(ones if weights is None else weights)
        return plan

    def _plan(self, rows: int) -> tuple[Plan, Array]:
        """The plan for `rows` rows, and as many ones, for rows without weights."""
        if rows not in self._plans:
            if rows > self.rows:
                raise GraphError(f"{rows} rows are more than the {self.rows} planned for", ("features",))
            plan = Plan(self.graph, rows, self._storage, ("outputs", self._predictions), "loss")
            self._plans[rows] = plan, self._storage.constant(1.0, (rows,))
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(rows)
        return self._plans[rows]
