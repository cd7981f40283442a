"""BERT and RoBERTa of Hugging Face as encoders with the same outputs, hooks and TransformerLens' parameter names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlprune.models.encoder import Head, HeadedEncoder, Kind, Pooling
from tlprune.models.transformer_lens import hooked_transformer, quiet_construction

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
KINDS: dict[str, Kind] = {
    "ForSequenceClassification": "classification",
    "ForMaskedLM": "masked_lm",
    "ForMultipleChoice": "multiple_choice",
    "Model": "pooling",
}
FAMILIES = {"Bert": "bert", "Roberta": "roberta"}
SUPPORTED = tuple(family + kind for family in FAMILIES for kind in KINDS)
LABELLED: dict[str | None, Kind] = {"regression": "regression", "multi_label_classification": "multi_label"}


def encoder_from_huggingface(
    hf_model: Any,
    *,
    tokenizer: Any = None,
    pooling: Pooling = "first",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> HeadedEncoder:
    """An encoder of TransformerLens with the trunk, the head and every output of a BERT or RoBERTa.

    Args:
        hf_model: one of ``BertForSequenceClassification``, ``BertForMaskedLM``, ``BertForMultipleChoice``,
            ``BertModel`` (MiniLM), or the same of RoBERTa. A sequence classifier with one label is a regressor.
        tokenizer: of the model, for strings.
        pooling: of a model without a task, what it gives: its pooler's output, or the ``"mean"`` state (all that there
            is without a pooler).
        device: where to put it; by default where it is.
        dtype: of its weights; by default theirs.

    Raises:
        ValueError: another class, or a setting that the encoder does not have.
    """
    architecture, config = type(hf_model).__name__, hf_model.config
    check_supported(architecture, config)
    head = head_of(hf_model, pooling)
    roberta = architecture.startswith("Roberta")
    padding = config.pad_token_id if roberta else None
    settings = settings_of(config, head, used=0 if padding is None else padding + 1)
    model_class, config_class = HeadedEncoder, hooked_transformer()[1]
    settings |= {"dtype": dtype or hf_model.dtype, "device": str(device or hf_model.device)}
    name = Path(config.name_or_path).name or architecture
    cfg = config_class(**settings, model_name=name, original_architecture=architecture)
    with quiet_construction():
        model = model_class(
            cfg, head, tokenizer=tokenizer, padding_id=padding, n_positions=config.max_position_embeddings
        )
    if head.kind == "masked_lm" and not roberta:
        model.mlm_head.act_fn = ACTIVATIONS[config.hidden_act]()
    load(model, hf_model)
    return model.eval()


def check_supported(architecture: str, config: Any) -> None:
    """Raise a ValueError for models whose outputs would not be the same."""
    if architecture not in SUPPORTED:
        raise ValueError(
            f"An encoder is made of {', '.join(SUPPORTED)} but this is a {architecture}. Give one of these."
        )
    reasons = {
        "a decoder's attention": config.is_decoder or config.add_cross_attention,
        "relative positions": getattr(config, "position_embedding_type", "absolute") != "absolute",
        f"{config.type_vocab_size} token types": config.type_vocab_size > 2,
        f"the activation {config.hidden_act!r}": config.hidden_act not in ACTIVATIONS,
    }
    for reason, found in reasons.items():
        if found:
            raise ValueError(
                f"This {architecture} has {reason}, which the encoder does not have. Supported: bidirectional "
                f"attention, learned positions, one or two token types, {', '.join(ACTIVATIONS)}."
            )


def head_of(hf_model: Any, pooling: Pooling) -> Head:
    """The head that a Hugging Face class has, as its configuration reads it."""
    architecture, config = type(hf_model).__name__, hf_model.config
    kind: Kind = next(kind for suffix, kind in KINDS.items() if architecture.endswith(suffix))
    if kind == "pooling":
        return Head(kind, pooling=pooling if hf_model.pooler is not None else "mean")
    if kind != "classification":
        return Head(kind)
    if config.problem_type is None and config.num_labels == 1:
        return Head("regression")
    return Head(LABELLED.get(config.problem_type, "classification"), labels=config.num_labels)


def settings_of(config: Any, head: Head, *, used: int) -> dict[str, Any]:
    """TransformerLens' settings; ``used`` rows of the position table stand for no position."""
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings - used,
        "d_vocab": config.vocab_size,
        "d_vocab_out": config.vocab_size if head.kind == "masked_lm" else head.labels,
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "attention_dir": "bidirectional",
        "init_weights": False,
    }


# ---- names and layouts

