"""How scores of neurons are spread within each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlprune.scores import Scores
from tlprune.skills.choosing import count_of, layer_scores
from tlprune.skills.plots import layer_histograms


def predictivity_histogram(
    scores: Scores,
    *,
    fraction: float = 1.0,
    layers: Sequence[int] | None = None,
    marks: Mapping[str, float] | None = None,
    title: str = "Predictivity of neurons by layer",
) -> Any:
    """A histogram of the scores of each layer, one below the other, as a figure of plotly.

    Args:
        scores: of neurons, by any method.
        fraction: only the highest of each layer, such as 0.02, rounded down to a number of neurons.
        layers: those to show; by default all that have scores.
        marks: lines through all layers, such as ``{"prompt": 0.91, "most frequent answer": 0.51}``.
        title: of the figure.

    Raises:
        ModuleNotFoundError: plotly is not installed.
        ValueError: the scores are not of neurons, lack a layer, or the fraction leaves no neuron.

    Example:
        >>> import torch
        >>> from tlprune.sites import Neurons, Sites
        >>> scores = Scores(Sites((Neurons((3, 4), 2),)), torch.tensor([0.5, 0.9, 0.7, 0.6]))
        >>> [bars.x for bars in predictivity_histogram(scores, fraction=0.5).data]
        [(0.8999999761581421,), (0.699999988079071,)]
    """
    group, values = layer_scores(scores, layers)
    count = count_of(fraction, group.width)
    if not count:
        raise ValueError(
            f"A histogram needs neurons but {fraction:g} of {group.width:,} in a layer is none. Give a larger fraction."
        )
    highest = values.topk(count, dim=1).values.tolist()
    return layer_histograms(dict(zip(group.layers, highest, strict=True)), marks or {}, title=title, of="predictivity")
