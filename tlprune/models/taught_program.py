"""The small program that the taught model was trained to run: its prompts, its variables, and what interchanging does.

A prompt is ``START flag key value key value key value key value query``, with the same four keys in any order. The
program looks up the value behind the queried key, and the flag decides whether its class is the answer or the opposite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

START = 0
FLAGS = range(1, 5)  # the upper half turns the answer round
KEYS = range(5, 9)
VALUES = range(9, 15)  # the upper half is on
YES, NO = 15, 16
VOCABULARY, CONTEXT = 17, 11
FLAG_PLACE, QUERY_PLACE = 1, CONTEXT - 1
KEY_PLACES = slice(2, QUERY_PLACE, 2)
VALUE_PLACES = slice(3, QUERY_PLACE, 2)

PREVIOUS, LOOKUP, FLAG, CLASS, EITHER = "a0.h2", "a1.h1", "a1.h3", "m0", "m2"
PROGRAM_EDGES: tuple[str, ...] = (
    f"input->{PREVIOUS}<v>",
    f"input->{CLASS}",
    f"input->{LOOKUP}<q>",
    f"{PREVIOUS}->{LOOKUP}<k>",
    f"{CLASS}->{LOOKUP}<v>",
    f"input->{FLAG}<v>",
    f"{LOOKUP}->{EITHER}",
    f"{FLAG}->{EITHER}",
    f"{EITHER}->logits",
)
Prompts = Int[Tensor, "example pos"]
Bits = Bool[Tensor, "example"]


@dataclass(frozen=True)
class Variables:
    """What each part of the program computes.

    Attributes:
        keys: behind each value, the key before it: what ``PREVIOUS`` writes.
        classes: whether each value is on: what ``CLASS`` writes.
        place: which value is looked up.
        found: its class: what ``LOOKUP`` writes.
        turned: whether the flag turns the answer round: what ``FLAG`` writes.
        answer: yes or no: what ``EITHER`` writes, and the logits show.
    """

    keys: Int[Tensor, "example key"]
    classes: Bool[Tensor, "example key"]
    place: Int[Tensor, "example"]
    found: Bits
    turned: Bits
    answer: Bits


def draw_prompts(count: int, generator: torch.Generator) -> Prompts:
    """Random prompts: every flag, order of keys, value and query is as probable as another.

    Example:
        >>> draw_prompts(1, torch.Generator().manual_seed(0)).tolist()
        [[0, 1, 6, 12, 7, 10, 8, 10, 5, 10, 8]]
    """
    prompts = torch.full((count, CONTEXT), START)
    prompts[:, FLAG_PLACE] = _drawn(FLAGS, (count,), generator)
    prompts[:, KEY_PLACES] = KEYS.start + torch.rand(count, len(KEYS), generator=generator).argsort(1)
    prompts[:, VALUE_PLACES] = _drawn(VALUES, (count, len(KEYS)), generator)
    prompts[:, QUERY_PLACE] = _drawn(KEYS, (count,), generator)
    return prompts


def _drawn(tokens: range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(tokens.start, tokens.stop, shape, generator=generator)


def program(prompts: Prompts) -> Variables:
    """The program's run: the answer is whether the looked-up value is on, or the opposite where the flag says so.

    Example:
        >>> prompt = [START, 1, 5, 9, 6, 14, 7, 9, 8, 9, 6]
        >>> run = program(torch.tensor([prompt, [START, 4, *prompt[2:]]]))
        >>> run.place.tolist(), run.found.tolist(), run.turned.tolist(), run.answer.tolist()
        ([1, 1], [True, True], [False, True], [True, False])
    """
    return interchanged(prompts, prompts, {})


def interchanged(prompts: Prompts, others: Prompts, resampled: Mapping[str, Bits]) -> Variables:
    """The program's run when some of its edges carry what they carry on other prompts.

    Args:
        prompts: the prompts that it runs on.
        others: prompts whose variables replace those of these.
        resampled: for edges of :data:`PROGRAM_EDGES`, in which examples they are replaced; others are not.
    """

    def carried(edge: str, here: Tensor, there: Tensor) -> Tensor:
        chosen = resampled.get(edge, torch.zeros(len(prompts), dtype=torch.bool))
        return torch.where(chosen.view(-1, *[1] * (here.dim() - 1)), there, here)

    found_there, turned_there = _looked_up(others), _turned(others)
    keys = carried(f"input->{PREVIOUS}<v>", prompts[:, KEY_PLACES], others[:, KEY_PLACES])
    classes = carried(f"input->{CLASS}", _on(prompts), _on(others))
    query = carried(f"input->{LOOKUP}<q>", prompts[:, QUERY_PLACE], others[:, QUERY_PLACE])
    place = _place(carried(f"{PREVIOUS}->{LOOKUP}<k>", keys, others[:, KEY_PLACES]), query)
    found = _at(carried(f"{CLASS}->{LOOKUP}<v>", classes, _on(others)), place)
    turned = carried(f"input->{FLAG}<v>", _turned(prompts), turned_there)
    either = carried(f"{LOOKUP}->{EITHER}", found, found_there) ^ carried(f"{FLAG}->{EITHER}", turned, turned_there)
    answer = carried(f"{EITHER}->logits", either, found_there ^ turned_there)
    return Variables(keys, classes, place, found, turned, answer)


def _on(prompts: Prompts) -> Bool[Tensor, "example key"]:
    return prompts[:, VALUE_PLACES] >= VALUES.start + len(VALUES) // 2


def _turned(prompts: Prompts) -> Bits:
    return prompts[:, FLAG_PLACE] >= FLAGS.start + len(FLAGS) // 2


def _place(keys: Tensor, query: Tensor) -> Int[Tensor, "example"]:
    return (keys == query[:, None]).int().argmax(1)


def _at(classes: Tensor, place: Tensor) -> Bits:
    return classes.gather(1, place[:, None])[:, 0]


def _looked_up(prompts: Prompts) -> Bits:
    return _at(_on(prompts), _place(prompts[:, KEY_PLACES], prompts[:, QUERY_PLACE]))
