"""Gradients of the edge engine: against the plain sum in ordinary autograd, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from styles import CASES, CLEAN, DTYPES, NAMES, STYLES, backend_of_style, error, probe, random_mask
from test_edge_theorems import ABLATIONS, graph_of, hard_where_scale_free, plain, replaced_by, run, scale_free
from torch import Tensor

from tlprune.graph import Convention
from tlprune.masking.edges import run_edges


def gradient(value: Tensor, mask: Tensor) -> Tensor:
    return torch.autograd.grad(probe(value), mask)[0]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("style", "convention"), CASES, ids=NAMES)
def test_mask_gradient_is_the_plain_one(style: str, convention: Convention, dtype: torch.dtype, ablation: str) -> None:
    """Relative to the largest gradient; float32 loses three digits more than in values, in sums over tokens."""
    mask = random_mask(graph_of(style, convention), dtype=dtype).detach()
    mask = hard_where_scale_free(style, convention, mask, ablation).requires_grad_()
    fast, slow = (gradient(one(style, convention, mask, ablation), mask) for one in (run, plain))
    others = ~scale_free(style, convention, ablation)
    scale = slow[others].abs().max()
    assert float((fast - slow)[others].abs().max() / scale) <= {torch.float32: 1e-3, torch.float64: 1e-9}[dtype]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_finite_differences(style: str, ablation: str) -> None:
    """Central differences at h = 1e-5 are off by h^2 and by rounding / h: 1e-10 of the value each."""
    graph, step = graph_of(style, Convention()), 1e-5
    mask = random_mask(graph)
    found = gradient(run(style, Convention(), mask, ablation), mask)
    smooth = (~hard_gates(style, ablation)).nonzero().flatten()
    chosen = smooth[torch.randperm(len(smooth), generator=torch.Generator().manual_seed(1))[:12]]
    for edge in chosen.tolist():
        shift = torch.zeros(graph.n_edges, dtype=torch.float64).index_fill_(0, torch.tensor(edge), step)
        ends = [probe(run(style, Convention(), (mask + sign * shift).detach(), ablation)) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert abs(float(found[edge] - expected.detach())) <= 1e-8 + 1e-6 * abs(float(expected)), graph.name(edge)


def hard_gates(style: str, ablation: str) -> Tensor:
    """Edges whose mask value counts only as zero or not: an MLP in parallel with the first attention."""
    edges = scale_free(style, Convention(), ablation)
    for readers in graph_of(style, Convention()).readers:
        if readers.kind == "attention":
            readers.block(edges)[:] = False
    return edges


@pytest.mark.parametrize("style", [style for style in STYLES if style != "no_norm"])
def test_soft_gates_behind_a_norm_have_a_gradient(style: str) -> None:
    mask = random_mask(graph_of(style, Convention()))
    found = gradient(run(style, Convention(), mask, "zero"), mask)
    first = graph_of(style, Convention()).readers[0].block(found)
    assert found.isfinite().all()
    # One head's q or k can be without effect to rounding, but not v, and not most of them.
    assert (first[len(first) // 2 :].abs() > 0).any()
    assert (first.abs() > 1e-9).float().mean() > 0.75


def test_a_mask_without_gradient_needs_none() -> None:
    mask = random_mask(graph_of("gpt2", Convention())).detach()
    assert not run("gpt2", Convention(), mask).requires_grad
    with torch.no_grad():
        assert not run("gpt2", Convention(), mask.requires_grad_()).requires_grad


@pytest.mark.parametrize("style", STYLES)
def test_gradient_of_some_masks_is_part_of_the_whole(style: str) -> None:
    """Leaves put together by ``torch.cat``; ``autograd.grad`` asked for one of them walks part of the graph."""
    graph, replaced = graph_of(style, Convention()), replaced_by("resample", style, torch.float64)
    mask = random_mask(graph)
    whole = gradient(run(style, Convention(), mask), mask).split(graph.n_edges // 3 + 1)
    for number, expected in enumerate(whole):
        leaves = [part.clone().requires_grad_() for part in mask.detach().split(graph.n_edges // 3 + 1)]
        logits = run_edges(backend_of_style(style), graph, CLEAN, torch.cat(leaves), replaced)
        (found,) = torch.autograd.grad(probe(logits), leaves[number])
        assert error(found, expected) <= 1e-12


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_gradient_where_other_masks_are_constants(trained: int) -> None:
    graph, replaced = graph_of("gpt2", Convention()), replaced_by("resample", "gpt2", torch.float64)
    mask = random_mask(graph)
    expected = gradient(run("gpt2", Convention(), mask), mask).split(graph.n_edges // 3 + 1)[trained]
    parts = list(mask.detach().split(graph.n_edges // 3 + 1))
    parts[trained] = parts[trained].clone().requires_grad_()
    logits = run_edges(backend_of_style("gpt2"), graph, CLEAN, torch.cat(parts), replaced)
    assert error(torch.autograd.grad(probe(logits), parts[trained])[0], expected) <= 1e-12
