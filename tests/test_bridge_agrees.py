"""One checkpoint as HookedTransformer and as TransformerBridge: the same names, weights, logits and circuits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bridges import EXACT, KINDS, bridged, hf_model
from hooked import NEEDS_HOOKED_TRANSFORMER
from plain_decoder import plain_logits
from styles import CLEAN, CORRUPT, error, probe, random_mask
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Convention, Graph
from tlprune.task import Tokens

SHARED = ["stories260K", "babyllama-tok105", "gpt-nano-sort"]
PLACES = ["edges", "heads", "mlps", "neurons", "nodes", "weights"]


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "llama_biased"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A HookedTransformer and a bridge from one directory."""
    directory = tmp_path_factory.mktemp("checkpoint") / kind
    hf_model(kind, torch.float32).double().save_pretrained(directory)
    return tp.load(directory, dtype=torch.float64, device="cpu"), tp.bridge(
        directory, dtype=torch.float64, device="cpu"
    )


@NEEDS_HOOKED_TRANSFORMER
def test_names_shapes_values_and_fingerprints_are_the_same(pair: tuple[Any, Any]) -> None:
    hooked, bridge = (backend_of(model) for model in pair)
    assert type(pair[0]).__name__ == "HookedTransformer"
    assert bridge.matrices() == hooked.matrices()
    ours, theirs = bridge.parameters(), hooked.parameters()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert bridge.fingerprint() == hooked.fingerprint()
    assert bridge.architecture == hooked.architecture


def test_another_weight_is_another_fingerprint() -> None:
    model = bridged("gpt2")
    before = backend_of(model).fingerprint()
    with torch.no_grad():
        model.blocks[1].attn.v.original_component.weight *= 2
    assert backend_of(model).fingerprint() != before
    assert backend_of(bridged("gpt2")).fingerprint() == before


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("convention", [Convention(), Convention("separate"), Convention("kept", "per_query_head")])
@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero(), tp.Mean(CORRUPT)], ids=["resample", "zero", "mean"])
def test_edge_masks_give_the_same_logits_and_gradients(
    kind: str, pair: tuple[Any, Any], convention: Convention, ablation: Any
) -> None:
    graph = Graph.of(pair[0], convention)
    mask = random_mask(graph)
    found = []
    for model in pair:
        sites = tp.edges(model, embeddings=convention.embeddings, kv=convention.kv)
        logits = tp.Masked(model, tp.Masks(sites), ablation)(CLEAN, CORRUPT, mask=mask)
        found.append((logits, torch.autograd.grad(probe(logits), mask)[0]))
    assert error(found[1][0], found[0][0]) <= EXACT[kind]
    assert error(found[1][1], found[0][1]) <= EXACT[kind]
    assert float(found[0][1].abs().max()) > 1e-4


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
def test_other_masks_do_too(kind: str, pair: tuple[Any, Any], place: str, norm: str) -> None:
    sites = getattr(tp, place)(pair[0])
    assert sites == getattr(tp, place)(pair[1])
    mask = 0.1 + 0.8 * torch.rand(len(sites), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask.requires_grad_()
    logits = [tp.Masked(model, tp.Masks(sites), norm=norm)(CLEAN, CORRUPT, mask=mask) for model in pair]
    ours, theirs = (torch.autograd.grad(probe(one), mask)[0] for one in reversed(logits))
    assert error(logits[1], logits[0]) <= EXACT[kind]
    assert error(ours, theirs) <= EXACT[kind]
    assert float(theirs.abs().max()) > 1e-6


# ---- real checkpoints


def prompts(model: Any) -> tuple[Tokens, Tokens]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.cfg.d_vocab, (2, 2, min(9, model.cfg.n_ctx)), generator=generator)
    return Tokens(ids[0]), Tokens(ids[1])


def masked_gradient(model: Any, sites: Any, mask: Tensor) -> Tensor:
    logits = tp.Masked(model, tp.Masks(sites))(*prompts(model), mask=mask)
    return torch.autograd.grad(probe(logits), mask)[0]


@pytest.mark.parametrize("name", SHARED)
def test_real_checkpoints_take_edge_and_head_masks_with_the_same_gradients(data_dir: Path, name: str) -> None:
    """``tp.load`` gives one or the other kind, by TransformerLens; ``tp.bridge`` a bridge on every one."""
    loaded, bridge = (make(data_dir / "models" / name, device="cpu") for make in (tp.load, tp.bridge))
    for sites in (tp.edges(bridge), tp.heads(bridge)):
        mask = torch.linspace(0.1, 0.9, len(sites)).requires_grad_()
        expected = masked_gradient(loaded, sites, mask)
        assert float((masked_gradient(bridge, sites, mask) - expected).norm() / expected.norm()) <= 1e-4


@pytest.mark.parametrize("name", SHARED)
def test_real_checkpoints_agree_with_the_definition(data_dir: Path, name: str) -> None:
    model = tp.bridge(data_dir / "models" / name, device="cpu")
    architecture = type(model.original_model).__name__
    whole = getattr(transformers, architecture).from_pretrained(data_dir / "models" / name, attn_implementation="eager")
    sites, (clean, corrupt) = tp.edges(model), prompts(model)
    mask = torch.linspace(0.1, 0.9, len(sites)).requires_grad_()
    logits = plain_logits(whole.eval().requires_grad_(False), sites.graph, clean.ids, corrupt.ids, mask)
    expected = torch.autograd.grad(probe(logits), mask)[0]
    assert float((masked_gradient(model, sites, mask) - expected).norm() / expected.norm()) <= 1e-4


# ---- circuits


def test_a_circuit_of_one_kind_is_a_circuit_of_the_other(tmp_path: Path) -> None:
    loaded, bridge = tp.load("testbed", device="cpu"), tp.bridge("testbed", device="cpu")
    task, again = tp.tasks.ioi(loaded), tp.tasks.ioi(bridge)
    assert torch.equal(task.test.clean.ids, again.test.clean.ids)
    found = tp.EdgePruning(edges=100, steps=2).find(loaded, task)
    found.save(tmp_path / "circuit.json")
    moved = tp.Circuit.load(tmp_path / "circuit.json")
    batch = task.test.rows(torch.arange(20))
    assert error(moved.on(bridge)(batch), found.on(loaded)(batch)) <= 2e-5


def test_edge_pruning_takes_the_same_steps() -> None:
    """From one seed, a few steps on either kind keep the same edges at gates that differ by rounding."""
    found = []
    for model in (tp.load("testbed", device="cpu"), tp.bridge("testbed", device="cpu")):
        masks = tp.Masks(tp.edges(model))
        masked = tp.Masked(model, masks)
        budget = tp.Lagrangian(tp.schedules.linear(0, 0.9, steps=8))
        tp.fit(masked, tp.tasks.ioi(model).discovery, tp.KL(), budget, steps=8, seed=0)
        found.append(masks.log_alpha.detach().clone())
    assert error(found[1], found[0]) <= 1e-4
    assert float(found[0].std()) > 1e-3
