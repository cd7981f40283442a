"""MLPs that are run again in the backward: the same gradients, of which a forward keeps no neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bridges import KINDS, bridged
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, CORRUPT, STYLES, fresh, model_of, probe, refuses_choice
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Edits
from tlprune.masking import recomputing
from tlprune.masking.recomputing import MOST_ALIVE, Recomputing, alive

WITH_MLPS = [style for style in STYLES if style != "attention_only"]


def masked_and_mask(model: Any, mlps: Any, sites: Callable[[Any], Any] = tp.edges) -> tuple[tp.Masked, Tensor]:
    """Masks that were run once, which tries what the MLPs of a model are, and mask values to train."""
    masked = tp.Masked(model, tp.Masks(sites(model)), mlps=mlps)
    values = torch.rand(len(masked.sites), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masked(CLEAN, CORRUPT, mask=values)
    return masked, values.requires_grad_()


def logits_and_gradient(
    model: Any, mlps: Any, sites: Callable[[Any], Any] = tp.edges
) -> tuple[Tensor, Tensor, list[int]]:
    """What a run gives, its gradient, and the last axis of everything that autograd keeps for it."""
    masked, mask = masked_and_mask(model, mlps, sites)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.dim() == 3:
            kept.append(tensor.shape[-1])
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        logits = masked(CLEAN, CORRUPT, mask=mask)
    return logits.detach(), torch.autograd.grad(probe(logits), mask)[0], kept


def check_same(model: Any, neurons: int) -> None:
    logits, gradient, kept = logits_and_gradient(model, "stored")
    assert neurons in kept
    again, same, fewer = logits_and_gradient(model, "recomputed")
    assert torch.equal(logits, again)
    assert torch.equal(gradient, same)
    assert neurons not in fewer


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", WITH_MLPS)
def test_gradients_are_the_same_and_no_neuron_is_kept(style: str) -> None:
    check_same(model_of(style), model_of(style).cfg.d_mlp)


@pytest.mark.parametrize("kind", KINDS)
def test_of_bridges_too(kind: str) -> None:
    check_same(bridged(kind), 48)


@NEEDS_HOOKED_TRANSFORMER
def test_masked_weights_of_mlps_keep_theirs() -> None:
    model = model_of("gpt2")

    def sites(model: Any) -> tp.Sites:
        return tp.edges(model) + tp.weights(model, "blocks.0.mlp.W_in")

    (_, expected, most), (_, found, few) = (
        logits_and_gradient(model, mlps, sites) for mlps in ("stored", "recomputed")
    )
    assert torch.equal(found, expected)
    assert 0 < few.count(model.cfg.d_mlp) < most.count(model.cfg.d_mlp)


def recomputed_layers(model: Any, edits: Edits | None = None) -> set[int]:
    return Recomputing(backend_of(model), 10, edits=edits or {}, mlps="recomputed").layers


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(
    "point", ["hook_mlp_in", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"]
)
def test_a_hook_of_the_users_is_in_the_gradient(point: str) -> None:
    """It would not be there in the backward of an MLP that is computed again."""
    model = fresh("gpt2")
    masked_and_mask(model, "recomputed")
    everywhere = recomputed_layers(model)
    assert everywhere == set(range(model.cfg.n_layers))
    model.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: value * 3)
    assert recomputed_layers(model) == everywhere - {1}
    found = [logits_and_gradient(model, mlps)[1] for mlps in ("stored", "recomputed")]
    assert torch.equal(*found)


@NEEDS_HOOKED_TRANSFORMER
def test_what_is_edited_inside_is_kept() -> None:
    model = model_of("gpt2")
    masked_and_mask(model, "recomputed")
    assert recomputed_layers(model, {("neurons", 1): lambda value: value}) == {0, *range(2, model.cfg.n_layers)}
    frozen = tp.Masked(model, tp.Masks(tp.edges(model)), norm="frozen", mlps="recomputed")
    assert frozen(CLEAN, CORRUPT).isfinite().all()


@NEEDS_HOOKED_TRANSFORMER
def test_a_hook_between_forward_and_backward_is_refused() -> None:
    model = fresh("gpt2")
    masked, mask = masked_and_mask(model, "recomputed")
    value = probe(masked(CLEAN, CORRUPT, mask=mask))
    with (
        model.hooks([("blocks.0.mlp.hook_post", lambda value, hook: 0 * value)]),
        pytest.raises(RuntimeError, match="hooks"),
    ):
        value.backward()


@NEEDS_HOOKED_TRANSFORMER
def test_a_weight_changed_between_forward_and_backward_is_refused() -> None:
    model = fresh("gpt2")
    masked, mask = masked_and_mask(model, "recomputed")
    value = probe(masked(CLEAN, CORRUPT, mask=mask))
    with torch.no_grad():
        model.blocks[0].mlp.W_in.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@NEEDS_HOOKED_TRANSFORMER
def test_mlps_that_do_more_than_their_modules_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gpt2")
    monkeypatch.setattr(
        model.blocks[0], "apply_mlp", lambda x: model.blocks[0].hook_mlp_out(2 * model.blocks[0].mlp(x))
    )
    found = [logits_and_gradient(model, mlps)[1] for mlps in ("stored", "recomputed")]
    assert torch.equal(*found)
    assert recomputed_layers(model) == set()


@NEEDS_HOOKED_TRANSFORMER
def test_small_runs_keep_theirs_and_large_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    backend = backend_of(model)
    masked_and_mask(model, "recomputed")
    many = MOST_ALIVE // alive(backend, 1) + 1
    assert not Recomputing(backend, many - 2, edits={}, mlps="auto").layers
    assert Recomputing(backend, many, edits={}, mlps="auto").layers
    assert not Recomputing(backend, many, edits={}, mlps="stored").layers
    monkeypatch.setattr(recomputing, "MOST_ALIVE", 0)
    assert model.cfg.d_mlp not in logits_and_gradient(model, "auto")[2]


@NEEDS_HOOKED_TRANSFORMER
def test_a_wrong_choice_is_named() -> None:
    with refuses_choice("mlps must be one of auto, stored, recomputed but is 'often'"):
        tp.Masked(model_of("gpt2"), tp.Masks(tp.edges(model_of("gpt2"))), mlps="often")  # pyright: ignore
