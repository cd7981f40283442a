"""Where the weights of a subnetwork lie: each figure is counted weight by weight, chance over all subnetworks."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
import torch
from bridges import bridged
from styles import fresh
from torch import Tensor

import tlprune as tp
from tlprune.knowledge.chance import Chance, Sample
from tlprune.knowledge.concentration import concentration, gini, per_neuron, top_share
from tlprune.knowledge.structure import OUTSIDE, structure
from tlprune.sites import Matrix

MODELS = {"gpt2": lambda: fresh("gpt2"), "grouped": lambda: fresh("llama"), "bridge": lambda: bridged("llama")}


def drawn(sites: tp.Sites, share: float = 0.2, *, seed: int = 0) -> tp.Circuit:
    return tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < share)


def weight_by_weight(circuit: tp.Circuit) -> dict[str, Tensor]:
    """For each matrix whether each of its weights is kept, by the names of sites alone."""
    found = {}
    for matrix in circuit.sites.groups[0].matrices:
        found[matrix.name] = torch.zeros(matrix.shape, dtype=torch.bool)
    for name in circuit.names:
        base, place = name.removesuffix("]").split("[")
        found[base][tuple(slice(None) if axis == ":" else int(axis) for axis in place.split(","))] = True
    return found


@pytest.mark.parametrize("unit", ["weight", "row", "column"])
@pytest.mark.parametrize("kind", [*MODELS])
def test_densities_are_those_counted_weight_by_weight(kind: str, unit: Any) -> None:
    model = MODELS[kind]()
    circuit = drawn(tp.weights(model, "blocks.[12].attn.W_*|blocks.[12].mlp.W_*", unit=unit))
    found, kept = structure(circuit, model, draws=3), weight_by_weight(circuit)

    def counted(own: Any) -> tuple[int, int]:
        return sum(int(own(n, k).sum()) for n, k in kept.items()), sum(own(n, k).numel() for n, k in kept.items())

    def among(part: str) -> Any:
        return lambda name, mask: mask if part in name else mask[:0]

    assert (found.whole.kept, found.whole.total) == counted(lambda name, mask: mask)
    assert {part.name: (part.kept, part.total) for part in found.layers} == {
        f"layer {layer}": counted(among(f"blocks.{layer}."))
        for layer in (1, 2)
        if counted(among(f"blocks.{layer}."))[1]
    }
    for part in found.kinds:
        assert (part.kept, part.total) == counted(among(part.name))
    assert {"attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out"} <= {p.name for p in found.kinds}
    assert ("mlp.W_gate" in {part.name for part in found.kinds}) == (kind != "gpt2")
    assert {part.name: part.kept for part in found.matrices} == {name: int(mask.sum()) for name, mask in kept.items()}
    for part in found.heads:
        layer, head = part.name[1:].split(".")
        shared = "kv" in head
        names = "KV" if shared else "QO" if kind != "gpt2" else "QKVO"
        number = int(head.removeprefix("kv" if shared else "h"))
        own = [kept[f"blocks.{layer}.attn.W_{name}"][number] for name in names]
        assert (part.kept, part.total) == (sum(int(m.sum()) for m in own), sum(m.numel() for m in own))
    layers = len(found.layers)
    assert len(found.heads) == layers * (4 if kind == "gpt2" else 6)


def test_a_mask_of_everything_and_of_nothing() -> None:
    sites = tp.weights(fresh("gpt2"), "blocks.0.*.W_*")
    for value in (True, False):
        found = structure(tp.Circuit(sites, torch.full((len(sites),), value)), draws=3)
        for part in (found.whole, *found.layers, *found.kinds, *found.heads):
            assert (part.density, part.low, part.high, part.p) == (value, value * part.total, value * part.total, 1.0)
        json.dumps(found.as_dict(), allow_nan=False)
        assert str(found)


def every_subnetwork(samples: tuple[Sample, ...], drawn: int, total: int) -> Tensor:
    """Weights of the part in each subnetwork of so many sites; the rest of the sites lie elsewhere."""
    weights = [sample.each for sample in samples for _ in range(sample.sites)]
    weights += [0] * (total - len(weights))
    return torch.tensor([float(sum(chosen)) for chosen in combinations(weights, drawn)])


@pytest.mark.parametrize("each", [(1, 1), (3, 3), (2, 5)])
def test_mean_and_spread_of_chance_are_those_over_all_subnetworks(each: tuple[int, int]) -> None:
    samples = (Sample(3, 2, each[0]), Sample(2, 1, each[1]))
    chance, counts = Chance(samples, 4, 9), every_subnetwork(samples, 4, 9)
    assert chance.mean == pytest.approx(float(counts.mean()))
    assert chance.spread == pytest.approx(float(counts.std(correction=0)))


def test_tails_of_one_unit_are_exact() -> None:
    for kept in range(6):
        samples = (Sample(3, min(kept, 3), 4), Sample(2, max(0, kept - 3), 4))
        chance, counts = Chance(samples, 4, 9), every_subnetwork(samples, 4, 9)
        if kept > 4:
            continue
        found = 4 * kept
        tails = [(counts <= found).double().mean(), (counts >= found).double().mean()]
        assert chance.p_value == pytest.approx(min(1.0, 2 * float(min(tails))))
        low, high = chance.interval()
        assert ((counts >= low) & (counts <= high)).double().mean() >= 0.95
        assert ((counts < low).double().mean() <= 0.025) and ((counts > high).double().mean() <= 0.025)
        assert (counts <= low).double().mean() > 0.025, "no narrower one would do"


def test_large_parts_have_the_tails_of_a_normal_law_that_agree_with_the_exact_ones() -> None:
    exact = Chance((Sample(40_000, 10_150),), 100_000, 400_000)
    large = Chance((Sample(80_000, 20_212),), 200_000, 800_000)
    assert exact.spread < 100 < large.spread
    assert exact.p_value == pytest.approx(0.067, abs=0.003)
    assert large.p_value == pytest.approx(0.067, abs=0.003)
    mean = large.mean
    assert large.interval() == pytest.approx((mean - 1.96 * large.spread, mean + 1.96 * large.spread), abs=0.1)


def test_a_dense_layer_is_unlike_chance_and_a_random_one_is_not() -> None:
    sites = tp.weights(fresh("gpt2"), "blocks.[12].*.W_*")
    start = len(sites) // 2
    kept = torch.zeros(len(sites), dtype=torch.bool)
    kept[start + torch.randperm(len(sites) - start, generator=torch.Generator().manual_seed(1))[:800]] = True
    found = structure(tp.Circuit(sites, kept), draws=3)
    assert [(part.name, part.unlike_chance) for part in found.layers] == [("layer 1", -1), ("layer 2", 1)]
    same = structure(drawn(sites, 0.05, seed=3), draws=3)
    assert all(part.unlike_chance == 0 for part in (*same.layers, *same.kinds, *same.heads))
    assert all(part.low <= part.expected <= part.high for part in same.heads)


def test_p_values_are_corrected_among_parts_of_one_kind() -> None:
    circuit = drawn(tp.weights(fresh("gpt2"), "blocks.[12].*.W_*"))
    found = structure(circuit, draws=3)
    one = [Chance((Sample(part.total, part.kept),), len(circuit), len(circuit.sites)).p_value for part in found.kinds]
    smallest = min(range(len(one)), key=one.__getitem__)
    assert found.kinds[smallest].p == pytest.approx(min(1, len(one) * one[smallest]))


# ---- neurons


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_weights_per_neuron_are_those_counted_by_hand(side: Any) -> None:
    model = fresh("gpt2")
    circuit = drawn(tp.weights(model, "blocks.0.attn.W_Q|blocks.0.attn.W_O|blocks.0.mlp.W_in"))
    kept = weight_by_weight(circuit)
    for matrix in circuit.sites.groups[0].matrices:
        mask, heads = kept[matrix.name], matrix.name.rpartition("_")[2]
        per_input = {"Q": lambda m: m.permute(1, 0, 2).flatten(1), "O": lambda m: m.flatten(0, 1), "in": lambda m: m}
        flat = per_input[heads](mask)
        expected = flat.sum(1) if side == "inputs" else flat.sum(0)
        assert per_neuron(matrix, mask, side).tolist() == expected.tolist()


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    counts = torch.tensor([[4, 0, 7, 1, 1], [2, 2, 2, 2, 2]])
    pairs = (counts[:, :, None] - counts[:, None]).abs().double().mean((1, 2))
    assert torch.allclose(gini(counts), pairs / (2 * counts.double().mean(1)))
    assert top_share(torch.tensor([1, 5, 2] + [0] * 97)).item() == 5 / 8
    assert top_share(torch.tensor([1, 5, 2] + [0] * 98)).item() == 7 / 8, "two of 101"


def test_chance_of_neurons_is_that_of_shuffled_masks() -> None:
    """Chance keeps the matrix' number of weights: its mean is that of shuffles, and a shuffle lies within it."""
    generator = torch.Generator().manual_seed(0)
    matrix, mask = Matrix("W", (30, 8), (0,)), torch.zeros(240, dtype=torch.bool)
    mask[:40] = True
    shuffles = [mask[torch.randperm(240, generator=generator)].view(30, 8) for _ in range(400)]
    ginis = torch.stack([gini(one.sum(1)) for one in shuffles])
    found = concentration(matrix, mask.view(30, 8), "inputs", draws=400)
    assert found.chance_gini.value == pytest.approx(float(ginis.mean()), abs=4 * float(ginis.std()) / 400**0.5)
    assert found.gini > found.chance_gini.high
    assert found.top == 8 / 40
    spread = concentration(matrix, shuffles[0], "inputs")
    assert spread.chance_gini.low <= spread.gini <= spread.chance_gini.high


