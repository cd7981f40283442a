"""Which TransformerBridges can be masked, and why the others cannot."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Dropout, Embedding

from tlprune.backends.activations import NORMS

ONLY_POST_NORMS = ("Olmo2", "Olmo3", "Exaone4")
# Norms before and behind attention and MLP, and nothing else that their relatives have (per-layer inputs, loops).
NORMS_ON_BOTH_SIDES = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
SCALES = ("residual_multiplier", "embedding_multiplier", "logits_scaling", "attention_multiplier", "scale_emb")


def refuse_state(model: Any) -> None:
    """Raise a ValueError for a bridge in a mode in which its masks would be wrong."""
    if getattr(model, "compatibility_mode", False):
        raise ValueError(
            "Masks need a TransformerBridge as it comes, but this one is in compatibility mode, which changes its "
            "weights and hooks. Load it again and leave enable_compatibility_mode() out."
        )
    if any(isinstance(module, Dropout) and module.p and module.training for module in model.modules()):
        raise ValueError(
            "Masks need a model that gives the same numbers twice, but this TransformerBridge is in training mode and "
            "drops out. Call model.eval()."
        )


def refuse_unsupported(model: Any) -> None:
    """Raise a ValueError for bridges whose masks the backend of decoders would get wrong."""
    refuse_state(model)
    for reason, found in _reasons(model).items():
        if found:
            raise ValueError(
                f"Masks need blocks that add to one residual stream, but this {_name(model)} has {reason}. Supported "
                "through TransformerBridge: GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3, GPT-NeoX and decoders "
                "built like them."
            )


def refuse_flags(config: Any) -> None:
    """Raise a ValueError while attention is split by head, where edge masks could not be put."""
    for flag in ("use_split_qkv_input", "use_attn_in", "use_attn_result"):
        if getattr(config, flag, False):
            raise ValueError(
                f"Edge masks need attention as the model computes it, but {flag} is on. Call model.set_{flag}(False)."
            )


def grouping(attention: Any, n_heads: int) -> dict[str, int]:
    """What an attention module has to believe for keys and values to come one for each query head.

    Raises:
        ValueError: it is of a kind that cannot be told.
    """
    if hasattr(attention, "num_key_value_groups"):
        return {"num_key_value_groups": 1}
    if hasattr(attention, "kv_repeats"):
        return {"n_kv_heads": n_heads, "kv_repeats": 1}
    raise ValueError(
        f"Readers per query head need attention that repeats keys and values itself, but {type(attention).__name__} "
        "does it in another place. Use kv='shared' and qkv='split'."
    )


def _reasons(model: Any) -> dict[str, bool]:
    config, hf = model.cfg, getattr(model.original_model, "config", None)
    blocks = list(getattr(model, "blocks", []))
    parts = ("ln1", "attn") if config.attn_only else ("ln1", "attn", "ln2", "mlp")
    plain = [block for block in blocks if all(part in block._modules for part in parts)]
    return {
        "an encoder and a decoder": bool(getattr(hf, "is_encoder_decoder", False)),
        "no stack of blocks": not blocks,
        "a mixture of experts": bool(getattr(config, "num_experts", None)),
        "a norm behind its embeddings": hasattr(model, "embed_ln"),
        "norms after attention and MLP": _strange_post_norms(model, blocks),
        "norms only after attention and MLP": _name(model).startswith(ONLY_POST_NORMS),
        "blocks without attention, an MLP and a norm before each": len(plain) < len(blocks),
        "attention without separate q, k and v (MLA, fused or state-space)": any(
            _fused(config, block.attn) for block in plain
        ),
        "an MLP without its own input and output matrices": not all(
            config.attn_only or _split(config, block.mlp) for block in plain
        ),
        f"normalisation {config.normalization_type!r}": config.normalization_type not in NORMS,
        "LayerNorm weights stored as an offset from one": any(
            type(block.ln1.original_component).__name__.endswith("LayerNorm1P") for block in plain
        ),
        f"positions of kind {config.positional_embedding_type!r}": _strange_positions(model),
        "attention scores without a scale, which its bridge scales": getattr(hf, "scale_attn_weights", True) is False,
        "scaled residuals, embeddings or logits": any(getattr(hf, name, 1) not in (None, 1) for name in SCALES),
    }


def _name(model: Any) -> str:
    return type(model.original_model).__name__


def _strange_post_norms(model: Any, blocks: list[Any]) -> bool:
    """Whether norms are behind attention or MLP in another way than in Gemma 2."""
    found = {name in block._modules for block in blocks for name in ("ln1_post", "ln2_post")}
    return True in found and (False in found or _name(model) not in NORMS_ON_BOTH_SIDES)


def _fused(config: Any, attention: Any) -> bool:
    """Whether q, k, v and output are other than one matrix each, of the size that heads need."""
    heads = config.n_heads * config.d_head * config.d_model
    groups = heads // config.n_heads * (getattr(config, "n_key_value_heads", None) or config.n_heads)
    return any(
        _size(attention, part) != size for part, size in zip("qkvo", (heads, groups, groups, heads), strict=True)
    )


def _split(config: Any, mlp: Any) -> bool:
    """Whether an MLP is one matrix in, one out and, where it is gated, one more."""
    names = ("in", "out", "gate") if config.gated_mlp else ("in", "out")
    return all(_size(mlp, name) == config.d_model * config.d_mlp for name in names)


def _size(bridge: Any, name: str) -> int:
    """Weights in a matrix of a bridge; 0 if it has no such matrix."""
    weight = getattr(getattr(bridge._modules.get(name), "original_component", None), "weight", None)
    return weight.numel() if isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2 else 0


def _strange_positions(model: Any) -> bool:
    """Whether positions are neither rotary nor a table with one row for each."""
    if model.cfg.positional_embedding_type == "rotary":
        return False
    table = getattr(getattr(model, "pos_embed", None), "original_component", None)
    return model.cfg.positional_embedding_type != "standard" or type(table) is not Embedding
