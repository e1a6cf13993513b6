"""Optimizers: how a step's mean gradient becomes the next parameters.

Each is elementwise on flat vectors and works out of place, block by block: the committed parameters and state stay
whole until the next ones are. The blocks may be cut anywhere and shared out to anyone; the bits are the same.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .specification import Specification, require_choice, require_flag, require_number

Vector = NDArray[Any]

# Joins every mean of gradients. Where the gradient stays zero, of a pixel that is never inked, such a mean would sink
# into the subnormal numbers and stay there; each costs a processor a hundred ordinary ones: with momentum on MNIST a
# step took half as long again after two epochs. No weight that is above 1e-16 can tell it from zero.
_FLOOR = 1e-25
# Of `epsilon`: beside a smaller one the floor is no longer nothing, and a parameter without a gradient wanders off.
LEAST_EPSILON = 1e-16


@dataclass(frozen=True)
class OptimizerSpec(Specification):
    """An optimizer by name with all its numbers; those that it does not use are ignored by it.

    `l1` adds the penalty l1 |w|_1 to the loss, in every optimizer and decoupled in none: its subgradient, l1 sign(w),
    joins the gradient first. `clip_norm` bounds the mean gradient's global norm before the update, `max_norm` the norm
    of each unit's incoming weights after it. Those two are reductions over more than a block, and so the aggregator's
    (`max_norm.MaxNorm`), not the optimizer's.
    """

    optional: ClassVar[tuple[str, ...]] = ("l1", "max_norm")

    name: str
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None
    l1: float = 0.0
    max_norm: float | None = None

    def __post_init__(self) -> None:
        require_choice("name", self.name, OPTIMIZERS)
        require_number("learning_rate", self.learning_rate, above=0.0)
        require_number("momentum", self.momentum, least=0.0, below=1.0)
        require_flag("nesterov", self.nesterov)
        require_number("weight_decay", self.weight_decay, least=0.0)
        require_number("beta1", self.beta1, least=0.0, below=1.0)
        require_number("beta2", self.beta2, least=0.0, below=1.0)
        require_number("epsilon", self.epsilon, least=LEAST_EPSILON)
        if self.clip_norm is not None:
            require_number("clip_norm", self.clip_norm, above=0.0)
        require_number("l1", self.l1, least=0.0)
        if self.max_norm is not None:
            require_number("max_norm", self.max_norm, above=0.0)


class Optimizer(ABC):
    """The update rule of one specification. Its state is the caller's: `state_vectors` vectors, zero at first."""

    state_vectors: int = 0
    is_plain: bool = False  # the update is w - rate g and nothing else: factors of g may as well be the rate's

    def __init__(self, spec: OptimizerSpec) -> None:
        self.spec = spec

    @np.errstate(all="ignore")
    def update(
        self,
        step: int,
        learning_rate: float,
        parameters: Vector,
        gradient: Vector,
        state: Sequence[Vector],
        out_parameters: Vector,
        out_state: Sequence[Vector],
        scale: float = 1.0,
    ) -> None:
        """Write the parameters and state after `step` (counted from 1) into `out_parameters` and `out_state`.

        All are one-dimensional, of one length and dtype, and do not overlap (one that `is_plain` may write over its
        parameters, or over the gradient). The mean gradient is `scale` times `gradient`, which is used as scratch.
        Allocates nothing. What is not finite passes through without a warning: check the results.
        """
        if self.is_plain:
            learning_rate *= scale
        elif scale != 1.0:
            np.multiply(gradient, scale, out=gradient)
        if self.spec.l1:
            np.sign(parameters, out=out_parameters)
            np.multiply(out_parameters, self.spec.l1, out=out_parameters)
            np.add(gradient, out_parameters, out=gradient)
        self._update(step, learning_rate, parameters, gradient, state, out_parameters, *out_state)

    @abstractmethod
    def _update(
        self, step: int, rate: float, w: Vector, g: Vector, old: Sequence[Vector], new_w: Vector, *new: Vector
    ) -> None:
        """The rule: `new_w` and `new` from the parameters `w`, the gradient `g` and the state `old`."""


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's, by the formulas of PyTorch's `torch.optim.SGD`.

    g <- g + weight_decay w;  v <- momentum v + g;  d = g + momentum v (Nesterov), v (momentum) or g;  w <- w - rate d.
    """

    def __init__(self, spec: OptimizerSpec) -> None:
        super().__init__(spec)
        self.state_vectors = 1 if spec.momentum else 0
        self.is_plain = not (spec.momentum or spec.weight_decay or spec.l1)

    def _update(
        self, step: int, rate: float, w: Vector, g: Vector, old: Sequence[Vector], new_w: Vector, *new: Vector
    ) -> None:
        spec, direction, scratch = self.spec, g, new_w
        if spec.weight_decay:
            _add_decay(g, w, spec.weight_decay, scratch)
        if spec.momentum:
            (v,) = new
            np.multiply(old[0], spec.momentum, out=v)
            np.add(v, g, out=v)
            np.add(v, _FLOOR, out=v)
            if spec.nesterov:
                np.multiply(v, spec.momentum, out=scratch)
                np.add(g, scratch, out=g)
            else:
                direction = v
        if rate != 1.0:
            direction = np.multiply(direction, rate, g)
        np.subtract(w, direction, new_w)


class AdaGrad(Optimizer):
    """AdaGrad (Duchi et al. 2011): g <- g + weight_decay w;  s <- s + g^2;  w <- w - rate g / (sqrt(s) + epsilon)."""

    state_vectors = 1

    def _update(
        self, step: int, rate: float, w: Vector, g: Vector, old: Sequence[Vector], new_w: Vector, *new: Vector
    ) -> None:
        spec, scratch, (s,) = self.spec, new_w, new
        if spec.weight_decay:
            _add_decay(g, w, spec.weight_decay, scratch)
        np.multiply(g, g, out=scratch)
        np.add(old[0], scratch, out=s)
        _descend(g, s, rate, w, spec.epsilon, new_w)


class RMSProp(Optimizer):
    """RMSprop (Tieleman and Hinton 2012), beta2 being the decay of the mean of squares.

    g <- g + weight_decay w;  s <- beta2 s + (1 - beta2) g^2;  w <- w - rate g / (sqrt(s) + epsilon).
    """

    state_vectors = 1

    def _update(
        self, step: int, rate: float, w: Vector, g: Vector, old: Sequence[Vector], new_w: Vector, *new: Vector
    ) -> None:
        spec, scratch, (s,) = self.spec, new_w, new
        if spec.weight_decay:
            _add_decay(g, w, spec.weight_decay, scratch)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1 - spec.beta2, out=scratch)
        np.multiply(old[0], spec.beta2, out=s)
        np.add(s, scratch, out=s)
        _descend(g, s, rate, w, spec.epsilon, new_w)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): the mean of gradients over the root of the mean of their squares.

    g <- g + weight_decay w;  m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2;
    w <- w - rate (m / (1 - beta1^step)) / (sqrt(s / (1 - beta2^step)) + epsilon).
    """

    state_vectors = 2
    decoupled = False  # whether weight decay goes beside the gradient and its moments, not through them

    def _update(
        self, step: int, rate: float, w: Vector, g: Vector, old: Sequence[Vector], new_w: Vector, *new: Vector
    ) -> None:
        spec, scratch, (m, s) = self.spec, new_w, new
        if spec.weight_decay and not self.decoupled:
            _add_decay(g, w, spec.weight_decay, scratch)
        np.multiply(g, 1 - spec.beta1, out=scratch)
        np.multiply(old[0], spec.beta1, out=m)
        np.add(m, scratch, out=m)
        np.add(m, _FLOOR, out=m)
        np.multiply(g, g, out=g)
        np.multiply(g, 1 - spec.beta2, out=g)
        np.multiply(old[1], spec.beta2, out=s)
        np.add(s, g, out=s)

        np.sqrt(s, out=g)
        np.multiply(g, 1 / math.sqrt(1 - spec.beta2**step), out=g)
        np.add(g, spec.epsilon, out=g)
        np.divide(m, g, out=g)
        np.multiply(g, rate / (1 - spec.beta1**step), out=g)
        if spec.weight_decay and self.decoupled:
            np.multiply(w, 1 - rate * spec.weight_decay, out=new_w)
            np.subtract(new_w, g, out=new_w)
        else:
            np.subtract(w, g, out=new_w)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): w <- (1 - rate weight_decay) w - Adam's step."""

    decoupled = True


def _add_decay(g: Vector, w: Vector, weight_decay: float, scratch: Vector) -> None:
    """g <- g + weight_decay w: the gradient of the penalty weight_decay / 2 |w|^2 joins that of the loss."""
    np.multiply(w, weight_decay, out=scratch)
    np.add(g, scratch, out=g)


def _descend(g: Vector, s: Vector, rate: float, w: Vector, epsilon: float, new_w: Vector) -> None:
    """new_w = w - rate g / (sqrt(s) + epsilon); g is used up."""
    np.sqrt(s, out=new_w)
    np.add(new_w, epsilon, out=new_w)
    np.divide(g, new_w, out=g)
    np.multiply(g, rate, out=g)
    np.subtract(w, g, out=new_w)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": AdaGrad,
    "rmsprop": RMSProp,
    "adam": Adam,
    "adamw": AdamW,
}


def make_optimizer(spec: OptimizerSpec) -> Optimizer:
    """The optimizer that `spec` names."""
    return OPTIMIZERS[spec.name](spec)
