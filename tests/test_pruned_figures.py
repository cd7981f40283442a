"""Figures of pruned models: sizes and products counted by torch, masks compared weight by weight."""

from __future__ import annotations

import json
from itertools import combinations, product
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import encoder_of, hf_model_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import fresh
from torch.utils.flop_counter import FlopCounterMode

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.evaluation.overlap import uniform_chance
from tlprune.masking.folding import folded_parameters
from tlprune.sites import Matrix, Sites, Weights
from tlprune.task import Tokens

LENGTH = 7
MODELS: dict[str, Any] = {
    "gpt2": lambda: fresh("gpt2"),
    "llama": lambda: fresh("llama"),
    "attention only": lambda: fresh("attention_only"),
    "bridge": lambda: bridged("qwen2"),
    "bridge of gpt2": lambda: bridged("gpt2"),
    "classes": lambda: tp.bridge(hf_model_of("bert classes")),
    "words": lambda: tp.bridge(hf_model_of("roberta words")),
}


def drawn(sites: tp.Sites, share: float, seed: int = 0) -> tp.Circuit:
    return tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < share)


@pytest.mark.parametrize("name", MODELS)
def test_products_are_half_of_what_torch_counts(name: str) -> None:
    """Which counts a multiplication and an addition."""
    model = MODELS[name]()
    tokens = Tokens(torch.arange(3, 3 + LENGTH)[None])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backend_of(model).logits(tokens, None)
    found = tp.savings(model, length=LENGTH)
    assert 2 * found.flops == counter.get_total_flops()
    assert found.size == sum(p.numel() for p in backend_of(model).held().values())
    assert (found.flops_nz, found.attention_nz, found.theoretical_speedup) == (found.flops, found.attention, 1)


@pytest.mark.parametrize("name", ["gpt2", "llama", "classes"])
def test_of_single_weights_what_is_not_zero_is_counted_one_by_one(name: str) -> None:
    model = MODELS[name]()
    biases = "|blocks.*.mlp.b_out" if "blocks.0.mlp.b_out" in backend_of(model).held() else ""  # a bridge may lack them
    circuit = drawn(tp.weights(model, f"blocks.*.W_*{biases}"), 0.4)
    found = tp.savings(model, circuit, length=LENGTH)
    weights = folded_parameters(tp.Masked(model, circuit, tp.Zero()))
    assert found.size_nz == sum(int((weights[key] != 0).sum()) for key in backend_of(model).held())
    shape = backend_of(model).architecture
    attention = sum(2 * LENGTH**2 * weights[f"blocks.{layer}.attn.W_Q"].shape[-1] for layer in range(shape.n_layers))
    expected = attention * shape.n_heads
    for key, value in weights.items():
        leaf = key.rpartition(".")[2]
        if leaf.startswith("W") and leaf not in ("W_E", "W_pos", "W_token_type"):
            expected += int((value != 0).sum()) * (1 if key in ("pooler.W", "classifier.W") else LENGTH)
    assert found.flops_nz == expected
    assert found.compression_ratio == found.size / found.size_nz
    assert tp.savings(tp.Masked(model, circuit, tp.Zero()), length=LENGTH) == found


@NEEDS_HOOKED_TRANSFORMER
def test_what_is_left_of_heads_and_neurons_is_what_shrinking_leaves() -> None:
    model = encoder_of("bert classes")
    sites = tp.heads(model) + tp.neurons(model)
    circuit = drawn(sites, 0.5)
    masked = tp.Masked(model, circuit, tp.Zero())
    found, small = tp.savings(masked, length=LENGTH), tp.shrink(masked)
    assert found.size_nz == small.num_parameters()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(torch.arange(3, 3 + LENGTH)[None])
    # The shrunk model's fused attention is one operator, which torch does not count on a CPU.
    assert 2 * (found.flops_nz - found.attention_nz) == counter.get_total_flops()
    assert found.attention_nz * 12 == found.attention * circuit.count("heads")


