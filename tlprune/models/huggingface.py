"""From Hugging Face models to TransformerLens models with the same outputs, without asking the hub."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlprune.models.bridge import bridge, usual_class
from tlprune.models.converters import CONVERTERS
from tlprune.models.converters.refusals import refuse_architecture
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
            BertForMaskedLM, BertForMultipleChoice, BertModel, or the same of Roberta.
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
    _check_model(model)
    return _convert(model, device=device, dtype=dtype or model.dtype, tokenizer=tokenizer)


def _from_directory(path: Path, *, device: Any, dtype: torch.dtype, tokenizer: Any | None) -> Any:
    import transformers

    architecture = _architecture(path)
    hf_class = getattr(transformers, architecture)
    CONVERTERS[architecture].check(hf_class.config_class.from_pretrained(path))
    try:
        with _quiet():
            hf_model = hf_class.from_pretrained(path, dtype=dtype, local_files_only=True)
    except OSError as error:
        raise ValueError(f"{path} has no weights that can be read ({error}). Save the model there again.") from None
    tokenizer = tokenizer_in(path) if tokenizer is None else tokenizer
    return _convert(hf_model, device=device, dtype=dtype, tokenizer=tokenizer, name=path.resolve().name)


def _convert(hf_model: Any, *, device: Any, dtype: torch.dtype, tokenizer: Any | None, name: str | None = None) -> Any:
    converter = CONVERTERS[type(hf_model).__name__]
    converter.check(hf_model.config)
    model = converter.convert(hf_model, device=device, dtype=dtype)
    model.cfg.model_name = name or Path(hf_model.config.name_or_path).name or type(hf_model).__name__
    model.huggingface_config = remembered_config(hf_model)
    if tokenizer is not None:
        set_tokenizer(model, tokenizer)
    return model.eval()


def remembered_config(hf_model: Any) -> Any:
    """A copy of the configuration that names the class too, for the way back."""
    config = copy.deepcopy(hf_model.config)
    config.architectures = [type(hf_model).__name__]
    return config


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
    """The class that a checkpoint is of, refused here if there is no converter for it."""
    try:
        config: Mapping[str, Any] = json.loads((path / "config.json").read_text())
    except OSError:
        raise ValueError(
            f"{path} has no config.json that can be read. Give a directory that save_pretrained() wrote."
        ) from None
    except ValueError:
        raise ValueError(f"{path}/config.json is not JSON. Save the model again with save_pretrained().") from None
    architecture = (config.get("architectures") or [usual_class(config.get("model_type"))])[0]
    refuse_architecture(architecture, config, CONVERTERS)
    return architecture


def _check_model(model: Any) -> None:
    describe = getattr(getattr(model, "config", None), "to_dict", dict)
    refuse_architecture(type(model).__name__, describe(), CONVERTERS)
