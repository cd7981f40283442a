"""TransformerBridge of an encoder: BERT and RoBERTa, whose blocks normalise behind every sum, on TransformerLens 3
and 4."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module

from tlprune.backends.activations import Edits, Point, Projection, Steering, select
from tlprune.backends.bridge_encoder_weights import CLASSES, EncoderPlaces, class_of
from tlprune.backends.bridge_norms import BridgeHooks
from tlprune.backends.bridge_support import refuse_state
from tlprune.backends.calls import Hook, frozen, hooked, input_axes, mean_state
from tlprune.backends.post_norms import LayerNorm, PostNorms
from tlprune.backends.transformer_bridge import TransformerBridgeBackend
from tlprune.graph import Convention
from tlprune.sites import Matrix
from tlprune.task import Tokens


def is_encoder(model: Any) -> bool:
    """Whether a bridge is of a BERT or RoBERTa, of whatever class."""
    return type(model.original_model).__name__.startswith(("Bert", "Roberta"))


class BridgeEncoderBackend(TransformerBridgeBackend):
    """Reads and steers a bridged encoder: the same points, names, layouts and numbers as its HookedEncoder.

    Hugging Face's model is called, not the bridge, because a bridge moves the positions of left-padded prompts, and of
    a model without a head it returns states only.

    Args:
        model: the model; nothing of it is changed afterwards.

    Raises:
        ValueError: a class other than those in ``CLASSES``, a decoder's attention, relative positions, a chunked MLP,
            compatibility mode, or a model that drops out.
    """

    mlp_input, mlp_output = "mlp.in.hook_in", "mlp.out.hook_out"
    final_norm = "mlm_head.ln"
    unused = ("hook_in", "hook_out", "ln1.", "ln2.", "attn.hook_in", "attn.hook_out", "mlp.hook_in")

    def __init__(self, model: Any) -> None:
        refuse_encoder(model)
        self.own = class_of(model)
        self._lend(model, EncoderPlaces(model), predicts=self.own.predicts)

    # ---- plain runs

    def _forward(self, tokens: Tokens) -> Tensor:
        parts = (self._ids(tokens), tokens.attention_mask, tokens.token_types)
        if self.own.says == "choices":  # each row is a question with its only choice
            parts = tuple(None if part is None else part[:, None] for part in parts)
        ids, mask, types = parts
        output = self.model.original_model(ids, attention_mask=mask, token_type_ids=types)
        if self.own.says == "words":
            return output.logits
        return (output.logits if self.own.says != "states" else _pooled(output, mask))[:, None]

    def _unembedded(self, choose: Hook) -> BridgeHooks:
        return super()._unembedded(choose) if self.predicts == "tokens" else []

    def unembed(self, stream: Tensor) -> Tensor:
        original = self.model.original_model
        with frozen(self.model):
            return (original.cls if hasattr(original, "cls") else original.lm_head)(stream)

    def _last_point(self) -> str:
        return f"blocks.{self.architecture.n_layers - 1}.hook_out"

    def _embedding_points(self) -> list[str]:
        return ["blocks.0.hook_in"]

    def _streams(self) -> list[str]:
        """None: the streams of post-norm models are no sums."""
        return []

    def _norm_points(self) -> list[Point]:
        """The last norm is that of a head for words; other heads have none."""
        return super()._norm_points() if self.predicts == "tokens" else super()._norm_points()[:-1]

    # ---- steered runs

    @contextmanager
    def steered(
        self, steering: Steering, convention: Convention, edits: Edits, positions: Tensor | None = None
    ) -> Iterator[set[Point]]:
        self._refuse_hidden_hooks()
        # The norms of blocks are the engine's, which takes their scales from the same edits.
        met: set[Point] = {point for point in edits if point[0] in ("attention_norm", "mlp_norm")}
        hooks = [*self._embedding_hooks(steering, convention, edits, met), *self._block_hooks(steering, edits, met)]
        hooks.append((self._last_point(), lambda _: steering.final(), True))
        if ("final_norm", 0) in edits:
            hooks += self._edit(edits, ("final_norm", 0), met)
        hooks += self._unembedded(lambda stream: select(stream, positions))
        with hooked(self.model.hook_dict, hooks), frozen(self.model):
            yield met

    # ---- weights

    def matrices(self) -> list[Matrix]:
        """The matrices of heads are called ``W`` alone."""
        shapes = {name: place.shape for name, place in self.places.all.items()}
        axes = {name: (0,) if name.endswith(".W") else input_axes(name, len(shape)) for name, shape in shapes.items()}
        return [Matrix(name, shape, axes[name]) for name, shape in shapes.items()]

    def projection(self, layer: int, convention: Convention) -> Projection:
        weights, biases = (
            tuple(self.places[f"blocks.{layer}.attn.{kind}_{part}"] for part in "QKV") for kind in ("W", "b")
        )
        return Projection(weights, biases, "none", self.model.cfg.eps)

    def mlp_modules(self, layer: int) -> list[Module]:
        return []

    def constants(self) -> list[Tensor]:
        return []

    def post_norms(self, layer: int) -> PostNorms:
        """The block's two norms and its attention's output bias."""
        block = f"blocks.{layer}."
        first, second = (
            LayerNorm(self.places[f"{block}{norm}.w"], self.places[f"{block}{norm}.b"], self.model.cfg.eps)
            for norm in ("ln1", "ln2")
        )
        return PostNorms(first, second, self.places[f"{block}attn.b_O"])


def _pooled(output: Any, mask: Tensor | None) -> Tensor:
    """The pooled first state, or the mean state of a model without a pooler."""
    pooled = output.pooler_output
    return mean_state(output.last_hidden_state, mask) if pooled is None else pooled


def refuse_encoder(model: Any) -> None:
    """Raise a ValueError for bridged encoders whose masks this backend would get wrong."""
    refuse_state(model)
    name, config = type(model.original_model).__name__, model.original_model.config
    if name not in CLASSES:
        raise ValueError(
            f"Masks on a bridged encoder need a head that is known but {name} has another. Supported: "
            f"{', '.join(CLASSES)}."
        )
    reasons = {
        "a decoder's attention": config.is_decoder or config.add_cross_attention,
        "relative positions": getattr(config, "position_embedding_type", "absolute") != "absolute",
        "an MLP computed in chunks": bool(config.chunk_size_feed_forward),
    }
    for reason, found in reasons.items():
        if found:
            raise ValueError(
                f"Masks on a bridged encoder need the blocks of BERT, but this {name} has {reason}. Supported: "
                "bidirectional attention, learned positions and an MLP for all positions at once."
            )