def test_keys_and_values_go_with_the_last_of_their_heads() -> None:
    model = fresh("llama")  # 4 heads of 8 in pairs, 32 wide

    def size(removed: list[str]) -> int:
        names = [name for name in tp.heads(model).groups[0].names if name not in removed]  # pyright: ignore
        return tp.savings(model, tp.Circuit.from_names(tp.heads(model), names), length=2).size_nz

    own, biases = 8 * 32, 8
    whole = size([])
    assert whole - size(["a1.h2"]) == 2 * own + biases
    assert whole - size(["a1.h2", "a1.h3"]) == 2 * (2 * own + biases) + 2 * (own + biases)
    assert whole - size(["a1.h1", "a1.h2"]) == 2 * (2 * own + biases)


def test_figures_are_plain_data_and_nothing_left_is_no_crash() -> None:
    model = fresh("attention_only")
    sites = tp.weights(model, "*")
    found = tp.savings(model, drawn(sites, 0.0), length=3)
    assert (found.size_nz, found.flops_nz) == (0, 0)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["compression_ratio"] is None
    assert "for one prompt of 3 tokens" in str(found)


def test_bad_input_of_figures() -> None:
    model = bridged("qwen3")
    with pytest.raises(ValueError, match="1 token or more but length is 0"):
        tp.savings(model, length=0)
    with pytest.raises(ValueError, match="but these sites hold edges"):
        tp.savings(model, drawn(tp.edges(model), 0.5))
    with pytest.raises(ValueError, match="no parameter of its own"):
        tp.savings(model, drawn(tp.weights(model, "unembed.W_U"), 0.5))


# ---- overlap of masks

SITES = Sites((Weights((Matrix("W", (4, 5), (0,)), Matrix("b", (5,), ()), Matrix("V", (3, 2), (0,)))),))


def test_overlap_is_counted_weight_by_weight() -> None:
    circuits = {f"c{seed}": drawn(SITES, 0.3 + 0.2 * seed, seed) for seed in range(3)}
    found = tp.mask_overlap(circuits)
    assert [(pair.first, pair.second) for pair in found.pairs] == [*combinations(circuits, 2)]
    for pair in found.pairs:
        zeros = [{*circuits[name].complement.names} for name in (pair.first, pair.second)]
        for one in pair.matrices:
            own, its = ({name for name in removed if name.startswith(one.name + "[")} for removed in zeros)
            assert (one.both, one.either, one.removed) == (len(own & its), len(own | its), (len(own), len(its)))
            assert one.iou == len(own & its) / len(own | its)
        ious = [one.iou for one in pair.matrices]
        assert (pair.mean, pair.least, pair.most) == (pytest.approx(sum(ious) / 3), min(ious), max(ious))
        assert pair.pooled == len(zeros[0] & zeros[1]) / len(zeros[0] | zeros[1])
        assert pair.chance == pytest.approx(sum(one.chance for one in pair.matrices) / 3)
    assert found["c2", "c0"] is found.pairs[1]
    json.dumps(found.as_dict(), allow_nan=False)
    assert "c0 / c1" in str(found)
    assert found.plot().data[0].y[0] == found.pairs[0].matrices[0].iou
    assert found.plot_pairs().data[0].z[0][2] == found.pairs[1].mean


def test_chance_is_the_mean_over_all_masks_of_the_size() -> None:
    for first, second, total in product(range(4), range(4), [5]):
        own = {*range(first)}
        ious = [len(own & {*it}) / len(own | {*it}) if own or it else 1.0 for it in combinations(range(total), second)]
        assert uniform_chance(first, second, total) == pytest.approx(sum(ious) / len(ious))


def test_chance_of_a_hundred_million_weights_is_that_of_independent_ones() -> None:
    assert uniform_chance(50_000_000, 60_000_000, 100_000_000) == pytest.approx(0.3 / 0.8, rel=1e-6)


