"""The complete data of a compiled program: every input of one length, each with another one as its twin."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.models.tracr.compiled import UNDEFINED, Compiled
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens


def complete_task(program: Compiled, *, seed: int = 0) -> Task:
    """Every input of a program, answered at every position behind the first token.

    There is nothing to hold back where the data are all there are, so train, validation and test are the same
    examples. Twins are the inputs in another order, drawn so that none is its own. The foil of an answer is the twin's
    answer, or where both are one the next output; a program that gives numbers has targets instead.

    Args:
        program: the program.
        seed: of the twins.
    """
    batch = _batch(program, _other_rows(len(program.sequences), seed))
    name = program.name
    return Task(name, {MAIN: Stream(batch, batch, batch)}, Tokenisation(prepend_bos=True), {"seed": seed})


def _other_rows(count: int, seed: int) -> Int[Tensor, "sequence"]:
    """For each row another one: along one cycle through all of them."""
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = torch.empty_like(cycle)
    rows[cycle] = cycle.roll(1)
    return rows


def _batch(program: Compiled, others: Int[Tensor, "sequence"]) -> Batch:
    ids, places = program.encode(program.sequences), torch.arange(1, program.length + 1)
    nothing = torch.full((len(ids), program.length), UNDEFINED)
    answers = nothing if program.outputs is None else program.meaning
    return Batch(
        index=torch.arange(len(ids)),
        clean=Tokens(ids),
        corrupt=Tokens(ids[others]),
        positions=places.expand(len(ids), -1).clone(),
        answers=answers,
        foils=nothing if program.outputs is None else _foils(answers, answers[others], len(program.outputs)),
        targets=program.meaning if program.outputs is None else None,
    )


def _foils(answers: Tensor, others: Tensor, count: int) -> Int[Tensor, "sequence place"]:
    same = (others == answers) | (others < 0)
    return torch.where(answers < 0, UNDEFINED, torch.where(same, (answers + 1) % count, others))
