"""What subnetworks share: hand-made counts, exact chance, heat maps that hold the numbers, and the command."""

from __future__ import annotations

import itertools
import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tlprune as tp
from tlprune.cli import main
from tlprune.drawing.head_map import head_map
from tlprune.evaluation.overlap import overlap
from tlprune.sites import Nodes, Sites
from tlprune.studies.chance import Shared
from tlprune.studies.collection import Run, Subnetworks

NAMES = (*(f"a{layer}.h{head}" for layer in range(2) for head in range(3)), "m0", "m1")
SITES = Sites((Nodes("nodes", NAMES),))
KEPT = {
    (0.5, 1): ["a0.h0", "a0.h2", "m0", "m1"],
    (0.5, 2): ["a0.h0", "a1.h1", "m0", "m1"],
    (0.5, 3): ["a0.h0", "a0.h1", "a1.h1", "m1"],
    (0.75, 1): ["a0.h0", "m1"],
    (0.75, 2): ["a1.h1", "m1"],
}


@pytest.fixture(scope="module")
def found() -> Subnetworks:
    return Subnetworks({Run(*run): tp.Circuit.from_names(SITES, names) for run, names in KEPT.items()})


def test_counts_names_and_sizes_by_hand(found: Subnetworks) -> None:
    core = tp.core(found)
    assert [level.sparsity for level in core.levels] == [0.5, 0.75, None]
    half = core[0.5]
    assert half.kinds["heads"].counts == {
        "a0.h0": 3, "a0.h1": 1, "a0.h2": 1, "a1.h0": 0, "a1.h1": 2, "a1.h2": 0,
    }  # fmt: skip
    assert half.kinds["mlps"].counts == {"m0": 2, "m1": 3}
    assert (half.kinds["heads"].sizes, half.kinds["mlps"].sizes) == ((2, 2, 3), (2, 2, 1))
    assert half.kinds["all"].names == ("a0.h0", "m1")
    assert core[0.75].kinds["heads"].names == ()
    assert core[None].kinds["all"].names == ("m1",)
    assert core[None].count == 5
    for level in core.levels:
        assert list(level.kinds["all"].names) == found.core(level.sparsity).names
    assert half.kinds["heads"].histogram == (2, 2, 1, 1)
    with pytest.raises(ValueError, match=r"of sparsity 0.5, 0.75 but 0.25 was asked for"):
        core[0.25]


def test_how_alike_they_are_is_the_mean_over_pairs(found: Subnetworks) -> None:
    level = tp.core(found)[0.5]
    pairs = [overlap(*pair, chance="uniform") for pair in itertools.combinations(found.at(0.5).values(), 2)]
    assert level.iou == pytest.approx(np.mean([3 / 5, 2 / 6, 3 / 5]))
    assert level.chance == pytest.approx(np.mean([pair.chance for pair in pairs]))
    assert level.excess == pytest.approx(np.mean([pair.excess for pair in pairs]))
    alone = tp.core(found.at(0.75)).levels
    assert len(alone) == 1, "one sparsity is all there is"
    single = Subnetworks({Run(0.5, None): found[0.5, 1]})
    assert tp.core(single)[0.5].iou is None
    assert tp.core(single).as_dict()["levels"][0]["excess"] is None


