"""From Hugging Face checkpoints to TransformerLens models with the same logits, without asking the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlprune.models.transformer_lens import build

SUPPORTED = ("GPT2LMHeadModel", "LlamaForCausalLM")


def from_directory(directory: str | Path, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A HookedTransformer from a local directory in Hugging Face format; no weight is folded or centred.

    Args:
        directory: holds ``config.json``, weights and, for text, a tokenizer.
        device: where to put it.
        dtype: of its weights.

    Raises:
        ValueError: the directory is not such a checkpoint, or of an architecture without a converter.
    """
    path = Path(directory)
    architecture = _architecture(path)
    import transformers

    try:
        with _quiet():
            hf_model = getattr(transformers, architecture).from_pretrained(path, dtype=dtype, local_files_only=True)
    except OSError as error:
        raise ValueError(f"{path} has no weights that can be read ({error}). Save the model there again.") from None
    settings = {"GPT2LMHeadModel": _gpt2_settings, "LlamaForCausalLM": _llama_settings}[architecture](hf_model.config)
    name = path.resolve().name
    model = build(**settings, model_name=name, original_architecture=architecture, dtype=dtype, device=device)
    _load(model, hf_model, architecture)
    tokenizer = _tokenizer(path)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer, default_padding_side="right")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for the few seconds that reading weights takes; the user's setting comes back."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _architecture(path: Path) -> str:
    try:
        architectures = json.loads((path / "config.json").read_text()).get("architectures") or ["none"]
    except OSError:
        raise ValueError(
            f"{path} has no config.json that can be read. Give a directory that save_pretrained() wrote."
        ) from None
    except ValueError:
        raise ValueError(f"{path}/config.json is not JSON. Save the model again with save_pretrained().") from None
    if architectures[0] not in SUPPORTED:
        raise ValueError(
            f"{path} holds a {architectures[0]}, but local directories can be read of {' and '.join(SUPPORTED)}. "
            "Pass a HookedTransformer that you loaded yourself."
        )
    return architectures[0]


def _load(model: Any, hf_model: Any, architecture: str) -> None:
    from transformer_lens.pretrained import weight_conversions

    name = {"GPT2LMHeadModel": "convert_gpt2_weights", "LlamaForCausalLM": "convert_llama_weights"}[architecture]
    with torch.no_grad():
        state = getattr(weight_conversions, name)(hf_model, model.cfg)
        state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )


def _gpt2_settings(config: Any) -> dict[str, Any]:
    return {
        "n_layers": config.n_layer,
        "d_model": config.n_embd,
        "n_heads": config.n_head,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_ctx": config.n_positions,
        "d_vocab": config.vocab_size,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _llama_settings(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    unusual = {
        "rotary scaling": rope.get("rope_type", "default") != "default",
        "attention biases": config.attention_bias,
        "MLP biases": config.mlp_bias,
    }
    for reason, found in unusual.items():
        if found:
            raise ValueError(
                f"This Llama has {reason}, which the converter does not know. Load it with TransformerLens by name and "
                "pass the model."
            )
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": heads,
        "n_key_value_heads": None if kv == heads else kv,
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "act_fn": config.hidden_act,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": d_head,
        "rotary_base": int(rope.get("rope_theta", 10000)),
        "final_rms": True,
        "gated_mlp": True,
    }


def _tokenizer(path: Path) -> Any | None:
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)
