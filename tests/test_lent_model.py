"""A model is lent for the length of one call: whatever happens in it, the model is as it was, and seen as it is."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, STYLES, error, fresh, probe, random_mask
from torch import Tensor, nn

from tlprune.backends.activations import Activations
from tlprune.backends.hooked_transformer import HookedTransformerBackend
from tlprune.graph import Graph
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.masking.sites import edges

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@pytest.fixture(params=STYLES)
def model(request: pytest.FixtureRequest) -> Any:
    return fresh(request.param)


@pytest.fixture
def gpt2() -> Any:
    return fresh("gpt2")


def state(model: Any) -> dict[str, Any]:
    """All of a model that a call could leave changed."""
    return {
        "parameters": [(name, id(value), value._version, value.requires_grad) for name, value in named(model)],
        "values": [value.detach().clone() for _, value in named(model)],
        "gradients": [value.grad for _, value in named(model)],
        "training": [module.training for module in model.modules()],
        "hooks": [(name, kind, dict(getattr(part, kind))) for name, part in model.named_modules() for kind in HOOKS],
        "points": [(name, list(point.fwd_hooks), list(point.bwd_hooks)) for name, point in model.hook_dict.items()],
        "config": {name: copy.copy(value) for name, value in vars(model.cfg).items()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def named(model: Any) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def assert_unchanged(before: dict[str, Any], model: Any) -> None:
    after = state(model)
    for was, now in zip(before["values"], after["values"], strict=True):
        assert torch.equal(was, now)
    assert {**before, "values": None} == {**after, "values": None}


def masked_of(model: Any, ablation: Any = None) -> Masked:
    return Masked(model, Masks(edges(model)), ablation)


def mask_of(model: Any, **options: Any) -> Tensor:
    return random_mask(Graph.of(model), **options)


def mixed_settings(model: Any) -> None:
    """Some parameters trainable, some modules in training mode, some hooks: nothing is as a fresh model has it."""
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    model.blocks[0].train()
    model.hook_dict["blocks.1.attn.hook_z"].add_hook(lambda value, hook: None)
    model.embed.register_forward_hook(lambda module, inputs, output: None)


@pytest.mark.parametrize("ablation", [Resample(), Zero(), Mean(CORRUPT)], ids=["resample", "zero", "mean"])
def test_nothing_changes_in_a_call_or_its_backward(model: Any, ablation: Any) -> None:
    mixed_settings(model)
    before = state(model)
    logits = masked_of(model, ablation)(CLEAN, CORRUPT, mask=mask_of(model))
    assert_unchanged(before, model)
    probe(logits).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_unchanged(before, model)


@pytest.mark.parametrize(
    "point", ["hook_embed", "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_z", "ln_final.hook_scale"]
)
@pytest.mark.parametrize("warm", [True, False])
def test_nothing_changes_when_a_call_fails(gpt2: Any, point: str, warm: bool) -> None:
    masked = masked_of(gpt2)
    if warm:
        masked(CLEAN, CORRUPT)
    mixed_settings(gpt2)
    gpt2.hook_dict[point].add_hook(lambda value, hook: 1 // 0)
    before = state(gpt2)
    with pytest.raises(ZeroDivisionError):
        masked(CLEAN, CORRUPT, mask=mask_of(gpt2))
    assert_unchanged(before, gpt2)


def test_the_plain_reference_changes_nothing_either(gpt2: Any) -> None:
    before = state(gpt2)
    replaced = Resample().replaced(HookedTransformerBackend(gpt2), CLEAN, CORRUPT)
    plain_run(gpt2, Graph.of(gpt2), CLEAN, mask_of(gpt2), replaced)
    assert_unchanged(before, gpt2)


# ---- hooks of a user


def hooked(model: Any, point: str, change: Callable[[Tensor], Tensor | None]) -> Tensor:
    """Logits of a masked run with a user's hook on one point, put there before the call."""
    masked, mask = masked_of(model), mask_of(model).detach()
    masked(CLEAN, CORRUPT, mask=mask)
    model.hook_dict[point].add_hook(lambda value, hook: change(value))
    replaced = Resample().replaced(HookedTransformerBackend(fresh("gpt2")), CLEAN, CORRUPT)
    return masked(CLEAN, mask=mask, replaced=replaced)


def edited(model: Any, edit: Callable[[Any], None], *, before: Callable[[Activations], Activations] | None) -> Tensor:
    """Logits of the plain sum on a model whose weights were edited, against the unedited counterfactual."""
    replaced = Resample().replaced(HookedTransformerBackend(model), CLEAN, CORRUPT)
    replaced = before(replaced) if before else replaced
    with torch.no_grad():
        edit(model)
    return plain_run(model, Graph.of(model), CLEAN, mask_of(model).detach(), replaced)


def halved_heads(replaced: Activations) -> Activations:
    """What replaces a head goes through the doubled W_O as well."""
    heads = (replaced.heads[0], replaced.heads[1] / 2, *replaced.heads[2:])
    return dataclasses.replace(replaced, heads=heads)


