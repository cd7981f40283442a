"""A model seen through masks: a callable whose hooks live for one call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations, Edits, Point, Wanted
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.grouping import whole_of
from tlprune.masking.ablation import Ablation, Resample
from tlprune.masking.beside import Beside, Mlps
from tlprune.masking.cache import RunCache
from tlprune.masking.checks import check_model, check_same, check_sites
from tlprune.masking.crossing import crossings_of, graph_of, run_crossed
from tlprune.masking.discovered import ablation_of_discovery
from tlprune.masking.drawn_weights import DrawnWeights
from tlprune.masking.installing import installed_masks, refuse_installed
from tlprune.masking.masks import Masks
from tlprune.masking.nodes import node_edits
from tlprune.masking.sites import edges
from tlprune.masking.workspace import Pool
from tlprune.placing import spans_of
from tlprune.sites import BY_SPAN, Neurons, Sites, Weights
from tlprune.spans import Group, Spanned, check_covered
from tlprune.task import Batch, Tokens

Read = Callable[[Tokens, Edits, Tensor | None], Tensor]  # what is taken of a run without edges
_CHECKED: weakref.WeakKeyDictionary[Any, set[Sites]] = weakref.WeakKeyDictionary()


class Masked:
    """A model whose edges, nodes, neurons or weights are masked. It changes nothing of the model outside a call.

    Kinds of sites compose as if applied one after the other: weights first (``W * m``; an ablated weight is 0 whatever
    the ablation), then neurons, then nodes, then edges, which carry what nodes still send. What replaces an ablated
    activation comes from the model without any mask.

    Args:
        model: a TransformerLens model.
        masks: trainable masks, or a circuit to run.
        ablation: what replaces an ablated activation; by default :class:`~tlprune.Resample`.
        norm: ``"frozen"``: every norm divides by what it divides by in the unmasked model on the clean prompts, which
            makes a reader linear in its input (one more forward pass); ``"recomputed"``: by its own input's scale.
        mlps: what a run under edge masks keeps of MLPs for its backward: all (``"stored"``); only what they read,
            so that one layer's neurons are alive at a time and MLPs run once more (``"recomputed"``); or the latter
            where the neurons of all layers would take more than 256 MiB (``"auto"``).
        buffers: type of what edge masks keep of each writer; by default the model's, or that of ``torch.autocast``
            around the call. bfloat16 halves a float32 model's, at the price of its rounding.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> logits = Masked(planted.model, planted.circuit)(planted.task.test)
        >>> logits.shape == (len(planted.task.test), 1, planted.model.cfg.d_vocab)
        True
    """

    def __init__(
        self,
        model: Any,
        masks: Masks | Circuit,
        ablation: Ablation | None = None,
        *,
        norm: Literal["recomputed", "frozen"] = "recomputed",
        mlps: Mlps = "auto",
        buffers: torch.dtype | None = None,
    ) -> None:
        _check_choice("norm", norm, ("recomputed", "frozen"))
        _check_choice("mlps", mlps, get_args(Mlps))
        self.model, self.masks = model, masks
        self.mlps: Mlps = mlps
        self.buffers = buffers
        self.norm: Literal["recomputed", "frozen"] = norm
        self.ablation = ablation or Resample()
        self.backend = backend_of(model)
        self.sites = masks.sites
        self.wanted = _wanted(self.sites)
        self._pool = Pool()
        check_sites(self.sites, self.backend)

    @property
    def graph(self) -> Graph:
        """The graph of the masked edges; a ValueError if there are none."""
        return self.sites.graph

    def alike(self, model: Any, masks: Masks, ablation: Ablation) -> Masked:
        """Another model of the same shape, masked in the same way."""
        return Masked(model, masks, ablation, norm=self.norm, mlps=self.mlps, buffers=self.buffers)

    def cache(self, split: Batch) -> RunCache:
        """Replacements and reference predictions of one split of a task, computed once."""
        return RunCache(self.backend, self.ablation, split, wanted=self.wanted)

    def __call__(
        self,
        clean: Batch | Tokens | Tensor,
        corrupt: Tokens | Tensor | None = None,
        *,
        positions: Int[Tensor, "example answer"] | None = None,
        mask: Float[Tensor, "*lead site"] | DrawnWeights | None = None,
        replaced: Activations | None = None,
        spans: Int[Tensor, "example pos"] | None = None,
        flat_ends: bool = False,
    ) -> Float[Tensor, "example answer vocab"]:
        """Logits of the masked model.

        Args:
            clean: prompts; a :class:`Batch` brings its corrupted prompts, answer positions and spans along.
            corrupt: corrupted prompts, where the ablation needs them.
            positions: where logits are wanted; everywhere when ``None``.
            mask: mask values to use, ``(site,)``, or ``(example, site)`` for a circuit per example; by default the
                circuit, or one sample of the masks. Masked weights of a draw are used up by the call.
            replaced: what ablated activations become, if already known.
            spans: number of the span of each position in ``sites.spans``, -1 for none, for sites that differ by span;
                a :class:`Batch` brings its own, which are matched by name.
            flat_ends: whether values of exactly 0 and 1 in ``mask`` need no gradient, because the gate that gave them
                has none there (``Gate.flat_ends``). Edges that are decided so cost less.
        """
        positions = clean.positions if isinstance(clean, Batch) else positions
        tokens, twins, spans = self._prompts(clean, corrupt, spans)
        return self._called(tokens, twins, positions, mask, replaced, spans, flat_ends=flat_ends)

    @property
    def ends_plain(self) -> bool:
        """Whether what lies behind the last block is the plain model's, so that :meth:`stream` can be unembedded."""
        group = self.sites.group("weights") if "weights" in self.sites.kinds else None
        names = [matrix.name for matrix in group.matrices] if isinstance(group, Weights) else []
        inside = all(name.startswith(("blocks.", "embed.", "pos_embed.")) for name in names)
        return inside and self.norm == "recomputed" and not self.wanted.streams

    def stream(
        self, batch: Batch, *, mask: Float[Tensor, "site"] | DrawnWeights, replaced: Activations
    ) -> Float[Tensor, "example answer d_model"]:
        """The masked model's last residual stream at the answer positions, of which the backend makes logits."""
        assert self.ends_plain
        tokens, twins, spans = self._prompts(batch, None, None)
        return self._called(tokens, twins, batch.positions, mask, replaced, spans, read=self.backend.final)

    def _called(
        self,
        tokens: Tokens,
        twins: Tokens | None,
        positions: Tensor | None,
        mask: Tensor | DrawnWeights | None,
        replaced: Activations | None,
        spans: Tensor | None,
        *,
        read: Read | None = None,
        flat_ends: bool = False,
    ) -> Tensor:
        if replaced is None:
            replaced = self.ablation.replaced(self.backend, tokens, twins, self.wanted)
        values = self._values() if mask is None else mask
        if isinstance(values, Tensor):
            values = values.to(device=self.backend.device, dtype=self._mask_dtype)
        if positions is not None and all(value.shape[1] == 1 for value in replaced.tensors):
            tokens, spans = _without_padding(tokens, spans)
        self._self_test(tokens, replaced, spans)
        flat_ends = flat_ends or (mask is None and self._has_flat_ends)
        return self._run(tokens, values, replaced, positions, spans, read=read, flat_ends=flat_ends)

    def run_with_cache(
        self,
        clean: Batch | Tokens | Tensor,
        corrupt: Tokens | Tensor | None = None,
        *,
        mask: Float[Tensor, "site"] | None = None,
    ) -> tuple[Float[Tensor, "example answer vocab"], dict[str, Float[Tensor, "example pos d_model"]]]:
        """Logits everywhere (of prompts one row each), and what each reader of the residual stream sees, by its name.

        Under edge masks no reader reads the model's own stream, so TransformerLens' cache would not show it. Readers
        are called as in the graph: ``"a3.h1<q>"``, ``"m3"``, ``"logits"``. Nothing in the cache has a gradient.

        Args:
            clean: prompts; a :class:`Batch` brings its corrupted prompts along.
            corrupt: corrupted prompts, where the ablation needs them.
            mask: mask values to use; by default the circuit, or the hard circuit of the masks.
        """
        tokens, twins, spans = self._prompts(clean, corrupt, None)
        watched = self if "edges" in self.sites.kinds else _with_all_edges(self)
        values = self.hard_values() if mask is None else mask
        values = torch.cat([values, values.new_ones(len(watched.sites) - len(self.sites))])
        seen: dict[str, Tensor] = {}
        with torch.no_grad():
            replaced = watched.ablation.replaced(watched.backend, tokens, twins, watched.wanted)
            values = values.to(device=self.backend.device, dtype=self._mask_dtype)
            logits = watched._run(tokens, values, replaced, None, spans, seen=seen)
        # All heads of a layer that is one node see the same.
        return logits, {whole_of(watched.graph, name): stream for name, stream in seen.items()}

    def hard_values(self) -> Float[Tensor, "site"]:
        """1 for what the circuit keeps, 0 for all else; of masks, for what their hard circuit keeps."""
        circuit = self.masks if isinstance(self.masks, Circuit) else self.masks.circuit()
        return circuit.kept.to(device=self.backend.device, dtype=self._mask_dtype)

    def _run(
        self,
        tokens: Tokens,
        values: Tensor | DrawnWeights,
        replaced: Activations,
        positions: Tensor | None,
        spans: Tensor | None,
        *,
        seen: dict[str, Tensor] | None = None,
        read: Read | None = None,
        flat_ends: bool = False,
    ) -> Tensor:
        parts = {} if isinstance(values, DrawnWeights) else self.parts(values, spans)
        scales = self.backend.norm_scales(tokens) if self.norm == "frozen" else {}
        edits = {**node_edits(self.sites, parts, replaced, self.backend.architecture), **_fixed(scales)}

        def run() -> Tensor:
            if not self.wanted.streams:
                return (read or self.backend.run)(tokens, edits, positions)
            beside = Beside(
                _without_attention_norms(edits),
                outputs,
                _of_attention(scales),
                seen,
                flat_ends,
                self.mlps,
                self.buffers,
            )
            crossings, graph = crossings_of(self.sites, parts, tokens, spans), graph_of(self.sites, self.backend)
            return run_crossed(
                self.backend, graph, tokens, parts.get("edges"), crossings, replaced,
                positions=positions, pool=self._pool, beside=beside,
            )  # fmt: skip

        outputs = self.outputs()
        if isinstance(values, DrawnWeights):
            return self.backend.with_weights(values.taken(), run)
        return self.backend.with_weights(self.scaled(parts), run) if "weights" in parts else run()

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The model itself, masked until the block ends: for ``model.generate`` and other people's code.

        The circuit, or the hard circuit of the masks, is used. Masked weights are changed in place and put back.

        Raises:
            ValueError: the ablation needs to know the prompts beforehand (Resample, GaussianNoise, a mean per
                position), the masks differ by span, or norms are frozen at a prompt's scales.

        Example:
            >>> import tlprune as tp
            >>> planted = tp.planted("copy")
            >>> masked = tp.Masked(planted.model, planted.circuit, tp.Zero())
            >>> prompts = planted.task.test.clean.ids
            >>> with masked.installed() as model:
            ...     inside = model(prompts)
            >>> bool((inside - masked(prompts)).abs().max() < 1e-5)
            True
        """
        with installed_masks(self) as model:
            yield model

    def parts(self, values: Tensor, spans: Tensor | None) -> dict[str, Tensor]:
        """Mask values by kind, spread over positions where they differ by span."""
        return {group.kind: self._part(group, values, spans) for group in self.sites.groups}

    def scaled(self, parts: Mapping[str, Tensor]) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """For each masked matrix, its product with the mask."""
        return _scaled(self.sites.group("weights"), parts["weights"])

    def outputs(self) -> list[Tensor] | None:
        """The unmasked output projections, where edges are beside weights that may change them."""
        if not {"edges", "weights"} <= set(self.sites.kinds):
            return None
        return [self.backend.output_weight(layer).detach() for layer in range(self.backend.architecture.n_layers)]

    def _part(self, group: Group, values: Tensor, spans: Tensor | None) -> Tensor:
        """The mask of one kind, with an example and a position axis where it differs by span."""
        part = values[..., self.sites.part(group.kind)]
        if not isinstance(group, BY_SPAN) or not group.spans:
            return part
        if spans is None:
            raise ValueError(
                f"These masks differ by span ({', '.join(group.all_spans)}) but the prompts say nothing of spans. "
                "Pass a task's Batch, or spans=, the number of each position's span."
            )
        if int(spans.max()) >= len(group.spans):
            raise ValueError(
                f"These masks know {len(group.spans)} spans but a position has number {int(spans.max())}. Number them "
                f"as in {', '.join(group.spans)}."
            )
        return group.spread(part, spans.to(part.device)) if isinstance(group, Spanned) else part

    @property
    def _mask_dtype(self) -> torch.dtype:
        return torch.promote_types(self.backend.dtype, torch.float32)

    @property
    def _has_flat_ends(self) -> bool:
        return isinstance(self.masks, Masks) and self.masks.gate.flat_ends

    def _values(self) -> Tensor:
        return self.masks.kept if isinstance(self.masks, Circuit) else self.masks.sample()

    def _prompts(
        self, clean: Batch | Tokens | Tensor, corrupt: Tokens | Tensor | None, spans: Tensor | None
    ) -> tuple[Tokens, Tokens | None, Tensor | None]:
        """Clean and corrupted prompts and their spans, on the model's device; a model under masks is refused."""
        refuse_installed(self.model)
        if isinstance(clean, Batch):
            spans = spans_of(clean, self.sites.spans) if spans is None else spans
            clean, corrupt = clean.clean, clean.corrupt
        if spans is not None:
            mask = clean.attention_mask if isinstance(clean, Tokens) else None
            check_covered(self.sites.spans, spans.cpu(), None if mask is None else mask.cpu() > 0)
        return self._tokens(clean), None if corrupt is None else self._tokens(corrupt), spans

    def _tokens(self, tokens: Tokens | Tensor) -> Tokens:
        found = tokens if isinstance(tokens, Tokens) else Tokens(torch.atleast_2d(tokens))
        return found.to(self.backend.device)

    @torch.no_grad()
    def _self_test(self, tokens: Tokens, replaced: Activations, spans: Tensor | None) -> None:
        """Once per model and kind of sites: with everything kept the masked model must be the model."""
        checked = _CHECKED.setdefault(self.model, set())
        if self.sites in checked:
            return
        last = torch.full((len(tokens.ids), 1), tokens.ids.shape[1] - 1, device=tokens.ids.device)
        ones = torch.ones(len(self.sites), dtype=self._mask_dtype, device=self.backend.device)
        check_same(self.backend, self._run(tokens, ones, replaced, last, spans), self.backend.logits(tokens, last))
        checked.add(self.sites)


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)} but is {given!r}. Choose one of these.")


