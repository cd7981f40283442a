"""Gates: trainable distributions over mask values in [0, 1], one number per site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
        noise = torch.rand(log_alpha.shape, generator=generator, dtype=log_alpha.dtype).to(log_alpha.device)
        noise = noise * (1 - 2 * self.epsilon) + self.epsilon
        smooth = torch.sigmoid((torch.logit(noise) + log_alpha) / self.temperature)
        return torch.clamp(self.low + (self.high - self.low) * smooth, 0, 1)

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
