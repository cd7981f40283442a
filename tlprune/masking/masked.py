"""A model seen through masks: a callable whose hooks live for one call."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations, Backend
from tlprune.circuit import Circuit
from tlprune.graph import Convention, Graph
from tlprune.masking.ablation import Ablation, Resample
from tlprune.masking.edges import run_edges
from tlprune.masking.masks import Masks
from tlprune.masking.workspace import Pool
from tlprune.task import Batch, Tokens

# Largest error of the all-ones run that rounding explains, relative to the largest logit, for a model of 12 layers.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
_CHECKED: weakref.WeakKeyDictionary[Any, set[Convention]] = weakref.WeakKeyDictionary()


class Masked:
    """A model whose edges are masked. It changes nothing of the model outside a call.

    Args:
        model: a TransformerLens model.
        masks: trainable masks, or a circuit to run.
        ablation: what replaces an ablated edge.

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
        self.graph = masks.graph
        self._pool = Pool()
        expected = Graph.of(model, self.graph.convention)
        if expected != self.graph:
            raise ValueError(
                f"The masks have {self.graph.n_edges:,} edges of a model with {self.graph.architecture.n_layers} "
                f"layers and {self.graph.architecture.n_heads} heads, but this model has {expected.n_edges:,}, "
                f"{expected.architecture.n_layers} and {expected.architecture.n_heads}. Build both from one model."
            )

    def __call__(
        self,
        clean: Batch | Tokens | Tensor,
        corrupt: Tokens | Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Float[Tensor, "*lead edge"] | None = None,
        replaced: Activations | None = None,
    ) -> Float[Tensor, "example answer vocab"]:
        """Logits of the masked model.

        Args:
            clean: prompts; a :class:`Batch` brings its corrupted prompts and answer positions along.
            corrupt: corrupted prompts, where the ablation needs them.
            positions: where logits are wanted, ``(example, answer)``; everywhere when ``None``.
            mask: mask values to use; by default the circuit, or one sample of the masks.
            replaced: what ablated writers send, if already known.
        """
        if isinstance(clean, Batch):
            clean, corrupt, positions = clean.clean, clean.corrupt, clean.positions
        tokens, twins = self._tokens(clean), None if corrupt is None else self._tokens(corrupt)
        if replaced is None:
            replaced = self.ablation.replaced(self.backend, tokens, twins)
        values = self._values() if mask is None else mask
        values = values.to(device=self.backend.device, dtype=self._mask_dtype)
        self._self_test(tokens, replaced)
        return self._run(tokens, values, replaced, positions)

    def _run(self, tokens: Tokens, values: Tensor, replaced: Activations, positions: Tensor | None) -> Tensor:
        return run_edges(self.backend, self.graph, tokens, values, replaced, positions=positions, pool=self._pool)

    @property
    def _mask_dtype(self) -> torch.dtype:
        return torch.promote_types(self.backend.dtype, torch.float32)

    def _values(self) -> Tensor:
        return self.masks.kept if isinstance(self.masks, Circuit) else self.masks.sample()

    def _tokens(self, tokens: Tokens | Tensor) -> Tokens:
        found = tokens if isinstance(tokens, Tokens) else Tokens(torch.atleast_2d(tokens))
        return found.to(self.backend.device)

    @torch.no_grad()
    def _self_test(self, tokens: Tokens, replaced: Activations) -> None:
        """Once per model and convention: with every edge kept the masked model must be the model."""
        checked = _CHECKED.setdefault(self.model, set())
        if self.graph.convention in checked:
            return
        last = torch.full((len(tokens.ids), 1), tokens.ids.shape[1] - 1, device=tokens.ids.device)
        ones = torch.ones(self.graph.n_edges, dtype=self._mask_dtype, device=self.backend.device)
        check_same(self.backend, self._run(tokens, ones, replaced, last), self.backend.logits(tokens, last))
        checked.add(self.graph.convention)


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
            f"With every edge kept the masked model must equal the model, but logits differ by {error:.1e} of their "
            f"size where rounding explains {allowed:.1e}. This architecture is not supported as it stands, or a hook "
            "of yours makes the two runs differ: report it with model.cfg."
        )
