"""From Hugging Face models to TransformerLens models with the same outputs, without asking the hub."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.models.bridge import bridge
from tlprune.models.checkpoints import read_checkpoint
from tlprune.models.converters import CONVERTERS
from tlprune.models.converters.refusals import refuse_architecture
from tlprune.models.shrunk_files import is_shrunk, made_whole
from tlprune.models.tokenizers import set_tokenizer, tokenizer_in
from tlprune.models.transformer_lens import has_hooked_transformer


def from_huggingface(
    model: Any,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any | None = None,
) -> Any:
    """A TransformerLens model with the same outputs as a Hugging Face model; no weight is folded or centred.

    The hub is never asked. The given model is read, not changed: it may be on any device, in any dtype and mode. On
    TransformerLens 4, which has no HookedTransformer, the result is a TransformerBridge of a copy.

    Args:
        model: a transformers model, or a directory that ``save_pretrained`` wrote: of class GPT2LMHeadModel,
            GPTNeoXForCausalLM (Pythia), LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM,
            GemmaForCausalLM, Gemma2ForCausalLM or Gemma3ForCausalLM; or an encoder: BertForSequenceClassification,
            BertForMaskedLM, BertForMultipleChoice, BertModel, or the same of Roberta. Of a shrunk model
            (:func:`~tlprune.shrink`) the result is as large as before, and what was removed is 0.
        device: where to put the result; by default a GPU if there is one.
        dtype: of its weights; by default the given model's own, float32 for a directory.
        tokenizer: to use; by default the directory's own, none for a model.

    Raises:
        ValueError: there is no converter for the architecture, TransformerLens would get this configuration wrong, or
            the directory is not a whole checkpoint.

    Example:
        >>> import transformers
        >>> config = transformers.GPT2Config(vocab_size=20, n_embd=12, n_layer=1, n_head=2, n_positions=8)
        >>> theirs = transformers.GPT2LMHeadModel(config).eval()
        >>> ours = from_huggingface(theirs, device="cpu")
        >>> tokens = torch.tensor([[3, 1, 4]])
        >>> bool((ours(tokens) - theirs(tokens).logits).abs().max() < 1e-5)
        True
    """
    if not has_hooked_transformer():
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        source = model if isinstance(model, (str, Path)) else copy.deepcopy(model)
        return bridge(source, device=device, dtype=dtype, tokenizer=tokenizer)
    if isinstance(model, (str, Path)):
        return _from_directory(Path(model), device=device, dtype=dtype or torch.float32, tokenizer=tokenizer)
    if not is_shrunk(model):
        _check_model(model)
    return _convert(model, device=device, dtype=dtype or model.dtype, tokenizer=tokenizer)


def _from_directory(path: Path, *, device: Any, dtype: torch.dtype, tokenizer: Any | None) -> Any:
    hf_model = read_checkpoint(path, dtype)
    tokenizer = tokenizer_in(path) if tokenizer is None else tokenizer
    return _convert(hf_model, device=device, dtype=dtype, tokenizer=tokenizer, name=path.resolve().name)


def _convert(hf_model: Any, *, device: Any, dtype: torch.dtype, tokenizer: Any | None, name: str | None = None) -> Any:
    hf_model, biases = made_whole(hf_model) if is_shrunk(hf_model) else (hf_model, {})
    converter = CONVERTERS[type(hf_model).__name__]
    converter.check(hf_model.config)
    model = converter.convert(hf_model, device=device, dtype=dtype)
    _add(model, biases)
    model.cfg.model_name = name or Path(hf_model.config.name_or_path).name or type(hf_model).__name__
    model.huggingface_config = remembered_config(hf_model)
    if tokenizer is not None:
        set_tokenizer(model, tokenizer)
    return model.eval()


@torch.no_grad()
def _add(model: Any, biases: Mapping[str, Tensor]) -> None:
    """Put biases in that the stock class of transformers has no place for."""
    parameters = backend_of(model).parameters() if biases else {}
    for name, value in biases.items():
        parameters[name].copy_(value)


def remembered_config(hf_model: Any) -> Any:
    """A copy of the configuration that names the class too, for the way back."""
    config = copy.deepcopy(hf_model.config)
    config.architectures = [type(hf_model).__name__]
    return config


def _check_model(model: Any) -> None:
    describe = getattr(getattr(model, "config", None), "to_dict", dict)
    refuse_architecture(type(model).__name__, describe(), CONVERTERS)
