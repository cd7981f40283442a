"""Gates: trainable distributions over mask values in [0, 1], one number per site."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.pieces import drawn
from tlprune.schedules import Schedule

Sites = Float[Tensor, "*sites"]


@runtime_checkable
class Gate(Protocol):
    """How one trainable number per site, ``log_alpha``, becomes a mask value in [0, 1].

    Attributes:
        initial: first value of every ``log_alpha``.
        flat_ends: whether a sampled value of exactly 0 or 1 has no gradient, so that the engine need not find one.
    """

    flat_ends: ClassVar[bool]

    @property
    def initial(self) -> float: ...

    def sample(self, log_alpha: Sites, generator: torch.Generator | None = None) -> Sites:
        """One mask value per site, differentiable in ``log_alpha``."""
        ...

    def expected_kept(self, log_alpha: Sites) -> Sites:
        """Probability that a sampled mask value is not 0, in closed form; what budgets count."""
        ...

    def soft(self, log_alpha: Sites) -> Sites:
        """A noise-free mask value between 0 and 1 that rises with ``log_alpha``."""
        ...

    def harden(self, log_alpha: Sites) -> Sites:
        """The noise-free mask of evaluation."""
        ...

    def at(self, step: int) -> Gate:
        """The gate of a training step, from 0; itself unless something of it is annealed."""
        ...


@dataclass(frozen=True)
class HardConcrete:
    """The hard concrete distribution: a stretched, clipped binary concrete with mass at exactly 0 and 1.

    With ``u ~ U(eps, 1 - eps)``: ``s = sigmoid((logit(u) + log_alpha) / temperature)`` and
    ``z = clip(low + (high - low) s, 0, 1)``. Then ``P(z > 0) = sigmoid(log_alpha - temperature log(-low / high))``.

    Attributes:
        initial: first value of every ``log_alpha``. At 10, the published start, the clip stops nearly all
            gradients until weight decay has pulled the values down; at 2 they flow from the first step.
        temperature: smoothness of the relaxation.
        low: lower end of the stretch, below 0.
        high: upper end of the stretch, above 1.
        epsilon: keeps the uniform noise away from 0 and 1.

    Source: Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization" (2018), eq. 10-12.

    Example:
        >>> gate = HardConcrete()
        >>> log_alpha = torch.tensor([-8.0, 0.0, 8.0])
        >>> [round(p, 3) for p in gate.expected_kept(log_alpha).tolist()]
        [0.002, 0.832, 1.0]
        >>> gate.sample(log_alpha, torch.Generator().manual_seed(0))[[0, 2]].tolist()
        [0.0, 1.0]
    """

    initial: float = 2.0
    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1
    epsilon: float = 1e-6
    flat_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.low < 0 and self.high > 1 and self.temperature > 0):
            raise ValueError(
                f"A hard concrete gate needs low < 0, high > 1 and temperature > 0 but got {self.low}, {self.high} "
                f"and {self.temperature}. The published values are -0.1, 1.1 and 2/3."
            )

    def sample(
        self, log_alpha: Float[Tensor, "*sites"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*sites"]:
        """Draw one mask value per site; differentiable in ``log_alpha`` where the clip is not active."""
        return drawn(self, log_alpha, generator)

    def smooth_(self, noise: Float[Tensor, "*sites"], log_alpha: Float[Tensor, "*sites"]) -> None:
        """``s`` of uniform noise, in its place."""
        logits = noise.mul_(1 - 2 * self.epsilon).add_(self.epsilon).logit_()
        logits.add_(log_alpha).div_(self.temperature).sigmoid_()

    def value(self, smooth: Float[Tensor, "*sites"]) -> Float[Tensor, "*sites"]:
        """``z`` of ``s``."""
        return (smooth * (self.high - self.low)).add_(self.low).clamp_(0, 1)

    def descend(
        self, gradient: Float[Tensor, "*sites"], smooth: Float[Tensor, "*sites"], *, out: Float[Tensor, "*sites"]
    ) -> None:
        """The gradient in ``log_alpha`` from that in ``z``."""
        stretched = (self.high - self.low) * smooth + self.low
        torch.mul(gradient, (stretched >= 0) & (stretched <= 1), out=out).mul_(self.high - self.low)
        out.mul_(1 - smooth).mul_(smooth).div_(self.temperature)

    def expected_kept(self, log_alpha: Float[Tensor, "*sites"]) -> Float[Tensor, "*sites"]:
        """Probability that a site's mask value is not 0, in closed form."""
        return torch.sigmoid(log_alpha - self.temperature * math.log(-self.low / self.high))

    def soft(self, log_alpha: Float[Tensor, "*sites"]) -> Float[Tensor, "*sites"]:
        """A noise-free mask value between 0 and 1, ``sigmoid(0.8 log_alpha / temperature)`` as Edge Pruning has it."""
        return torch.sigmoid(0.8 * log_alpha / self.temperature)

    def harden(self, log_alpha: Float[Tensor, "*sites"]) -> Float[Tensor, "*sites"]:
        """The noise-free mask of evaluation: :meth:`soft`, its ``round(sum P(z = 0))`` smallest values set to 0."""
        soft = self.soft(log_alpha).flatten()
        removed = round(float((1 - self.expected_kept(log_alpha)).sum()))
        soft[torch.argsort(log_alpha.flatten(), stable=True)[:removed]] = 0
        return soft.view_as(log_alpha)

    def at(self, step: int) -> HardConcrete:
        """Itself: nothing is annealed."""
        return self


