"""Scores of different methods on one scale, so that they can be combined or be a start for masks."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.correlations import ranks
from tlprune.masking.ablation import Ablation
from tlprune.scores import Scores
from tlprune.sites import Sites
from tlprune.task import Discovery

By = Literal["signed", "absolute"]
Scale = Literal["rank", "standardised", "largest", "raw"]


def check_by(by: str, name: str) -> None:
    """Raise a ValueError unless scores are taken as they are, or by size."""
    if by not in get_args(By):
        raise ValueError(f"{name} must be 'signed' or 'absolute' but is {by!r}. Choose one of these.")


def scores_of(
    method: Any, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, by: By, progress: bool
) -> Float[Tensor, "site"]:
    """A method's scores of these very sites.

    Raises:
        ValueError: it scores other sites; found before it runs.
    """
    if (own := method.sites(model)) != sites:
        raise ValueError(
            f"Scores that are used together need the same sites but {type(method).__name__} scores {own} where "
            f"{sites} are wanted. Give both the same embeddings=, kv= and level."
        )
    scores: Scores = method.score(model, discovery, ablation=ablation, progress=progress)
    return (scores.absolute if by == "absolute" else scores).values.detach().cpu().double()


def scaled(values: Float[Tensor, "site"], scale: Scale) -> Float[Tensor, "site"]:
    """Scores on a common scale, in the same order.

    Args:
        values: one per site.
        scale: ``"rank"``: from 0 for the lowest to 1 for the highest, equal ones sharing their mean;
            ``"standardised"``: mean 0 and standard deviation 1; ``"largest"``: divided by the largest size; ``"raw"``:
            as they are. Where all are equal they become 1/2, 0, and signs.

    Example:
        >>> values = torch.tensor([3.0, -1.0, 1.0, 1.0])
        >>> scaled(values, "rank").tolist(), scaled(values, "standardised").round(decimals=2).tolist()
        ([1.0, 0.0, 0.5, 0.5], [1.41, -1.41, 0.0, 0.0])
        >>> scaled(values, "largest").round(decimals=2).tolist()
        [1.0, -0.33, 0.33, 0.33]
    """
    values, smallest = values.double(), torch.finfo(torch.float64).tiny
    if scale == "rank":
        return (ranks(values) - 1) / (len(values) - 1) if len(values) > 1 else torch.full_like(values, 0.5)
    if scale == "standardised":
        centred = values - values.mean()
        return centred / centred.square().mean().sqrt().clamp(min=smallest)
    return values / values.abs().max().clamp(min=smallest) if scale == "largest" else values