BLOCK = {
    **{f"attn.{side}_{part}": f"attention.self.{name}.{kind}"
       for part, name in (("Q", "query"), ("K", "key"), ("V", "value"))
       for side, kind in (("W", "weight"), ("b", "bias"))},
    "attn.W_O": "attention.output.dense.weight",
    "attn.b_O": "attention.output.dense.bias",
    "ln1.w": "attention.output.LayerNorm.weight",
    "ln1.b": "attention.output.LayerNorm.bias",
    "mlp.W_in": "intermediate.dense.weight",
    "mlp.b_in": "intermediate.dense.bias",
    "mlp.W_out": "output.dense.weight",
    "mlp.b_out": "output.dense.bias",
    "ln2.w": "output.LayerNorm.weight",
    "ln2.b": "output.LayerNorm.bias",
}  # fmt: skip
EMBEDDINGS = {
    "embed.embed.W_E": "word_embeddings.weight",
    "embed.pos_embed.W_pos": "position_embeddings.weight",
    "embed.token_type_embed.W_token_type": "token_type_embeddings.weight",
    "embed.ln.w": "LayerNorm.weight",
    "embed.ln.b": "LayerNorm.bias",
}
# Ours by theirs; RoBERTa's classifier holds the layer that BERT's pooler is, after dropping the trunk's.
POOLERS = {"bert": "bert.pooler.dense", "roberta": "classifier.dense"}
CLASSIFIERS = {"bert": "classifier", "roberta": "classifier.out_proj"}
MASKED = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
}


def names_of(architecture: str, n_layers: int) -> dict[str, str]:
    """Every parameter that such a model may have: its name in TransformerLens, and in Hugging Face."""
    family = FAMILIES[next(name for name in FAMILIES if architecture.startswith(name))]
    trunk = "" if architecture.endswith("Model") else f"{family}."
    names = {ours: f"{trunk}embeddings.{theirs}" for ours, theirs in EMBEDDINGS.items()}
    for layer in range(n_layers):
        blocks = ((f"blocks.{layer}.{ours}", f"encoder.layer.{layer}.{theirs}") for ours, theirs in BLOCK.items())
        names |= {ours: trunk + theirs for ours, theirs in blocks}
    return names | dict(_head_names(architecture, family, trunk))


def _head_names(architecture: str, family: str, trunk: str) -> Iterator[tuple[str, str]]:
    own = architecture.endswith("ForSequenceClassification")
    pooler, classifier = (POOLERS[family], CLASSIFIERS[family]) if own else (f"{trunk}pooler.dense", "classifier")
    dense, norm, decoder = MASKED[family]
    pairs = (("pooler", "W", "b", pooler), ("classifier", "W", "b", classifier), ("mlm_head", "W", "b", dense),
             ("mlm_head.ln", "w", "b", norm), ("unembed", "W_U", "b_U", decoder))  # fmt: skip
    for ours, weight, bias, theirs in pairs:
        yield f"{ours}.{weight}", f"{theirs}.weight"
        yield f"{ours}.{bias}", f"{theirs}.bias"


def to_hooked(name: str, value: Tensor, heads: int) -> Tensor:
    """A Hugging Face tensor in the layout that TransformerLens has under this name."""
    leaf = name.rpartition(".")[2]
    if leaf in ("W_Q", "W_K", "W_V"):
        return value.unflatten(0, (heads, -1)).mT
    if leaf == "W_O":
        return value.T.unflatten(0, (heads, -1))
    if leaf in ("b_Q", "b_K", "b_V"):
        return value.unflatten(0, (heads, -1))
    return value.T if leaf in ("W_in", "W_out", "W_U", "W") else value


def to_huggingface_layout(name: str, value: Tensor) -> Tensor:
    """The inverse of :func:`to_hooked`."""
    leaf = name.rpartition(".")[2]
    if leaf in ("W_Q", "W_K", "W_V"):
        return value.mT.flatten(0, 1)
    if leaf == "W_O":
        return value.flatten(0, 1).T
    if leaf in ("b_Q", "b_K", "b_V"):
        return value.flatten()
    return value.T if leaf in ("W_in", "W_out", "W_U", "W") else value


@torch.no_grad()
def load(model: HeadedEncoder, hf_model: Any) -> None:
    """Copy every weight of a Hugging Face model into an encoder of its shape."""
    theirs = dict(hf_model.named_parameters(remove_duplicate=False))
    names = names_of(type(hf_model).__name__, model.cfg.n_layers)
    for name, parameter in model.named_parameters():
        value = to_hooked(name, theirs[names[name]], model.cfg.n_heads)
        # RoBERTa has one token type: both of ours are it.
        parameter.copy_(value.expand(parameter.shape) if name.endswith("W_token_type") else value)