def test_rows_and_columns_are_neurons_themselves() -> None:
    model = fresh("gpt2")
    for unit in ("row", "column"):
        assert structure(drawn(tp.weights(model, "blocks.0.mlp.W_*", unit=unit))).neurons == ()
    found = structure(drawn(tp.weights(model, "blocks.0.mlp.*")), draws=3)
    assert [one.matrix.rpartition(".")[2] for one in found.neurons] == ["W_in", "W_in", "W_out", "W_out"]


# ---- what is given, and what is shown


def test_shares_of_decided_sites() -> None:
    sites = tp.weights(fresh("gpt2"), "blocks.0.mlp.b_in")
    values = torch.zeros(len(sites))
    values[:12], values[12:18], values[18:24] = -10.0, 10.0, 1.0
    scores = tp.Scores(sites, values)
    circuit = scores.top(threshold=0.5)
    found = structure(circuit, scores=scores).decided
    assert found is not None
    assert (found.out, found.within, found.open) == (12 / 48, 6 / 48, 24 / 48)
    assert "25.0% <= 0.01, 12.5% >= 0.99, 50.0% 0.45-0.55" in str(structure(circuit, scores=scores))
    other = tp.weights(fresh("gpt2"), "blocks.1.mlp.b_in")
    with pytest.raises(ValueError, match="of the circuit's sites"):
        structure(circuit, scores=tp.Scores(other, values))


