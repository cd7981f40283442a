"""Where the Hugging Face modules of a bridged BERT or RoBERTa keep the tensors of a HookedEncoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tlprune.backends.bridge_weights import Place, Places, matrix, own_module, plain


@dataclass(frozen=True)
class EncoderClass:
    """A transformers class: a trunk and what the class says of its last states.

    Attributes:
        trunk: name of the trunk within the class; ``""`` where the class is the trunk.
        says: ``"words"``, ``"classes"`` (or numbers), ``"choices"``, or ``"states"``: nothing of its own.
        layers: paths of the linear layers that read the first token's state, one after the other, by the name that
            HookedEncoder's have.
    """

    trunk: str
    says: Literal["words", "classes", "choices", "states"]
    layers: dict[str, str]

    @property
    def predicts(self) -> Literal["tokens", "prompts"]:
        return "tokens" if self.says == "words" else "prompts"


def _classes(family: str) -> dict[str, EncoderClass]:
    trunk = family.lower()
    pooled = {"pooler": f"{trunk}.pooler.dense", "classifier": "classifier"}
    # RoBERTa's sequence classifier holds the layer that BERT's pooler is.
    within = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    return {
        f"{family}ForMaskedLM": EncoderClass(trunk, "words", {}),
        f"{family}ForSequenceClassification": EncoderClass(trunk, "classes", pooled if family == "Bert" else within),
        f"{family}ForMultipleChoice": EncoderClass(trunk, "choices", pooled),
        f"{family}Model": EncoderClass("", "states", {"pooler": "pooler.dense"}),
    }


CLASSES = _classes("Bert") | _classes("Roberta")


def class_of(model: Any) -> EncoderClass:
    """What a bridge's Hugging Face model is; it must be one of ``CLASSES``."""
    return CLASSES[type(model.original_model).__name__]


class EncoderPlaces(Places):
    """All tensors of a bridged encoder by HookedEncoder's names, in its order.

    Args:
        model: a TransformerBridge of a class in ``CLASSES``.
    """

    def _of_model(self, model: Any) -> Iterator[tuple[str, Place]]:
        for name in ("embed", "pos_embed", "token_type_embed"):
            rows, width = own_module(getattr(model, name)).weight.shape
            leaf = {"embed": "W_E", "pos_embed": "W_pos"}.get(name, "W_token_type")
            place = plain(getattr(model, name), "weight", (rows, width))
            yield f"embed.{name}.{leaf}", _twice(place) if leaf == "W_token_type" and rows == 1 else place
        yield from self._of_norm("embed.ln", model.embed_ln)
        for layer, block in enumerate(model.blocks):
            yield from ((f"blocks.{layer}.{name}", place) for name, place in self._of_block(block))
        yield from self._of_head(model, class_of(model))

    def _of_block(self, block: Any) -> Iterator[tuple[str, Place]]:
        yield from self._of_attention(block.attn)
        yield from self._of_norm("ln1", block.ln1)
        yield from self._of_mlp(block.mlp)
        yield from self._of_norm("ln2", block.ln2)

    def _of_head(self, model: Any, own: EncoderClass) -> Iterator[tuple[str, Place]]:
        if own.says == "words":
            yield from _linear("mlm_head", model.mlm_head, ("W", "b"))
            yield from self._of_norm("mlm_head.ln", model.ln_final)
            yield from _linear("unembed", model.unembed, ("W_U", "b_U"))
        for name, path in own.layers.items():
            layer = _found(model, path)
            yield from () if layer is None else _linear(name, layer, ("W", "b"))


def _linear(name: str, layer: Any, leaves: tuple[str, str]) -> Iterator[tuple[str, Place]]:
    outputs, inputs = own_module(layer).weight.shape
    yield f"{name}.{leaves[0]}", matrix(layer, (inputs, outputs))
    yield f"{name}.{leaves[1]}", plain(layer, "bias", (outputs,))


def _found(model: Any, path: str) -> Any | None:
    """A module of the Hugging Face model, behind whatever bridges are in front of it; ``None`` for no pooler."""
    module = model.original_model
    for name in path.split("."):
        module = own_module(getattr(module, name, None))
    return module


def _twice(place: Place) -> Place:
    """The only token type of RoBERTa, which HookedEncoder keeps for both sentences."""
    _, width = place.shape
    return Place(place.module, place.attribute, (2, width), lambda row: row.expand(2, width), _first)


def _first(shown: Tensor) -> Tensor:
    return shown[:1]
