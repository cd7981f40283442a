"""Pools of weights' scores against loops, and compression ratios against counts of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import bridged, hf_model
from encoders import encoder_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import fresh, refuses_choice
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.methods.magnitude import weights_of
from tlprune.sites import Matrix, Weights

UNITS = ("row", "column", "neuron", "head", "mlp", "node")


def draw(sites: tp.Sites, seed: int = 0) -> tp.Scores:
    values = torch.randn(2, len(sites), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tp.Scores(sites, values[0], {"made": "by hand"}, values)


def members(unit: str, name: str, *, group: int) -> dict[str, Any]:
    """Which weights a unit has, as an index into each tensor."""
    if "[" in name:
        base, place = name.removesuffix("]").split("[")
        return {base: tuple(slice(None) if axis == ":" else int(axis) for axis in place.split(","))}
    layer = name[1:].partition(".")[0]
    mlp, attn = f"blocks.{layer}.mlp.", f"blocks.{layer}.attn."
    if ".n" in name:
        neuron = int(name.partition(".n")[2])
        column = (slice(None), neuron)
        return {f"{mlp}W_in": column, f"{mlp}W_gate": column, f"{mlp}b_in": neuron, f"{mlp}W_out": neuron}
    if ".h" in name:
        head = int(name.partition(".h")[2])
        shared = {f"{attn}{kind}_{part}": head // group for part in "KV" for kind in "Wb"}
        return {**{f"{attn}{part}": head for part in ("W_Q", "b_Q", "W_O")}, **shared}
    return {f"{mlp}{part}": ... for part in ("W_in", "W_gate", "b_in", "W_out", "b_out")}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_unit_has_the_scores_of_its_weights_and_no_others(style: str, unit: Any) -> None:
    model = fresh(style)
    group = 2 if style == "llama" else 1
    sites = tp.weights(model, "blocks.[02].*W_*|blocks.[02].*b_*|unembed.W_U|blocks.0.ln1.*")
    scores = draw(sites)
    weights = sites.group("weights")
    assert isinstance(weights, Weights) and scores.samples is not None
    for by in ("sum", "mean"):
        found = tp.pooled(scores, model, unit=unit, by=by)
        assert found.samples is not None
        for values, result in ((scores.values, found.values), (scores.samples[1], found.samples[1])):
            tensors = weights.split(values)
            for place in range(0, len(found.sites), max(1, len(found.sites) // 40)):
                own = members(unit, found.sites.name(place), group=group)
                numbers = torch.cat([tensors[n][i].flatten() for n, i in own.items() if n in tensors])
                assert float(result[place]) == pytest.approx(float(getattr(numbers, by)()), abs=1e-12)
        assert found.provenance["pooled"] == {"unit": unit, "by": by}
    assert found.sites == SITES[unit](model, sites)


SITES: dict[str, Any] = {
    "row": lambda model, sites: of_matrices(sites, "row"),
    "column": lambda model, sites: of_matrices(sites, "column"),
    "neuron": lambda model, sites: tp.neurons(model, "m[02]"),
    "head": lambda model, sites: tp.heads(model, "a[02]*"),
    "mlp": lambda model, sites: tp.mlps(model, "m[02]"),
    "node": lambda model, sites: tp.nodes(model, "a[02]*|m[02]"),
}


def of_matrices(sites: tp.Sites, unit: Any) -> tp.Sites:
    return tp.Sites((Weights(tuple(m for m in sites.group("weights").matrices if m.inputs), unit),))  # pyright: ignore


def magnitudes(model: Any, sites: tp.Sites) -> tp.Scores:
    parameters = backend_of(model).parameters()
    names = [matrix.name for matrix in sites.group("weights").matrices]  # pyright: ignore
    return tp.Scores(sites, torch.cat([parameters[name].detach().abs().flatten() for name in names]))


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_mean_sizes_of_nodes_are_those_of_weight_magnitude(style: str) -> None:
    model = fresh(style)
    found, nodes = tp.pooled(magnitudes(model, tp.weights(model)), model, unit="node"), tp.nodes(model, "a*|m*")
    backend = backend_of(model)
    expected = [
        torch.cat([weight.flatten() for weight in weights_of(name, backend.parameters(), backend.architecture)])
        .abs()
        .mean()
        for name in nodes.groups[0].names  # pyright: ignore
    ]
    assert found.sites == nodes
    torch.testing.assert_close(found.values, torch.stack(expected).detach(), rtol=1e-12, atol=0)


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("unit", ["neuron", "head", "mlp", "node", "row"])
def test_circuits_of_pooled_scores_shrink_the_model(unit: Any) -> None:
    name = "bert classes"
    model = encoder_of(name)
    sites = tp.weights(model, "blocks.*.W_out" if unit == "row" else "blocks.*")
    pooled = tp.pooled(magnitudes(model, sites), model, unit=unit)
    circuit = tp.PerTensor().select(pooled, 30) if unit == "row" else pooled.top(fraction=0.5)
    masked = tp.Masked(model, circuit, tp.Zero())
    small, whole = tp.shrink(masked), tp.to_huggingface(masked)
    assert small.num_parameters() < whole.num_parameters()
    ids = torch.tensor([[3, 7, 9, 4]])
    torch.testing.assert_close(small(ids).logits, whole(ids).logits, rtol=1e-10, atol=1e-12)


def test_scores_that_cannot_be_pooled_are_refused() -> None:
    model = fresh("gpt2")
    scores = draw(tp.weights(model, "blocks.0.attn.W_Q"))
    with pytest.raises(ValueError, match="pooled to a neuron over its weights, but none of these has one"):
        tp.pooled(scores, model, unit="neuron")
    with pytest.raises(ValueError, match="pooled to a row over its weights, but none"):
        tp.pooled(draw(tp.weights(model, "blocks.0.attn.b_Q")), model, unit="row")
    with pytest.raises(ValueError, match="of another one"):
        tp.pooled(scores, fresh("gpt2", n_heads=2), unit="head")
    with pytest.raises(ValueError, match="single weights alone but these are heads"):
        tp.pooled(draw(tp.heads(model)), model, unit="head")
    with refuses_choice("unit must be one of row, column"):
        tp.pooled(scores, model, unit="layer")  # pyright: ignore
    with refuses_choice("by must be one of mean, sum"):
        tp.pooled(scores, model, unit="head", by="max")  # pyright: ignore


# ---- compression ratios


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma"])
def test_what_a_bridge_holds_are_hugging_faces_parameters_each_once(kind: str) -> None:
    whole = hf_model(kind)
    total = count(whole.parameters())  # before the bridge puts parts of joined matrices beside them
    held = backend_of(tp.bridge(whole)).held()
    added = held["unembed.b_U"]  # TransformerLens gives the unembedding a bias of zeros, which the bridge then holds
    assert count(held.values()) - added.numel() == total
    assert not added.any()
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert ("unembed.W_U" not in held) == tied


@pytest.mark.parametrize("kind", ["llama", "qwen3", pytest.param("roberta classes", marks=NEEDS_HOOKED_TRANSFORMER)])
def test_the_density_leaves_as_many_parameters_as_the_ratio_says(kind: str) -> None:
    model = {"llama": fresh, "qwen3": bridged, "roberta classes": encoder_of}[kind](kind)
    sites = tp.weights(model, "blocks.*.W_*")
    total = count(backend_of(model).held().values())
    most = total / (total - len(sites))
    for ratio in (1.0, 1.1, 0.5 * (1 + most), most):
        density = tp.density_for(model, sites, ratio)
        assert total - (1 - density) * len(sites) == pytest.approx(total / ratio)
        assert 0 <= density <= 1
    assert tp.density_for(model, sites, 1) == 1
    assert tp.density_for(model, sites, most) == pytest.approx(0, abs=1e-12)
    for ratio in (0.99, -1.0, most * 1.001):
        with pytest.raises(ValueError, match=rf"lies between 1 and {most:.4g}, because .*Choose one within"):
            tp.density_for(model, sites, ratio)


def test_published_densities_of_bert_base() -> None:
    """Of its 109,483,778 parameters 85,608,192 are prunable: shares kept for 2, 3, 3.5 and 4 times fewer."""

    class Shapes:
        def held(self) -> dict[str, Tensor]:
            return {"W": torch.empty(85_608_192, device="meta"), "rest": torch.empty(23_875_586, device="meta")}

        def matrices(self) -> list[Any]:
            return [Matrix("W", (85_608_192,), ())]

    sites = tp.Sites((Weights(tuple(Shapes().matrices())),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlprune.methods.compression.backend_of", lambda model: Shapes())
        densities = [round(tp.density_for(None, sites, ratio), 4) for ratio in (2, 3, 3.5, 4)]
        with pytest.raises(ValueError, match=r"between 1 and 4\.586, because 23,875,586 of the model's 109,483,778"):
            tp.density_for(None, sites, 4.6)
    assert densities == [0.3606, 0.1474, 0.0865, 0.0408]


def test_sites_that_are_no_parameters_of_their_own_are_refused() -> None:
    tied = bridged("qwen3")
    for pattern, name in (("unembed.W_U", "unembed.W_U"), ("blocks.0.*b_O", "blocks.0.attn.b_O")):
        with pytest.raises(ValueError, match=f"counted once, but {name} is no parameter of its own"):
            tp.density_for(tied, tp.weights(tied, pattern), 1.1)
    for sites in (tp.heads(tied), tp.weights(fresh("gpt2"))):
        with pytest.raises(ValueError, match="counted of weights of the model itself"):
            tp.density_for(tied, sites, 1.1)