def zero_query(model: Any) -> None:
    model.blocks[1].attn.W_Q[2] = 0
    model.blocks[1].attn.b_Q[2] = 0


def zero_mlp(model: Any) -> None:
    model.blocks[1].mlp.W_out.zero_()
    model.blocks[1].mlp.b_out.zero_()


def zero_head(index: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value.index_fill(2, torch.tensor(index), 0.0)


EDITS = {
    "attn.hook_q": (zero_head(2), zero_query),
    "hook_mlp_out": (torch.zeros_like, zero_mlp),
    "attn.hook_z": (lambda z: 2 * z, lambda model: model.blocks[1].attn.W_O.mul_(2)),
    "hook_mlp_in": (lambda stream: 0 * stream, lambda model: model.blocks[1].ln2.w.zero_()),
}


@pytest.mark.parametrize("point", EDITS)
def test_a_hook_of_a_user_does_what_an_edit_of_the_weights_does(point: str) -> None:
    """On readers it comes after ours, on writers before: it changes what the model computes, not what we measure."""
    change, edit = EDITS[point]
    expected = edited(fresh("gpt2"), edit, before=halved_heads if point == "attn.hook_z" else None)
    found = hooked(fresh("gpt2"), f"blocks.1.{point}", change)
    assert error(found, expected) <= 1e-9
    assert error(found, hooked(fresh("gpt2"), f"blocks.1.{point}", lambda value: None)) > 1e-3


def test_a_user_sees_masked_activations(gpt2: Any) -> None:
    """Readers' inputs as mixed, writers' outputs as written: with every edge kept, those of the model."""
    _, expected = gpt2.run_with_cache(CLEAN.ids)
    masked, seen = masked_of(gpt2), {}
    points = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_pattern", "hook_mlp_out"]
    masked(CLEAN, CORRUPT)
    for point in points:
        gpt2.hook_dict[f"blocks.2.{point}"].add_hook(lambda value, hook: seen.__setitem__(hook.name, value.clone()))
    masked(CLEAN, CORRUPT, mask=torch.ones(masked.graph.n_edges))
    for name, value in seen.items():
        assert error(value, expected[name]) <= 1e-9, name
    assert len(seen) == len(points)


@pytest.mark.parametrize(
    "point", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "ln1.hook_scale"]
)
def test_a_hook_where_no_activation_is_left_is_refused(gpt2: Any, point: str) -> None:
    masked = masked_of(gpt2)
    masked(CLEAN, CORRUPT)
    gpt2.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: None)
    with pytest.raises(ValueError, match=rf"blocks\.1\.{point} holds no activation.*Hook a reader or writer instead"):
        masked(CLEAN, CORRUPT)
    gpt2.reset_hooks()
    masked(CLEAN, CORRUPT)


@pytest.mark.parametrize(
    ("flag", "point"),
    [
        ("use_attn_result", "attn.hook_result"),
        ("use_split_qkv_input", "hook_q_input"),
        ("use_split_qkv_input", "hook_v_input"),
        ("use_attn_in", "hook_attn_in"),
    ],
)
def test_hooks_behind_a_flag_are_refused_too(gpt2: Any, flag: str, point: str) -> None:
    setattr(gpt2.cfg, flag, True)
    masked = masked_of(gpt2)
    expected = masked_of(fresh("gpt2"))(CLEAN, CORRUPT, mask=mask_of(gpt2))
    assert error(masked(CLEAN, CORRUPT, mask=mask_of(gpt2)), expected) <= 1e-9
    gpt2.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: 0 * value)
    with pytest.raises(ValueError, match="holds no activation"):
        masked(CLEAN, CORRUPT)


# ---- refusals


REFUSED = {
    "a mixture of experts": {"num_experts": 2, "experts_per_token": 1},
    "4-bit weights": {"load_in_4bit": True},
    "shortformer positions": {"positional_embedding_type": "shortformer"},
    "OLMo 2": {"original_architecture": "Olmo2ForCausalLM"},
    "'SoLU'": {"normalization_type": "SoLU"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_model_whose_edges_would_be_wrong_is_refused_by_name(gpt2: Any, reason: str) -> None:
    for name, value in REFUSED[reason].items():
        setattr(gpt2.cfg, name, value)
    with pytest.raises(ValueError, match=f"'gpt2' has .*{reason}"):
        HookedTransformerBackend(gpt2)


def test_an_output_bias_before_a_norm_is_refused() -> None:
    model = fresh("gemma2")
    HookedTransformerBackend(model)
    with torch.no_grad():
        model.blocks[1].attn.b_O[0] = 0.1
    with pytest.raises(ValueError, match=r"'gemma2' layer 1 adds an output bias.*Supported"):
        HookedTransformerBackend(model)


def test_another_kind_of_model_is_refused() -> None:
    graph_of_model = Masks(edges(fresh("gpt2")))
    with pytest.raises(ValueError, match=r"needs one of .*TransformerBridge but got Linear"):
        Masked(nn.Linear(2, 2), graph_of_model)


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    """A call may draw a mask sample, and these tests let it; no later test is to depend on it."""
    before = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(before)