def test_tensors_of_which_nothing_is_removed_are_in_no_mean() -> None:
    kept = torch.ones(len(SITES), dtype=torch.bool)
    kept[0] = False
    pair = tp.mask_overlap({"a": tp.Circuit(SITES, kept), "b": tp.Circuit(SITES, kept)}).pairs[0]
    assert (pair.mean, pair.least, pair.most, pair.chance) == (1, 1, 1, pytest.approx(1 / 20))
    assert pair.as_dict()["matrices"][1]["iou"] is None
    whole = tp.Circuit(SITES, torch.ones(len(SITES), dtype=torch.bool))
    nothing = tp.mask_overlap({"a": whole, "b": whole})
    assert nothing.as_dict()["pairs"][0]["mean"] is None
    assert "undefined" in str(nothing)


def test_bad_input_of_overlaps() -> None:
    one = drawn(SITES, 0.5)
    with pytest.raises(ValueError, match="two circuits or more but got 1"):
        tp.mask_overlap({"a": one})
    with pytest.raises(ValueError, match="need the same sites"):
        tp.mask_overlap({"a": one, "b": drawn(Sites((Weights((Matrix("W", (4, 5), (0,)),)),)), 0.5)})
    with pytest.raises(ValueError, match="Name two of these"):
        tp.mask_overlap({"a": one, "b": one})["a", "c"]


# ---- masks told as heads


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_shares_of_heads_are_counted_weight_by_weight(name: str) -> None:
    model = MODELS[name]()
    sites = tp.weights(model, "blocks.[01].attn.W_*|blocks.0.attn.b_*|blocks.1.mlp.W_in")
    circuit = drawn(sites, 0.5)
    group = 2 if name == "llama" else 1
    lost = torch.zeros(3, 4, 2)
    for place, kept in enumerate(circuit.kept.tolist()):
        base, _, index = sites.name(place).removesuffix("]").partition("[")
        if ".attn." not in base or base.endswith("b_O"):
            continue
        own, layer, shared = int(index.split(",")[0]), int(base.split(".")[1]), base[-1] in "KV"
        for head in range(own * group, (own + 1) * group) if shared else [own]:
            lost[layer, head] += torch.tensor([float(not kept), 1.0])
    found = tp.removed_heads(circuit, model)
    torch.testing.assert_close(found.removed.float(), lost[..., 0] / lost[..., 1], equal_nan=True)
    assert bool(found.removed[2].isnan().all())
    half = {layer: (own[:, 0] >= own[:, 1] / 2).nonzero().flatten().tolist() for layer, own in enumerate(lost[:2])}
    assert found.at_least(0.5) == {layer: own for layer, own in half.items() if own}
    assert found.plot().data[0].z[0][0] == found.removed[0, 0]
    json.dumps(found.as_dict(), allow_nan=False)


def test_heads_without_output_weights_are_silent_and_only_empty_ones_gone() -> None:
    model = fresh("gpt2")
    sites = tp.weights(model, "blocks.*.attn.W_*", unit="row")
    weights = sites.group("weights")
    assert isinstance(weights, Weights)
    kept = torch.ones(len(sites), dtype=torch.bool)
    weights.split(kept)["blocks.1.attn.W_O"][2] = False
    found = tp.removed_heads(tp.Circuit(sites, kept), model)
    assert (found.silent, found.at_least(), found.at_least(0.25)) == ({1: [2]}, {}, {1: [2]})
    assert "layer 1: 2" in str(found)


def test_bad_input_of_heads() -> None:
    model = fresh("gpt2")
    with pytest.raises(ValueError, match="No weight of a head"):
        tp.removed_heads(drawn(tp.weights(model, "blocks.*.mlp.W_in"), 0.5), model)
    with pytest.raises(ValueError, match="of another model"):
        tp.removed_heads(drawn(tp.weights(model), 0.5), fresh("llama"))
    with pytest.raises(ValueError, match="weights alone but these are heads"):
        tp.removed_heads(drawn(tp.heads(model), 0.5), model)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"up to 1 but is {share}"):
            tp.removed_heads(drawn(tp.weights(model), 0.5), model).at_least(share)
