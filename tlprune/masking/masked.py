"""A model seen through masks: a callable whose hooks live for one call."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations, Backend, Wanted
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.masking.ablation import Ablation, GaussianNoise, Resample, Zero
from tlprune.masking.cache import RunCache
from tlprune.masking.edges import run_edges
from tlprune.masking.masks import Masks
from tlprune.masking.nodes import node_edits
from tlprune.masking.workspace import Pool
from tlprune.sites import Group, Neurons, Nodes, Sites, Spanned, Weights
from tlprune.task import Batch, Tokens

# Largest error of the all-ones run that rounding explains, relative to the largest logit, for a model of 12 layers.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
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

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> logits = Masked(planted.model, planted.circuit)(planted.task.test)
        >>> logits.shape == (len(planted.task.test), 1, planted.model.cfg.d_vocab)
        True
    """

    def __init__(self, model: Any, masks: Masks | Circuit, ablation: Ablation | None = None) -> None:
        self.model, self.masks = model, masks
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

    def cache(self, split: Batch) -> RunCache:
        """Replacements and reference predictions of one split of a task, computed once."""
        return RunCache(self.backend, self.ablation, split, wanted=self.wanted)

    def __call__(
        self,
        clean: Batch | Tokens | Tensor,
        corrupt: Tokens | Tensor | None = None,
        *,
        positions: Int[Tensor, "example answer"] | None = None,
        mask: Float[Tensor, "*lead site"] | None = None,
        replaced: Activations | None = None,
        spans: Int[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, "example answer vocab"]:
        """Logits of the masked model.

        Args:
            clean: prompts; a :class:`Batch` brings its corrupted prompts, answer positions and spans along.
            corrupt: corrupted prompts, where the ablation needs them.
            positions: where logits are wanted; everywhere when ``None``.
            mask: mask values to use, ``(site,)``, or ``(example, site)`` for a circuit per example; by default the
                circuit, or one sample of the masks.
            replaced: what ablated activations become, if already known.
            spans: number of the span of each position, for sites that differ by span.
        """
        if isinstance(clean, Batch):
            spans = getattr(clean, "spans", None) if spans is None else spans
            clean, corrupt, positions = clean.clean, clean.corrupt, clean.positions
        tokens, twins = self._tokens(clean), None if corrupt is None else self._tokens(corrupt)
        if replaced is None:
            replaced = self.ablation.replaced(self.backend, tokens, twins, self.wanted)
        values = self._values() if mask is None else mask
        values = values.to(device=self.backend.device, dtype=self._mask_dtype)
        self._self_test(tokens, replaced, spans)
        return self._run(tokens, values, replaced, positions, spans)

    def _run(
        self, tokens: Tokens, values: Tensor, replaced: Activations, positions: Tensor | None, spans: Tensor | None
    ) -> Tensor:
        parts = {group.kind: self._part(group, values, spans) for group in self.sites.groups}
        edits = node_edits(self.sites, parts, replaced, self.backend.architecture)

        layers = range(self.backend.architecture.n_layers) if {"edges", "weights"} <= parts.keys() else ()
        outputs = [self.backend.output_weight(layer).detach() for layer in layers] or None

        def run() -> Tensor:
            if "edges" not in parts:
                return self.backend.run(tokens, edits, positions)
            return run_edges(
                self.backend, self.graph, tokens, parts["edges"], replaced,
                positions=positions, pool=self._pool, edits=edits, outputs=outputs,
            )  # fmt: skip

        if "weights" not in parts:
            return run()
        return self.backend.with_weights(_scaled(self.sites.group("weights"), parts["weights"]), run)

    def _part(self, group: Group, values: Tensor, spans: Tensor | None) -> Tensor:
        """The mask of one kind, with an example and a position axis where it differs by span."""
        part = values[..., self.sites.part(group.kind)]
        if not isinstance(group, Spanned):
            return part
        if spans is None:
            raise ValueError(
                f"These masks differ by span ({', '.join(group.all_spans)}) but the prompts say nothing of spans. "
                "Pass a task's Batch, or spans=, the number of each position's span."
            )
        return group.spread(part, spans.to(part.device))

    @property
    def _mask_dtype(self) -> torch.dtype:
        return torch.promote_types(self.backend.dtype, torch.float32)

    def _values(self) -> Tensor:
        return self.masks.kept if isinstance(self.masks, Circuit) else self.masks.sample()

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


def masked_circuit(model: Any, circuit: Circuit, ablation: Ablation | None) -> Masked:
    """A circuit as a callable, under the ablation it was found under unless another is given."""
    masked = Masked(model, circuit, ablation or _ablation_of(circuit))
    check_model(masked, circuit)
    return masked


def _ablation_of(circuit: Circuit) -> Ablation:
    origin = dict(circuit.provenance.get("ablation", {"name": "resample"}))
    name = origin.pop("name", None)
    simple: dict[Any, Callable[..., Ablation]] = {"resample": Resample, "zero": Zero, "gaussian_noise": GaussianNoise}
    if name not in simple:
        raise ValueError(
            f"This circuit was found under {name} ablation, whose reference data are not in it. Give the ablation: "
            "circuit.on(model, ablation=tp.Mean(reference))."
        )
    return simple[name](**origin)


def check_model(masked: Masked, circuit: Circuit) -> None:
    """Raise a ValueError if the circuit's provenance names a model with other weights."""
    known = circuit.provenance.get("model")
    own = masked.backend.fingerprint()
    if known is not None and known.get("weights") != own["weights"]:
        raise ValueError(
            f"This circuit was found on model {known.get('name')!r} (weights {known.get('weights')}) but is used on "
            f"{own['name']!r} (weights {own['weights']}). Load the model it was found on."
        )


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
    return Wanted("edges" in sites.kinds, neurons.layers if isinstance(neurons, Neurons) else ())


def check_sites(sites: Sites, backend: Backend) -> None:
    """Raise a ValueError unless the sites are of a model of this shape, and go together."""
    shape = backend.architecture
    if "edges" in sites.kinds and Graph(shape, sites.graph.convention) != sites.graph:
        expected, given = Graph(shape, sites.graph.convention), sites.graph
        raise ValueError(
            f"The masks have {given.n_edges:,} edges of a model with {given.architecture.n_layers} layers and "
            f"{given.architecture.n_heads} heads, but this model has {expected.n_edges:,}, {shape.n_layers} and "
            f"{shape.n_heads}. Build both from one model."
        )
    known = {matrix.name: matrix for matrix in backend.matrices()}
    for group in map(sites.bare, sites.kinds):
        if isinstance(group, Nodes):
            _check_nodes(group, sites, backend)
        if isinstance(group, Neurons) and (max(group.layers) >= shape.n_layers or group.width != backend.d_mlp):
            raise ValueError(
                f"The masks are over {group.width} neurons in layers up to {max(group.layers)} but this model has "
                f"{backend.d_mlp} in {shape.n_layers} layers. Build them from the same model: tp.neurons(model)."
            )
        if isinstance(group, Weights):
            _check_weights(group, sites, known)


def _check_nodes(group: Nodes, sites: Sites, backend: Backend) -> None:
    shape = backend.architecture
    known = {"embed", "pos_embed"} if _separate(sites) else {"input", "embed", "pos_embed"}
    known |= {f"a{layer}" for layer in range(shape.n_layers)} | set(Graph(shape).writers[1:])
    if "edges" in sites.kinds and not _separate(sites):
        known -= {"embed", "pos_embed"}
    strange = [name for name in group.names if name not in known]
    if strange:
        raise ValueError(
            f"The masks name {', '.join(strange[:3])}, which this model of {shape.n_layers} layers and {shape.n_heads} "
            "heads does not have under this convention. Build them from the same model, with the same embeddings= as "
            "the edges beside them."
        )


def _separate(sites: Sites) -> bool:
    return "edges" in sites.kinds and sites.graph.convention.embeddings == "separate"


def _check_weights(group: Weights, sites: Sites, known: Mapping[str, Any]) -> None:
    for matrix in group.matrices:
        if known.get(matrix.name) != matrix:
            raise ValueError(
                f"The masks are over {matrix.name} of shape {matrix.shape}, which this model does not have. Build them "
                "from the same model: tp.weights(model)."
            )
        if "edges" in sites.kinds and matrix.name.endswith("b_O"):
            raise ValueError(
                f"{matrix.name} reaches every reader without an edge, so it cannot be masked beside edges. Leave "
                "output biases out: tp.weights(model, 'blocks.*.W_*')."
            )


def check_same(backend: Backend, masked: Tensor, plain: Tensor) -> None:
    """Raise unless two sets of logits differ by rounding only."""
    if not plain.isfinite().all():
        raise FloatingPointError(
            "The model itself, without any mask, gives logits that are not finite. Look for infinities in its weights, "
            "or load it in another dtype."
        )
    scale = max(1.0, float(plain.abs().max()))
    error = float((masked - plain).abs().max()) / scale
    allowed = ROUNDING[backend.dtype] * max(1.0, math.sqrt(backend.architecture.n_layers / 12))
    if not error <= allowed:
        raise RuntimeError(
            f"With everything kept the masked model must equal the model, but logits differ by {error:.1e} of their "
            f"size where rounding explains {allowed:.1e}. This architecture is not supported as it stands, or a hook "
            "of yours makes the two runs differ: report it with model.cfg."
        )
