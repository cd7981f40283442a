"""Correlations of scores of neurons against scipy, and histograms of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import tlprune as tp
from tlprune.sites import Neurons, Sites

LAYERS, WIDTH = (2, 3, 5), 20
SITES = Sites((Neurons(LAYERS, WIDTH),))


def scores(seed: int, *, samples: int | None = None, sites: Sites = SITES) -> tp.Scores:
    """Predictivities of twenty examples: many are equal."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(10, 21, (samples or 1, len(sites)), generator=generator) / 20
    return tp.Scores(sites, table.mean(0), {}, None if samples is None else table)


def scipys(first: Tensor, second: Tensor) -> float:
    found: Any = spearmanr(first, second)
    return float(found.statistic)


def test_correlations_are_scipys_by_layer_and_over_all() -> None:
    tasks = {name: scores(seed) for seed, name in enumerate(("one", "two", "three"))}
    found = tp.skill_correlation(tasks)
    assert (found.names, found.layers) == (("one", "two", "three"), LAYERS)
    tables = [one.values.view(3, WIDTH) for one in tasks.values()]
    for i, first in enumerate(tables):
        for j, second in enumerate(tables):
            for layer in range(3):
                expected = scipys(first[layer], second[layer])
                assert float(found.by_layer[layer, i, j]) == pytest.approx(expected)
            assert float(found.overall[i, j]) == pytest.approx(scipys(first.flatten(), second.flatten()))
    assert found.between("three", "one") == float(found.overall[2, 0])
    assert tp.skill_correlation(tasks, layers=[5]).overall.tolist() == found.by_layer[2].tolist()


def test_trials_of_one_task_are_compared_pair_by_pair() -> None:
    several = scores(1, samples=3)
    found = tp.skill_correlation({"one": several, "single": scores(2, samples=1), "plain": scores(3)})
    assert list(found.trials) == ["one"]
    assert several.samples is not None
    tables = several.samples.view(3, 3, WIDTH)
    for layer in range(3):
        pairs = [scipys(tables[i, layer], tables[j, layer]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert float(found.trials["one"][layer]) == pytest.approx(sum(pairs) / 3)
    pairs = [scipys(tables[i].flatten(), tables[j].flatten()) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.trials_overall["one"] == pytest.approx(sum(pairs) / 3)


def test_a_layer_of_equal_scores_has_no_correlation() -> None:
    flat = tp.Scores(SITES, torch.cat([torch.full((WIDTH,), 0.5), scores(1).values[WIDTH:]]))
    found = tp.skill_correlation({"one": scores(2), "flat": flat})
    assert found.by_layer[:, 0, 1].isnan().tolist() == [True, False, False]
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [row["correlation"] is None for row in data["rows"]] == [False, True, False, False]
    assert "undefined" in str(found)
    assert found.plot().data[0].y[0] is None


def test_correlations_as_rows_and_as_figures() -> None:
    found = tp.skill_correlation({"one": scores(1, samples=2), "two": scores(2)})
    rows = [(row["first"], row["second"], row["layer"]) for row in found.rows]
    assert rows == [("one", other, layer) for other in ("two", "between trials") for layer in (None, *LAYERS)]
    assert found.rows[0]["correlation"] == found.between("one", "two")
    pair, trials = found.plot().data
    assert (pair.name, trials.name) == ("one, two", "one, between trials")
    assert [*pair.x] == [*LAYERS]
    assert [*pair.y] == found.by_layer[:, 0, 1].tolist()
    assert [*trials.y] == found.trials["one"].tolist()
    (cells,) = found.plot_tasks().data
    assert [list(row) for row in cells.z] == found.overall.tolist()


def test_scores_of_different_neurons_have_no_correlation() -> None:
    other = scores(1, sites=Sites((Neurons(LAYERS, WIDTH + 1),)))
    with pytest.raises(ValueError, match="by the same neurons"):
        tp.skill_correlation({"one": scores(1), "other": other})
    with pytest.raises(ValueError, match="the scores are of none"):
        tp.skill_correlation({})
    with pytest.raises(ValueError, match="not of 'two'"):
        tp.skill_correlation({"one": scores(1)}).between("one", "two")


def test_a_histogram_shows_every_neuron_or_the_best_of_each_layer() -> None:
    own = scores(4)
    tables = own.values.view(3, WIDTH)
    whole = tp.predictivity_histogram(own, marks={"prompt": 0.9, "chance": 0.5})
    bars = [trace for trace in whole.data if trace.type == "histogram"]
    for trace, layer, values in zip(bars, LAYERS, tables, strict=True):
        assert trace.name == f"layer {layer}"
        assert sorted(trace.x) == sorted(values.tolist())
    assert len({trace.bingroup for trace in bars}) == 1, "all layers have the same bins"
    assert [trace.name for trace in whole.data if trace.type == "scatter"] == ["prompt", "chance"]
    assert sorted({shape.x0 for shape in whole.layout.shapes}) == [0.5, 0.9]
    assert len(whole.layout.shapes) == 2 * len(LAYERS)
    best = tp.predictivity_histogram(own, fraction=0.15, layers=[3, 5])
    assert [[*trace.x] for trace in best.data] == [values.topk(3).values.tolist() for values in tables[1:]]
    with pytest.raises(ValueError, match=r"0\.01 of 20 in a layer is none"):
        tp.predictivity_histogram(own, fraction=0.01)
