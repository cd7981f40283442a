"""Masks of weights told as heads: which of them are gone, wholly or by how much."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.drawing.head_map import head_map
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import finite
from tlprune.selection.within import weights_of

_HEADED = re.compile(r"blocks\.(\d+)\.attn\.([Wb]_[QKV]|W_O)")
_HOVER = "%{customdata}: %{z:.2%} removed<extra></extra>"


@dataclass(frozen=True)
class RemovedHeads:
    """Shares of heads that a mask of weights removes; printing it gives a table.

    Attributes:
        removed: by layer and head, the share of its weights among the sites that are removed; not a number where no
            weight of the layer's heads could be.
        writes: by layer and head, whether any of its output weights stays: where none does the head adds nothing, and
            :func:`~tlprune.shrink` takes it away.
    """

    removed: Float[Tensor, "layer head"]
    writes: Float[Tensor, "layer head"]

    def at_least(self, share: float = 1.0) -> dict[int, list[int]]:
        """Numbers of the heads that have lost this share of their weights, by layer, as ``prune_heads`` takes them.

        Raises:
            ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"A share that is removed lies above 0 and up to 1 but is {share}. For all of it give 1.")
        return _numbers(self.removed >= share)

    @property
    def silent(self) -> dict[int, list[int]]:
        """Numbers of the heads without output weights, by layer."""
        return _numbers(self.writes == 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [[finite(share) for share in row] for row in self.removed.tolist()]
        return {"removed": rows, "gone": self.at_least(), "silent": self.silent}

    def __str__(self) -> str:
        heads = [str(head) for head in range(self.removed.shape[1])]
        rows = [
            [str(layer), *("-" if math.isnan(share) else f"{share:.1%}" for share in row)]
            for layer, row in enumerate(self.removed.tolist())
        ]
        said = "; ".join(f"layer {layer}: {', '.join(map(str, own))}" for layer, own in self.silent.items())
        return "\n".join([*aligned(["removed", *heads], rows), f"without output weights: {said or 'none'}"])

    def plot(self) -> Any:
        """A heat map of plotly: layers down, heads across.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        shares = {
            f"a{layer}.h{head}": share
            for layer, row in enumerate(self.removed.tolist())
            for head, share in enumerate(row)
            if not math.isnan(share)
        }
        texts = {name: "" if share < 1 else "x" for name, share in shares.items()}
        figure = plotly().Figure(head_map(shares, texts, hovertemplate=_HOVER, zmin=0, zmax=1, colorscale="Blues"))
        figure.update_yaxes(autorange="reversed", title="layer")
        figure.update_xaxes(type="category", title="head")
        return figure.update_layout(template=TEMPLATE, title="Share of each head's weights that is removed")


def removed_heads(circuit: Circuit, model: Any) -> RemovedHeads:
    """Which heads a mask of weights, rows or columns removes, wholly or in part.

    A head's weights are its ``W_Q``, ``W_K``, ``W_V`` and ``W_O`` and the biases of the first three, as far as they are
    among the sites; under grouped-query attention each query head counts the keys and values that it shares.

    Args:
        circuit: of weights; what it keeps stays.
        model: that it is of.

    Raises:
        ValueError: the circuit is not of weights of this model, or of none of a head.

    Example:
        >>> import tlprune as tp
        >>> model = tp.planted("copy").model
        >>> sites = tp.weights(model, "blocks.0.attn.W_*")
        >>> kept = torch.cat([torch.arange(m.shape[0]).ne(2).repeat_interleave(m.shape[1] * m.shape[2])
        ...                   for m in sites.groups[0].matrices])
        >>> removed_heads(tp.Circuit(sites, kept), model).at_least(1)
        {0: [2]}
    """
    weights, backend = weights_of(circuit.sites, "A mask told as heads"), backend_of(model)
    if not {*weights.matrices} <= {*backend.matrices()}:
        raise ValueError("The circuit's weights are of another model than this one. Give the model it was found on.")
    shape = backend.architecture
    kept, total = torch.zeros(2, shape.n_layers, shape.n_heads, dtype=torch.float64)
    writes = torch.ones(shape.n_layers, shape.n_heads)
    masks = weights.split(circuit.kept.cpu())
    for matrix in weights.matrices:
        if not (part := _HEADED.fullmatch(matrix.name)):
            continue
        own = masks[matrix.name].expand(matrix.shape).flatten(1)
        repeats, layer = shape.n_heads // len(own), int(part[1])
        kept[layer] += own.sum(1).repeat_interleave(repeats)
        total[layer] += own.shape[1]
        if part[2] == "W_O":
            writes[layer] = own.any(1).float()
    if not bool(total.any()):
        raise ValueError("No weight of a head could be in this circuit. Use sites of tp.weights with '*.attn.W_*'.")
    return RemovedHeads(1 - kept / total, writes)


def _numbers(chosen: Tensor) -> dict[int, list[int]]:
    rows = {layer: own.nonzero().flatten().tolist() for layer, own in enumerate(chosen)}
    return {layer: own for layer, own in rows.items() if own}
