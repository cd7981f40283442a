"""Hugging Face models behind a TransformerBridge, which every TransformerLens from 3.9 on has, without the hub."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tlprune.models.bridge_encoder import KNOWN, adapted
from tlprune.models.checkpoints import PREFIX, named_class, read_checkpoint, read_weights, stock_name
from tlprune.models.converters.encoders import ENCODERS
from tlprune.models.shrunk_files import is_shrunk, whole_of
from tlprune.models.tokenizers import copied, tokenizer_in

TESTBED = Path(__file__).parent / "testbed"


def bridge(
    model: Any,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any | None = None,
) -> Any:
    """A TransformerBridge ready for masks: in evaluation mode, with attention that hooks can reach, nothing folded.

    The same API as a HookedTransformer, and the same numbers: a circuit found on one loads on the other.

    Args:
        model: ``"testbed"``, a directory that ``save_pretrained`` wrote, or a transformers model: a decoder, or a BERT
            or RoBERTa of any class that :func:`~tlprune.from_huggingface` takes. TransformerLens puts its own modules
            in place of the model's, so pass a copy of one that you need as it is. A shrunk model is made as large as it
            was, and what was removed is 0.
        device: where to put it; by default a GPU if there is one for a directory, and where it is for a model.
        dtype: of its weights; by default float32 for a directory, and what it is for a model.
        tokenizer: for tasks; by default the directory's own.

    Raises:
        ValueError: no such checkpoint, an architecture that TransformerLens has no bridge for, or an encoder with
            relative positions or a decoder's attention.

    Example:
        >>> import transformers
        >>> config = transformers.GPT2Config(vocab_size=20, n_embd=12, n_layer=1, n_head=2, n_positions=8)
        >>> model = bridge(transformers.GPT2LMHeadModel(config))
        >>> import tlprune as tp
        >>> tp.edges(model)
        Sites(13 edges)
    """
    if not isinstance(model, (str, Path)):
        model = whole_of(model) if is_shrunk(model) else model
        return _wrapped(model.to(device=device, dtype=dtype), tokenizer, Path(model.config.name_or_path).name)
    path = TESTBED if model == "testbed" else Path(model)
    found = _read(path, dtype or torch.float32).to(device or _device())
    return _wrapped(found, tokenizer_in(path) if tokenizer is None else tokenizer, path.resolve().name)


def bridge_by_name(name: str, *, device: str | None, dtype: torch.dtype) -> Any:
    """A TransformerBridge of a model on the hub, ready for masks.

    Raises:
        ValueError: there is no such model, it cannot be downloaded, or TransformerLens has no bridge for it.
    """
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(name, device=device, dtype=dtype).eval()
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"There is no model {name!r}: not a local directory, and the hub gave none ({reason}). Try testbed, "
            "planted, gpt2, or the path of a Hugging Face directory."
        ) from None
    except ValueError as error:
        raise _no_bridge(name, error) from None


def _wrapped(hf_model: Any, tokenizer: Any | None, name: str) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture = type(hf_model).__name__
    options = {"hf_config": hf_model.config, "model_name": name or architecture}
    known = architecture
    if architecture in ENCODERS:
        known, options["post_adapter_hook"] = KNOWN, adapted(hf_model)
    hf_model.set_attn_implementation("eager")
    try:
        # Where q, k and v are one matrix, modules are made whose random weights draw from nobody's numbers.
        with nullcontext() if tokenizer is None else copied(tokenizer) as copy, torch.random.fork_rng(devices=[]):
            model = build_bridge_from_module(hf_model, known, tokenizer=copy, **options)
    except (ValueError, AssertionError) as error:  # the latter of a GPT-NeoX without biases in its attention
        raise _no_bridge(architecture, error) from None
    return model.eval()


def _no_bridge(name: str, error: ValueError | AssertionError) -> ValueError:
    reason = str(error) or "an assertion about its weights failed"
    return ValueError(
        f"Masks need a model that TransformerLens has a bridge for, but of {name} it says: {reason}. Use a GPT-2, "
        "Llama, Mistral, Qwen, Gemma or GPT-NeoX, or a BERT or RoBERTa with a head that tp.from_huggingface knows."
    )


def _read(path: Path, dtype: torch.dtype) -> Any:
    import transformers

    named, _ = named_class(path)
    if not hasattr(transformers, stock_name(named)):
        raise ValueError(
            f"{named} is no class of transformers, but {path} is of it. Load it yourself and pass the model."
        )
    if named.startswith(PREFIX):
        return whole_of(read_checkpoint(path, dtype))
    return read_weights(getattr(transformers, named), path, dtype)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
