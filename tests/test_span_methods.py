"""Edges by span: masks agree with the plain sum, scores add up to those without spans, and planted places are found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, backend_of_style, error, model_of, probe, random_batch

import tlprune as tp
from tlprune.masking.gradients import edge_gradients
from tlprune.masking.plain import plain_run
from tlprune.task import MAIN, Discovery
from tlprune.tasks import covered

NAMES = ("subject", "verb")
SPANS = torch.tensor([[-1, 0, 0, -1, 1, -1], [0, 1, 1, 1, -1, 0], [-1] * 6])


def values_of(sites: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(len(sites), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("style", ["gpt2", "llama", "no_norm"])
def test_masks_by_span_are_the_plain_sum(style: str) -> None:
    """``x_r = sum_w [m_{wr,s(p)} x_w + (1 - m_{wr,s(p)}) x~_w]`` at position p, and so its gradient by every mask."""
    backend = backend_of_style(style)
    sites = tp.edges(backend.model, spans=NAMES)
    masked = tp.Masked(backend.model, tp.Masks(sites), tp.Resample())
    fast, slow = (values_of(sites).requires_grad_() for _ in range(2))
    found = masked(CLEAN, CORRUPT, mask=fast, spans=SPANS)
    by_position = slow.view(3, -1)[torch.where(SPANS < 0, 2, SPANS)]
    replaced = backend.observe(CORRUPT)
    expected = plain_run(backend.model, sites.graph, CLEAN, by_position, replaced)
    assert error(found, expected) <= 1e-9
    gradients = [torch.autograd.grad(probe(logits), mask)[0] for logits, mask in ((found, fast), (expected, slow))]
    assert error(gradients[0], gradients[1]) <= 1e-9
    ones, zeros = torch.ones(len(sites), dtype=torch.float64), torch.zeros(len(sites), dtype=torch.float64)
    assert error(masked(CLEAN, CORRUPT, mask=ones, spans=SPANS), backend.logits(CLEAN, None)) <= 1e-9
    assert error(masked(CLEAN, CORRUPT, mask=zeros, spans=SPANS), backend.logits(CORRUPT, None)) <= 1e-9
    same = values_of(sites)[: sites.graph.n_edges]
    ordinary = tp.Masked(backend.model, tp.Masks(tp.edges(backend.model)), tp.Resample())
    assert error(masked(CLEAN, CORRUPT, mask=same.repeat(3), spans=SPANS), ordinary(CLEAN, CORRUPT, mask=same)) <= 1e-9


@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero()], ids=["resample", "zero"])
@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
def test_gradients_by_span_are_those_of_the_masked_run(style: str, ablation: Any) -> None:
    backend = backend_of_style(style)
    sites = tp.edges(backend.model, spans=NAMES)
    replaced = ablation.replaced(backend, CLEAN, CORRUPT)
    place = torch.where(SPANS < 0, 2, SPANS).flatten()
    groups = [(place == span).nonzero().flatten() for span in range(3)]
    found = edge_gradients(backend, sites.graph, CLEAN, replaced, probe, groups=groups)
    mask = torch.ones(len(sites), dtype=torch.float64, requires_grad=True)
    logits = tp.Masked(backend.model, tp.Masks(sites), ablation)(CLEAN, CORRUPT, mask=mask, spans=SPANS)
    expected = torch.autograd.grad(probe(logits), mask)[0].view(3, -1)
    known = torch.ones(sites.graph.n_edges, dtype=torch.bool)
    if style == "parallel" and isinstance(ablation, tp.Zero):
        sites.graph.readers[1].block(known)[:] = False  # gated by whether its mask is above 0, so without gradient
    assert error(found[:, known], expected[:, known]) <= 1e-9
    whole = edge_gradients(backend, sites.graph, CLEAN, replaced, probe)
    assert error(found.sum(0), whole) <= 1e-12


@pytest.mark.parametrize("method", [tp.EAP, tp.EAPIG, tp.RelP])
@pytest.mark.parametrize("whole", [False, True])
def test_scores_by_span_add_up_to_those_without(method: Any, whole: bool) -> None:
    planted = tp.planted("induction", seed=1)
    task = covered(planted.task) if whole else planted.task
    by_span = method(edges=5, spans=task.span_names).score(planted.model, task)
    together = method(edges=5).score(planted.model, task)
    assert error(by_span.values.view(-1, 110).sum(0), together.values) <= 1e-5
    assert len(by_span.values) == 110 * (len(task.span_names) + (not whole))


# Where each true edge of a planted circuit carries what the answer hangs on: the span of its reader.
TRUE_SPANS = {
    "copy": ["copied", "end"],
    "and": ["x", "end", "y", "end", "end"],
    "adder": ["x", "end", "y", "end"],
    "sentiment": ["word", "end", "end", "end", "end"],
}


def true_places(name: str, seed: int) -> tuple[Any, Any]:
    planted = tp.planted(name, seed=seed)
    sites = tp.edges(planted.model, spans=planted.task.span_names)
    told = {"v": iter([span for span in TRUE_SPANS[name] if span != "end"])}
    heads = [edge for edge in planted.explanation.split() if edge.startswith("a0.h") or edge.startswith("a1.h")]
    order = {head.rstrip(","): number for number, head in reversed(list(enumerate(heads)))}
    inward = sorted((edge for edge in planted.circuit.edges if edge.endswith("<v>")), key=lambda e: order[e[7:-3]])
    placed = {edge: next(told["v"]) for edge in inward}
    names = [f"{edge}@{placed.get(edge, 'end')}" for edge in planted.circuit.edges]
    return planted, tp.Circuit.from_names(sites, names)


@pytest.mark.parametrize("name", TRUE_SPANS)
def test_true_places_are_those_whose_loss_changes_the_answer(name: str) -> None:
    """Ablating one true edge at its span alone moves the answer's logits; at another span it moves none to speak of."""
    planted, true = true_places(name, 0)
    batch, kept = planted.task.test.rows(torch.arange(8)), torch.ones(len(true.sites), dtype=torch.bool)
    clean = planted.model(batch.clean.ids)[:, -1:]
    for index in range(len(kept)):
        if true.sites.name(index).partition("@")[0] not in planted.circuit.edges:
            continue
        without = kept.clone()
        without[index] = False
        moved = (tp.Masked(planted.model, true.like(without), tp.Resample())(batch) - clean).abs().amax((1, 2)).max()
        assert (moved > 1.0) == bool(true.kept[index]), true.sites.name(index)
        assert moved > 1.0 or moved < 0.1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TRUE_SPANS)