def brute_force(total: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Over all choices of sets: the law of how many are in all, and the mean number in exactly 0, 1, ... of them."""
    shared, counted = np.zeros(total + 1), np.zeros(len(sizes) + 1)
    choices = [list(itertools.combinations(range(total), size)) for size in sizes]
    for sets in itertools.product(*choices):
        counts = np.zeros(total, int)
        for one in sets:
            counts[list(one)] += 1
        shared[int((counts == len(sizes)).sum())] += 1
        counted += np.bincount(counts, minlength=len(sizes) + 1)
    return shared / shared.sum(), counted / shared.sum()


@pytest.mark.parametrize(("total", "sizes"), [(5, (2, 3, 4)), (4, (1, 4, 2)), (5, (3, 3)), (3, (0, 2, 1)), (4, (2,))])
def test_chance_is_that_of_all_choices(total: int, sizes: tuple[int, ...]) -> None:
    law, counted = brute_force(total, sizes)
    for shared in range(min(sizes) + 1):
        counts = {f"m{index}": len(sizes) if index < shared else 0 for index in range(total)}
        own = Shared(counts, sizes)
        assert own.tail == pytest.approx(law[shared:].sum())
        assert own.expected == pytest.approx(law @ np.arange(total + 1))
        assert own.expected_histogram == pytest.approx(counted)


def test_chance_at_the_size_of_bert_is_that_of_a_simulation() -> None:
    """And of 12 subnetworks with half of the heads, which published 18 in all, chance has fewer than one in all."""
    total, sizes, draws = 144, (100, 90, 110, 105), 4000
    generator = torch.Generator().manual_seed(0)
    kept = torch.ones(draws, total, dtype=torch.bool)
    for size in sizes:
        places = torch.rand(draws, total, generator=generator).argsort(-1)
        kept &= places < size
    number = kept.sum(-1).double()
    limit = int(number.quantile(0.9))
    own = Shared({f"m{index}": 4 if index < limit else 0 for index in range(total)}, sizes)
    assert own.expected == pytest.approx(number.mean().item(), abs=4 * number.std().item() / draws**0.5)
    share = (number >= limit).double().mean().item()
    assert own.tail == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)
    twelve = Shared({f"m{index}": 12 if index < 18 else 0 for index in range(144)}, (72,) * 12)
    assert twelve.expected == pytest.approx(144 / 2**12)
    assert 0 < twelve.tail < 1e-30, "a sum of small numbers, not 1 less a large one"


def test_two_sets_are_hypergeometric() -> None:
    own = Shared({f"m{index}": 2 if index < 3 else 0 for index in range(9)}, (4, 5))
    assert own.tail == pytest.approx(sum(comb(4, k) * comb(5, 5 - k) for k in (3, 4)) / comb(9, 5))


def test_heat_maps_hold_the_counts(found: Subnetworks) -> None:
    figure = tp.core(found).plot()
    half, _, every = figure.data
    assert list(half.x) == ["0", "1", "2", " ", "MLP"]
    assert list(half.y) == ["0", "1"]
    assert [list(row) for row in half.z] == [[3, 1, 1, None, 2], [0, 2, 0, None, 3]]
    assert [list(row) for row in half.text] == [["<b>3</b>", "1", "1", "", "2"], ["0", "2", "0", "", "<b>3</b>"]]
    assert half.customdata[1][4] == "m1"
    assert (half.zmin, half.zmax, every.zmax) == (0, 3, 5)
    assert [list(row) for row in every.z] == [[4, 1, 1, None, 2], [0, 3, 0, None, 5]]
    assert [one.text for one in figure.layout.annotations] == [
        "50% removed: kept by how many of 3", "75% removed: kept by how many of 2", "all: kept by how many of 5",
    ]  # fmt: skip
    assert {figure.layout[name].autorange for name in ("yaxis", "yaxis2", "yaxis3")} == {"reversed"}


def test_heat_maps_of_part_of_the_sites() -> None:
    heads = head_map({"a1.h10": 1, "a0.h2": 2}, {"a1.h10": "1", "a0.h2": "2"})
    assert list(heads.x) == [str(head) for head in range(11)]
    assert (heads.z[1][10], heads.z[0][2], heads.z[0][10]) == (1, 2, None)
    mlps = head_map({"m1": 5, "input": 3}, {"m1": "5", "input": "3"})
    assert (list(mlps.x), [list(row) for row in mlps.z]) == (["MLP"], [[None], [5]])
    with pytest.raises(ValueError, match="needs heads or MLPs but these are sites such as input"):
        head_map({"input": 1}, {"input": "1"})


def test_sites_of_other_kinds_are_counted_together() -> None:
    graph = tp.planted("copy").circuit.graph
    circuits = {Run(0.8, seed): tp.connected_random(graph, 20, seed=seed) for seed in range(3)}
    level = tp.core(Subnetworks(circuits))[0.8]
    assert set(level.kinds) == {"others", "all"}
    assert level.kinds["all"].sizes == (20, 20, 20)
    assert len(str(tp.core(Subnetworks(circuits))).splitlines()) == 3, "one row, not two that say the same"
    with pytest.raises(ValueError, match="needs heads or MLPs"):
        tp.core(Subnetworks(circuits)).plot()


def test_the_table(found: Subnetworks) -> None:
    lines = str(tp.core(found)).splitlines()
    assert lines[1].split() == ["50%", "removed", "heads", "6", "3", "1", "0.33", "0.32"]
    assert lines[3].split()[:7] == ["50%", "removed", "all", "8", "3", "2", "1.00"]
    assert lines[-1] == "all: 1 kept by all of 5: m1"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    words = ["core", "prune", "--model", "planted", "--task", "planted", "--out", str(folder)]
    assert main([*words, "--sparsities", "0.5", "0.8", "--seeds", "1", "2", "--recipe", "short", "--steps", "3"]) == 0
    return folder


def test_the_command(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["core", "heads", str(study)]) == 0
    assert "wrote core.json and core.html" in capsys.readouterr().out
    told = json.loads((study / "core.json").read_text())
    assert told == tp.core(Subnetworks.load(study)).as_dict()
    assert "Heads and MLPs that subnetworks keep" in (study / "core.html").read_text()
    assert main(["core", "heads", str(study / "sparsity-0.5")]) == 2
    assert "holds no study" in capsys.readouterr().err

    def missing() -> Any:
        raise ModuleNotFoundError("plots need plotly")

    monkeypatch.setattr("tlprune.studies.core.plotly", missing)
    assert main(["core", "heads", str(study), "--out", str(study / "more")]) == 0
    assert "wrote core.json to" in capsys.readouterr().out
    assert sorted(path.name for path in (study / "more").iterdir()) == ["core.json"]
