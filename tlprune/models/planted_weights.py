"""Parts of a hand-written transformer: slots of the residual stream, heads that aim, ReLU gates, distractors.

The residual stream is cut into five slots that share no coordinate. A true part reads and writes whole slots of
meaning; a distractor reads every slot with random weights and writes into :data:`NOISE` alone, which no true part
and not the unembedding reads. A false edge therefore meets a weight of exactly zero, whatever it carries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

N_LAYERS, N_HEADS, D_MLP = 2, 4, 24
VOCABULARY, CONTEXT = 12, 8

TOKEN = slice(0, 12)
POSITION = slice(12, 20)
MIDDLE = slice(20, 32)
ANSWER = slice(32, 44)
NOISE = slice(44, 64)
D_MODEL, D_HEAD = 64, VOCABULARY

# The score of the wanted position above all others, after division by sqrt(d_head): its weight is above 0.999,
# and gradients through the softmax are small but not gone.
SHARPNESS = 10.0
# A unit vector of the slot ANSWER becomes this logit.
GAIN = 8.0


@dataclass(frozen=True)
class Head:
    """Weights of one attention head; its biases are zero.

    Attributes:
        query: ``W_Q``.
        key: ``W_K``.
        value: ``W_V``.
        output: ``W_O``.
    """

    query: Float[Tensor, "d_model d_head"]
    key: Float[Tensor, "d_model d_head"]
    value: Float[Tensor, "d_model d_head"]
    output: Float[Tensor, "d_head d_model"]


@dataclass(frozen=True)
class Mlp:
    """Weights of one MLP of ReLU neurons; its output bias is zero.

    Attributes:
        inward: ``W_in``.
        bias: ``b_in``.
        outward: ``W_out``.
    """

    inward: Float[Tensor, "d_model d_mlp"]
    bias: Float[Tensor, "d_mlp"]
    outward: Float[Tensor, "d_mlp d_model"]


def from_slot(slot: slice, matrix: Float[Tensor, "slot out"]) -> Float[Tensor, "d_model out"]:
    """A reading matrix that sees one slot and is zero elsewhere."""
    weight = torch.zeros(D_MODEL, matrix.shape[1])
    weight[slot] = matrix
    return weight


def to_slot(slot: slice, matrix: Float[Tensor, "into slot"]) -> Float[Tensor, "into d_model"]:
    """A writing matrix that fills one slot and is zero elsewhere."""
    return from_slot(slot, matrix.T).T.contiguous()


def aim_at(targets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Query and key of a head that, at position ``i``, attends to position ``targets[i]``.

    Both read the slot POSITION alone. A target after ``i`` leaves the attention even over the positions up to ``i``.
    """
    wanted = torch.eye(CONTEXT, D_HEAD)[list(targets)]
    return from_slot(POSITION, _sharp(wanted)), from_slot(POSITION, torch.eye(CONTEXT, D_HEAD))


def match_token(slot: slice) -> tuple[Tensor, Tensor]:
    """Query and key of a head that attends to the position whose ``slot`` holds the token of the query's position."""
    same = torch.eye(VOCABULARY, D_HEAD)
    return from_slot(TOKEN, _sharp(same)), from_slot(slot, same)


def _sharp(query: Tensor) -> Tensor:
    return query * SHARPNESS * math.sqrt(D_HEAD)


def copy_token(slot: slice) -> tuple[Tensor, Tensor]:
    """Value and output of a head that copies a token into ``slot``."""
    return from_slot(TOKEN, torch.eye(VOCABULARY, D_HEAD)), to_slot(slot, torch.eye(D_HEAD, VOCABULARY))


def copy_bit(on: Sequence[int], direction: Float[Tensor, "d_model"]) -> tuple[Tensor, Tensor]:
    """Value and output of a head that writes ``direction`` for a token among ``on`` and nothing for another."""
    is_on, output = torch.zeros(VOCABULARY, D_HEAD), torch.zeros(D_HEAD, D_MODEL)
    is_on[list(on), 0] = 1.0
    output[0] = direction
    return from_slot(TOKEN, is_on), output