@dataclass(frozen=True)
class StraightThrough:
    """A hard 0 or 1, drawn by the Gumbel-max trick and differentiated as if it were soft (Gumbel-sigmoid).

    With ``u ~ U(eps, 1 - eps)`` and the logistic noise ``g = logit(u)``, whose distribution is that of the source's
    ``-log(log U1 / log U0)`` of two uniform numbers: ``r = sigmoid((log_alpha + g) / temperature)`` and
    ``m = 1[r > 1/2]``, whose gradient is taken to be that of ``r``, ``r (1 - r) / temperature``. Since ``r > 1/2`` just
    where ``g > -log_alpha``, ``P(m = 1) = sigmoid(log_alpha)`` whatever the temperature, which shapes the gradient
    alone.

    Attributes:
        initial: first value of every ``log_alpha``; by default each site is kept with probability 0.45.
        temperature: of the gradient; lower concentrates it on undecided draws.
        epsilon: keeps the uniform noise away from 0 and 1.

    Source: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax" (2017), section 2.2; as in Bayazit et
    al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (2024).

    Example:
        >>> gate = StraightThrough()
        >>> log_alpha = torch.tensor([-200.0, 0.0, 30.0])
        >>> gate.expected_kept(log_alpha).tolist(), gate.harden(log_alpha).tolist()
        ([0.0, 0.5, 1.0], [0.0, 0.0, 1.0])
        >>> round(gate.expected_kept(torch.tensor(gate.initial)).item(), 4)
        0.45
    """

    initial: float = math.log(0.45 / 0.55)
    temperature: float = 1.0
    epsilon: float = 1e-10
    flat_ends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def sample(self, log_alpha: Sites, generator: torch.Generator | None = None) -> Sites:
        """Draw 0 or 1 for each site."""
        return drawn(self, log_alpha, generator)

    def smooth_(self, noise: Sites, log_alpha: Sites) -> None:
        """``r`` of uniform noise, in its place."""
        logits = noise.mul_(1 - 2 * self.epsilon).add_(self.epsilon).logit_()
        logits.add_(log_alpha).div_(self.temperature).sigmoid_()

    def value(self, smooth: Sites) -> Sites:
        """``m`` of ``r``."""
        return (smooth > 0.5).to(smooth.dtype)

    def descend(self, gradient: Sites, smooth: Sites, *, out: Sites) -> None:
        """The gradient in ``log_alpha`` from that in ``m``, which is taken to be ``r``."""
        torch.mul(gradient, 1 - smooth, out=out).mul_(smooth).div_(self.temperature)

    def expected_kept(self, log_alpha: Sites) -> Sites:
        """Probability that a site's mask value is 1, ``sigmoid(log_alpha)``."""
        return torch.sigmoid(log_alpha)

    def soft(self, log_alpha: Sites) -> Sites:
        """``sigmoid(log_alpha)``, the value without noise."""
        return torch.sigmoid(log_alpha)

    def harden(self, log_alpha: Sites) -> Sites:
        """1 where :meth:`soft` is above one half."""
        return _open(log_alpha)

    def at(self, step: int) -> StraightThrough:
        """Itself: nothing is annealed."""
        return self


