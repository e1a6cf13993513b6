"""Networks: from a specification to a planned graph that computes loss and gradient, predictions and metrics."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .diagnostics import LayerDiagnostics, diagnose
from .draw import Draw
from .dropout import Mask
from .errors import GraphError
from .layer_spec import LayerSpec, NodeSpec
from .metrics import metric_sums, zero_sums
from .network_graph import initial_parameters, network_graph, parameter_count, parameter_layout, summary
from .network_spec import NetworkSpec, blocks
from .noise import Noise
from .parameters import RecentViews
from .plan import Plan
from .storage import Array, Storage

__all__ = [
    "LayerDiagnostics",
    "LayerSpec",
    "Network",
    "NetworkSpec",
    "NodeSpec",
    "initial_parameters",
    "network_graph",
    "parameter_count",
    "parameter_layout",
    "summary",
]

# Plans kept for numbers of rows: a training has two (full and last batch), a server one for each size of micro-batch.
_PLANS_KEPT = 64


@dataclass(frozen=True)
class _Planned:
    """What there is for one number of rows."""

    plan: Plan
    ones: Array  # (rows,), the weights of rows without weights
    drawn: dict[str, tuple[Mask | Noise, Array]] = field(default_factory=dict)  # by input; with what changes nothing


class Network:
    """A network for minibatches of at most `rows` rows. Not to be used by two threads at once.

    Every buffer is allocated at the first use of a number of rows; a step after that allocates nothing. The arrays that
    it was last given are referred to until others take their place, or it is to `forget` them.
    """

    def __init__(self, spec: NetworkSpec, rows: int, small_product: int = 0) -> None:
        """`small_product`: what BLAS does without packing (`Storage`). The bits depend on it."""
        self.spec, self.rows = spec, rows
        self.graph = network_graph(spec)
        self.layout = parameter_layout(self.graph)
        self._predictions = "outputs" if spec.make_loss().prediction is None else "predictions"
        self._storage = Storage(spec.dtype, small_product)
        self.forget()
        self._plan(rows)

    def forget(self) -> None:
        """Refer to none of the arrays that it was given; what was bound to them is planned anew at its next use."""
        self._plans: OrderedDict[int, _Planned] = OrderedDict()
        self._parameter_views = RecentViews(self.layout, self.spec.dtype)
        self._gradient_views = RecentViews(self.layout, self.spec.dtype)
        self._last: Plan | None = None

    @np.errstate(all="ignore")
    def loss_and_gradient(
        self,
        parameters: NDArray[Any],
        gradient: NDArray[Any],
        features: NDArray[Any],
        targets: NDArray[Any],
        weights: NDArray[Any] | None = None,
        draw: Draw | None = None,
        scale: float = 1.0,
    ) -> float:
        """The weighted sum over the rows of their losses; `gradient` (P,) is overwritten with `scale` times its own.

        `parameters` (P,) may be read-only. `features` (n, inputs), 0 <= n <= rows. `targets`: int32 (n,) class numbers
        within [0, outputs), which is not checked, or values (n, outputs). `weights` (n,), None meaning ones. All but
        class numbers are of the network's dtype, else GraphError is raised. `draw` decides which units dropout silences
        and what noise is added; None: none. Sums, not means: the sum over the parts of a minibatch is that of the
        whole. `scale` costs nothing here, and a pass over all of `gradient` afterwards. What is not finite passes
        through without a warning: check the results.
        """
        if len(features) == 0:
            gradient.fill(0)
            return 0.0
        plan = self._bind(parameters, features, targets, weights, draw)
        plan.bind_gradients(self._gradient_views(gradient))
        loss = float(plan.forward("loss"))
        plan.backward(scale)
        self._last = plan
        return loss

    def diagnostics(self) -> tuple[LayerDiagnostics, ...]:
        """Each layer in the step that `loss_and_gradient` has just computed: to be asked for before anything else."""
        if self._last is None:
            raise GraphError("there was no step yet", ("loss",))
        return diagnose(self._last, blocks(self.spec))

    @np.errstate(all="ignore")
    def predict(self, parameters: NDArray[Any], features: NDArray[Any]) -> NDArray[Any]:
        """A fresh array (n, outputs) for any n: probabilities (classification) or values (regression)."""
        result = np.empty((len(features), self.spec.outputs), self.spec.dtype)
        views = self._parameter_views(parameters)
        for part in self._parts(len(features)):
            planned = self._plan(part.stop - part.start)
            plan = planned.plan
            _bind_drawn(planned, None)
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
        draw: Draw | None = None,
    ) -> Plan:
        planned = self._plan(len(features))
        plan = planned.plan
        plan.bind_parameters(self._parameter_views(parameters))
        plan.inputs["features"].bind(features)
        plan.inputs["targets"].bind(targets)
        plan.inputs["weights"].bind(planned.ones if weights is None else weights)
        if planned.drawn:
            _bind_drawn(planned, draw)
        return plan

    def _plan(self, rows: int) -> _Planned:
        if rows not in self._plans:
            if rows > self.rows:
                raise GraphError(f"{rows} rows are more than the {self.rows} planned for", ("features",))
            plan = Plan(self.graph, rows, self._storage, ("outputs", self._predictions), "loss")
            drawn = {
                name: (each, self._storage.constant(each.neutral, each.array.shape)) for name, each in self._drawn()
            }
            planned = _Planned(plan, self._storage.constant(1.0, (rows,)), drawn)
            self._plans[rows] = planned
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(rows)
        return self._plans[rows]

    def _drawn(self) -> Iterator[tuple[str, Mask | Noise]]:
        """The inputs that are drawn, of the plan that was begun last."""
        if self.spec.input_noise:
            yield "features.noise", Noise(self._storage, self.spec.inputs, self.spec.input_noise)
        for number, block in enumerate(blocks(self.spec)):
            if block.dropout:
                yield f"{block.name}.mask", Mask(self._storage, block.units, block.dropout, number)


def _bind_drawn(planned: _Planned, draw: Draw | None) -> None:
    """Draw masks and noise, or bind those that change nothing."""
    for name, (each, neutral) in planned.drawn.items():
        if draw is not None:
            each.draw(draw)
        planned.plan.inputs[name].bind(neutral if draw is None else each.array)
