"""One door for models: by name, by directory, or as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tlprune.choices import choice
from tlprune.models.bridge import TESTBED, bridge_by_name
from tlprune.models.huggingface import from_huggingface
from tlprune.models.planted import PREFIX as PLANTED
from tlprune.models.planted import planted
from tlprune.models.planted_wiring import WIRINGS
from tlprune.models.taught import DIRECTORY as TAUGHT
from tlprune.models.tracr.compiled import PREFIX as COMPILED
from tlprune.models.tracr.compiler import KNOWN as PROGRAMS
from tlprune.models.tracr.program import named
from tlprune.models.transformer_lens import has_hooked_transformer, hooked_transformer, quiet_construction
from tlprune.models.world import DIRECTORY as WORLD
from tlprune.processes import processes


@dataclass(frozen=True)
class Named:
    """A model that goes by a name, without a download.

    Attributes:
        says: what it is, in one line.
        make: the model, of a device and a type of numbers.
    """

    says: str
    make: Callable[[str | None, torch.dtype], Any]


def _in_package(directory: Path, device: str | None, dtype: torch.dtype) -> Any:
    return from_huggingface(directory, device=device, dtype=dtype)


def _planted(name: str, device: str | None, dtype: torch.dtype) -> Any:
    return _moved(planted(name).model, device, dtype)


def _compiled(name: str, device: str | None, dtype: torch.dtype) -> Any:
    return _moved(named(name).model(), device, dtype)


def _moved(model: Any, device: str | None, dtype: torch.dtype) -> Any:
    return model.to(dtype, print_details=False).to(device or model.cfg.device, print_details=False)


NAMED = {
    "testbed": Named("A small trained language model that knows the tasks of words.", partial(_in_package, TESTBED)),
    "taught": Named("A small trained model whose circuit is known.", partial(_in_package, TAUGHT)),
    "world": Named("A small trained model that knows facts of an invented world.", partial(_in_package, WORLD)),
    **{
        f"{PLANTED}{name}": Named((wire.__doc__ or "").strip(), partial(_planted, name))
        for name, wire in WIRINGS.items()
    },
    **{
        f"{COMPILED}{name}": Named(f"The program {name}, compiled, whose circuit is known.", partial(_compiled, name))
        for name in PROGRAMS
    },
}


def load(model: Any, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A model ready for masks, from whatever describes it.

    It is a HookedTransformer, or of BERT and RoBERTa a HookedEncoder, where TransformerLens has these classes (3.9),
    and a TransformerBridge on TransformerLens 4: the same names, the same circuits.

    Args:
        model: ``"testbed"``: the small trained model in the package; ``"planted"`` or ``"planted-and"``, ``-or``,
            ``-adder``, ``-copy``: models whose circuit was written by hand; ``"taught"``: a trained one whose circuit
            is known; ``"world"``: one that knows the facts of an invented world (``tp.tasks.world``);
            ``"tracr-reverse"`` and the other programs of :func:`~tlprune.tracr`; a local directory in Hugging Face
            format or a transformers model (see :func:`~tlprune.from_huggingface` and :func:`~tlprune.bridge`); a name
            that TransformerLens knows (downloaded, no weight folded); or a TransformerLens model, which is returned as
            it is.
        device: where to put it; by default a GPU if there is one, of several processes each its own.
        dtype: of its weights.

    Raises:
        ValueError: no such name or directory, or an architecture that is not supported.

    Example:
        >>> load("testbed").cfg.n_layers
        4
    """
    if not isinstance(model, (str, Path)):
        given = {base.__name__ for base in type(model).__mro__}
        return from_huggingface(model, device=device, dtype=dtype) if "PreTrainedModel" in given else model
    return _load(str(model), device or processes().device, dtype)


def _load(name: str, device: str | None, dtype: torch.dtype) -> Any:
    known = f"{PLANTED}induction" if name == PLANTED.removesuffix("-") else name
    if known in NAMED or known.startswith((PLANTED, COMPILED)):
        return choice("model", known, NAMED).make(device, dtype)
    if Path(name).is_dir():
        return from_huggingface(Path(name), device=device, dtype=dtype)
    return (_by_name if has_hooked_transformer() else bridge_by_name)(name, device=device, dtype=dtype)


def _by_name(name: str, *, device: str | None, dtype: torch.dtype) -> Any:
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        get_official_model_name(name)
    except ValueError:
        raise ValueError(
            f"There is no model {name!r}: not a local directory, and no name that TransformerLens knows. "
            "Try testbed, planted, taught, world, gpt2, or the path of a Hugging Face directory."
        ) from None
    try:
        with quiet_construction():
            return hooked_transformer()[0].from_pretrained_no_processing(name, device=device, dtype=dtype)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"TransformerLens knows {name!r} but could not download it ({reason}). Check the network, or give a local "
            "directory that holds it."
        ) from None
