"""BERT and RoBERTa with any head behind a TransformerBridge; TransformerLens' adapter knows that for masked words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlprune.models.converters.encoders import ENCODERS, Encoder

# The class whose adapter every TransformerLens from 3.9 on has; the trunk of all others has the same parts.
KNOWN = "BertForMaskedLM"
TRUNK = ("embed", "token_type_embed", "pos_embed", "embed_ln", "blocks")
ROBERTA = {"mlm_head": "lm_head.dense", "ln_final": "lm_head.layer_norm", "unembed": "lm_head.decoder"}


def adapted(hf_model: Any) -> Callable[[Any], None]:
    """What makes the adapter of ``KNOWN`` that of another encoder, for ``build_bridge_from_module``.

    Its parts are looked for where the class has its trunk; those of a head for masked words are left out where there
    is none. A head that pools needs no part of its own: Hugging Face's modules compute it.

    Args:
        hf_model: a transformers model of a class in ``ENCODERS``.

    Raises:
        ValueError: relative positions, a decoder's attention, or an activation that no other kind of model has.
    """
    name, config = type(hf_model).__name__, hf_model.config
    encoder = ENCODERS[name]
    encoder.check(config)

    def adapt(adapter: Any) -> None:
        parts, prefix = adapter.component_mapping, "" if encoder.bare else f"{encoder.family}."
        for part in TRUNK:
            parts[part].name = prefix + parts[part].name.removeprefix("bert.")
        for part, place in ROBERTA.items():
            if encoder.kind != "masked_lm":
                del parts[part]
            elif encoder.family == "roberta":
                parts[part].name = place
        vars(adapter.cfg).update(_settings(encoder, hf_model), architecture=name)

    return adapt


def _settings(encoder: Encoder, hf_model: Any) -> dict[str, Any]:
    """What a HookedEncoder of the same model has in its configuration."""
    config = hf_model.config
    unused = config.pad_token_id + 1 if encoder.family == "roberta" else 0
    words = encoder.kind == "masked_lm"
    labels = encoder.head(config, pooler=getattr(hf_model, "pooler", None) is not None).labels
    return {
        "attention_dir": "bidirectional",
        "n_ctx": config.max_position_embeddings - unused,
        "d_vocab_out": config.vocab_size if words else labels,
    }
