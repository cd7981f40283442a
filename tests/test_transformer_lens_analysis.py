"""TransformerLens' own attribution patching and faithfulness give the same numbers as the edge engine.

Theirs are per position, one prompt pair at a time, on the model with every head's input and output apart. They run the
*corrupted* prompts and send clean values along an edge, so a positive score means that the clean value raises the
metric; ours run the clean prompts. So they agree with ours after clean and corrupted prompts are exchanged.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from bridges import bridged
from styles import SHAPE, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.task import Batch

try:
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch, faithfulness
except ImportError:
    pytest.skip("this TransformerLens has no attribution patching of edges", allow_module_level=True)

BATCH = random_batch(examples=3, length=5)
EXCHANGED = Batch(BATCH.index, BATCH.corrupt, BATCH.clean, BATCH.positions, BATCH.answers, BATCH.foils)
EDGES = EdgeAttributionConfig(granularity="edge")


@pytest.fixture(scope="module", params=["gpt2", "neox", "neox_serial"])
def model(request: pytest.FixtureRequest) -> Any:
    """Theirs needs a bridge of a Hugging Face model without grouped-query attention."""
    return bridged(request.param)


def spread(logits: Tensor) -> Tensor:
    """A number of one prompt that depends on all its last logits."""
    return (logits[0, -1] * torch.linspace(-1, 2, SHAPE["d_vocab"], dtype=logits.dtype)).sum()


def scores_of(model: Any, batch: Batch) -> Tensor:
    """-dL/dm at m = 1, of the mean metric as a loss."""
    mask = torch.ones(len(tp.edges(model)), dtype=torch.float64, requires_grad=True)
    logits = tp.Masked(model, tp.Masks(tp.edges(model)))(batch, mask=mask)
    return -torch.autograd.grad(torch.stack([spread(row[None]) for row in logits]).mean(), mask)[0]


def name_of(writer: Any, reader: Any) -> str:
    """The name of an edge of theirs, without its position."""
    source = {"embed": "input", "mlp_out": f"m{writer.layer}"}.get(writer.kind, f"a{writer.layer}.h{writer.head}")
    head = f"a{reader.layer}.h{reader.head}<{reader.kind[0]}>"
    destination = {"logits": "logits", "mlp_in": f"m{reader.layer}"}.get(reader.kind, head)
    return f"{source}->{destination}"


def test_edge_scores_summed_over_positions_are_mask_gradients(model: Any) -> None:
    result = attribution_patch(model, BATCH.clean.ids, BATCH.corrupt.ids, spread, EDGES)
    theirs: Counter[str] = Counter()
    for (writer, reader), score in result.edge_scores.items():
        theirs[name_of(writer, reader)] += score
    ours = dict(zip(Graph.of(model).edges(), scores_of(model, EXCHANGED).tolist(), strict=True))
    assert set(theirs) == set(ours)
    largest = max(map(abs, ours.values()))
    assert largest > 1e-3
    assert max(abs(theirs[name] - score) for name, score in ours.items()) <= 1e-6 * largest


def test_clean_scores_differ_from_theirs(model: Any) -> None:
    """The gradient is taken at the other end, so that prompts that are not exchanged give other scores."""
    first, second = scores_of(model, BATCH), scores_of(model, EXCHANGED)
    assert float((first - second).abs().max()) > 0.1 * float(second.abs().max())


def test_faithfulness_of_a_circuit_is_the_same(model: Any) -> None:
    """Theirs is of one pair: (m(C) - m(corrupted)) / (m(clean) - m(corrupted))."""
    sites = tp.edges(model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.6
    names = set(sites.graph.edges(kept))
    pair = BATCH.rows(torch.tensor([1]))
    every = attribution_patch(model, pair.clean.ids, pair.corrupt.ids, spread, EDGES).edge_scores
    theirs = faithfulness(
        model, pair.clean.ids, pair.corrupt.ids, spread, [edge for edge in every if name_of(*edge) in names]
    )
    circuit, full, empty = (
        float(spread(tp.Masked(model, Circuit(sites, mask))(pair)))
        for mask in (kept, torch.ones_like(kept), torch.zeros_like(kept))
    )
    assert theirs.full_metric == pytest.approx(full, rel=1e-6)
    assert theirs.corrupt_metric == pytest.approx(empty, rel=1e-6)
    assert theirs.recovered == pytest.approx((circuit - empty) / (full - empty), rel=1e-6)
    assert abs(theirs.recovered - 1) > 0.1  # the circuit is neither everything nor nothing
    assert abs(theirs.recovered) > 0.1
    assert theirs.circuit_size == int(kept.sum()) * pair.clean.ids.shape[1]