def test_methods_find_the_true_edges_at_their_places(name: str, seed: int, tmp_path: Path) -> None:
    planted, true = true_places(name, seed)
    spans = planted.task.span_names
    for method in (tp.EAP(edges=len(true), spans=spans), tp.EAPIG(edges=len(true), spans=spans)):
        found = method.find(planted.model, planted.task)
        assert found == true
        found.save(tmp_path / "found.json")
        again = tp.Circuit.load(tmp_path / "found.json")
        assert again == found
        assert tp.methods.provenance.method_from(again.provenance) == method


@pytest.mark.parametrize("name", ["copy", "adder"])
def test_pruning_finds_the_true_edges_at_their_places(name: str) -> None:
    planted, true = true_places(name, 0)
    method = tp.EdgePruning(edges=len(true), steps=80, spans=planted.task.span_names)
    found = method.find(planted.model, planted.task)
    assert found == true
    means = tp.evaluate(planted.model, found, planted.task)["circuit"].means()
    assert means["kl"] < 0.1
    assert means["accuracy"] == 1.0


def test_scores_by_span_need_prompts_with_spans() -> None:
    batch = random_batch()
    discovery = Discovery("mine", {MAIN: (batch, batch)}, {"name": "mine", "fingerprint": "x"})
    with pytest.raises(ValueError, match="need prompts that name theirs"):
        tp.EAP(spans=NAMES).score(model_of("gpt2", torch.float64), discovery)
    other = dataclasses.replace(batch, spans=SPANS, span_names=NAMES)
    discovery = dataclasses.replace(discovery, streams={MAIN: (other, other)})
    with pytest.raises(ValueError, match="differ by the spans object"):
        tp.EAP(spans=("object",)).score(model_of("gpt2", torch.float64), discovery)
