"""Cuts of weights: per tensor, per output, in one pool and by pattern, against loops over single weights."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import encoder_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import refuses_choice
from torch import Tensor

import tlprune as tp
from tlprune.methods.provenance import method_from
from tlprune.scores import first
from tlprune.selection.within import apportioned
from tlprune.sites import Matrix, Neurons, Sites, Weights

# A head matrix, one that reads heads, a plain one, biases of one row and of heads, and a tensor of a single weight.
SHAPES = (
    Matrix("W_Q", (2, 6, 3), (1,)),
    Matrix("W_O", (2, 3, 4), (0, 1)),
    Matrix("W_in", (6, 5), (0,)),
    Matrix("b_Q", (2, 3), ()),
    Matrix("b_in", (5,), ()),
    Matrix("one", (1,), ()),
)
WEIGHTS = Weights(SHAPES)
SITES = Sites((WEIGHTS,))
COUNTS = (0, 1, 2, 7, 33, 60, len(SITES) - 1, len(SITES))


def draw(seed: int, *, ties: bool = False, sites: Sites = SITES) -> tp.Scores:
    values = torch.randn(len(sites), generator=torch.Generator().manual_seed(seed))
    return tp.Scores(sites, values.round() if ties else values, {"made": "by hand"})


def best(values: dict[Any, float], count: int) -> set[Any]:
    """By definition: the highest, and of equal ones those named first."""
    return {*sorted(values, key=lambda name: -values[name])[:count]}


def pools(scores: tp.Scores, pool: Any) -> dict[Any, dict[str, float]]:
    """Scores by site, weight by weight, in pools that a matrix and a place within it name."""
    found: dict[Any, dict[str, float]] = {}
    for matrix in SHAPES:
        for place in product(*map(range, matrix.shape)):
            name = f"{matrix.name}[{','.join(map(str, place))}]"
            found.setdefault(pool(matrix, place), {})[name] = scores[name]
    return found


def counts_of(sizes: list[int], count: int) -> list[int]:
    """Shares rounded down, and the largest fractions up."""
    exact = [Fraction(size * count, sum(sizes)) for size in sizes]
    whole = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda place: whole[place] - exact[place])
    for place in order[: count - sum(whole)]:
        whole[place] += 1
    return whole


def per_output(matrix: Matrix, place: tuple[int, ...]) -> Any:
    return matrix.name, tuple(place[axis] for axis in matrix.outputs) if matrix.inputs else ()


def per_tensor(matrix: Matrix, place: tuple[int, ...]) -> Any:
    return matrix.name


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("selection", "pool"), [(tp.PerTensor(), per_tensor), (tp.PerOutput(), per_output)], ids=["tensor", "output"]
)
def test_each_pool_keeps_its_share_of_the_best(selection: Any, pool: Any, ties: bool) -> None:
    for seed, count in enumerate(COUNTS):
        scores = draw(seed, ties=ties)
        own = pools(scores, pool)
        sizes = counts_of([len(values) for values in own.values()], count)
        expected = {name for values, size in zip(own.values(), sizes, strict=True) for name in best(values, size)}
        found = selection.select(scores, count)
        assert {*found.names} == expected
        assert len(found) == count


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_one_pool_keeps_the_best_of_all(ties: bool) -> None:
    for seed, count in enumerate(COUNTS):
        scores = draw(seed, ties=ties)
        (values,) = pools(scores, lambda matrix, place: "all").values()
        assert {*tp.Top().select(scores, count).names} == best(values, count)
        assert scores.top(count) == tp.Top().select(scores, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_best_without_sorting_are_the_best_of_a_stable_sort(dtype: torch.dtype) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).mul(8).round().to(dtype)
    values[::7], values[1::50], values[2::50] = -torch.inf, torch.inf, -0.0
    for count in (0, 1, 13, 40, 41, 700, 1500, 1800, 1999, 2000):
        kept = torch.zeros(2000, dtype=torch.bool)
        kept[values.argsort(descending=True, stable=True)[:count]] = True
        assert torch.equal(first(values, count), kept)


def test_other_selections_cut_each_tensor_as_they_cut_all() -> None:
    scores = draw(3)
    found = tp.PerTensor(tp.Ratio(0.5)).select(scores, 40)
    values = dict(zip((matrix.name for matrix in SHAPES), scores.values.split(WEIGHTS.sizes), strict=True))
    kept = WEIGHTS.split(found.kept)
    counts = counts_of([len(value) for value in values.values()], 40)
    for (name, own), count in zip(values.items(), counts, strict=True):
        helpful = first(own, round(0.5 * count))
        rest = first(own.abs().masked_fill(helpful, -torch.inf), count - int(helpful.sum()))
        assert torch.equal(kept[name].flatten(), helpful | rest)
    absolute = tp.PerTensor(tp.Top("absolute")).select(scores, 40)
    assert absolute == tp.PerTensor().select(scores.absolute, 40) == tp.PerTensor(tp.Ratio(0)).select(scores, 40)
    assert tp.PerOutput("absolute").select(scores, 40) == tp.PerOutput().select(scores.absolute, 40)


@pytest.mark.parametrize("unit", ["row", "column"])
def test_rows_and_columns_are_cut_per_tensor_too(unit: Any) -> None:
    weights = Weights(SHAPES[:3], unit)
    scores = draw(1, sites=Sites((weights,)))
    found = tp.PerTensor().select(scores, 12)
    sizes = weights.sizes
    for part, own, count in zip(
        found.kept.split(sizes), scores.values.split(sizes), counts_of([*sizes], 12), strict=True
    ):
        assert torch.equal(part, first(own, count))


def test_largest_remainders_are_exact_where_floats_are_not() -> None:
    sizes = torch.tensor([100_000_007, 99_999_989, 3, 1])
    found = apportioned(sizes, 77_777_777)
    assert found.tolist() == counts_of(sizes.tolist(), 77_777_777)
    assert apportioned(torch.tensor([1, 1, 1]), 2).tolist() == [1, 1, 0]


# ---- N:M


@pytest.mark.parametrize(("keep", "group"), [(2, 3), (1, 2), (3, 3), (5, 6), (1, 6)])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_n_of_every_m_inputs_of_each_output_stay(keep: int, group: int, ties: bool) -> None:
    def pool(matrix: Matrix, place: tuple[int, ...]) -> Any:
        number = 0
        for axis in matrix.inputs:
            number = number * matrix.shape[axis] + place[axis]
        return (*per_output(matrix, place), number // group if matrix.inputs else place)

    scores = draw(group, ties=ties)
    found = tp.NM(keep, group).select(scores, 0)
    assert {*found.names} == {n for values in pools(scores, pool).values() for n in best(values, keep)}
    biases = sum(1 for name in found.names if name.startswith(("b_", "one")))
    assert biases == 6 + 5 + 1


@NEEDS_HOOKED_TRANSFORMER
def test_the_pattern_lies_along_the_inputs_of_hugging_faces_matrices() -> None:
    """Which for ``W_O`` go on from head to head; here a head's 6 numbers are no multiple of 4."""
    model = encoder_of("bert classes")
    sites = tp.weights(model, "blocks.*.W_*")
    circuit = tp.NM(2, 4).select(draw(5, sites=sites), 0)
    exported = tp.to_huggingface(tp.Masked(model, circuit, tp.Zero()))
    layer = exported.bert.encoder.layer[1]
    for linear in (
        layer.attention.self.query,
        layer.attention.output.dense,
        layer.output.dense,
        layer.intermediate.dense,
    ):
        assert bool(((linear.weight.unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all())


# ---- provenance and misuse

ALL = (tp.PerTensor(tp.Ratio(0.25)), tp.PerOutput("absolute"), tp.NM(1, 3))


@pytest.mark.parametrize("selection", ALL, ids=str)
def test_the_circuit_says_how_it_was_cut_and_a_method_may_hold_the_cut(selection: Any) -> None:
    known = dict(selection.select(draw(0), 10).provenance)
    assert json.loads(json.dumps(known)) == known
    assert known["made"] == "by hand"
    assert known["selection"]["name"] == type(selection).__name__
    assert isinstance(selection, tp.Selection)
    random = tp.Random(selection=selection)
    planted = tp.planted("copy")
    provenance = tp.Random(edges=5).find(planted.model, planted.task).provenance
    again = {**provenance, "method": {**provenance["method"], "selection": method_data(selection)}}
    assert method_from(again).selection == random.selection


def method_data(selection: Any) -> Any:
    from tlprune.methods.provenance import plain

    return json.loads(json.dumps(plain(selection)))


@pytest.mark.parametrize("selection", ALL, ids=str)
def test_sites_that_are_no_weights_are_refused(selection: Any) -> None:
    neurons = Sites((Neurons((0,), 4),))
    both = SITES + neurons
    for sites in (neurons, both):
        with pytest.raises(ValueError, match=r"weights alone but these are .*neurons.*tp\.weights"):
            selection.select(draw(0, sites=sites), 2)


@pytest.mark.parametrize("selection", ALL[1:], ids=str)
def test_rows_have_no_single_weights_to_compare(selection: Any) -> None:
    sites = Sites((Weights(SHAPES[:3], "row"),))
    with pytest.raises(ValueError, match="single weights alone but these are rows of weights"):
        selection.select(draw(0, sites=sites), 2)


@pytest.mark.parametrize("selection", ALL[:2], ids=str)
@pytest.mark.parametrize("count", [-1, len(SITES) + 1])
def test_sizes_beyond_the_weights_are_refused(selection: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"must lie between 0 and {len(SITES)}"):
        selection.select(draw(0), count)


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2:4 needs a number of inputs that 4 divides, but W_Q has 6\. Choose"):
        tp.NM(2, 4).select(draw(0), 0)
    for keep, group in ((0, 4), (5, 4), (-1, 4)):
        with pytest.raises(ValueError, match=rf"0 < N <= M, but got {keep}:{group}\. Write"):
            tp.NM(keep, group)
    with refuses_choice("by must be 'signed' or 'absolute'"):
        tp.NM(by="size")  # pyright: ignore[reportArgumentType]
    with refuses_choice("by must be 'signed' or 'absolute'"):
        tp.PerOutput("size")  # pyright: ignore[reportArgumentType]


def test_weights_cut_from_a_bridge_are_zero_in_its_run() -> None:
    model = bridged("llama")
    sites = tp.weights(model, "blocks.*.W_*")
    circuit = tp.PerTensor().select(draw(2, sites=sites), len(sites) // 3)
    weights = sites.group("weights")
    assert isinstance(weights, Weights)
    folded: dict[str, Tensor] = weights.split(circuit.kept)
    exported = tp.to_huggingface(tp.Masked(model, circuit, tp.Zero()))
    query = exported.model.layers[1].self_attn.q_proj.weight  # (head d_head) d_model
    expected = folded["blocks.1.attn.W_Q"].permute(0, 2, 1).flatten(0, 1)
    assert torch.equal(query != 0, expected)
