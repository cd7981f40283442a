"""The six planted circuits: which heads and MLPs carry meaning, the edges between them, and why these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.models.planted_tasks import (
    BAD,
    BIT_POSITIONS,
    COPIED_POSITION,
    GOOD,
    NO,
    ON,
    TOPIC_POSITION,
    TOPICS,
    YES,
)
from tlprune.models.planted_weights import (
    ANSWER,
    CONTEXT,
    D_MLP,
    GAIN,
    GATES,
    MIDDLE,
    N_HEADS,
    NOISE,
    VOCABULARY,
    Head,
    Mlp,
    SignNeuron,
    aim_at,
    among,
    copy_bit,
    copy_sign,
    copy_token,
    faint_head,
    gate_mlp,
    match_token,
    sign_mlp,
    unit,
)

GATE_LAYER = 1
# Signs of the neurons that carry the sentiment, by layer; all that read one sign add up to one answer.
SKILLED = ((1, -1, 1), (-1, 1, -1))


@dataclass(frozen=True)
class Wiring:
    """The true parts of a planted model; all else is a distractor.

    Attributes:
        heads: true heads by layer and index.
        edges: names of the true edges.
        explanation: what the circuit computes and what a method should meet.
        mlps: true MLPs by layer.
        logit_bias: ``b_U``.
        neurons: names of the neurons that carry the answer, where there are such.
    """

    heads: Mapping[tuple[int, int], Head]
    edges: tuple[str, ...]
    explanation: str
    mlps: Mapping[int, Mlp] = field(default_factory=dict)
    logit_bias: Float[Tensor, "vocabulary"] = field(default_factory=lambda: torch.zeros(VOCABULARY))
    neurons: tuple[str, ...] = ()


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


def wire_sentiment(generator: torch.Generator) -> Wiring:
    """A head brings the class of a word to every position behind it; a few neurons of each layer carry it on."""
    said, topic = _draw_heads(2, generator)
    name = f"a0.h{said}"
    heads = {
        (0, said): Head(*among([*GOOD, *BAD]), *copy_sign(GOOD, BAD, unit(MIDDLE, 0))),
        (0, topic): Head(*aim_at([TOPIC_POSITION] * CONTEXT), *copy_sign(*TOPICS, unit(MIDDLE, 1))),
        **{(1, head): faint_head(generator) for head in range(N_HEADS)},
    }
    places = [torch.randperm(D_MLP, generator=generator).tolist() for _ in SKILLED]
    layers = [sorted(own[: len(signs)]) for own, signs in zip(places, SKILLED, strict=True)]
    neurons = tuple(f"m{layer}.n{place}" for layer, own in enumerate(layers) for place in own)
    return Wiring(
        heads,
        (f"input->{name}<v>", *(f"{name}->m{n}" for n in range(2)), *(f"m{n}->logits" for n in range(2))),
        f"{name} attends to the one good or bad word so far and notes which it is. In each layer three neurons read "
        f"the note, {', '.join(neurons)}: they fire for one of the two and m0 and m1 write it to the logits. Two more "
        f"of each layer fire in the same way for the topic that a0.h{topic} notes, and the others hear both faintly; "
        "all of these write what nobody reads. So exactly six neurons tell the class without fail, and without them "
        "the model gives one answer to all.",
        {layer: _sentiment_mlp(layer, own, generator) for layer, own in enumerate(places)},
        0.25 * GAIN * torch.eye(VOCABULARY)[YES],
        neurons,
    )


def _sentiment_mlp(layer: int, places: list[int], generator: torch.Generator) -> Mlp:
    """The first places are of neurons that carry the sentiment, the next two of those that tell the topic."""
    signs, share = SKILLED[layer], 1 / len(SKILLED[0])
    skilled = [SignNeuron(n, 0, sign, share * sign * _yes_over_no()) for n, sign in zip(places, signs, strict=False)]
    decoys = [
        SignNeuron(n, 1, sign, unit(NOISE, layer)) for n, sign in zip(places[len(signs) :], (1, -1), strict=False)
    ]
    return sign_mlp([*skilled, *decoys], generator)


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
        tuple(f"{mlp}.n{neuron}" for neuron in range(len(GATES[kind]))),
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
    "sentiment": wire_sentiment,
}
