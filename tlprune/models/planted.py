"""Small models with hand-written weights, whose true circuit is known by construction."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.models.planted_tasks import build_task
from tlprune.models.planted_weights import (
    ANSWER,
    CONTEXT,
    D_HEAD,
    D_MLP,
    D_MODEL,
    GAIN,
    N_HEADS,
    N_LAYERS,
    POSITION,
    TOKEN,
    VOCABULARY,
    Head,
    Mlp,
    distractor_head,
    distractor_mlp,
    from_slot,
    to_slot,
)
from tlprune.models.planted_wiring import WIRINGS, Wiring
from tlprune.models.transformer_lens import build, build_bridge, has_hooked_transformer
from tlprune.task import Task

PREFIX = "planted-"
BLOCK = (*(f"attn.W_{part}" for part in "QKVO"), "mlp.W_in", "mlp.b_in", "mlp.W_out")


@dataclass(frozen=True, eq=False)
class Planted:
    """A model, the task it solves, and the edges by which it does so.

    Attributes:
        model: a ``HookedTransformer``, or on TransformerLens 4 a ``TransformerBridge``, of 2 layers with 4 heads and an
            MLP each: 110 edges.
        task: prompt pairs with one answer at the last position.
        circuit: the true edges, under merged embeddings and resample ablation; see :func:`~tlprune.planted`.
        explanation: what the circuit computes and what a method should meet.
        neurons: names of the neurons that carry the answer; empty where no MLP has a part in it.
    """

    model: Any
    task: Task
    circuit: Circuit
    explanation: str
    neurons: tuple[str, ...] = ()


def planted(name: str = "induction", *, seed: int = 0) -> Planted:
    """Build a small transformer, without training, so that its true circuit is known.

    The true parts read and write slots of the residual stream of their own. Every other head, MLP and neuron is a
    distractor: it reads tokens, positions and other parts with random weights and writes, with about the norm of a
    true part, into a slot that only distractors read. There is no layer norm, so nothing else mixes the slots.

    **What is true.** The truth is stated for resample (interchange) ablation with the task's own pairs and for the
    graph with embeddings merged into one node ``input``. An edge is true if resampling it changes the logits at the
    answer for some pair and some state of the other edges; for every model but ``or`` the state "all others kept"
    is enough. Any other edge has no effect in any state, exactly: either its reader has zero weight on what it
    carries, or it carries the same in both prompts. The latter are the q and k edges from ``input`` into heads that
    attend by position: ``x - x~ = 0`` on what they read. Under zero ablation, or a mean over positions, these would
    be true as well, so the truth stated here does not hold there.

    ============= ================================================================ ==========
    name          what it computes                                                 true edges
    ============= ================================================================ ==========
    ``copy``      a head copies the token at position 3                            2
    ``induction`` a previous-token head feeds the k of an induction head           5
    ``and``       two heads each bring one bit to an MLP, which computes their AND 5
    ``or``        the same with OR: each bit masks the other                       5
    ``adder``     two heads each bring one bit, which add up in the logits         4
    ``sentiment`` a head brings a word's class to six neurons, which alone tell it 5
    ============= ================================================================ ==========

    Source of the three gates: Chen et al. 2025, "Rethinking Circuit Completeness in Language Models: AND, OR, and
    ADDER Gates" (arXiv 2505.10039).

    Args:
        name: which circuit.
        seed: seed of the distractors' weights and of which heads are the true ones. The prompts are the same for
            every seed, and the global random state is not touched.

    Raises:
        ValueError: the name is not known.

    Example:
        >>> gate = planted("and", seed=1)
        >>> len(gate.circuit), gate.circuit.n_effective, gate.circuit.graph.n_edges
        (5, 5, 110)
        >>> batch = gate.task.test
        >>> logits = gate.model(batch.clean.ids)[:, -1]
        >>> bool((logits.argmax(-1) == batch.answers[:, 0]).all())
        True
    """
    _check_name(name)
    # Generators of neighbouring small seeds begin alike, and so would the choice of heads.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{seed}".encode()))
    wiring = WIRINGS[name](generator)
    model = _empty_model(name)
    # Told to TransformerLens before, it would seed the whole process.
    model.cfg.seed = seed
    _fill(model, wiring, generator)
    provenance = {"source": "construction", "name": f"{PREFIX}{name}", "seed": seed, "ablation": {"name": "resample"}}
    circuit = Circuit.from_edges(model, wiring.edges, provenance=provenance)
    return Planted(model, planted_task(model), circuit, wiring.explanation, wiring.neurons)


def planted_circuit(model: Any) -> Circuit:
    """The true edges of a planted model, told by its ``cfg.model_name`` and ``cfg.seed``.

    Args:
        model: the model of a :class:`Planted`.

    Raises:
        ValueError: the model is not a planted one.

    Example:
        >>> gate = planted("or", seed=3)
        >>> planted_circuit(gate.model) == gate.circuit
        True
    """
    return planted(_name_of(model), seed=model.cfg.seed).circuit


def planted_task(model: Any, *, seed: int = 0) -> Task:
    """The task of a planted model, told by its ``cfg.model_name``.

    Args:
        model: the model of a :class:`Planted`.
        seed: seed of the prompts; the task of :func:`~tlprune.planted` has seed 0.

    Raises:
        ValueError: the model is not a planted one.

    Example:
        >>> task = planted_task(planted("copy").model)
        >>> task.name, len(task.discovery.train()), len(task.discovery.validation()), len(task.test)
        ('planted-copy', 96, 32, 64)
    """
    return build_task(_name_of(model), seed=seed)


def _name_of(model: Any) -> str:
    name = str(getattr(getattr(model, "cfg", None), "model_name", ""))
    if name.removeprefix(PREFIX) not in WIRINGS or not name.startswith(PREFIX):
        raise ValueError(
            f"A planted task or truth needs a planted model ({', '.join(PREFIX + known for known in WIRINGS)}) but "
            f"this one is {name or type(model).__name__!r}. Build one with planted(name).model."
        )
    return name.removeprefix(PREFIX)


def _check_name(name: str) -> None:
    if name not in WIRINGS:
        raise ValueError(
            f"A planted model must be one of {', '.join(WIRINGS)} but {name!r} was asked for. Choose one of these."
        )


def _empty_model(name: str) -> Any:
    """The model with memory allocated but no weight set; ``init_weights`` would draw from the global random state."""
    shape = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "d_model": D_MODEL, "d_head": D_HEAD, "d_mlp": D_MLP}
    shape |= {"d_vocab": VOCABULARY, "n_ctx": CONTEXT}
    kind = {"act_fn": "relu", "normalization_type": None, "positional_embedding_type": "standard"}
    name = PREFIX + name
    make = build if has_hooked_transformer() else build_bridge
    return make(**shape, **kind, init_weights=False, device="cpu", model_name=name)


@torch.no_grad()
def _fill(model: Any, wiring: Wiring, generator: torch.Generator) -> None:
    weights = backend_of(model).parameters()
    for weight in weights.values():
        weight.zero_()
    weights["embed.W_E"].copy_(to_slot(TOKEN, torch.eye(VOCABULARY)))
    weights["pos_embed.W_pos"].copy_(to_slot(POSITION, torch.eye(CONTEXT)))
    weights["unembed.W_U"].copy_(_unembedding())
    weights["unembed.b_U"].copy_(wiring.logit_bias)
    for layer in range(N_LAYERS):
        block = {name: weights[f"blocks.{layer}.{name}"] for name in BLOCK}
        for index in range(N_HEADS):
            _fill_head(block, index, wiring.heads.get((layer, index)) or distractor_head(generator))
        _fill_mlp(block, wiring.mlps.get(layer) or distractor_mlp(generator))


def _unembedding() -> Float[Tensor, "d_model vocabulary"]:
    return from_slot(ANSWER, GAIN * torch.eye(VOCABULARY))


def _fill_head(block: Mapping[str, Tensor], index: int, head: Head) -> None:
    block["attn.W_Q"][index] = head.query
    block["attn.W_K"][index] = head.key
    block["attn.W_V"][index] = head.value
    block["attn.W_O"][index] = head.output


def _fill_mlp(block: Mapping[str, Tensor], weights: Mlp) -> None:
    block["mlp.W_in"].copy_(weights.inward)
    block["mlp.b_in"].copy_(weights.bias)
    block["mlp.W_out"].copy_(weights.outward)
