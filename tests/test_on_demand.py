"""Completeness, minimality, curves and comparisons against runs of single circuits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from styles import model_of, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.evaluation.bench import Bench
from tlprune.learning.metrics import Performance, measure, measure_each
from tlprune.masking import cache

MODEL = model_of("gpt2")
GRAPH = tp.Graph.of(MODEL)
BATCH = random_batch(5, seed=2)
CIRCUIT = tp.connected_random(GRAPH, 40, seed=0)


def alone(kept: Tensor, ablation: tp.Resample | tp.Zero | None = None) -> Performance:
    return measure(tp.Masked(MODEL, CIRCUIT, ablation), kept, BATCH)


@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero()], ids=str)
def test_minimality_is_removing_each_edge_by_itself(ablation: tp.Resample | tp.Zero) -> None:
    found = tp.minimality(MODEL, CIRCUIT, BATCH, ablation=ablation, batch_size=8)
    whole = alone(CIRCUIT.kept, ablation)
    assert found.sites == tuple(CIRCUIT.edges)
    assert found.kl == pytest.approx(whole.means()["kl"], rel=1e-6)
    for place, edge in enumerate(found.sites):
        kept = CIRCUIT.kept.clone()
        kept[GRAPH.index(edge)] = False
        without = alone(kept, ablation)
        expected = without.less(whole)["kl"]
        numbers = [float(column[place]) for column in (found.rise, found.low, found.high)]
        assert numbers == pytest.approx([expected.value, expected.low, expected.high], abs=1e-5)
    assert float(found.rise.abs().max()) > 1e-3
    assert found.ablation == ablation.as_dict()


def test_every_true_edge_is_needed_and_no_other() -> None:
    gate = tp.planted("and")
    spare = [edge for edge in ("input->m0", "m0->logits", "a0.h0->m1", "a1.h1->logits") if edge not in gate.circuit]
    larger = tp.Circuit.from_edges(gate.circuit.graph, [*gate.circuit.edges, *spare])
    found = tp.minimality(gate.model, larger, gate.task)
    assert len(spare) >= 2
    assert set(found.superfluous) == set(spare)
    lines = str(found).splitlines()
    assert len(lines) == 2 + len(larger)
    assert {line.split()[0] for line in lines[1 : 1 + len(gate.circuit)]} == set(gate.circuit.edges)
    assert lines[-1].startswith(f"{len(spare)} of {len(larger)} raise it")


def test_a_long_table_shows_both_ends() -> None:
    found = tp.minimality(MODEL, CIRCUIT, BATCH)
    lines = str(found).splitlines()
    order = torch.argsort(found.rise, descending=True, stable=True).tolist()
    shown = [found.sites[place] for place in order[:10]] + ["..."] + [found.sites[place] for place in order[-10:]]
    assert [line.split()[0] for line in lines[1:-1]] == shown
    rows = found.as_dict()["sites"]
    assert [row["site"] for row in rows] == CIRCUIT.edges
    assert [row["rise"] for row in rows] == found.rise.tolist()
    json.dumps(found.as_dict(), allow_nan=False)


def test_many_edges_are_removed_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from tlprune.evaluation import minimality

    expected = tp.minimality(MODEL, CIRCUIT, BATCH).rise
    monkeypatch.setattr(minimality, "_AT_ONCE", 7)
    torch.testing.assert_close(tp.minimality(MODEL, CIRCUIT, BATCH).rise, expected, atol=1e-6, rtol=0)


def test_an_empty_circuit_has_no_edge_to_remove() -> None:
    with pytest.raises(ValueError, match="this one has none"):
        tp.minimality(MODEL, tp.Circuit.from_edges(GRAPH, []), BATCH)


def test_without_all_its_edges_a_circuit_is_empty_and_the_model_its_complement() -> None:
    found = tp.completeness(MODEL, CIRCUIT, BATCH, knockouts=2, fraction=1)
    empty, complement = alone(torch.zeros_like(CIRCUIT.kept)), alone(~CIRCUIT.kept)
    assert torch.equal(found.knockouts, CIRCUIT.kept.expand(2, -1))
    for place in range(2):
        assert float(found.circuit[place]) == pytest.approx(empty.means()["logit_difference"], abs=1e-5)
        assert float(found.model[place]) == pytest.approx(complement.means()["logit_difference"], abs=1e-5)
    expected = empty.means()["logit_difference"] - complement.means()["logit_difference"]
    assert abs(expected) > 1e-2
    assert found.incompleteness.value == pytest.approx(abs(expected), abs=1e-5)


def test_completeness_is_that_of_runs_one_by_one() -> None:
    found = tp.completeness(MODEL, CIRCUIT, BATCH, knockouts=6, metric="kl", seed=3, batch_size=7)
    counts = found.knockouts.sum(1)
    assert not (found.knockouts & ~CIRCUIT.kept).any()
    assert counts.float().mean() == pytest.approx(20, abs=8)
    assert len(set(map(tuple, found.knockouts.tolist()))) == 6
    own, full = (
        [alone(kept & ~removed).means()["kl"] for removed in found.knockouts]
        for kept in (CIRCUIT.kept, torch.ones_like(CIRCUIT.kept))
    )
    torch.testing.assert_close(found.circuit, torch.tensor(own), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.model, torch.tensor(full), atol=1e-5, rtol=1e-5)
    expected = sum(abs(a - b) for a, b in zip(own, full, strict=True)) / 6
    assert found.incompleteness.value == pytest.approx(expected, abs=1e-5)
    assert found.incompleteness.low < expected < found.incompleteness.high
    assert [row["removed"] for row in found.as_dict()["knockouts"]] == counts.tolist()
    assert len(str(found).splitlines()) == 8
    assert "mean absolute difference of kl" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_knockouts_repeat_under_a_seed() -> None:
    first, again, other = (
        tp.completeness(MODEL, CIRCUIT, BATCH, knockouts=3, seed=seed).knockouts for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_backup_left_out_makes_a_circuit_incomplete() -> None:
    """Either bit of OR suffices, so the path of one leaves the other, its backup, out."""
    gate = tp.planted("or")
    whole = tp.completeness(gate.model, gate.circuit, gate.task, knockouts=8)
    assert whole.incompleteness.value == pytest.approx(0, abs=1e-4)
    mlp = next(edge for edge in gate.circuit.edges if edge.endswith("->logits"))
    head = next(edge.partition("->")[0] for edge in gate.circuit.edges if edge.startswith("a0."))
    half = [edge for edge in gate.circuit.edges if head in edge or edge == mlp]
    part = tp.Circuit.from_edges(gate.circuit.graph, half)
    assert len(part) == 3
    found = tp.completeness(gate.model, part, gate.task, knockouts=8)
    assert found.incompleteness.low > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knockouts": 0}, "at least 1 knockout but got 0"),
        ({"fraction": 0.0}, "above 0 and at most at 1 but is 0.0"),
        ({"fraction": 1.5}, "above 0 and at most at 1 but is 1.5"),
        ({"metric": "perplexity"}, "a mean over examples but got 'perplexity'. Choose one of accuracy"),
    ],
)
def test_bad_numbers_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.completeness(MODEL, CIRCUIT, BATCH, **options)


def test_a_curve_is_its_circuits_one_by_one() -> None:
    values = torch.randn(GRAPH.n_edges, generator=torch.Generator().manual_seed(0))
    scores = tp.Scores(tp.Sites((GRAPH,)), values, {"ablation": {"name": "zero"}})
    curve = tp.faithfulness_curve(
        MODEL, scores, BATCH, counts=[50, 0, GRAPH.n_edges, 50], batch_size=8, ablation=tp.Resample()
    )
    assert [row.kept for row in curve.rows] == [0, 50, GRAPH.n_edges]
    for row in curve.rows:
        known = tp.evaluate(MODEL, scores.top(row.kept), BATCH, ablation=tp.Resample())["circuit"]
        assert row.effective == known.effective
        assert row.means() == pytest.approx(known.means(), abs=1e-5)
        assert row.faithfulness.high == pytest.approx(known.faithfulness.high, abs=1e-5)
    lines = str(curve).splitlines()
    assert [line.split()[2] for line in lines[1:-1]] == ["0", "50", f"{GRAPH.n_edges:,}"]
    assert lines[-1].endswith("resample ablation (found under zero ablation)")
    assert [row["kept"] for row in curve.as_dict()["rows"]] == [0, 50, GRAPH.n_edges]
    with pytest.raises(ValueError, match="at least one number of sites"):
        tp.faithfulness_curve(MODEL, scores, BATCH, counts=[])


def test_better_means_that_the_interval_of_the_difference_excludes_zero() -> None:
    gate = tp.planted("adder")
    half = tp.Circuit.from_edges(gate.circuit.graph, gate.circuit.edges[::2])  # one of two heads
    found = tp.compare(gate.model, half, gate.circuit, gate.task)
    assert {found.better(name) for name in found.differences} == {"second"}
    turned = tp.compare(gate.model, gate.circuit, half, gate.task)
    assert {turned.better(name) for name in turned.differences} == {"first"}
    same = tp.compare(gate.model, half, half, gate.task)
    assert {same.better(name) for name in same.differences} == {None}
    figures = found.as_dict()["figures"]
    kl = figures["kl"]
    assert kl["difference"]["value"] == pytest.approx(kl["first"] - kl["second"], rel=1e-5)
    assert figures["perplexity"]["better"] == "second"
    lines = str(found).splitlines()
    assert [line.split()[-1] for line in lines[1:-1]] == ["second"] * len(found.differences)
    assert [line.split()[-1] for line in str(same).splitlines()[1:-1]] == ["-"] * len(found.differences)


def test_circuits_of_other_graphs_and_models_are_refused() -> None:
    gate = tp.planted("and")
    with pytest.raises(ValueError, match="same sites to be compared"):
        tp.compare(gate.model, gate.circuit, CIRCUIT, gate.task)
    provenance = {"model": {"name": "another", "weights": "0"}}
    stray = tp.Circuit(tp.Sites((gate.circuit.graph,)), gate.circuit.kept, provenance)
    for first, second in ((gate.circuit, stray), (stray, gate.circuit)):
        with pytest.raises(ValueError, match="was found on model 'another'"):
            tp.compare(gate.model, first, second, gate.task)


def test_a_bench_runs_the_full_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench.of(MODEL, CIRCUIT, BATCH, ablation=None)
    bench.measure(CIRCUIT)
    monkeypatch.setattr(tp.Resample, "replaced", None)
    monkeypatch.setattr("tlprune.masking.cache.reference_predictions", None)
    bench.measure_each(CIRCUIT.kept.repeat(3, 1), batch_size=4)


@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_many_circuits_share_one_counterfactual_pass_even_where_nothing_is_kept(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no memory for replacements each example's twin is still run once for all circuits."""
    masked, runs = tp.Masked(MODEL, CIRCUIT), dict[str, list[int]](twins=[], full=[])
    replaced, predicted = tp.Resample.replaced, cache.reference_predictions

    def counted(self: tp.Resample, backend: Any, clean: tp.Tokens, corrupt: tp.Tokens, wanted: Any) -> Any:
        runs["twins"].append(len(corrupt.ids))
        return replaced(self, backend, clean, corrupt, wanted)

    def counted_full(backend: Any, batch: tp.Batch) -> Tensor:
        runs["full"].append(len(batch))
        return predicted(backend, batch)

    monkeypatch.setattr(tp.Resample, "replaced", counted)
    monkeypatch.setattr(cache, "reference_predictions", counted_full)
    forgetful = cache.RunCache(masked.backend, masked.ablation, BATCH, most_bytes=0)
    kept = torch.stack([tp.connected_random(GRAPH, 40, seed=seed).kept for seed in range(7)])
    found = measure_each(masked, kept, BATCH, cache=forgetful, batch_size=batch_size)
    assert sum(runs["twins"]) == sum(runs["full"]) == len(BATCH)
    for own, one in zip(kept, found, strict=True):
        torch.testing.assert_close(one.kl, alone(own).kl, atol=1e-6, rtol=1e-5)
