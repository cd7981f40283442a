"""What other tools said of one tiny GPT-2, computed again here: scores, circuits and masked logits.

The figures are in ``tests/golden``, with the tool's commit and settings. Theirs are in float32 and ours in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from golden_model import SIZES, checksum, golden, golden_batch, golden_mask, golden_model
from torch import Tensor

import tlprune as tp
from tlprune.circuit import Circuit
from tlprune.learning.correlations import ranks
from tlprune.learning.objectives import divergence, logit_difference
from tlprune.masking.cache import reference_predictions
from tlprune.task import Stream, Task, Tokenisation

EAP_IG, AUTO_CIRCUIT = golden("eap_ig"), golden("auto_circuit")
ACDC, EDGE_PRUNING = golden("acdc"), golden("edge_pruning")
NORMAL = ("normal", False)
BATCH, HEADS = golden_batch(), SIZES["n_head"]
TASK = Task("golden", {"main": Stream(BATCH, BATCH, BATCH)}, Tokenisation(prepend_bos=False))


@pytest.fixture(scope="module")
def model() -> Any:
    return tp.bridge(golden_model())


@pytest.mark.parametrize("told", [EAP_IG, AUTO_CIRCUIT, ACDC, EDGE_PRUNING], ids=lambda told: told["about"]["tool"])
def test_the_model_is_the_one_that_was_measured(told: dict[str, Any]) -> None:
    assert checksum(golden_model(torch.float32)) == told["about"]["weights"]


# ---- EAP-IG


def in_graph_order(scores: list[float], names: list[str], model: Any) -> Tensor:
    found = dict(zip(names, scores, strict=True))
    return torch.tensor([found[name] for name in tp.edges(model).graph.edges()], dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    largest = float(theirs.abs().max())
    assert largest > 0.01
    assert float((ours - theirs).abs().max()) <= 1e-4 * largest
    assert float(torch.corrcoef(torch.stack([ranks(ours), ranks(theirs)]))[0, 1]) >= 0.999


LEFT = tp.EAPIG(points="left", steps=5)
SAME: dict[str, tp.EAP | tp.EAPIG | tp.EdgePatching] = {
    "EAP": tp.EAP(),
    "EAP-IG-inputs, 5 steps": LEFT,
    "EAP-IG-inputs, 5 steps, KL": replace(LEFT, objective=tp.KL()),
    "clean-corrupted": tp.EAPIG(points="ends", steps=1),
    "exact": tp.EdgePatching(),
}


@pytest.mark.parametrize("name", SAME)
def test_scores_are_those_of_eap_ig(model: Any, name: str) -> None:
    """Its gradients are of a batch's *mean* loss, and it divides them by the number of examples once more."""
    factor = 1 if name == "exact" else len(BATCH)
    theirs = factor * in_graph_order(EAP_IG["scores"][name], EAP_IG["edges"], model)
    assert_same(SAME[name].score(model, TASK).values, theirs)


def test_information_flow_is_that_of_eap_ig_without_positions() -> None:
    """Its input node has no position embeddings, so they have no share there; of this model it then gives NaN."""
    found = golden_model()
    torch.nn.init.zeros_(found.transformer.wpe.weight)
    model = tp.bridge(found)
    theirs = in_graph_order(EAP_IG["scores"]["information-flow-routes, positions 0"], EAP_IG["edges"], model)
    assert_same(tp.InformationFlowRoutes(flow="positions").score(model, TASK).values, theirs)


def test_the_points_of_the_paper_are_others(model: Any) -> None:
    """Its code leaves the clean end out and takes the corrupted one, where the paper does the reverse."""
    paper = replace(LEFT, points="right").score(model, TASK).values
    code = len(BATCH) * in_graph_order(EAP_IG["scores"]["EAP-IG-inputs, 5 steps"], EAP_IG["edges"], model)
    assert float((paper - code).abs().max()) > 0.05 * float(code.abs().max())


def test_a_circuit_has_the_effective_edges_and_logit_differences_of_eap_ig(model: Any) -> None:
    """Their evaluation leaves out first what is on no path, which changes no logit."""
    told = EAP_IG["circuit"]
    circuit = Circuit.from_edges(model, told["kept"])
    assert set(circuit.effective.edges) == set(told["after_prune"])
    assert 0 < len(told["after_prune"]) < len(told["kept"])
    for one in (circuit, circuit.effective):
        assert differences(model, one) == pytest.approx(told["logit_difference"], abs=1e-4)
    everything = Circuit(circuit.sites, torch.ones(len(circuit.sites), dtype=torch.bool))
    assert differences(model, everything) == pytest.approx(told["full"], abs=1e-4)