@dataclass(frozen=True)
class Sigmoid:
    """A soft mask without noise, ``sigmoid(log_alpha / temperature)``, that hardens as the temperature falls.

    No value is ever exactly 0, so a probability of being 0 would say nothing: :meth:`expected_kept` is the mask value
    itself. Its sum is the relaxed count of Savarese et al. and tends to the number of ``log_alpha`` above 0.

    Attributes:
        initial: first value of every ``log_alpha``; a higher one keeps more.
        temperature: a number, or a schedule of it over training steps. The paper's inverse temperature rises
            exponentially from 1 to 200: ``schedules.exponential(1, 1 / 200, steps=n)``.
        step: the training step whose temperature is in force; :meth:`at` sets it.

    Source: Savarese, Silva, Maire, "Winning the Lottery with Continuous Sparsification" (NeurIPS 2020), section 3.

    Example:
        >>> from tlprune.schedules import exponential
        >>> gate = Sigmoid(temperature=exponential(1, 0.01, steps=100))
        >>> [round(gate.at(step).soft(torch.tensor(0.1)).item(), 3) for step in (0, 50, 100)]
        [0.525, 0.731, 1.0]
    """

    initial: float = 0.0
    temperature: float | Schedule = 1.0
    step: int = 0
    flat_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_temperature(self._temperature)

    def sample(self, log_alpha: Sites, generator: torch.Generator | None = None) -> Sites:
        """The mask; there is no noise, and the generator is left as it is."""
        return self.soft(log_alpha)

    def expected_kept(self, log_alpha: Sites) -> Sites:
        """The mask value, a relaxed count: see the class."""
        return self.soft(log_alpha)

    def soft(self, log_alpha: Sites) -> Sites:
        """``sigmoid(log_alpha / temperature)``."""
        return torch.sigmoid(log_alpha / self._temperature)

    def harden(self, log_alpha: Sites) -> Sites:
        """1 where ``log_alpha > 0``, the limit of a falling temperature."""
        return _open(log_alpha)

    def at(self, step: int) -> Sigmoid:
        """This gate at the temperature of a training step."""
        return replace(self, step=step)

    @property
    def _temperature(self) -> float:
        return self.temperature(self.step) if callable(self.temperature) else self.temperature


@dataclass(frozen=True)
class Heaviside:
    """A hard mask without noise, ``1[log_alpha > 0]``, differentiated as ``sigmoid(log_alpha / temperature)``.

    Attributes:
        initial: first value of every ``log_alpha``; above 0, or nothing is kept at first.
        temperature: of the surrogate gradient; the wider it is, the further from 0 a gate still learns.

    Source: Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons" (2013).

    Example:
        >>> location = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
        >>> mask = Heaviside().sample(location)
        >>> mask.tolist(), [round(g, 3) for g in torch.autograd.grad(mask.sum(), location)[0].tolist()]
        ([0.0, 0.0, 1.0], [0.235, 0.25, 0.105])
    """

    initial: float = 1.0
    temperature: float = 1.0
    flat_ends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def sample(self, log_alpha: Sites, generator: torch.Generator | None = None) -> Sites:
        """The mask; there is no noise, and the generator is left as it is."""
        return _straight_through(log_alpha > 0, self.soft(log_alpha))

    def expected_kept(self, log_alpha: Sites) -> Sites:
        """The mask itself, 0 or 1, with its surrogate gradient."""
        return self.sample(log_alpha)

    def soft(self, log_alpha: Sites) -> Sites:
        """``sigmoid(log_alpha / temperature)``, what the gradient is of."""
        return torch.sigmoid(log_alpha / self.temperature)

    def harden(self, log_alpha: Sites) -> Sites:
        """The mask without gradient."""
        return _open(log_alpha)

    def at(self, step: int) -> Heaviside:
        """Itself: nothing is annealed."""
        return self


