"""The five planted circuits: which heads and MLPs carry meaning, the edges between them, and why these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.models.planted_tasks import BIT_POSITIONS, COPIED_POSITION, NO, ON, YES
from tlprune.models.planted_weights import (
    ANSWER,
    CONTEXT,
    GAIN,
    MIDDLE,
    N_HEADS,
    VOCABULARY,
    Head,
    Mlp,
    aim_at,
    copy_bit,
    copy_token,
    gate_mlp,
    match_token,
    unit,
)

GATE_LAYER = 1


@dataclass(frozen=True)
class Wiring:
    """The true parts of a planted model; all else is a distractor.

    Attributes:
        heads: true heads by layer and index.
        edges: names of the true edges.
        explanation: what the circuit computes and what a method should meet.
        mlps: true MLPs by layer.
        logit_bias: ``b_U``.
    """

    heads: Mapping[tuple[int, int], Head]
    edges: tuple[str, ...]
    explanation: str
    mlps: Mapping[int, Mlp] = field(default_factory=dict)
    logit_bias: Float[Tensor, "vocabulary"] = field(default_factory=lambda: torch.zeros(VOCABULARY))


def wire_copy(generator: torch.Generator) -> Wiring:
    """One head of the last layer copies the token at a fixed position."""
    (head,) = _draw_heads(1, generator)
    name = f"a1.h{head}"
    return Wiring(
        {(1, head): Head(*aim_at([COPIED_POSITION] * CONTEXT), *copy_token(ANSWER))},
        (f"input->{name}<v>", f"{name}->logits"),
        f"{name} attends to position {COPIED_POSITION} by position and copies its token to the logits. Its q and k "
        "read positions alone, which are the same in a prompt and its twin, so no q or k edge is true.",
    )


def wire_induction(generator: torch.Generator) -> Wiring:
    """A previous-token head and an induction head, composed through k."""
    previous, induction = (_draw_heads(1, generator)[0] for _ in range(2))
    first, second = f"a0.h{previous}", f"a1.h{induction}"
    before = [max(position - 1, 0) for position in range(CONTEXT)]
    heads = {
        (0, previous): Head(*aim_at(before), *copy_token(MIDDLE)),
        (1, induction): Head(*match_token(MIDDLE), *copy_token(ANSWER)),
    }
    into = (f"input->{second}<q>", f"{first}->{second}<k>", f"input->{second}<v>")
    explanation = (
        f"{first} attends to the previous position by position and notes its token. {second} looks for the position "
        "whose note is the last token of the prompt (q from the embedding, k from the note) and copies the token it "
        "finds there (v from the embedding) to the logits."
    )
    return Wiring(heads, (f"input->{first}<v>", *into, f"{second}->logits"), explanation)


def wire_and(generator: torch.Generator) -> Wiring:
    """Two bits meet in an AND neuron; each edge alone breaks it."""
    return _wire_gate(
        "and",
        generator,
        "relu(2(x + y) - 3), their AND. Both bits are on in a prompt and off in its twin, so the loss of either "
        "turns the gate off: each edge is needed by itself.",
    )


def wire_or(generator: torch.Generator) -> Wiring:
    """Two bits meet in an OR gate; each masks the loss of the other."""
    return _wire_gate(
        "or",
        generator,
        "relu(2(x + y) - 0.5) - relu(2(x + y) - 1.5), their OR. Both bits are on in a prompt and off in its twin, so "
        "each masks the other: resampling the edges of one bit changes nothing while the other is there, and the "
        "gradient of the clean run is zero. Methods that judge edges one at a time, or by that gradient, miss all "
        "four input edges; methods that remove greedily keep one bit and drop the other.",
    )


def wire_adder(generator: torch.Generator) -> Wiring:
    """Two bits add up in the logits, without an MLP."""
    bits = _draw_heads(2, generator)
    names = [f"a0.h{head}" for head in bits]
    return Wiring(
        _bit_heads(bits, [0.5 * _yes_over_no()] * 2),
        tuple(edge for name in names for edge in (f"input->{name}<v>", f"{name}->logits")),
        f"{names[0]} and {names[1]} attend by position to one bit each, and each adds {GAIN:g} to the logit of yes "
        f"less that of no, which starts at -{GAIN:g}. Both bits are on in a prompt and off in its twin, so each "
        "resampled bit takes half of the difference between them.",
        logit_bias=_bias_to_no(),
    )


def _wire_gate(kind: Literal["and", "or"], generator: torch.Generator, what: str) -> Wiring:
    bits, mlp = _draw_heads(2, generator), f"m{GATE_LAYER}"
    names = [f"a0.h{head}" for head in bits]
    edges = [edge for name in names for edge in (f"input->{name}<v>", f"{name}->{mlp}")]
    return Wiring(
        _bit_heads(bits, [unit(MIDDLE, 0), unit(MIDDLE, 1)]),
        (*edges, f"{mlp}->logits"),
        f"{names[0]} and {names[1]} attend by position to one bit each, x and y, and {mlp} computes {what}",
        {GATE_LAYER: gate_mlp(kind, _yes_over_no(), generator)},
        _bias_to_no(),
    )


def _draw_heads(count: int, generator: torch.Generator) -> list[int]:
    # Drawn, so that a method that breaks ties by position does not find the truth by luck.
    return torch.randperm(N_HEADS, generator=generator)[:count].tolist()


def _bit_heads(heads: list[int], directions: list[Tensor]) -> dict[tuple[int, int], Head]:
    return {
        (0, head): Head(*aim_at([position] * CONTEXT), *copy_bit(ON, direction))
        for head, position, direction in zip(heads, BIT_POSITIONS, directions, strict=True)
    }


def _yes_over_no() -> Tensor:
    return unit(ANSWER, YES) - unit(ANSWER, NO)


def _bias_to_no() -> Tensor:
    return GAIN * torch.eye(VOCABULARY)[NO]


WIRINGS: dict[str, Callable[[torch.Generator], Wiring]] = {
    "copy": wire_copy,
    "induction": wire_induction,
    "and": wire_and,
    "or": wire_or,
    "adder": wire_adder,
}