@torch.no_grad()
def differences(model: Any, circuit: Circuit) -> list[float]:
    return logit_difference(tp.Masked(model, circuit)(BATCH), BATCH).flatten().tolist()


# ---- auto-circuit


def test_eap_scores_are_those_of_auto_circuit(model: Any) -> None:
    """Its mask counts what is patched, so the gradient of its loss -LD has our sign."""
    theirs = in_graph_order(AUTO_CIRCUIT["scores"]["mask_val=0"], AUTO_CIRCUIT["edges"], model)
    assert_same(tp.EAP().score(model, TASK).values, theirs)


def test_integrated_gradients_of_auto_circuit_go_along_the_masks(model: Any) -> None:
    """All masks together at five values, both ends among them; the gradients are added up and not averaged."""
    sites = tp.edges(model)
    masked, total = tp.Masked(model, tp.Masks(sites)), torch.zeros(len(sites), dtype=torch.float64)
    for value in (1.0, 0.75, 0.5, 0.25, 0.0):
        mask = torch.full((len(sites),), value, dtype=torch.float64, requires_grad=True)
        total += torch.autograd.grad(logit_difference(masked(BATCH, mask=mask), BATCH).mean(), mask)[0]
    told = AUTO_CIRCUIT["scores"]["integrated_grad_samples=4"]
    assert_same(total, in_graph_order(told, AUTO_CIRCUIT["edges"], model))


# ---- ACDC


@pytest.fixture(scope="module")
def metric(model: Any) -> Callable[[Tensor], float]:
    """The mean KL of a hard circuit to the full model."""
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    reference = reference_predictions(masked.backend, BATCH)
    replaced = masked.ablation.replaced(masked.backend, BATCH.clean, BATCH.corrupt, masked.wanted)

    @cache
    @torch.no_grad()
    def kl(kept: tuple[bool, ...]) -> float:
        mask = torch.tensor(kept, dtype=torch.float64)
        return float(divergence(masked(BATCH, mask=mask, replaced=replaced), reference).mean())

    return lambda kept: kl(tuple(kept.tolist()))


def searched(metric: Callable[[Tensor], float], groups: list[list[int]], count: int, threshold: float) -> Tensor:
    """ACDC over groups of edges, each removed as one if the metric rises by less than the threshold."""
    kept = torch.ones(count, dtype=torch.bool)
    current = metric(kept)
    for group in groups:
        without = kept.clone()
        without[group] = False
        if torch.equal(without, kept):
            continue
        value = metric(without)
        if value - current < threshold:
            kept, current = without, value
    return kept


def default_order(model: Any) -> Iterator[str]:
    """Readers from the logits back, in the graph's order; writers from the last block back, its *first* head first."""
    graph = tp.edges(model).graph
    for name in reversed(graph.edges()):
        source, destination = name.split("->")
        if source[0] != "a":
            yield name
        elif source.endswith(f"h{HEADS - 1}"):
            yield from (f"{source[:-1]}{head}->{destination}" for head in range(HEADS))


def with_heads_first(order: list[str]) -> Iterator[tuple[str, ...]]:
    """The original's units: before a block's q, k and v edges, each of its q, k and v whole.

    It has an edge from a head's q input to its q. Without that, q is the corrupted run's, as it is without all edges
    into it.
    """
    begun: set[str] = set()
    for name in order:
        destination = name.split("->")[1]
        block = destination.split(".")[0]
        if destination[0] == "a" and block not in begun:
            begun.add(block)
            into = [one for one in order if one.split("->")[1].startswith(f"{block}.")]
            for reader in dict.fromkeys(one.split("->")[1] for one in into):
                yield tuple(one for one in into if one.endswith(f"->{reader}"))
        yield (name,)


@cache
def runs() -> dict[tuple[float, str, bool], dict[str, Any]]:
    return {(run["threshold"], run["indices_mode"], run["internal_tried"]): run for run in ACDC["runs"]}


def test_the_order_of_acdc(model: Any) -> None:
    assert list(default_order(model)) == ACDC["orders"]["reverse"]
    assert tp.edges(model).graph.edges()[::-1] == ACDC["orders"]["normal"]


