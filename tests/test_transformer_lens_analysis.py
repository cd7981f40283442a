"""TransformerLens' own attribution patching and faithfulness give the same numbers as ours.

Theirs are per position, one prompt pair at a time, on the model with every head's input and output apart. They run the
*corrupted* prompts and send clean values along an edge, so a positive score means that the clean value raises the
metric; ours run the clean prompts. So they agree with ours after clean and corrupted prompts are exchanged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from bridges import bridged
from styles import random_batch
from torch import Tensor

import tlprune as tp
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.task import Batch, Stream, Task, Tokenisation

try:
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch, faithfulness
except ImportError:
    pytest.skip("this TransformerLens has no attribution patching of edges", allow_module_level=True)


def with_one_answer(batch: Batch) -> Batch:
    """The same prompts, all with the answer of the first: theirs has one metric for all prompts."""
    return replace(batch, answers=batch.answers[:1].expand(3, 1), foils=batch.foils[:1].expand(3, 1))


BATCH = with_one_answer(random_batch(examples=3, length=5))
EXCHANGED = replace(BATCH, clean=BATCH.corrupt, corrupt=BATCH.clean)
EDGES = EdgeAttributionConfig(granularity="edge")


@pytest.fixture(scope="module", params=["gpt2", "neox", "neox_serial"])
def model(request: pytest.FixtureRequest) -> Any:
    """Theirs needs a bridge of a Hugging Face model without grouped-query attention."""
    return bridged(request.param)


def difference(logits: Tensor) -> Tensor:
    """The logit difference of one prompt."""
    return logits[0, -1, BATCH.answers[0, 0]] - logits[0, -1, BATCH.foils[0, 0]]


def eap(model: Any, batch: Batch) -> Tensor:
    """Scores of the loss -LD, over a batch of one split."""
    task = Task("random", {"main": Stream(batch, batch, batch)}, Tokenisation(prepend_bos=False))
    return tp.EAP().score(model, task).values


def name_of(writer: Any, reader: Any) -> str:
    """The name of an edge of theirs, without its position."""
    source = {"embed": "input", "mlp_out": f"m{writer.layer}"}.get(writer.kind, f"a{writer.layer}.h{writer.head}")
    head = f"a{reader.layer}.h{reader.head}<{reader.kind[0]}>"
    destination = {"logits": "logits", "mlp_in": f"m{reader.layer}"}.get(reader.kind, head)
    return f"{source}->{destination}"


def test_edge_scores_summed_over_positions_are_eap_of_exchanged_prompts(model: Any) -> None:
    """Of the loss -LD where theirs is of LD, so with the other sign."""
    result = attribution_patch(model, BATCH.clean.ids, BATCH.corrupt.ids, difference, EDGES)
    theirs: Counter[str] = Counter()
    for (writer, reader), score in result.edge_scores.items():
        theirs[name_of(writer, reader)] -= score
    ours = dict(zip(Graph.of(model).edges(), eap(model, EXCHANGED).tolist(), strict=True))
    assert set(theirs) == set(ours)
    largest = max(map(abs, ours.values()))
    assert largest > 1e-3
    assert max(abs(theirs[name] - score) for name, score in ours.items()) <= 1e-6 * largest


def test_prompts_that_are_not_exchanged_give_other_scores(model: Any) -> None:
    """The gradient is taken at the other end."""
    first, second = eap(model, BATCH), eap(model, EXCHANGED)
    assert float((first - second).abs().max()) > 0.1 * float(second.abs().max())


def test_faithfulness_of_a_circuit_is_the_same(model: Any) -> None:
    """Theirs is of one pair: (m(C) - m(corrupted)) / (m(clean) - m(corrupted))."""
    sites = tp.edges(model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.6
    circuit, pair = Circuit(sites, kept), BATCH.rows(torch.tensor([1]))
    every = attribution_patch(model, pair.clean.ids, pair.corrupt.ids, difference, EDGES).edge_scores
    names = set(circuit.edges)
    edges = [edge for edge in every if name_of(*edge) in names]
    theirs = faithfulness(model, pair.clean.ids, pair.corrupt.ids, difference, edges)
    ours = tp.evaluate(model, circuit, pair)
    assert theirs.full_metric == pytest.approx(ours["full model"].means()["logit_difference"], rel=1e-6)
    assert theirs.corrupt_metric == pytest.approx(ours["empty"].means()["logit_difference"], rel=1e-6)
    assert theirs.recovered == pytest.approx(ours["circuit"].means()["faithfulness"], rel=1e-6)
    assert abs(theirs.recovered - 1) > 0.1  # the circuit is neither everything nor nothing
    assert abs(theirs.recovered) > 0.1
    assert theirs.circuit_size == len(circuit) * pair.clean.ids.shape[1]
