"""Forced circuits, and what forcing a head in or out does to answers: by hand and against single evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import HEAD, UNITS, deciding_encoder, deciding_task

import tlprune as tp
from tlprune.learning.bootstrap import interval
from tlprune.studies.collection import Run, Subnetworks
from tlprune.studies.forcing import Forcing

LABELS = [0, 1, 1, 0, 1] * 4  # 12 of 20 are 1
SITES = tp.heads(tp.planted("copy").model) + tp.mlps(tp.planted("copy").model)


def circuit_of(*names: str, **provenance: Any) -> tp.Circuit:
    return tp.Circuit.from_names(SITES, names, provenance=provenance)


# ---- circuits


def test_forcing_is_a_union_and_a_difference() -> None:
    circuit, added, removed = circuit_of("a0.h0", "a0.h1", "m0"), circuit_of("a1.h3", "m0"), circuit_of("a0.h1")
    assert tp.forced(circuit, include=added.names) == circuit | added
    assert tp.forced(circuit, exclude=removed.names) == circuit - removed
    both = tp.forced(circuit, include=added.names, exclude=removed.names)
    assert both == (circuit | added) - removed
    assert tp.forced(both, include=added.names, exclude=removed.names) == both
    assert circuit.names == ["a0.h0", "a0.h1", "m0"], "the circuit itself is left as it is"


def test_sites_are_named_by_patterns() -> None:
    circuit = circuit_of("a1.h1")
    assert tp.forced(circuit, include="a0.h[01]|m*").names == ["a0.h0", "a0.h1", "a1.h1", "m0", "m1"]
    assert tp.forced(circuit, include=["a0.h[01]", "m*"], exclude="a1*").names == ["a0.h0", "a0.h1", "m0", "m1"]
    edges = tp.Circuit.from_edges(tp.planted("copy").model, ["input->m0"])
    assert tp.forced(edges, include="a1.h1->*").names == ["input->m0", "a1.h1->m1", "a1.h1->logits"]


def test_provenance_tells_what_was_forced(tmp_path: Path) -> None:
    found = {"model": {"name": "x"}, "task": {"name": "y"}, "ablation": {"name": "zero"}, "seed": 3}
    circuit = tp.forced(circuit_of("a0.h0", **found), include="m*", exclude="a0.h0")
    circuit.save(tmp_path / "circuit.json")
    told = tp.Circuit.load(tmp_path / "circuit.json").provenance
    assert told == {
        "model": {"name": "x"}, "task": {"name": "y"}, "ablation": {"name": "zero"},
        "operation": "forced", "include": ["m0", "m1"], "exclude": ["a0.h0"], "of": [found],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs sites to include or to exclude but was given none"),
        ({"include": "a9.h0"}, r"'a9.h0' is not one of these 8 heads. Nearest names: a1.h0"),
        ({"exclude": ["m0", "b*"]}, r"'b\*' is not one of these"),
        ({"include": "a0.*", "exclude": "*.h1"}, r"included or excluded but 1 are named for both, such as a0.h1"),
    ],
)
def test_bad_names_get_one_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.forced(circuit_of("a0.h0"), **options)


# ---- effects


@pytest.fixture(scope="module")
def encoder() -> Any:
    return deciding_encoder()


@pytest.fixture(scope="module")
def subnetworks(encoder: Any) -> Subnetworks:
    """Two of three units, one with the head that decides, and one of one unit without it."""
    sites = tp.nodes(encoder, "a*|m*")
    kept = {Run(0.5, 1): [HEAD, "m0"], Run(0.5, 2): ["a1.h0", "m0"], Run(0.8, 1): ["m1"]}
    return Subnetworks({run: tp.Circuit.from_names(sites, names) for run, names in kept.items()})


@pytest.fixture(scope="module")
def found(encoder: Any, subnetworks: Subnetworks) -> Forcing:
    tasks = [deciding_task(LABELS), deciding_task([1, 1, 0, 1], "few")]
    return tp.forcing(encoder, subnetworks, tasks, include=HEAD, exclude="m*", ablation=tp.Zero())


def test_the_head_that_decides_restores_the_answers(found: Forcing) -> None:
    """A tie is class 0, which 8 of 20 are, and 1 of 4."""
    changes = {
        name: {run: (one.before, one.after, one.change.value) for run, one in own.items()}
        for name, own in found.effects.items()
    }
    without, few = pytest.approx((0.4, 1, 0.6)), pytest.approx((0.25, 1, 0.75))
    assert changes == {
        "signs": {(0.5, 1): (1, 1, 0), (0.5, 2): without, (0.8, 1): without},
        "few": {(0.5, 1): (1, 1, 0), (0.5, 2): few, (0.8, 1): few},
    }
    assert found.sizes == {(0.5, 1): (2, 1), (0.5, 2): (2, 2), (0.8, 1): (1, 1)}
    assert (found.include, found.exclude) == ((HEAD,), ("m0", "m1"))


def test_means_are_over_seeds_and_their_intervals_over_examples(found: Forcing) -> None:
    mean = found.means["signs"][0.5]
    assert (mean.before, mean.after, mean.change.value) == pytest.approx((0.7, 1, 0.3))
    lost = torch.tensor(LABELS, dtype=torch.float64)  # what the second seed gets wrong, and the first right
    expected = interval(lambda change: change, lost / 2)
    assert (mean.change.low, mean.change.high) == pytest.approx((expected.low, expected.high))
    alone = interval(lambda change: change, lost)
    one = found.effects["signs"][0.5, 2].change
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high))


def test_taking_the_head_out_is_the_other_way(encoder: Any, subnetworks: Subnetworks) -> None:
    found = tp.forcing(encoder, subnetworks, deciding_task(LABELS), exclude=[HEAD], ablation=tp.Zero())
    assert [one.change.value for one in found.effects["signs"].values()] == pytest.approx([-0.6, 0, 0])


def test_effects_are_those_of_comparisons(subnetworks: Subnetworks, encoder: Any) -> None:
    task, mean = deciding_task(LABELS), tp.Mean(deciding_task([1, 1, 0, 1]).discovery.train().clean)
    found = tp.forcing(encoder, subnetworks, task, include=["a1.*", HEAD], ablation=mean, figure="kl", batch_size=3)
    for run, circuit in subnetworks.items():
        after = tp.forced(circuit, include=["a1.*", HEAD])
        paired = tp.compare(encoder, after, circuit, task, ablation=mean).differences["kl"]
        one = found.effects["signs"][run].change
        assert (one.value, one.low, one.high) == pytest.approx((paired.value, paired.low, paired.high), abs=1e-6)
    assert found.effects["signs"][0.8, 1].change.value < -0.01


def test_it_is_said_and_shown(found: Forcing) -> None:
    lines = str(found).splitlines()
    assert lines[1].split()[:7] == ["signs", "50%", "2", "to", "1.5", "0.7000", "1.0000"]
    assert lines[1].endswith("0.0000 to 0.6000")
    assert "forced in a0.h1; out m0, m1" in str(found)
    data = json.loads(json.dumps(found.as_dict()))
    assert data["domains"]["few"][0]["subnetworks"][1]["after"] == 1
    bars, others, dots, _ = found.plot().data
    assert [*bars.x] == ["signs", "few"]
    assert [*bars.y] == pytest.approx([0.3, 0.375])
    assert [*others.y] == pytest.approx([0.6, 0.75])
    assert [*dots.y] == pytest.approx([0, 0.6, 0, 0.75])


def test_a_unit_of_no_model_is_refused_before_anything_is_run(subnetworks: Subnetworks) -> None:
    with pytest.raises(ValueError, match=r"'a0.h9' is not one of these 6 nodes"):
        tp.forcing(None, subnetworks, deciding_task([0, 1]), include="a0.h9")
    assert len(UNITS) == len(subnetworks.sites)