@pytest.mark.parametrize("mode", ["reverse", "normal"])
@pytest.mark.parametrize("threshold", [0.001, 0.003, 0.01])
def test_acdc_keeps_the_edges_of_the_original(
    model: Any, metric: Callable[[Tensor], float], threshold: float, mode: str
) -> None:
    """With edges within heads never tried."""
    graph, told = tp.edges(model).graph, runs()[threshold, mode, False]
    groups = [[graph.index(name)] for name in ACDC["orders"][mode]]
    kept = searched(metric, groups, graph.n_edges, threshold)
    assert set(graph.edges(kept)) == set(told["kept"])
    assert metric(kept) == pytest.approx(told["kl"], abs=1e-4)


def test_tlprunes_acdc_keeps_the_edges_of_the_original(model: Any) -> None:
    """In its order ``indices_mode="normal"``, which is the graph's, reversed."""
    told = {threshold: run["kept"] for (threshold, mode, within), run in runs().items() if (mode, within) == NORMAL}
    circuits = tp.ACDC().sweep(model, TASK, list(told))
    assert [sorted(circuit.edges) for circuit in circuits] == [sorted(kept) for kept in told.values()]
    assert len({len(circuit) for circuit in circuits}) == 3


@pytest.mark.parametrize("threshold", [0.001, 0.003, 0.01])
def test_edges_within_heads_are_whole_readers(model: Any, metric: Callable[[Tensor], float], threshold: float) -> None:
    """The original as it is."""
    graph, told = tp.edges(model).graph, runs()[threshold, "reverse", True]
    groups = [[graph.index(name) for name in unit] for unit in with_heads_first(ACDC["orders"]["reverse"])]
    kept = searched(metric, groups, graph.n_edges, threshold)
    assert set(graph.edges(kept)) == set(told["kept"])
    assert set(told["kept"]) != set(runs()[threshold, "reverse", False]["kept"])


# ---- Edge Pruning


def without_output_biases() -> Any:
    """The same model with each output bias moved into the values of its block's heads, 1 / H of it to each."""
    found = golden_model()
    d_head = SIZES["n_embd"] // HEADS
    with torch.no_grad():
        for block in found.transformer.h:
            block.attn.c_proj.bias.zero_()
            block.attn.c_attn.bias[2 * SIZES["n_embd"] :: d_head] += 1 / HEADS
    return found


@torch.no_grad()
def masked_logits(model: Any, embeddings: Any, kind: str, ablation: tp.Ablation) -> Tensor:
    sites = tp.edges(model, embeddings=embeddings)
    masked = tp.Masked(model, tp.Masks(sites), ablation)
    return masked(BATCH, mask=golden_mask(len(sites), kind))[:2, 0]


def told_logits(embeddings: str, kind: str, ablation: str) -> Tensor:
    return torch.tensor(EDGE_PRUNING["logits"][f"{embeddings} {kind} {ablation}"], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("embeddings", ["separate", "kept"])
def test_masked_logits_are_those_of_edge_pruning(model: Any, embeddings: str, kind: str) -> None:
    found = masked_logits(model, embeddings, kind, tp.Resample())
    assert float((found - told_logits(embeddings, kind, "resample")).abs().max()) <= 1e-4
    sites = tp.edges(model, embeddings=embeddings)
    sparsity = 1 - float(golden_mask(len(sites), kind).mean())
    assert sparsity == pytest.approx(EDGE_PRUNING["edge_sparsity"][f"{embeddings} {kind}"], abs=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("embeddings", ["separate", "kept"])
def test_zero_ablation_of_edge_pruning_masks_output_biases_with_heads(model: Any, embeddings: str, kind: str) -> None:
    """There each head carries 1 / H of its block's output bias; here no edge does.

    So theirs is ours of the model whose output biases are moved into the heads' values.
    """
    moved, told = tp.bridge(without_output_biases()), told_logits(embeddings, kind, "zero")
    found = masked_logits(moved, embeddings, kind, tp.Zero())
    assert float((found - told).abs().max()) <= 1e-4
    assert float((masked_logits(model, embeddings, kind, tp.Zero()) - told).abs().max()) > 0.05
    assert torch.allclose(moved(BATCH.clean.ids), model(BATCH.clean.ids), atol=1e-9)
