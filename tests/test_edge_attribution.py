"""Gradients where every edge is kept, from plain passes: they are those of the masked run, for every architecture."""

from __future__ import annotations

import pytest
import torch
from bridges import bridged
from encoders import ENCODERS, kept_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CASES, CLEAN, CORRUPT, DTYPES, NAMES, STYLES, backend_of_style, error, fresh, model_of, probe
from test_edge_theorems import ABLATIONS, PADDED, graph_of, plain, replaced_by, run
from test_encoder_edges import CONVENTIONS, of_few, sites_of
from test_encoder_nodes import clean, corrupt, masked_of
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations
from tlprune.graph import Convention, Graph
from tlprune.masking.edges import run_edges
from tlprune.masking.gradients import clean_run, edge_gradients
from tlprune.task import Tokens

each_ablation = pytest.mark.parametrize("ablation", ABLATIONS)
styled = pytest.mark.parametrize(("style", "convention"), CASES, ids=NAMES)


def ones(graph: Graph, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(graph.n_edges, dtype=dtype, requires_grad=True)


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number."""
    assert found.shape == expected.shape and bool(expected.abs().max() > 0)
    return float((found - expected).abs().max() / expected.abs().max())


def masked_gradient(style: str, convention: Convention, ablation: str, dtype: torch.dtype) -> Tensor:
    mask = ones(graph_of(style, convention), dtype)
    return torch.autograd.grad(probe(run(style, convention, mask, ablation)), mask)[0]


def found_gradient(style: str, convention: Convention, ablation: str, dtype: torch.dtype) -> Tensor:
    backend, graph = backend_of_style(style, dtype), graph_of(style, convention)
    return edge_gradients(backend, graph, CLEAN, replaced_by(ablation, style, dtype), probe)


def smooth(style: str, convention: Convention, ablation: str) -> Tensor:
    """All edges but those of an MLP that sees one writer alone, of whose gate a masked run has no gradient."""
    graph = graph_of(style, convention)
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    alone = ablation == "zero" and convention.embeddings != "kept" and graph.architecture.parallel
    if alone and STYLES[style]["normalization_type"] is not None:
        graph.readers[1].block(kept)[:] = graph.readers[1].width > 1
    return kept


@each_ablation
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@styled
def test_gradients_are_those_of_the_masked_run(
    style: str, convention: Convention, dtype: torch.dtype, ablation: str
) -> None:
    """float32 loses what sums over tokens lose, in either way of summing."""
    kept = smooth(style, convention, ablation)
    pair = [one(style, convention, ablation, dtype)[kept] for one in (found_gradient, masked_gradient)]
    assert apart(*pair) <= {torch.float32: 1e-3, torch.float64: 1e-10}[dtype]


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("style", ["gpt2", "gemma2"])
def test_gradients_are_those_of_the_plain_reference(style: str, ablation: str) -> None:
    mask = ones(graph_of(style, Convention()))
    (expected,) = torch.autograd.grad(probe(plain(style, Convention(), mask, ablation)), mask)
    assert apart(found_gradient(style, Convention(), ablation, torch.float64), expected) <= 1e-10


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_padding_and_answer_positions_count_as_in_the_masked_run(style: str) -> None:
    backend, graph = backend_of_style(style), graph_of(style, Convention())
    twins = Tokens(PADDED.ids.flip(0), PADDED.attention_mask)
    positions = torch.tensor([[5, 2], [5, 1], [4, 4], [4, 0], [2, 1]])
    replaced, mask = backend.observe(twins), ones(graph)
    logits = run_edges(backend, graph, PADDED, mask, replaced, positions=positions)
    (expected,) = torch.autograd.grad(probe(logits), mask)
    assert apart(edge_gradients(backend, graph, PADDED, replaced, probe, positions=positions), expected) <= 1e-10


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2", "qwen3"])
def test_bridges_of_hugging_face_models(kind: str) -> None:
    """Their norms are in float32, whatever the weights are."""
    backend = backend_of(bridged(kind, torch.float32))
    graph, replaced = Graph.of(backend.model), backend.observe(CORRUPT)
    mask = ones(graph, torch.float32)
    (expected,) = torch.autograd.grad(probe(run_edges(backend, graph, CLEAN, mask, replaced)), mask)
    assert apart(edge_gradients(backend, graph, CLEAN, replaced, probe), expected) <= 1e-3


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("convention", CONVENTIONS)
@of_few
def test_encoders(name: str, convention: str, ablation: str) -> None:
    masked = masked_of(name, sites_of(convention), ablation)
    mask = ones(masked.graph)
    (expected,) = torch.autograd.grad(probe(masked(clean(name), corrupt(name), mask=mask)), mask)
    replaced = masked.ablation.replaced(masked.backend, clean(name), corrupt(name))
    assert apart(edge_gradients(masked.backend, masked.graph, clean(name), replaced, probe), expected) <= 1e-10


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("name", ENCODERS)
def test_every_head_of_an_encoder(name: str) -> None:
    backend = backend_of(kept_encoder(name))
    graph, replaced = Graph.of(backend.model), backend.observe(corrupt(name))
    mask = ones(graph)
    (expected,) = torch.autograd.grad(probe(run_edges(backend, graph, clean(name), mask, replaced)), mask)
    assert apart(edge_gradients(backend, graph, clean(name), replaced, probe), expected) <= 1e-10


def test_half_precision_agrees_in_direction() -> None:
    """bfloat16 has three digits."""
    backend, graph = backend_of(fresh("gpt2", torch.bfloat16)), graph_of("gpt2", Convention())
    found = edge_gradients(backend, graph, CLEAN, backend.observe(CORRUPT), probe)
    assert found.dtype == torch.float32
    expected = masked_gradient("gpt2", Convention(), "resample", torch.float64)
    assert float(torch.cosine_similarity(found.double(), expected, dim=0)) > 0.99


# ---- runs with writers changed


def moved(activations: Activations, layer: int, share: float) -> dict:
    return {("heads", layer): share * activations.heads[layer], ("mlp", layer): share * activations.mlps[layer]}


@pytest.mark.parametrize("style", ["gpt2", "parallel", "gemma2"])
def test_gradients_of_several_runs_are_their_sum(style: str) -> None:
    """By linearity, with the differences of the first run in all: a product of sums is a sum of products."""
    backend, graph = backend_of_style(style), graph_of(style, Convention())
    replaced, (_, sent) = backend.observe(CORRUPT), clean_run(backend, graph, CLEAN, None)
    runs = [(0.25, moved(sent, 0, 0.5)), (0.75, moved(sent, 1, 2.0)), (1.0, {})]
    whole = edge_gradients(backend, graph, CLEAN, replaced, probe, sent=sent, runs=runs)
    each = [edge_gradients(backend, graph, CLEAN, replaced, probe, sent=sent, runs=[one]) for one in runs]
    assert apart(whole, torch.stack(each).sum(0)) <= 1e-10
    assert apart(each[0], 0.25 * each[2]) > 1e-3


def test_some_writers_edges_are_part_of_the_whole() -> None:
    backend, graph = backend_of_style("gpt2"), graph_of("gpt2", Convention())
    replaced = backend.observe(CORRUPT)
    whole = edge_gradients(backend, graph, CLEAN, replaced, probe)
    parts = [slice(0, 1), slice(1, 6), slice(6, None)]
    found = [edge_gradients(backend, graph, CLEAN, replaced, probe, writers=own) for own in parts]
    assert apart(torch.stack(found).sum(0), whole) <= 1e-12
    assert [int((own != 0).sum()) for own in found] == [
        sum(len(range(readers.width)[own]) * len(readers.names) for readers in graph.readers) for own in parts
    ]


@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma2", "parallel"])
def test_a_changed_writer_is_what_readers_see(style: str) -> None:
    """With what all writers send on the twin in place of their own, the logits are the twin's."""
    backend, graph = backend_of_style(style), graph_of(style, Convention())
    _, twin = clean_run(backend, graph, CORRUPT, None)
    changes = {("input", 0): twin.streams[0]}
    changes |= {("heads", layer): z for layer, z in enumerate(twin.heads)}
    changes |= {("mlp", layer): output for layer, output in enumerate(twin.mlps)}
    seen: list[Tensor] = []

    def loss(logits: Tensor) -> Tensor:
        seen.append(logits.detach())
        return probe(logits)

    edge_gradients(backend, graph, CLEAN, backend.observe(CORRUPT), loss, sent=twin, runs=[(1.0, changes)])
    assert error(seen[0], model_of(style)(CORRUPT.ids)) <= 1e-9
