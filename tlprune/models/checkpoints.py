"""Directories in Hugging Face format, read without asking the hub or running code that lies in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlprune.models.converters import CONVERTERS
from tlprune.models.converters.refusals import refuse_architecture

PREFIX = "Shrunk"


def read_checkpoint(path: Path, dtype: torch.dtype) -> Any:
    """The transformers model in a directory: of a stock class, or of a shrunk one.

    Raises:
        ValueError: not a whole checkpoint, or of a class or with a configuration that cannot be converted.
    """
    import transformers

    name = _architecture(path)
    stock = getattr(transformers, stock_name(name))
    CONVERTERS[stock.__name__].check(stock.config_class.from_pretrained(path))
    return read_weights(_shrunk(stock.__name__) if name.startswith(PREFIX) else stock, path, dtype)


def read_weights(kind: Any, path: Path, dtype: torch.dtype) -> Any:
    """A transformers model of a class, from a directory.

    Raises:
        ValueError: its weights cannot be read.
    """
    try:
        with _quiet():
            return kind.from_pretrained(path, dtype=dtype, local_files_only=True)
    except OSError as error:
        raise ValueError(f"{path} has no weights that can be read ({error}). Save the model there again.") from None


def _shrunk(stock: str) -> Any:
    from tlprune.models.modeling_shrunk import shrunk_class

    return shrunk_class(stock)


def stock_name(architecture: str) -> str:
    """The stock class behind a shrunk one; of a stock class itself."""
    return architecture.removeprefix(PREFIX)


def unfilled(kind: Any, *arguments: Any, dtype: torch.dtype) -> Any:
    """A new transformers model, whose random weights are to be overwritten and draw from nobody's numbers.

    Its parameters are of a dtype from the start: casting it later would round the angles of rotary positions too.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            return kind(*arguments)
    finally:
        torch.set_default_dtype(before)


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
    architecture, config = named_class(path)
    refuse_architecture(stock_name(architecture), config, CONVERTERS)
    return architecture


def named_class(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The class that a checkpoint says it is of, and the rest of its configuration.

    Raises:
        ValueError: there is no ``config.json``, or it is not JSON.
    """
    try:
        config: Mapping[str, Any] = json.loads((path / "config.json").read_text())
    except OSError:
        raise ValueError(
            f"{path} has no config.json that can be read. Give a directory that save_pretrained() wrote."
        ) from None
    except ValueError:
        raise ValueError(f"{path}/config.json is not JSON. Save the model again with save_pretrained().") from None
    return (config.get("architectures") or [_usual_class(config.get("model_type"))])[0], config


def _usual_class(model_type: str | None) -> str:
    """The class of a checkpoint whose configuration names none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "A checkpoint of no named class")