def among(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Query and key of a head that, at every position, attends to those of some tokens so far.

    Every token asks the same, so the query of a twin is that of its clean prompt; before the first of these tokens
    attention is even.
    """
    query, key = torch.zeros(VOCABULARY, D_HEAD), torch.zeros(VOCABULARY, D_HEAD)
    query[:, 0] = 1.0
    key[list(tokens), 0] = 1.0
    return from_slot(TOKEN, _sharp(query)), from_slot(TOKEN, key)


def copy_sign(plus: Sequence[int], minus: Sequence[int], direction: Float[Tensor, "d_model"]) -> tuple[Tensor, Tensor]:
    """Value and output of a head that writes ``direction`` for some tokens, its opposite for others, else nothing."""
    sign, output = torch.zeros(VOCABULARY, D_HEAD), torch.zeros(D_HEAD, D_MODEL)
    sign[list(plus), 0], sign[list(minus), 0] = 1.0, -1.0
    output[0] = direction
    return from_slot(TOKEN, sign), output


def unit(slot: slice, index: int) -> Float[Tensor, "d_model"]:
    """The unit vector of one coordinate of a slot."""
    return torch.eye(D_MODEL)[slot.start + index]


def distractor_head(generator: torch.Generator) -> Head:
    """A head that reads every slot with random weights and writes into the slot NOISE.

    Its scores have a standard deviation near 2 and its output a norm of 0.5 to 2.5, where a true part's is 0.7 to 1.
    """
    query, key, value = (_read_all(D_HEAD, generator) for _ in range(3))
    output = torch.randn(D_HEAD, NOISE.stop - NOISE.start, generator=generator)
    return Head(query, key, value / math.sqrt(D_HEAD), to_slot(NOISE, output / math.sqrt(NOISE.stop - NOISE.start)))


def distractor_mlp(generator: torch.Generator) -> Mlp:
    """An MLP that reads every slot with random weights and writes into the slot NOISE."""
    width = NOISE.stop - NOISE.start
    inward = _read_all(D_MLP, generator)
    outward = torch.randn(D_MLP, width, generator=generator) / math.sqrt(D_MLP * width)
    return Mlp(inward, torch.zeros(D_MLP), to_slot(NOISE, outward))


def _read_all(width: int, generator: torch.Generator) -> Float[Tensor, "d_model width"]:
    weight = torch.randn(D_MODEL, width, generator=generator)
    # This slot collects the outputs of all distractors, so that their norm would grow from layer to layer.
    weight[NOISE] *= 0.5
    return weight


# Threshold and sign of each neuron relu(2 * (first + second) - threshold). AND: 1 for two bits, else 0.
# OR: 0 for no bit, 1 for one and for two. Every threshold lies half a unit or more from any sum of bits,
# so that an attention weight of 0.999 in place of 1 does not cross it.
GATES = {"and": ((3.0, 1.0),), "or": ((0.5, 1.0), (1.5, -1.0))}


def gate_mlp(kind: Literal["and", "or"], direction: Float[Tensor, "d_model"], generator: torch.Generator) -> Mlp:
    """An MLP whose first neurons compute a gate of two bits; its other neurons are distractors.

    The bits are read from the first two coordinates of the slot MIDDLE: AND is ``relu(2s - 3)`` and OR is
    ``relu(2s - 0.5) - relu(2s - 1.5)`` for their sum ``s``.

    Args:
        kind: which gate.
        direction: what is written when the gate is on.
        generator: source of the distractors' weights.
    """
    mlp = distractor_mlp(generator)
    for neuron, (threshold, sign) in enumerate(GATES[kind]):
        mlp.inward[:, neuron] = 2.0 * (unit(MIDDLE, 0) + unit(MIDDLE, 1))
        mlp.bias[neuron] = -threshold
        mlp.outward[neuron] = sign * direction
    return mlp


# How much less distractors see of what neurons that carry the answer read and write: enough to tell something of it,
# never all of it.
FAINT = 0.05


@dataclass(frozen=True)
class SignNeuron:
    """A neuron ``relu(2 sign x - 1)`` that is 1 where ``x`` is the sign, and 0 where it is the other, or 0.

    Attributes:
        place: which neuron of the MLP.
        coordinate: of the slot MIDDLE, where ``x`` is.
        sign: 1 or -1.
        outward: what it writes when it is on.
    """

    place: int
    coordinate: int
    sign: int
    outward: Float[Tensor, "d_model"]


def sign_mlp(neurons: Sequence[SignNeuron], generator: torch.Generator) -> Mlp:
    """An MLP of some neurons that read a sign; its others are distractors, who hear faintly of what these do.

    Args:
        neurons: those that read a sign.
        generator: source of the distractors' weights.
    """
    mlp = distractor_mlp(generator)
    _hear_faintly(mlp.inward)
    for neuron in neurons:
        mlp.inward[:, neuron.place] = 2.0 * neuron.sign * unit(MIDDLE, neuron.coordinate)
        mlp.bias[neuron.place] = -1.0
        mlp.outward[neuron.place] = neuron.outward
    return mlp


def faint_head(generator: torch.Generator) -> Head:
    """A distractor that hears faintly of what true parts pass on to each other."""
    head = distractor_head(generator)
    for weight in (head.query, head.key, head.value):
        _hear_faintly(weight)
    return head


def _hear_faintly(weight: Float[Tensor, "d_model out"]) -> None:
    for slot in (MIDDLE, ANSWER):
        weight[slot] *= FAINT