def _without_padding(tokens: Tokens, spans: Tensor | None) -> tuple[Tokens, Tensor | None]:
    """Without what is padding in every prompt; it costs as much as real tokens and nobody reads it."""
    short = tokens.trimmed()
    return short, spans if spans is None else spans[:, : short.ids.shape[1]]


def _with_all_edges(masked: Masked) -> Masked:
    """The same masks beside edges that are all kept, so that there are readers to look at."""
    kinds = masked.sites.kinds
    kv = graph_of(masked.sites, masked.backend).convention.kv if "attention_edges" in kinds else "shared"
    sites = masked.sites + edges(masked.model, kv=kv)
    everything = Circuit(sites, torch.ones(len(sites), dtype=torch.bool))
    return Masked(masked.model, everything, masked.ablation, norm=masked.norm)


def masked_circuit(model: Any, circuit: Circuit, ablation: Ablation | None) -> Masked:
    """A circuit as a callable, under the ablation it was found under unless another is given."""
    masked = Masked(model, circuit, ablation or ablation_of_discovery(circuit))
    check_model(masked.backend, circuit, masked.ablation)
    return masked


def _fixed(scales: Mapping[Point, Tensor]) -> Edits:
    """Norms that divide by given scales."""
    return {point: lambda _, scale=scale: scale for point, scale in scales.items()}


def _of_attention(scales: Mapping[Point, Tensor]) -> dict[int, Tensor]:
    return {layer: scale for (kind, layer), scale in scales.items() if kind == "attention_norm"}


def _without_attention_norms(edits: Edits) -> Edits:
    return {point: edit for point, edit in edits.items() if point[0] != "attention_norm"}


def _scaled(weights: Group, values: Tensor) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """For each masked matrix, its product with the mask."""
    assert isinstance(weights, Weights)
    if values.dim() > 1:
        raise ValueError(
            "Weights are shared by all prompts, so their mask has no example axis. Give one mask, (site,)."
        )
    return {
        name: lambda weight, part=part: weight * part.to(weight.dtype) for name, part in weights.split(values).items()
    }


def _wanted(sites: Sites) -> Wanted:
    neurons = sites.bare("neurons") if "neurons" in sites.kinds else None
    streams = not {"edges", "attention_edges"}.isdisjoint(sites.kinds)
    return Wanted(streams, neurons.layers if isinstance(neurons, Neurons) else ())
