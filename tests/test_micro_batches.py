"""Micro-batches: the gradient of the whole batch from pieces of it, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_run import DISCOVERY, RUNS, STREAMS, assert_same, masked_edges, resumed, run
from torch import Tensor

import tlprune as tp
from tlprune.learning.fit import fit
from tlprune.learning.layout import Layout
from tlprune.learning.objectives import KL
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.models.planted import planted
from tlprune.processes import Processes
from tlprune.task import Discovery

SEEN: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Counting(KL):
    """KL that notes how many examples it is asked for."""

    def __call__(self, logits: Tensor, batch: Any, reference: Tensor) -> Tensor:
        SEEN.append(len(batch))
        return super().__call__(logits, batch, reference)


@pytest.mark.parametrize("name", RUNS)
def test_pieces_train_what_the_whole_batch_trains(name: str) -> None:
    """Several terms and samples, answers of different number, masks of edges and weights, learned constants."""
    assert_same(run(name, micro_batch=2), run(name))


def test_no_run_has_more_examples_than_asked_for() -> None:
    SEEN.clear()
    fit(masked_edges(), DISCOVERY, Counting(), steps=2, batch_size=8, micro_batch=3, validate_every=1)
    assert sorted(set(SEEN)) == [2, 3]
    assert SEEN[:3] == [3, 3, 2]


def test_examples_without_an_answer_weigh_nothing() -> None:
    """Two of a batch's examples have none, so a piece of just these is no mean of anything."""
    train, validation = STREAMS["main"]
    bare = replace(train, answers=torch.where(torch.arange(len(train))[:, None] < 2, -100, train.answers))
    discovery = Discovery("random", {"main": (bare, validation)}, {"name": "random"})
    found = []
    for micro_batch in (None, 1):
        masked = masked_edges()
        history = fit(masked, discovery, steps=2, batch_size=len(train), micro_batch=micro_batch)
        found.append([*masked.masks.log_alpha.tolist(), *(step.sampled for step in history)])
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def test_a_run_goes_on_with_another_micro_batch_up_to_rounding_and_with_the_same_one_exactly(tmp_path: Path) -> None:
    whole, records = resumed(tmp_path / "whole", 8, micro_batch=2)
    for name, micro_batch in (("same", 2), ("other", 3)):
        resumed(tmp_path / name, 5, micro_batch=2)
        found = resumed(tmp_path / name, 8, micro_batch=micro_batch)
        assert [record["step"] for record in found[1]] == [5, 6, 7, 8]
        assert_same(found, (whole, records[4:]))
        assert torch.equal(found[0]["log_alpha"], whole["log_alpha"]) or name == "other"


def test_methods_that_train_masks_take_it_and_circuits_say_nothing_of_it() -> None:
    one, method = planted("and"), EdgePruning(edges=5, steps=3, batch_size=8, objective=Counting())
    whole = method.find(one.model, one.task)
    for find in (method.find, method.score):
        SEEN.clear()
        found: Any = find(one.model, one.task, micro_batch=1)
        assert set(SEEN) == {1}
        assert found.provenance == whole.provenance
    assert found.top(5).kept.equal(whole.kept)


def test_a_micro_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 example but is to have 0"):
        next(tp.steps(masked_edges(), DISCOVERY, micro_batch=0))


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("size", "part"), [(1, 1), (7, 4), (12, 3), (5, 5)])
def test_pieces_cover_every_example_once_and_evenly(size: int, part: int, count: int, micro_batch: int | None) -> None:
    parts = Layout(Processes(0, count), micro_batch).pieces(size, part)
    covered = [(number, row) for number, own in enumerate(parts) for p in own for row in range(p.begin, p.end)]
    assert covered == [divmod(row, part) for row in range(size)]
    each = [sum(p.end - p.begin for own in parts for p in own if p.process == rank) for rank in range(count)]
    assert max(each) - min(each) <= 1
    assert all(0 < p.end - p.begin <= (micro_batch or size) for own in parts for p in own)
