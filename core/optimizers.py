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


@dataclass(frozen=True)
class OptimizerSpec(Specification):
    """An optimizer by name with all its numbers; those that it does not use are ignored by it.

    `clip_norm` bounds the mean gradient's global norm before the update. That is a reduction over the whole vector and
    so the aggregator's, not the optimizer's.
    """

    name: str
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require_choice("name", self.name, OPTIMIZERS)
        require_number("learning_rate", self.learning_rate, above=0.0)
        require_number("momentum", self.momentum, least=0.0, below=1.0)
        require_flag("nesterov", self.nesterov)
        require_number("weight_decay", self.weight_decay, least=0.0)
        require_number("beta1", self.beta1, least=0.0, below=1.0)
        require_number("beta2", self.beta2, least=0.0, below=1.0)
        require_number("epsilon", self.epsilon, above=0.0)
        if self.clip_norm is not None:
            require_number("clip_norm", self.clip_norm, above=0.0)


class Optimizer(ABC):
    """The update rule of one specification. Its state is the caller's: `state_vectors` vectors, zero at first."""

    state_vectors: int = 0

    def __init__(self, spec: OptimizerSpec) -> None:
        self.spec = spec

    @abstractmethod
    def update(
        self,
        step: int,
        learning_rate: float,
        parameters: Vector,
        gradient: Vector,
        state: Sequence[Vector],
        out_parameters: Vector,
        out_state: Sequence[Vector],
    ) -> None:
        """Write the parameters and state after `step` (counted from 1) into `out_parameters` and `out_state`.

        All are one-dimensional, of one length and dtype, and do not overlap. `gradient` is used as scratch. Allocates
        nothing.
        """


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's, by the formulas of PyTorch's `torch.optim.SGD`.

    g <- g + weight_decay w;  v <- momentum v + g;  d = g + momentum v (Nesterov), v (momentum) or g;  w <- w - rate d.
    """

    def __init__(self, spec: OptimizerSpec) -> None:
        super().__init__(spec)
        self.state_vectors = 1 if spec.momentum else 0

    def update(
        self,
        step: int,
        learning_rate: float,
        parameters: Vector,
        gradient: Vector,
        state: Sequence[Vector],
        out_parameters: Vector,
        out_state: Sequence[Vector],
    ) -> None:
        direction, scratch = gradient, out_parameters
        if self.spec.weight_decay:
            np.multiply(parameters, self.spec.weight_decay, out=scratch)
            np.add(gradient, scratch, out=gradient)
        if self.spec.momentum:
            (old_velocity,), (velocity,) = state, out_state
            np.multiply(old_velocity, self.spec.momentum, out=velocity)
            np.add(velocity, gradient, out=velocity)
            if self.spec.nesterov:
                np.multiply(velocity, self.spec.momentum, out=scratch)
                np.add(gradient, scratch, out=gradient)
            else:
                direction = velocity
        np.multiply(direction, learning_rate, out=gradient)
        np.subtract(parameters, gradient, out=out_parameters)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): the mean of gradients over the root of the mean of their squares.

    g <- g + weight_decay w;  m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) g^2;
    w <- w - rate (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon).
    """

    state_vectors = 2
    decoupled: ClassVar[bool] = False  # weight decay: through the gradient and its moments, or beside them

    def update(
        self,
        step: int,
        learning_rate: float,
        parameters: Vector,
        gradient: Vector,
        state: Sequence[Vector],
        out_parameters: Vector,
        out_state: Sequence[Vector],
    ) -> None:
        spec, scratch = self.spec, out_parameters
        (old_mean, old_square), (mean, square) = state, out_state
        if spec.weight_decay and not self.decoupled:
            np.multiply(parameters, spec.weight_decay, out=scratch)
            np.add(gradient, scratch, out=gradient)
        np.multiply(gradient, 1 - spec.beta1, out=scratch)
        np.multiply(old_mean, spec.beta1, out=mean)
        np.add(mean, scratch, out=mean)
        np.multiply(gradient, gradient, out=gradient)
        np.multiply(gradient, 1 - spec.beta2, out=gradient)
        np.multiply(old_square, spec.beta2, out=square)
        np.add(square, gradient, out=square)

        np.sqrt(square, out=gradient)
        np.multiply(gradient, 1 / math.sqrt(1 - spec.beta2**step), out=gradient)
        np.add(gradient, spec.epsilon, out=gradient)
        np.divide(mean, gradient, out=gradient)
        np.multiply(gradient, learning_rate / (1 - spec.beta1**step), out=gradient)
        if spec.weight_decay and self.decoupled:
            np.multiply(parameters, 1 - learning_rate * spec.weight_decay, out=out_parameters)
            np.subtract(out_parameters, gradient, out=out_parameters)
        else:
            np.subtract(parameters, gradient, out=out_parameters)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): w <- (1 - rate weight_decay) w - Adam's step."""

    decoupled = True


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make_optimizer(spec: OptimizerSpec) -> Optimizer:
    """The optimizer that `spec` names."""
    return OPTIMIZERS[spec.name](spec)
