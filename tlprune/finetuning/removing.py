"""Weights taken out of a Hugging Face model, and kept out while it is fine-tuned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Zero
from tlprune.masking.checks import check_model, check_sites
from tlprune.models.export import to_huggingface, way_back, written
from tlprune.sites import Weights

Removed = Mapping[str, Bool[Tensor, "..."]]
NOTHING: Removed = MappingProxyType({})
WITHIN = ("blocks.", "pooler.")


def without(model: Any, circuit: Circuit | None) -> tuple[Any, dict[str, Tensor]]:
    """A transformers model without the weights that a circuit keeps, and where they were.

    Args:
        model: a TransformerLens model that came from Hugging Face.
        circuit: of weights, rows or columns within blocks or of a pooler; ``None`` takes nothing out.

    Returns:
        The model, in which these weights are 0, and for each of its parameters that has some which of them they are.

    Raises:
        ValueError: the circuit is not of weights of this model's blocks and pooler alone.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed", device="cpu")
        >>> circuit = tp.Circuit.from_names(tp.weights(model), ["blocks.0.mlp.W_in[2,5]", "blocks.0.attn.W_Q[1,3,7]"])
        >>> exported, removed = without(model, circuit)
        >>> {name: int(where.sum()) for name, where in removed.items()}
        {'transformer.h.0.attn.c_attn.weight': 1, 'transformer.h.0.mlp.c_fc.weight': 1}
        >>> exported.transformer.h[0].mlp.c_fc.weight[2, 5].item()
        0.0
    """
    exported = to_huggingface(model)
    removed = {} if circuit is None else places_of(model, circuit)
    empty(exported, removed)
    return exported, removed


@torch.no_grad()
def empty(module: nn.Module, removed: Removed) -> None:
    """Set weights to 0, in place.

    Args:
        module: a transformers model.
        removed: which of them, by names of its parameters.
    """
    parameters = dict(module.named_parameters())
    for name, where in removed.items():
        parameters[name].masked_fill_(where.to(parameters[name].device), 0.0)


def places_of(model: Any, circuit: Circuit) -> dict[str, Tensor]:
    """Where the weights that a circuit keeps lie in the tensors of Hugging Face, by names of its parameters.

    There two exported models differ that differ in these weights alone, so no second table of names is needed: what
    exports a model, q, k and v in one matrix or a pooler within RoBERTa's classifier, also says where its weights go.

    Args:
        model: a TransformerLens model that came from Hugging Face.
        circuit: of weights, rows or columns within blocks or of a pooler.

    Raises:
        ValueError: the circuit is not of weights of this model's blocks and pooler alone.
    """
    masks = _masks(model, circuit)
    backend = backend_of(model)
    config, write = way_back(model, backend, None)
    states = []
    for value in (0.0, 1.0):
        own = {name: value * mask.to(backend.dtype) for name, mask in masks.items()}
        parameters = {name: own.get(name, tensor) for name, tensor in backend.parameters().items()}
        with torch.no_grad():
            states.append(written(config, lambda new, p=parameters: write(new, p), backend.dtype).state_dict())
    differ = {name: (tensor != states[1][name]).cpu() for name, tensor in states[0].items()}
    return {name: where for name, where in differ.items() if where.any()}


def _masks(model: Any, circuit: Circuit) -> dict[str, Tensor]:
    group = circuit.sites.groups[0] if len(circuit.sites.groups) == 1 else None
    matrices = group.matrices if isinstance(group, Weights) else ()
    strange = [matrix.name for matrix in matrices if not matrix.name.startswith(WITHIN)]
    if not isinstance(group, Weights) or strange:
        among = f", {strange[0]} among them" if strange else ""
        raise ValueError(
            "What is removed before fine-tuning must be weights within blocks or of a pooler but the circuit is of "
            f"{circuit.sites}{among}. Find one over tp.weights(model, 'blocks.*.W_*|blocks.*.b_*|pooler.*') or fewer."
        )
    check_sites(circuit.sites, backend_of(model))
    check_model(backend_of(model), circuit, Zero())
    device = backend_of(model).device
    parts = group.split(circuit.kept)
    return {matrix.name: parts[matrix.name].expand(matrix.shape).to(device) for matrix in group.matrices}


def hold(module: nn.Module, removed: Removed) -> None:
    """Keep weights that are 0 at 0 under any optimiser whose step is 0 where all gradients were 0, as Adam's.

    Their gradients are set to 0 before the optimiser, clipping and the norm of all gradients see them.

    Args:
        module: the model; its parameters collect gradients.
        removed: which weights, by names of its parameters.
    """
    for name, parameter in module.named_parameters():
        if name in removed and parameter.requires_grad:
            parameter.register_hook(_gradient_hold(removed[name]))


def _gradient_hold(where: Tensor) -> Any:
    there = lru_cache(1)(where.to)  # parameters move to their device after the hook is set
    return lambda gradient: gradient.masked_fill(there(gradient.device), 0.0)


def circuit_hash(circuit: Circuit) -> str:
    """Of its sites and of which are kept, whatever its provenance.

    Example:
        >>> import tlprune as tp
        >>> sites = tp.weights(tp.load("testbed", device="cpu"), "blocks.0.mlp.W_in")
        >>> one, other = (tp.Circuit.from_names(sites, [f"blocks.0.mlp.W_in[{place}]"]) for place in ("2,5", "2,6"))
        >>> circuit_hash(one) == circuit_hash(other), circuit_hash(one) == circuit_hash(one & one)
        (False, True)
    """
    sites = json.dumps(circuit.sites.as_dict()).encode()
    return hashlib.sha256(sites + circuit.kept.cpu().numpy().tobytes()).hexdigest()[:16]
