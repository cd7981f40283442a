"""The circuits of a compiled model, computed from its weights and from its behaviour on every input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation, Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.sites import edges
from tlprune.sites import Sites
from tlprune.task import Batch, Tokens

Embeddings = Literal["merged", "separate", "kept"]
Decoded = Float[Tensor, "example place"]
Decode = Callable[[Float[Tensor, "example place output"]], Decoded]
RUNS = 4096  # prompts in one run
ROUNDING = 1e-6


def structural_edges(model: Any, *, embeddings: Embeddings = "merged") -> Circuit:
    """The edges whose reader's weights meet what their writer can write, as far as they lie on a path to the logits.

    An edge is there if ``W_writer @ W_reader`` is not 0. What a head writes are the rows of ``[W_V; b_V] W_O``, an MLP
    those of ``[W_out; b_out]``, an embedding its own. A query reads by ``W_Q [W_K; b_K]^T``, for that is what it is
    multiplied with, a key likewise, a value by ``W_V W_O``, an MLP by ``W_in`` and the logits by ``W_U``. Without norms
    every other edge has no effect whatever is ablated.

    Args:
        model: a TransformerLens model without norms.
        embeddings: whether token and position embedding are one node, two, or always kept and not counted.
    """
    sites, weights = edges(model, embeddings=embeddings), backend_of(model).parameters()
    written = dict(_written(weights, sites.graph.architecture.n_layers))
    read = dict(_read(weights, sites.graph.architecture.n_layers))
    kept = [_meets(written[writer], read[reader]) for writer, _, reader in _ends(sites)]
    return Circuit(sites, torch.tensor(kept)).effective


def _ends(sites: Sites) -> Iterator[tuple[str, str, str]]:
    return (name.partition("->") for name in sites.graph.edges())


def _meets(writer: Tensor, reader: Tensor) -> bool:
    return bool((writer @ reader).abs().max() > ROUNDING * writer.abs().max() * reader.abs().max())


def _written(weights: Any, layers: int) -> Iterator[tuple[str, Float[Tensor, "row d_model"]]]:
    """By writer, rows that span what it can write."""
    embed, positions = weights["embed.W_E"], weights["pos_embed.W_pos"]
    yield from (("embed", embed), ("pos_embed", positions), ("input", torch.cat([embed, positions])))
    for layer in range(layers):
        attention, mlp = f"blocks.{layer}.attn.", f"blocks.{layer}.mlp."
        values = _with_bias(weights, f"{attention}W_V") @ weights[f"{attention}W_O"]
        yield from ((f"a{layer}.h{head}", rows) for head, rows in enumerate(values))
        yield f"m{layer}", _with_bias(weights, f"{mlp}W_out")


def _read(weights: Any, layers: int) -> Iterator[tuple[str, Float[Tensor, "d_model column"]]]:
    """By reader, the matrix through which it sees its stream."""
    for layer in range(layers):
        path = f"blocks.{layer}.attn."
        q, k, v, o = (weights[f"{path}W_{part}"] for part in "QKVO")
        queries, keys = (_with_bias(weights, f"{path}W_{part}") for part in "QK")
        seen = {"q": q @ keys.mT, "k": k @ queries.mT, "v": v @ o}
        for part, matrices in seen.items():
            yield from ((f"a{layer}.h{head}<{part}>", matrix) for head, matrix in enumerate(matrices))
        yield f"m{layer}", weights[f"blocks.{layer}.mlp.W_in"]
    yield "logits", weights["unembed.W_U"]


def _with_bias(weights: Any, name: str) -> Tensor:
    """A matrix, or one of each head, with its bias as a further row."""
    return torch.cat([weights[name], weights[name.replace("W_", "b_")].unsqueeze(-2)], -2)


class Behaviour:
    """What hard circuits of a compiled model do on every input, compared with the program.

    Args:
        model: the model.
        batch: all inputs, with the positions that count.
        decode: from logits at these positions to what is compared.
        tolerance: how far two decoded numbers may be apart and count as one.
    """

    def __init__(self, model: Any, batch: Batch, decode: Decode, *, tolerance: float) -> None:
        self.model, self.batch, self.decode, self.tolerance = model, batch, decode, tolerance
        self.right = decode(self._full(batch))
        self.counts = torch.ones_like(batch.answers, dtype=torch.bool) if batch.targets is not None else batch.answered

    def _full(self, batch: Batch) -> Tensor:
        return backend_of(self.model).logits(batch.clean, batch.positions).detach()

    def changed(self, sites: Sites, kept: Bool[Tensor, "circuit edge"], replacing: str) -> Bool[Tensor, "circuit"]:
        """Which circuits decode some input into something else than the full model.

        Args:
            sites: edges of the model.
            kept: a row per circuit.
            replacing: what an edge outside of a circuit carries: nothing, or what it carries on another input, each of
                them in turn.
        """
        found = torch.zeros(len(kept), dtype=torch.bool)
        for ablation, batch in self._runs(replacing):
            (left,) = (~found).nonzero(as_tuple=True)  # what was changed once need not be run again
            if not len(left):
                break
            found[left] = self._differs(sites, kept[left], ablation, batch)
        return found

    def _runs(self, replacing: str) -> Iterator[tuple[Ablation, Batch]]:
        if replacing not in ("zero", "interchange"):
            raise ValueError(f"replacing must be zero or interchange but is {replacing!r}. Choose one of these.")
        if replacing == "zero":
            yield Zero(), self.batch
            return
        ids, rows = self.batch.clean.ids, torch.arange(len(self.batch))
        for shift in range(1, len(rows)):
            yield Resample(), Batch(**{**vars(self.batch), "corrupt": Tokens(ids[rows.roll(shift)])})

    @torch.no_grad()
    def _differs(self, sites: Sites, kept: Tensor, ablation: Ablation, batch: Batch) -> Bool[Tensor, "circuit"]:
        masked = Masked(self.model, Circuit(sites, torch.ones(len(sites), dtype=torch.bool)), ablation)
        parts = [self._decoded(masked, part, batch) for part in kept.split(max(1, RUNS // len(batch)))]
        different = (torch.cat(parts) - self.right).abs() > self.tolerance
        return (different & self.counts).flatten(1).any(1)

    def _decoded(self, masked: Masked, kept: Tensor, batch: Batch) -> Float[Tensor, "circuit example place"]:
        """All inputs under each of some circuits, side by side along the axis of examples."""
        count = len(kept)
        rows = torch.arange(len(batch)).repeat(count)
        mask = kept.float().repeat_interleave(len(batch), 0)
        return self.decode(masked(batch.rows(rows), mask=mask)).unflatten(0, (count, len(batch)))

    def edges_that_matter(self, among: Circuit, replacing: str) -> Circuit:
        """Those of some edges that change what is decoded when ablated alone, all others being kept."""
        (indices,) = among.kept.nonzero(as_tuple=True)
        kept = torch.ones(len(indices), len(among.sites), dtype=torch.bool)
        kept[torch.arange(len(indices)), indices] = False
        found = torch.zeros_like(among.kept)
        found[indices] = self.changed(among.sites, kept, replacing)
        return Circuit(among.sites, found)

    def solves(self, circuit: Circuit, replacing: str) -> bool:
        """Whether a circuit alone decodes every input as the full model does."""
        return not bool(self.changed(circuit.sites, circuit.kept[None], replacing))

    def least(self, among: Circuit, replacing: str) -> Circuit:
        """A part of a circuit that alone decodes as the full model does, and none of whose edges can go.

        Edges are tried once each, from the logits back, and go where the rest still does.
        """
        kept = among.kept.clone()
        for index in reversed(kept.nonzero().flatten().tolist()):
            kept[index] = False
            kept[index] = bool(self.changed(among.sites, kept[None], replacing))
        return Circuit(among.sites, kept)

    def is_least(self, circuit: Circuit, replacing: str) -> bool:
        """Whether a circuit alone decodes as the full model does, but no longer without any one of its edges."""
        if not self.solves(circuit, replacing):
            return False
        (indices,) = circuit.kept.nonzero(as_tuple=True)
        smaller = circuit.kept.repeat(len(indices), 1)
        smaller[torch.arange(len(indices)), indices] = False
        return bool(self.changed(circuit.sites, smaller, replacing).all())
