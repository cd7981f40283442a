"""One door for models: by name, by directory, or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tlprune.models.bridge import TESTBED, bridge_by_name
from tlprune.models.huggingface import from_huggingface
from tlprune.models.planted import planted
from tlprune.models.taught import DIRECTORY as TAUGHT
from tlprune.models.tracr.compiled import PREFIX as COMPILED
from tlprune.models.tracr.program import named
from tlprune.models.transformer_lens import has_hooked_transformer, hooked_transformer, quiet_construction
from tlprune.models.world import DIRECTORY as WORLD
from tlprune.processes import processes


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
    if name == "planted" or name.startswith("planted-"):
        return _moved(planted(name.partition("-")[2] or "induction").model, device, dtype)
    if name.startswith(COMPILED):
        return _moved(named(name.removeprefix(COMPILED)).model(), device, dtype)
    directory = {"testbed": TESTBED, "taught": TAUGHT, "world": WORLD}.get(name) or Path(name)
    if directory.is_dir():
        return from_huggingface(directory, device=device, dtype=dtype)
    return (_by_name if has_hooked_transformer() else bridge_by_name)(name, device=device, dtype=dtype)


def _moved(model: Any, device: str | None, dtype: torch.dtype) -> Any:
    return model.to(dtype, print_details=False).to(device or model.cfg.device, print_details=False)


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
