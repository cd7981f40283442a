"""Paired tests of differences over examples, and their correction where many are looked at."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SIGNIFICANT = 0.05  # largest corrected p-value of a difference that is more than noise


def sign_flip(differences: Float[Tensor, "example test"]) -> Float[Tensor, "test"]:
    """Two-sided p-values of the hypothesis that a difference could as well have had the other sign in each example.

    That is what holds if two circuits are the same to a figure but for chance. The sum of the differences is compared
    with that under random signs. Where all differences other than 0 have one size, as those of right and wrong answers
    have, their signs are coins: this is the exact sign test, McNemar's. Else the sum divided by the root of the sum of
    squares is taken to be normal, as it tends to be with many examples.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947); Fisher, "The
    Design of Experiments" (1935), section 21.

    Args:
        differences: of the same examples, one column for each test.

    Example:
        >>> right = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0], [0.0], [0.0]])
        >>> sign_flip(right).tolist()  # five coins that fall alike
        [0.0625]
    """
    from scipy.stats import norm

    table = differences.cpu().double()
    sizes = table.abs()
    spread = table.square().sum(0).sqrt().clamp(min=torch.finfo(table.dtype).tiny)
    normal = 2 * torch.from_numpy(norm.sf((table.sum(0).abs() / spread).numpy()))
    coins = ((sizes == 0) | (sizes == sizes.amax(0))).all(0)
    return torch.where(coins, _sign_test((table > 0).sum(0), (table < 0).sum(0)), normal).clamp(max=1)


def _sign_test(more: Tensor, less: Tensor) -> Float[Tensor, "test"]:
    from scipy.stats import binom

    fewer = torch.minimum(more, less)
    return 2 * torch.from_numpy(binom.cdf(fewer.numpy(), (more + less).numpy(), 0.5))


def holm(p_values: Float[Tensor, "test"]) -> Float[Tensor, "test"]:
    """P-values corrected by Holm's method: that any of those up to ``a`` is chance has a probability of at most ``a``.

    The ``k``-th smallest of ``n`` is multiplied by ``n + 1 - k``, and is not below a smaller one's. Nothing is assumed
    of how the tests depend on each other.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).

    Example:
        >>> [round(p, 3) for p in holm(torch.tensor([0.01, 0.04, 0.03])).tolist()]
        [0.03, 0.06, 0.06]
    """
    order = torch.argsort(p_values)
    factors = torch.arange(len(p_values), 0, -1, dtype=p_values.dtype)
    corrected = torch.empty_like(p_values)
    corrected[order] = (p_values[order] * factors).cummax(0).values.clamp(max=1)
    return corrected