def test_keys_alone_need_the_model_to_be_told_from_heads() -> None:
    for model, name in ((fresh("gpt2"), "h"), (fresh("llama"), "kv")):
        circuit = drawn(tp.weights(model, "blocks.1.attn.W_K"))
        assert {part.name.split(".")[1].rstrip("0123456789") for part in structure(circuit, model).heads} == {name}


def test_embeddings_are_outside_blocks() -> None:
    found = structure(drawn(tp.weights(fresh("gpt2"), "embed.W_E|blocks.0.mlp.W_in")), draws=3)
    assert [part.name for part in found.layers] == [OUTSIDE, "layer 0"]
    assert [part.name for part in found.kinds] == ["embed.W_E", "mlp.W_in"]
    assert found.heads == ()
    with pytest.raises(ValueError, match="needs attention matrices"):
        found.plot_heads()
    assert set(found.plot().data[0].y) == {"-", "0"}


def test_what_is_no_circuit_of_this_models_weights_is_refused() -> None:
    model = fresh("gpt2")
    with pytest.raises(ValueError, match="circuit of weights alone"):
        structure(tp.Circuit.from_names(tp.heads(model), ["a0.h1"]))
    with pytest.raises(ValueError, match="of the model's own weights"):
        structure(drawn(tp.weights(model, "blocks.0.attn.W_K")), fresh("llama"))


def test_maps_have_each_part_in_its_place() -> None:
    model = fresh("llama")
    found = structure(drawn(tp.weights(model, "blocks.[12].*.W_*")), model, draws=3)
    chart = found.plot().data[0]
    for part in found.matrices:
        _, layer, kind = part.name.split(".", 2)
        assert chart.z[chart.y.index(layer)][chart.x.index(kind)] == part.density
    heads, shared = found.plot_heads().data
    named = {part.name: part.density for part in found.heads}
    assert heads.z[2][3] == named["a2.h3"]
    assert shared.z[1][1] == named["a1.kv1"]
    text = str(found)
    assert "of 12 heads those that differ most from chance" in text
    assert "inputs of mlp.W_gate" in text