@dataclass(frozen=True)
class UniformGradient:
    """Mostly 0 or 1, and for some sites of each draw a value from all of [0, 1], whose gradients alone are used.

    With ``p = sigmoid(log_alpha)``, ``w = p (1 - p)`` and ``u ~ U(0, 1)``: ``m = clip((p - u) / w + 1/2, 0, 1)``. So
    ``m`` is uniform on [0, 1] with probability ``w``, 1 with probability ``p - w / 2`` and 0 otherwise; its mean is
    ``p``. Where it is uniform its gradient is 1, ``dp / dlog_alpha`` divided by the density, and elsewhere 0. The
    expected gradient of a loss is therefore ``w`` times its integral over ``m``, and so, whatever the loss,

        ``p (1 - p) [L(m = 1) - L(m = 0)]``,

    which is that of a site kept with probability ``p``: the relaxation has no bias of its own. Undecided sites are
    looked at most often. In the paper the gradient is divided by the number of uniform draws that a step happened to
    have instead of the expected one, so that the mean over many draws is the same.

    Attributes:
        initial: first value of every ``log_alpha``; the released code's for edges is 1.

    Source: Li and Janson, "Optimal ablation for interpretability" (NeurIPS 2024), uniform gradient sampling.

    Example:
        >>> gate, log_alpha = UniformGradient(), torch.tensor([-30.0, 0.0, 30.0])
        >>> gate.sample(log_alpha, torch.Generator().manual_seed(0)).tolist()
        [0.0, 0.0, 1.0]
    """

    initial: float = 1.0
    flat_ends: ClassVar[bool] = True

    def sample(self, log_alpha: Sites, generator: torch.Generator | None = None) -> Sites:
        """Draw one mask value for each site."""
        noise = torch.rand(log_alpha.shape, generator=generator, dtype=log_alpha.dtype).to(log_alpha.device)
        location = log_alpha.detach()
        kept, width = torch.sigmoid(location), torch.sigmoid(location) * torch.sigmoid(-location)
        draw = torch.clamp((kept - noise) / width.clamp(min=torch.finfo(width.dtype).tiny) + 0.5, 0, 1)
        return draw + torch.where((draw > 0) & (draw < 1), log_alpha - location, 0)

    def expected_kept(self, log_alpha: Sites) -> Sites:
        """The mean mask value, ``sigmoid(log_alpha)``: what the paper's penalty counts."""
        return torch.sigmoid(log_alpha)

    def soft(self, log_alpha: Sites) -> Sites:
        """``sigmoid(log_alpha)``, the mean mask value."""
        return torch.sigmoid(log_alpha)

    def harden(self, log_alpha: Sites) -> Sites:
        """1 where :meth:`soft` is above one half."""
        return _open(log_alpha)

    def at(self, step: int) -> UniformGradient:
        """Itself: nothing is annealed."""
        return self


def _straight_through(hard: Bool[Tensor, "*sites"], soft: Sites) -> Sites:
    """Exactly 0 or 1 forward, the gradient of ``soft`` backward."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def _open(log_alpha: Sites) -> Sites:
    return (log_alpha.detach() > 0).to(log_alpha.dtype)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"A gate needs a temperature above 0 but got {temperature}. Give a positive number, or a schedule that "
            "stays positive."
        )
