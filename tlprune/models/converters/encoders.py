"""BERT and RoBERTa of Hugging Face as encoders with the same outputs: their settings, heads, and where weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tlprune.models.converters.layout import Sizes, Weight, read_weights, write_weights
from tlprune.models.encoder import Head, HeadedEncoder, Kind
from tlprune.models.transformer_lens import hooked_transformer, quiet_construction

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
PROBLEMS: dict[str | None, Kind] = {"regression": "regression", "multi_label_classification": "multi_label"}
IN, INS, OUT, LINEAR = "(n h) d -> n d h", "(n h) -> n h", "d (n h) -> n h d", "o i -> i o"


@dataclass(frozen=True)
class Encoder:
    """One transformers class.

    Attributes:
        family: name of its trunk, ``"bert"`` or ``"roberta"``.
        kind: of its head; of a sequence classifier the configuration says more.
        bare: the class is the trunk itself.
    """

    family: str
    kind: Kind
    bare: bool = False

    def check(self, config: Any) -> None:
        reasons = {
            "a decoder's attention": config.is_decoder or config.add_cross_attention,
            "relative positions": getattr(config, "position_embedding_type", "absolute") != "absolute",
            f"{config.type_vocab_size} token types": config.type_vocab_size > 2,
            f"the activation {config.hidden_act!r}": config.hidden_act not in ACTIVATIONS,
        }
        for reason, found in reasons.items():
            if found:
                raise ValueError(
                    f"This {config.model_type} has {reason}, which the encoder does not have. Supported: bidirectional "
                    f"attention, learned positions, one or two token types, {', '.join(ACTIVATIONS)}."
                )

    def convert(self, hf_model: Any, *, device: str | None, dtype: torch.dtype) -> HeadedEncoder:
        config = hf_model.config
        head = self.head(config, pooler=getattr(hf_model, "pooler", None) is not None)
        model = self._empty(config, head, type(hf_model).__name__, device=device, dtype=dtype)
        table = [weight for weight in self.weights(config) if hasattr(model, "pooler") or "pooler" not in weight.theirs]
        weights = read_weights(table, hf_model, _sizes(config), dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        return model.eval()

    def restore(self, hf_model: Any, parameters: Mapping[str, Tensor]) -> None:
        config, zero = hf_model.config, next(iter(parameters.values())).new_zeros
        # The stock class has a pooler, which a trunk may lack.
        without = {"pooler.W": zero(config.hidden_size, config.hidden_size), "pooler.b": zero(config.hidden_size)}
        write_weights(self.weights(config), hf_model, {**without, **parameters}, _sizes(config))

    def head(self, config: Any, *, pooler: bool) -> Head:
        """The head that the class has, as its configuration reads it."""
        if self.kind == "pooling":
            return Head("pooling", pooling="first" if pooler else "mean")
        if self.kind != "classification":
            return Head(self.kind)
        if config.problem_type is None and config.num_labels == 1:
            return Head("regression")
        return Head(PROBLEMS.get(config.problem_type, "classification"), labels=config.num_labels)

    def _empty(self, config: Any, head: Head, architecture: str, *, device: Any, dtype: torch.dtype) -> HeadedEncoder:
        padding = config.pad_token_id if self.family == "roberta" else None
        settings = _settings(config, head, unused=0 if padding is None else padding + 1)
        cfg = hooked_transformer()[1](**settings, original_architecture=architecture, dtype=dtype, device=device)
        with quiet_construction():
            model = HeadedEncoder(cfg, head, padding_id=padding, n_positions=config.max_position_embeddings)
        if head.kind == "masked_lm" and self.family == "bert":
            model.mlm_head.act_fn = ACTIVATIONS[config.hidden_act]()
        return model

    # ---- where weights go

    def weights(self, config: Any) -> list[Weight]:
        """Where each weight goes, of all that a class may have."""
        trunk = "" if self.bare else f"{self.family}."
        one_type = config.type_vocab_size == 1
        return [*_trunk(trunk, _OneType if one_type else Weight), *self._head_weights(trunk)]

    def _head_weights(self, trunk: str) -> list[Weight]:
        if self.kind == "masked_lm":
            dense, norm, bias, decoder = MASKED[self.family]
            # What is added is the decoder's own bias, which the other one is unless embeddings are untied.
            return [
                *_linear(dense, "mlm_head", "W", "b"),
                *_norm(norm, "mlm_head.ln"),
                Weight(bias, ("unembed.b_U",)),
                *_linear(decoder, "unembed", "W_U", "b_U"),
            ]
        if self.kind == "classification" and self.family == "roberta":
            # Its classifier holds the layer that BERT's pooler is.
            own = ("classifier.dense", "classifier.out_proj")
        else:
            own = (f"{trunk}pooler.dense", "classifier")
        pooler, classifier = _linear(own[0], "pooler", "W", "b"), _linear(own[1], "classifier", "W", "b")
        return pooler if self.kind == "pooling" else pooler + classifier


MASKED = {
    "bert": (
        *("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        *("cls.predictions.bias", "cls.predictions.decoder"),
    ),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
}


class _OneType(Weight):
    """RoBERTa's only token type, which both of ours are."""

    def read(self, value: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {self.ours[0]: value.repeat(2, 1)}

    def write(self, parameters: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        return parameters[self.ours[0]][:1]


def _trunk(trunk: str, types: type[Weight]) -> list[Weight]:
    embeddings, layer = f"{trunk}embeddings.", f"{trunk}encoder.layer.{{}}."
    attention = f"{layer}attention.self."
    parts = (("Q", "query"), ("K", "key"), ("V", "value"))
    return [
        Weight(f"{embeddings}word_embeddings.weight", ("embed.embed.W_E",)),
        Weight(f"{embeddings}position_embeddings.weight", ("embed.pos_embed.W_pos",)),
        types(f"{embeddings}token_type_embeddings.weight", ("embed.token_type_embed.W_token_type",)),
        *_norm(f"{embeddings}LayerNorm", "embed.ln"),
        *(Weight(f"{attention}{theirs}.weight", (f"blocks.{{}}.attn.W_{ours}",), IN) for ours, theirs in parts),
        *(Weight(f"{attention}{theirs}.bias", (f"blocks.{{}}.attn.b_{ours}",), INS) for ours, theirs in parts),
        Weight(f"{layer}attention.output.dense.weight", ("blocks.{}.attn.W_O",), OUT),
        Weight(f"{layer}attention.output.dense.bias", ("blocks.{}.attn.b_O",)),
        *_norm(f"{layer}attention.output.LayerNorm", "blocks.{}.ln1"),
        *_linear(f"{layer}intermediate.dense", "blocks.{}.mlp", "W_in", "b_in"),
        *_linear(f"{layer}output.dense", "blocks.{}.mlp", "W_out", "b_out"),
        *_norm(f"{layer}output.LayerNorm", "blocks.{}.ln2"),
    ]


def _linear(theirs: str, ours: str, weight: str, bias: str) -> list[Weight]:
    return [Weight(f"{theirs}.weight", (f"{ours}.{weight}",), LINEAR), Weight(f"{theirs}.bias", (f"{ours}.{bias}",))]


def _norm(theirs: str, ours: str) -> list[Weight]:
    return [Weight(f"{theirs}.weight", (f"{ours}.w",)), Weight(f"{theirs}.bias", (f"{ours}.b",))]


def _sizes(config: Any) -> dict[str, int]:
    heads = config.num_attention_heads
    return {"layers": config.num_hidden_layers, "n": heads, "k": heads, "h": config.hidden_size // heads}


def _settings(config: Any, head: Head, *, unused: int) -> dict[str, Any]:
    """TransformerLens' settings; ``unused`` rows of the position table stand for no position."""
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings - unused,
        "d_vocab": config.vocab_size,
        "d_vocab_out": config.vocab_size if head.kind == "masked_lm" else head.labels,
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "attention_dir": "bidirectional",
        "init_weights": False,
    }


_KINDS: dict[str, Kind] = {
    "ForSequenceClassification": "classification",
    "ForMaskedLM": "masked_lm",
    "ForMultipleChoice": "multiple_choice",
    "Model": "pooling",
}
ENCODERS = {
    f"{name}{suffix}": Encoder(name.lower(), kind, bare=suffix == "Model")
    for name in ("Bert", "Roberta")
    for suffix, kind in _KINDS.items()
}
