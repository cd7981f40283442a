"""Masks on whole activations: heads, MLPs, layers, embeddings and neurons, at the points where the model makes them.

``x' = x~ + m (x - x~)`` for an activation ``x`` of this run and what replaces it, ``x~``. A head's mask is the product
of its own, its layer's and its node's, where several are in play. Beside edge masks the edited value is what edges
carry, so an edge counts as ``m_edge * m_node``.

Heads are masked in front of the output projection. So a norm behind attention (Gemma 2) divides by the scale of what is
left of the heads, and their means are means of ``z``. Edges carry ``z`` over that scale, and are replaced by ``z`` over
the scale of the replacing run: for such heads, and for them alone, masks of nodes and edges do not multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Edits, Point
from tlprune.graph import Architecture
from tlprune.sites import Neurons, Nodes, Sites
from tlprune.spans import Spanned

MaskValues = Float[Tensor, "*lead site"]


def node_edits(sites: Sites, values: Mapping[str, MaskValues], replaced: Activations, shape: Architecture) -> Edits:
    """What the masks of nodes and neurons do to a run.

    Args:
        sites: all sites; those of edges and weights are passed over.
        values: mask values by kind, ``(site,)`` or with an example axis, or an example and a position axis, in front.
        replaced: what ablated activations become, or are changed by.
        shape: of the model.
    """
    points = masked_points(sites, values, replaced, shape)
    return {point: _mix(mask, other, relative=replaced.relative) for point, mask, other in points}


def masked_points(
    sites: Sites, values: Mapping[str, MaskValues], replaced: Activations, shape: Architecture
) -> Iterator[tuple[Point, Tensor, Callable[[], Tensor]]]:
    """Each point that is masked, its mask, and what stands for its activation when it is ablated."""
    for point, mask, other in _points(_Masks(sites, values, shape), replaced, shape):
        if mask is not None:
            yield point, mask, other


def _points(
    masks: _Masks, replaced: Activations, shape: Architecture
) -> Iterator[tuple[Point, Tensor | None, Callable[[], Tensor]]]:
    """Each point that could be masked, its mask, and what stands for it when it is ablated."""
    yield ("input", 0), masks.of(["input"]), lambda: sum(replaced.embeddings[1:], replaced.embeddings[0])
    for index, name in enumerate(("embed", "pos_embed")[: len(replaced.embeddings)]):
        yield (name, 0), masks.of([name]), lambda index=index: replaced.embeddings[index]
    for layer in range(shape.n_layers):
        heads = masks.of([f"a{layer}.h{head}" for head in range(shape.n_heads)], f"a{layer}")
        yield ("heads", layer), None if heads is None else heads[..., None], lambda layer=layer: replaced.heads[layer]
        if shape.has_mlp:
            yield ("mlp", layer), masks.of([f"m{layer}"]), lambda layer=layer: replaced.mlps[layer]
            yield ("neurons", layer), masks.of_neurons(layer), lambda layer=layer: replaced.neurons[layer]


def _mix(mask: Tensor, other: Callable[[], Tensor], *, relative: bool) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        gate, replacement = _lined_up(mask, value.dim()).to(value.dtype), other()
        if relative:
            return value + (1 - gate) * replacement
        return torch.lerp(replacement.to(value.dtype), value, gate)  # one pass over the activation

    return edit


def _lined_up(mask: Tensor, dim: int) -> Tensor:
    """A mask ``(*lead, ...)`` against an activation ``(example, pos, ...)``: lead is nothing, examples or both."""
    missing = dim - mask.dim()
    if missing == 1:
        return mask[:, None]
    return mask if missing == 0 else mask.reshape((1,) * missing + mask.shape)


def _chosen(values: Tensor, places: list[int]) -> Tensor:
    """Some values along the last axis; a view where they lie side by side, as the heads of a layer do."""
    if places == list(range(places[0], places[0] + len(places))):
        return values[..., places[0] : places[0] + len(places)]
    return values[..., places]


class _Masks:
    """The masks of nodes by name, several sites that cover one node multiplied."""

    def __init__(self, sites: Sites, values: Mapping[str, MaskValues], shape: Architecture) -> None:
        self.values, self.shape = values, shape
        inner = [group.group if isinstance(group, Spanned) else group for group in sites.groups]
        self.nodes = [group for group in inner if isinstance(group, Nodes)]
        self.neurons = next((group for group in inner if isinstance(group, Neurons)), None)

    def of(self, names: list[str], layer: str | None = None) -> Tensor | None:
        """One mask for each name, ``(*lead, name)``; ``layer`` covers them all; ``None`` where nothing is masked."""
        found: Tensor | None = None
        for group in self.nodes:
            for part in (self._of_group(group, names), self._of_group(group, [layer] if layer else [])):
                if part is not None:
                    found = part if found is None else found * part
        return found

    def _of_group(self, group: Nodes, names: list[str]) -> Tensor | None:
        own = [place for place, name in enumerate(names) if name in group.names]
        if not own:
            return None
        values = self.values[group.kind]
        chosen = _chosen(values, [group.index(names[place]) for place in own])
        if len(own) == len(names):
            return chosen
        ones = torch.ones(*values.shape[:-1], len(names), dtype=values.dtype, device=values.device)
        return ones.index_copy(-1, torch.tensor(own, device=values.device), chosen)

    def of_neurons(self, layer: int) -> Tensor | None:
        if self.neurons is None or layer not in self.neurons.layers:
            return None
        width, place = self.neurons.width, self.neurons.layers.index(layer)
        return self.values["neurons"][..., place * width : (place + 1) * width]
