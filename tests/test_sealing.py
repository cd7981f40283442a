"""The seal: training goes on as before, and nothing of a test example comes through but how many there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from styles import random_batch

from tlprune.evaluation import evaluate
from tlprune.models.planted import planted
from tlprune.sealing import LeakageError, sealed
from tlprune.task import Batch, Stream, Task, Tokenisation

STREAMS = {
    name: Stream(*(random_batch(3, seed=3 * row + split) for split in (1, 2, 3)))
    for row, name in enumerate(("main", "control"))
}
TASK = Task("random", STREAMS, Tokenisation(True), {"seed": 1}, ("end",))
LOOKS: dict[str, Callable[[Batch], object]] = {
    **{field.name: lambda batch, name=field.name: getattr(batch, name) for field in dataclasses.fields(Batch)},
    "rows": lambda batch: batch.rows(torch.tensor([0])),
    "to": lambda batch: batch.to("cpu"),
    "split": lambda batch: list(batch.split(2)),
    "vars": vars,
    "default": lambda batch: getattr(batch, "clean", None),
    "presence": lambda batch: hasattr(batch, "labels"),
    "replaced": lambda batch: dataclasses.replace(batch, labels=None),
    "equality": lambda batch: batch == batch.__class__(3),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("stream", ["main", "control"])
def test_every_look_at_test_examples_raises(look: str, stream: str) -> None:
    batch = sealed(TASK).streams[stream].test
    with pytest.raises(LeakageError, match=r"training and validation examples only .* Use task.discovery"):
        LOOKS[look](batch)


def test_all_else_is_the_task() -> None:
    twin = sealed(TASK)
    assert len(twin.test) == 3
    assert repr(twin.test) == "SealedBatch(3)"
    assert twin.fingerprint == TASK.fingerprint
    assert (twin.name, twin.tokenisation, twin.options, twin.span_names) == (
        "random",
        TASK.tokenisation,
        TASK.options,
        ("end",),
    )
    for name in ("main", "control"):
        assert twin.discovery.train(name) is TASK.streams[name].train
        assert twin.discovery.validation(name) is TASK.streams[name].validation
    assert twin.discovery.provenance == TASK.discovery.provenance
    assert sealed(twin).fingerprint == TASK.fingerprint


def test_an_evaluation_needs_the_real_task() -> None:
    one = planted("copy")
    with pytest.raises(LeakageError):
        evaluate(one.model, one.circuit, sealed(one.task).test)
