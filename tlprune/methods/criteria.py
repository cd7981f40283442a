"""Criteria of one-shot pruning: what a weight is worth, from its value, gradients of the loss, and activations.

``w`` is a weight, ``g`` the gradient of a batch's loss by it, ``x`` and ``y`` what its linear map reads and gives, both
averaged over the real tokens of a batch; ``y`` is the same for all weights of one output, ``x`` for all of one input.
A bias is the weight of an input that is always 1, and has its own element of ``y``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Gradient = Literal["none", "clean", "smooth"]
Reading = Literal["nothing", "inputs", "outputs"]
Shifted = Literal["activation", "product"]
Values = Float[Tensor, "..."]


@dataclass(frozen=True)
class Seen:
    """What one batch says of one tensor; each part has the tensor's shape, or size 1 on axes along which it is alike.

    Attributes:
        weight: the tensor.
        gradient: of the mean loss, if the criterion needs it; mean over noised passes where it is smooth.
        outputs: mean output of the linear map over real tokens, along the outputs.
        inputs: mean input, along the inputs; 1 for a bias.
        squares: sum over real tokens of the squared inputs; for a bias the number of tokens.
        answers: how many answers the mean loss is over.
    """

    weight: Values
    gradient: Values | None
    outputs: Values | None
    inputs: Values | None
    squares: Values | None
    answers: int

    @property
    def slope(self) -> Values:
        assert self.gradient is not None
        return self.gradient

    @property
    def output(self) -> Values:
        assert self.outputs is not None
        return self.outputs


class Criterion(ABC):
    """What weights are scored by; a frozen dataclass with its settings as fields.

    A batch adds :meth:`added` to a total, and :meth:`score` makes scores of the total, both tensor by tensor.

    Attributes:
        gradient: which gradients it needs: ``"none"``, those of the plain model (``"clean"``), or means over noised
            passes (``"smooth"``: it has fields ``samples`` and ``scale``).
        reads: which activations it needs.
        most: batches that are looked at unless a method says otherwise, as its source does.
    """

    gradient: ClassVar[Gradient] = "none"
    reads: ClassVar[Reading] = "nothing"
    most: ClassVar[int] = 1000

    @property
    def runs(self) -> bool:
        """Whether the model is run at all."""
        return self.gradient != "none" or self.reads != "nothing"

    def added(self, seen: Seen) -> Values:
        """What a batch adds to the total."""
        raise NotImplementedError(f"{type(self).__name__} looks at no batches")

    @abstractmethod
    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        """From a tensor and its total over all batches, with ``answers`` answers in all, to its scores."""


class _Summed(Criterion):
    """A criterion whose score is the sum of what batches add."""

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        assert total is not None
        return total


@dataclass(frozen=True)
class Magnitude(Criterion):
    """``|w|``; no example is looked at.

    Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS
    2015); ShrinkBench's GlobalMagWeight and LayerMagWeight.

    Example:
        >>> Magnitude().score(torch.tensor([-2.0, 1.0]), None, answers=0, generator=torch.Generator())
        tensor([2., 1.])
    """

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        return weight.abs()


@dataclass(frozen=True)
class MagnitudeGradient(_Summed):
    """``sum over batches of |w g|``.

    Source: ShrinkBench's GlobalMagGrad and LayerMagGrad (Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State
    of Neural Network Pruning?", MLSys 2020), which look at one batch.
    """

    gradient = "clean"

    def added(self, seen: Seen) -> Values:
        return (seen.weight * seen.slope).abs_()


@dataclass(frozen=True)
class MagnitudeActivation(Criterion):
    """``|w| sum over batches of |x|``, with ``x`` the mean input.

    Source: ShrinkBench's GlobalMagAct and LayerMagAct, which look at one batch.
    """

    reads = "inputs"

    def added(self, seen: Seen) -> Values:
        assert seen.inputs is not None
        return seen.inputs.abs()

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        assert total is not None
        return weight.abs() * total


@dataclass(frozen=True)
class GradCAM(_Summed):
    """``sum over batches of |w g (shift + y)|``, with ``y`` the mean output.

    Attributes:
        shift: what is added, so that outputs around 0 do not erase a weight; the source has 0 and 10.
        shifted: ``"activation"``: the output, as above; ``"product"``: all of it, ``|shift + w g y|``, which the
            released GlobalGradCAMShift does. There a large shift makes scores nearly equal, and in float32 mostly so.

    Raises:
        ValueError: the shift is not finite, or nothing of this name can be shifted.

    Source: the strategies of DeepCuts on ShrinkBench; after Selvaraju et al., "Grad-CAM" (ICCV 2017).
    """

    shift: float = 0.0
    shifted: Shifted = "activation"

    gradient = "clean"
    reads = "outputs"

    def __post_init__(self) -> None:
        check_shift(self.shift)
        if self.shifted not in get_args(Shifted):
            raise ValueError(f"shifted must be 'activation' or 'product' but is {self.shifted!r}. Choose one of these.")

    def added(self, seen: Seen) -> Values:
        if self.shifted == "product":
            return (seen.weight * seen.slope).mul_(seen.output).add_(self.shift).abs_()
        return (seen.weight * seen.slope).mul_(self.shift + seen.output).abs_()


@dataclass(frozen=True)
class Smooth(_Summed):
    """A criterion of gradients under noise, with its settings."""

    samples: int = 10
    scale: float = 1e-3

    gradient = "smooth"
    most = 100

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 but is {self.samples}. The source takes 10.")
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be at least 0 and finite but is {self.scale}. The source takes 0.001.")


@dataclass(frozen=True)
class SmoothGrad(Smooth):
    """``sum over batches of |w gbar|``, with ``gbar`` the mean gradient of several noised passes.

    Each pass adds ``N(0, scale^2)`` to every number that a prunable linear map gives.

    Attributes:
        samples: noised passes per batch.
        scale: standard deviation of the noise, in the units of activations.

    Raises:
        ValueError: a setting is out of range.

    Source: the strategies of DeepCuts on ShrinkBench; after Smilkov et al., "SmoothGrad" (2017), which noises inputs.
    """

    def added(self, seen: Seen) -> Values:
        return (seen.weight * seen.slope).abs_()


@dataclass(frozen=True)
class SmoothGradCAM(Smooth):
    """``sum over batches of |w gbar (shift + y)|``: smooth gradients as of :class:`SmoothGrad`, outputs without noise.

    Attributes:
        samples: noised passes per batch.
        scale: standard deviation of the noise, in the units of activations.
        shift: what is added to the mean output; the source has 0 and 10.

    Raises:
        ValueError: a setting is out of range.

    Source: the strategies of DeepCuts on ShrinkBench.
    """

    shift: float = 0.0

    reads = "outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shift(self.shift)

    def added(self, seen: Seen) -> Values:
        return (seen.weight * seen.slope).mul_(self.shift + seen.output).abs_()


@dataclass(frozen=True)
class SNIP(Criterion):
    """``|w g|`` with ``g`` the gradient of the mean loss over all answers that were looked at.

    Unlike :class:`MagnitudeGradient`, gradients of opposite sign cancel. The source divides by the sum over all weights
    and scores at initialisation, which changes no order.

    Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (ICLR 2019),
    equation 6.
    """

    gradient = "clean"

    def added(self, seen: Seen) -> Values:
        return seen.slope * seen.answers

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        assert total is not None
        return (weight * total).abs_().div_(answers)


@dataclass(frozen=True)
class Wanda(Criterion):
    """``|w| ||X||_2``, the norm over all real tokens of the input that the weight reads; no gradient is taken.

    The source compares the weights of one output with each other.

    Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024),
    equation 1.
    """

    reads = "inputs"

    def added(self, seen: Seen) -> Values:
        assert seen.squares is not None
        return seen.squares.clone()  # tensors that read the same share it

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        assert total is not None
        return weight.abs() * total.sqrt()


@dataclass(frozen=True)
class RandomCriterion(Criterion):
    """Uniform random numbers, so that each weight is as likely to be kept as another.

    ShrinkBench's RandomPruning keeps each with the same probability; an exact number is kept here.

    Example:
        >>> seeded = torch.Generator().manual_seed(0)
        >>> RandomCriterion().score(torch.zeros(2), None, answers=0, generator=seeded).unique().shape
        torch.Size([2])
    """

    def score(self, weight: Values, total: Values | None, *, answers: int, generator: torch.Generator) -> Values:
        return torch.rand(weight.shape, generator=generator)


def check_shift(shift: float) -> None:
    """Raise a ValueError for a shift that is no number."""
    if not math.isfinite(shift):
        raise ValueError(f"shift must be finite but is {shift}. The source takes 0 and 10.")
